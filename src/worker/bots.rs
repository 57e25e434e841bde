//! The engine's side of bot sessions, as a session sees it.

use std::time::Duration;

use prost::Message;
use tonic::{Request, Status};

use super::rwapi::{BotSession, CreateBotSessionRequest, UpdateBotSessionRequest, bots_client::BotsClient};
use crate::remote::{Endpoint, reapi::ExecuteOperationMetadata};

/// The metadata that come with the leases of an answer.
const METADATA: &str = "executeoperationmetadata-bin";

/// What the engine answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Answer {
    /// The session as the engine has it.
    pub(super) session: BotSession,
    /// Where the lease's output is to be written while it runs; empty where the engine does not want it.
    pub(super) streams: Streams,
}

/// Names to write a lease's output to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Streams {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// An engine that hands out work.
pub(super) trait Bots {
    /// Begins a session. Waits up to `wait` for a lease.
    fn create(&self, session: BotSession, wait: Duration) -> impl Future<Output = Result<Answer, Status>>;

    /// Tells the state of a session, and learns what the engine wants. Waits up to `wait` for a lease where there is room.
    ///
    /// # Cancel safety
    /// Dropped, the engine may have handed out a lease that nobody knows of.
    fn update(&self, session: BotSession, wait: Duration) -> impl Future<Output = Result<Answer, Status>>;

    /// What a failed call says, without secrets.
    fn tell(&self, status: &Status) -> String;
}

impl Bots for Endpoint {
    async fn create(&self, session: BotSession, wait: Duration) -> Result<Answer, Status> {
        let message = CreateBotSessionRequest { parent: self.instance().to_owned(), bot_session: Some(session) };
        let mut request = Request::new(message);
        request.set_timeout(wait);
        let answer = BotsClient::new(self.service().await).create_bot_session(request).await?;
        // No streams are told at this point.
        Ok(Answer { session: answer.into_inner(), streams: Streams::default() })
    }

    async fn update(&self, session: BotSession, wait: Duration) -> Result<Answer, Status> {
        let message =
            UpdateBotSessionRequest { name: session.name.clone(), bot_session: Some(session), update_mask: None };
        let mut request = Request::new(message);
        request.set_timeout(wait);
        let answer = BotsClient::new(self.service().await).update_bot_session(request).await?;
        // A session has one lease at most.
        let metadata = answer.metadata().get_bin(METADATA).and_then(|value| value.to_bytes().ok());
        let metadata = metadata.and_then(|bytes| ExecuteOperationMetadata::decode(bytes).ok()).unwrap_or_default();
        let streams = Streams { stdout: metadata.stdout_stream_name, stderr: metadata.stderr_stream_name };
        Ok(Answer { session: answer.into_inner(), streams })
    }

    fn tell(&self, status: &Status) -> String {
        self.error(status).to_string()
    }
}
