//! Actions from their request to their response.

use std::{
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bazel_remote_apis::google::{
    longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest, operation, operations_server::Operations,
    },
    protobuf::{Any, Empty},
    rpc,
};
use futures_util::{Stream, StreamExt, stream};
use hm_exec::remote::reapi::{self, execution_server::Execution, execution_stage::Value as Stage};
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{
    Function, Service, State,
    worker::{self, Work},
};

type Updates = Pin<Box<dyn Stream<Item = Result<Operation, Status>> + Send>>;

/// An Action that was accepted.
pub(super) struct Running {
    current: watch::Sender<Operation>,
    killed: CancellationToken,
}

impl Running {
    pub(super) fn is_done(&self) -> bool {
        self.current.borrow().done
    }

    pub(super) fn kill(&self) {
        self.killed.cancel();
    }

    fn updates(&self) -> Updates {
        let state = Some((self.current.subscribe(), true));
        let updates = stream::unfold(state, async |state| {
            let (mut current, is_first) = state?;
            if !is_first {
                current.changed().await.ok()?;
            }
            let operation = current.borrow_and_update().clone();
            let is_done = operation.done;
            Some((Ok(operation), (!is_done).then_some((current, false))))
        });
        updates.boxed()
    }

    fn set(&self, change: impl FnOnce(&mut Operation)) {
        self.current.send_modify(change);
    }
}

/// Returns the key of an Action's cached result.
pub(super) fn result_key(function: Function, action: Option<&reapi::Digest>) -> Result<String, Status> {
    let action = action.ok_or_else(|| Status::invalid_argument("the Action is missing"))?;
    Ok(format!("{function:?}/{}", action.hash))
}

/// Returns how an operation starts and proceeds: its stage, and where its output can be read.
fn metadata(state: &State, name: &str, stage: Stage) -> Any {
    let log = |stream: &str| if state.habits.shows_output { format!("logs/{name}/{stream}") } else { String::new() };
    let is_running = stage == Stage::Executing;
    let metadata = reapi::ExecuteOperationMetadata {
        stage: stage as i32,
        stdout_stream_name: if is_running { log("stdout") } else { String::new() },
        stderr_stream_name: if is_running { log("stderr") } else { String::new() },
        ..Default::default()
    };
    let type_url = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata".into();
    Any { type_url, value: metadata.encode_to_vec() }
}

fn finish(running: &Running, response: &reapi::ExecuteResponse) {
    let type_url = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse".into();
    let response = Any { type_url, value: response.encode_to_vec() };
    running.set(|operation| {
        operation.done = true;
        operation.result = Some(operation::Result::Response(response));
    });
}

/// Returns the response to an Action that failed, with what else this engine puts into it.
fn failure(state: &State, status: &Status, result: Option<reapi::ActionResult>) -> reapi::ExecuteResponse {
    let details = rpc::Status::decode(status.details()).map(|status| status.details).unwrap_or_default();
    let status = rpc::Status { code: status.code() as i32, message: status.message().into(), details };
    let zeros = || reapi::Digest { hash: "0".repeat(64), size_bytes: 0 };
    let result = if state.habits.zero_digests {
        Some(reapi::ActionResult {
            exit_code: -178,
            stdout_digest: Some(zeros()),
            stderr_digest: Some(zeros()),
            ..Default::default()
        })
    } else {
        result
    };
    reapi::ExecuteResponse { status: Some(status), result, ..Default::default() }
}

#[tonic::async_trait]
impl Execution for Service {
    type ExecuteStream = Updates;
    type WaitExecutionStream = Updates;

    async fn execute(&self, request: Request<reapi::ExecuteRequest>) -> Result<Response<Updates>, Status> {
        let (state, request) = (&self.0, request.into_inner());
        let function = state.function(request.digest_function)?;
        let action: reapi::Action = state.blobs.message(function, request.action_digest.as_ref())?;
        let asked = action.timeout.as_ref().map(|it| Duration::from_secs(u64::try_from(it.seconds).unwrap_or(0)));
        if let (Some(asked), Some(most)) = (asked, state.habits.max_timeout)
            && asked > most
        {
            state.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::invalid_argument(format!(
                "Action timeout of {} seconds is greater than the maximum allowed {} seconds",
                asked.as_secs(),
                most.as_secs()
            )));
        }
        state.timeouts.lock().unwrap().push(asked.map(|asked| asked.as_secs()));
        let key = result_key(function, request.action_digest.as_ref())?;
        let name = Uuid::new_v4().to_string();
        let operation = Operation {
            name: name.clone(),
            metadata: Some(metadata(state, &name, Stage::Queued)),
            ..Default::default()
        };
        let (current, killed) = (watch::Sender::new(operation), CancellationToken::new());
        let running = Arc::new(Running { current, killed });
        let updates = running.updates();
        let cached = state.results.lock().unwrap().get(&key).cloned();
        if let Some(result) = cached.filter(|_| !request.skip_cache_lookup) {
            let response = reapi::ExecuteResponse { result: Some(result), cached_result: true, ..Default::default() };
            finish(&running, &response);
            return Ok(Response::new(updates));
        }
        state.running.lock().unwrap().insert(name.clone(), Arc::clone(&running));
        if let Some(patience) = state.habits.abandons_after {
            tokio::spawn(reap(Arc::clone(&running), patience));
        }
        let limit = asked.or(state.habits.max_timeout);
        let work = Work { name, action, function, limit };
        let performing = tokio::spawn(perform(Arc::clone(state), Arc::clone(&running), work, key));
        let state = Arc::clone(state);
        // A fault of this engine must fail the test that met it, not leave it waiting.
        tokio::spawn(async move {
            if let Err(error) = performing.await {
                finish(&running, &failure(&state, &Status::unimplemented(format!("the test engine: {error}")), None));
            }
        });
        Ok(Response::new(updates))
    }

    async fn wait_execution(&self, request: Request<reapi::WaitExecutionRequest>) -> Result<Response<Updates>, Status> {
        let running = self.0.running.lock().unwrap().get(&request.into_inner().name).cloned();
        running.map(|it| Response::new(it.updates())).ok_or_else(|| Status::not_found("no such operation"))
    }
}

