//! Runs an Action, over as many connections as it takes.

use bazel_remote_apis::google::{
    longrunning::{CancelOperationRequest, Operation, operation, operations_client::OperationsClient},
    protobuf::Any,
};
use futures_util::{Stream, stream};
use prost::Message;
use tonic::{Request, Streaming};

use super::{
    Digest, Endpoint, RemoteError, RemoteErrorKind,
    endpoint::{MAX_MESSAGE_BYTES, Seat},
    reapi,
    reapi::execution_client::ExecutionClient,
    retry::retried,
};

/// The maximum number of restarts: an engine that forgets an Action so often will not run it.
const MAX_RESTARTS: u32 = 5;

/// The stage of an Action that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The engine does not report it, or checks its cache.
    Unknown,
    /// The Action waits for a worker.
    Queued,
    /// A worker has it.
    Executing,
}

/// A progress report of an engine that runs an Action.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// The engine has accepted the Action.
    Progress {
        /// The name of the operation, which is used to cancel it.
        operation: String,
        /// The stage that it has reached.
        stage: Stage,
        /// The resource name of its standard output while it runs; empty if it cannot be read.
        stdout_stream: String,
        /// The same for its standard error.
        stderr_stream: String,
    },
    /// The Action has ended. The status in the response says how, and whether there is a result.
    Done(Box<reapi::ExecuteResponse>),
}

/// Runs Actions.
#[derive(Debug, Clone)]
pub struct Execution {
    endpoint: Endpoint,
}

impl Execution {
    /// Returns a client of the execution service at `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Runs an Action whose blobs have all been uploaded, and reports its progress until it is done. If a
    /// connection breaks, the Action is awaited over another one; if the engine has forgotten the Action, it
    /// is started again. The stream ends with the response, or with the first permanent error.
    pub fn run(
        &self,
        action: Digest,
        skip_cache_lookup: bool,
    ) -> impl Stream<Item = Result<Update, RemoteError>> + Send + use<> {
        let request = reapi::ExecuteRequest {
            instance_name: self.endpoint.instance().to_owned(),
            skip_cache_lookup,
            action_digest: Some(action.into()),
            inline_stdout: true,
            inline_stderr: true,
            inline_output_files: vec!["result.json".into()],
            digest_function: action.function.number(),
            ..Default::default()
        };
        let running = Running {
            endpoint: self.endpoint.clone(),
            request,
            operation: None,
            answer: None,
            failures: 0,
            restarts: 0,
        };
        stream::unfold(Some(running), async |running| {
            let mut running = running?;
            match running.next().await {
                Ok(done @ Update::Done(_)) => Some((Ok(done), None)),
                Ok(update) => Some((Ok(update), Some(running))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Asks the engine to cancel an Action.
    ///
    /// # Errors
    /// Returns an error if the engine cannot cancel it, such as [`RemoteErrorKind::Unimplemented`].
    pub async fn cancel(&self, operation: &str) -> Result<(), RemoteError> {
        let cancelled = retried!(self.endpoint.retry(), {
            let mut client = OperationsClient::new(self.endpoint.service().await);
            let request = CancelOperationRequest { name: operation.to_owned() };
            let answer = client.cancel_operation(self.endpoint.request(request)).await;
            answer.map(drop).map_err(|status| self.endpoint.error(&status))
        });
        match cancelled {
            // The Action has just ended.
            Err(error) if error.kind() == RemoteErrorKind::NotFound => Ok(()),
            cancelled => cancelled,
        }
    }

    /// Converts the status of a response to an error. Returns `None` for a success.
    #[must_use]
    pub fn error_of(&self, response: &reapi::ExecuteResponse) -> Option<RemoteError> {
        let status = response.status.as_ref().filter(|status| status.code != 0)?;
        let error = self.endpoint.answer_error(status);
        // Elsewhere, the code means that an answer did not come in time. Here it is about the Action.
        let is_verdict = status.code == tonic::Code::DeadlineExceeded as i32;
        Some(if is_verdict { error.of_kind(RemoteErrorKind::TimedOut) } else { error })
    }
}

/// One Action that was submitted.
struct Running {
    endpoint: Endpoint,
    request: reapi::ExecuteRequest,
    operation: Option<String>,
    answer: Option<(Streaming<Operation>, Seat)>,
    failures: u32,
    restarts: u32,
}

impl Running {
    async fn next(&mut self) -> Result<Update, RemoteError> {
        loop {
            let error = match self.try_next().await {
                Ok(update) => {
                    self.failures = 0;
                    return Ok(update);
                }
                Err(error) => error,
            };
            self.answer = None;
            let is_forgotten = error.kind() == RemoteErrorKind::NotFound && self.operation.is_some();
            if is_forgotten && self.restarts < MAX_RESTARTS {
                tracing::debug!(%error, "the engine forgot an Action; starting it again");
                self.restarts += 1;
                self.operation = None;
            } else if !error.is_transient() {
                return Err(error);
            }
            self.failures += 1;
            if self.failures >= self.endpoint.retry().attempts {
                return Err(error);
            }
            tokio::time::sleep(self.endpoint.retry().pause(self.failures)).await;
        }
    }

    async fn try_next(&mut self) -> Result<Update, RemoteError> {
        let endpoint = self.endpoint.clone();
        let failed = |status: tonic::Status| endpoint.error(&status);
        let answer = match &mut self.answer {
            Some((answer, _)) => answer,
            None => {
                let (service, seat) = self.endpoint.long_call().await;
                let mut client = ExecutionClient::new(service).max_decoding_message_size(2 * MAX_MESSAGE_BYTES);
                let answer = match &self.operation {
                    Some(name) => {
                        client.wait_execution(Request::new(reapi::WaitExecutionRequest { name: name.clone() })).await
                    }
                    None => client.execute(Request::new(self.request.clone())).await,
                };
                &mut self.answer.insert((answer.map_err(failed)?.into_inner(), seat)).0
            }
        };
        let Some(operation) = answer.message().await.map_err(failed)? else {
            let why = "the stream ended before the Action";
            return Err(self.endpoint.own_error(RemoteErrorKind::Unavailable, why));
        };
        if !operation.name.is_empty() {
            self.operation = Some(operation.name.clone());
        }
        let corrupt = |error: prost::DecodeError| endpoint.own_error(RemoteErrorKind::Corrupt, error.to_string());
        match operation.result {
            Some(operation::Result::Response(Any { value, .. })) if operation.done => {
                Ok(Update::Done(Box::new(reapi::ExecuteResponse::decode(&value[..]).map_err(corrupt)?)))
            }
            Some(operation::Result::Error(status)) if operation.done => {
                Ok(Update::Done(Box::new(reapi::ExecuteResponse { status: Some(status), ..Default::default() })))
            }
            _ if operation.done => {
                Err(self.endpoint.own_error(RemoteErrorKind::Corrupt, "the Action is done, but has no result"))
            }
            _ => {
                // Unknown metadata carries no information, but is no reason to fail.
                let metadata = operation.metadata.map(|any| any.value).unwrap_or_default();
                let metadata = reapi::ExecuteOperationMetadata::decode(&metadata[..]).unwrap_or_default();
                Ok(Update::Progress {
                    operation: operation.name,
                    stage: match metadata.stage() {
                        reapi::execution_stage::Value::Queued => Stage::Queued,
                        reapi::execution_stage::Value::Executing => Stage::Executing,
                        _ => Stage::Unknown,
                    },
                    stdout_stream: metadata.stdout_stream_name,
                    stderr_stream: metadata.stderr_stream_name,
                })
            }
        }
    }
}
