//! Where the output of a step's command goes.

use uuid::Uuid;

use super::attempt::OutputSink;
use crate::{event::EventBus, model::StdStream};

/// A step's output on the event bus.
pub(crate) struct StepOutput<'a> {
    pub(crate) bus: &'a EventBus,
    pub(crate) step_id: Uuid,
}

impl OutputSink for StepOutput<'_> {
    async fn output(&self, stream: StdStream, bytes: &[u8]) {
        self.bus.output(self.step_id, stream, bytes).await;
    }
}