/// Kills an Action when no client has waited for it for so long.
async fn reap(running: Arc<Running>, patience: Duration) {
    while !running.is_done() {
        running.current.closed().await;
        tokio::time::sleep(patience).await;
        if running.current.receiver_count() == 0 {
            running.kill();
            return;
        }
    }
}

/// Returns the property for which no worker exists, if the Action names one.
fn unmet<'a>(state: &'a State, action: &reapi::Action) -> Option<&'a String> {
    let asked = action.platform.iter().flat_map(|platform| &platform.properties);
    let asked: Vec<&String> = asked.map(|property| &property.name).collect();
    state.habits.lists.iter().find(|listed| asked.contains(listed))
}

async fn perform(state: Arc<State>, running: Arc<Running>, work: Work, key: String) {
    let cancelled = || failure(&state, &Status::cancelled("the operation was cancelled"), None);
    if unmet(&state, &work.action).is_some() {
        running.killed.cancelled().await;
        return finish(&running, &cancelled());
    }
    if state.habits.replays > 0 && state.replayed.initialized() {
        state.waiting.wait().await;
        let response = reapi::ExecuteResponse { result: state.replayed.get().cloned(), ..Default::default() };
        return finish(&running, &response);
    }
    let caches = !work.action.do_not_cache;
    let (number, ran) = loop {
        let slot = tokio::select! {
            slot = state.slots.acquire() => slot.unwrap(),
            () = running.killed.cancelled() => return finish(&running, &cancelled()),
        };
        running.set(|operation| operation.metadata = Some(metadata(&state, &work.name, Stage::Executing)));
        let number = state.executed.fetch_add(1, Ordering::Relaxed);
        let worker = running.killed.child_token();
        let ran = {
            let mut ran = pin!(worker::run(&state, &work, &worker));
            tokio::select! {
                ran = &mut ran => ran,
                () = worker::prints(&state, &work.name), if number < state.habits.loses_workers => {
                    worker.cancel();
                    ran.await
                }
            }
        };
        drop(slot);
        if running.killed.is_cancelled() || !worker.is_cancelled() {
            break (number, ran);
        }
        worker::forget_output(&state, &work.name);
        running.set(|operation| operation.metadata = Some(metadata(&state, &work.name, Stage::Queued)));
    };
    let fails = state.habits.fails.filter(|(.., count)| number < *count);
    let response = match (ran, fails) {
        (Ok(result), Some((code, words, _))) => failure(&state, &Status::new(code, words), Some(result)),
        (Ok(result), None) => {
            if state.habits.replays > 0 && result.exit_code == 0 {
                // Another Action may have been the first one.
                let _ = state.replayed.set(result.clone());
            }
            if caches && result.exit_code == 0 {
                state.results.lock().unwrap().insert(key, result.clone());
            }
            reapi::ExecuteResponse { result: Some(result), ..Default::default() }
        }
        (Err((status, result)), _) => failure(&state, &status, result),
    };
    finish(&running, &response);
}

#[tonic::async_trait]
impl Operations for Service {
    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Result<Response<Empty>, Status> {
        if !self.0.habits.cancels {
            return Err(Status::new(Code::Unimplemented, "CancelOperation is not supported"));
        }
        let running = self.0.running.lock().unwrap().get(&request.into_inner().name).cloned();
        running.ok_or_else(|| Status::not_found("no such operation"))?.kill();
        Ok(Response::new(Empty {}))
    }

    async fn list_operations(
        &self,
        _: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        Err(Status::unimplemented("ListOperations"))
    }

    async fn get_operation(&self, _: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        Err(Status::unimplemented("GetOperation"))
    }

    async fn delete_operation(&self, _: Request<DeleteOperationRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("DeleteOperation"))
    }

    async fn wait_operation(&self, _: Request<WaitOperationRequest>) -> Result<Response<Operation>, Status> {
        Err(Status::unimplemented("WaitOperation"))
    }
}
