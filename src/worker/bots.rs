//! The engine's interface for bot sessions, as a session uses it.

use std::time::Duration;

use prost::Message;
use tonic::{Request, Status};

use super::rwapi::{BotSession, CreateBotSessionRequest, UpdateBotSessionRequest, bots_client::BotsClient};
use crate::remote::{Endpoint, reapi::ExecuteOperationMetadata};

/// The key of the metadata that accompany the leases of an answer.
const METADATA: &str = "executeoperationmetadata-bin";

/// The engine's answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Answer {
    /// The session in the engine's view.
    pub(super) session: BotSession,
    /// The log streams for the lease's output; empty if the engine does not want it.
    pub(super) streams: Streams,
}

/// The names of the log streams for a lease's output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Streams {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// An engine that assigns work.
pub(super) trait Bots {
    /// Creates a session. Waits up to `wait` for a lease.
    fn create(&self, session: BotSession, wait: Duration) -> impl Future<Output = Result<Answer, Status>>;

    /// Reports the state of a session, and returns the engine's view of it. Waits up to `wait` for a lease if
    /// the session has none.
    ///
    /// # Cancel safety
    /// If the future is dropped, the engine may have assigned a lease that this worker does not know about.
    fn update(&self, session: BotSession, wait: Duration) -> impl Future<Output = Result<Answer, Status>>;

    /// Returns the message of a failed call, without secrets.
    fn tell(&self, status: &Status) -> String;
}

impl Bots for Endpoint {
    async fn create(&self, session: BotSession, wait: Duration) -> Result<Answer, Status> {
        let message = CreateBotSessionRequest { parent: self.instance().to_owned(), bot_session: Some(session) };
        let mut request = Request::new(message);
        request.set_timeout(wait);
        let answer = BotsClient::new(self.service().await).create_bot_session(request).await?;
        // This call does not return log streams.
        Ok(Answer { session: answer.into_inner(), streams: Streams::default() })
    }

    async fn update(&self, session: BotSession, wait: Duration) -> Result<Answer, Status> {
        let message =
            UpdateBotSessionRequest { name: session.name.clone(), bot_session: Some(session), update_mask: None };
        let mut request = Request::new(message);
        request.set_timeout(wait);
        let answer = BotsClient::new(self.service().await).update_bot_session(request).await?;
        // A session has at most one lease.
        let metadata = answer.metadata().get_bin(METADATA).and_then(|value| value.to_bytes().ok());
        let metadata = metadata.and_then(|bytes| ExecuteOperationMetadata::decode(bytes).ok()).unwrap_or_default();
        let streams = Streams { stdout: metadata.stdout_stream_name, stderr: metadata.stderr_stream_name };
        Ok(Answer { session: answer.into_inner(), streams })
    }

    fn tell(&self, status: &Status) -> String {
        self.error(status).to_string()
    }
}
