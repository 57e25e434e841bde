//! How runners that fetch images tell a step's user of it: what goes on, and what went wrong.

use uuid::Uuid;

use crate::{
    event::{EventBus, StdStream},
    runner::RunnerError,
    store::{ImageError, Notes},
};

/// Tells a step's user how its image is coming along.
pub(crate) struct StepNotes<'a> {
    pub(super) bus: &'a EventBus,
    pub(super) step_id: Uuid,
}

impl Notes for StepNotes<'_> {
    async fn note(&self, mut line: String) {
        line.push('\n');
        self.bus.output(self.step_id, StdStream::Stderr, line.as_bytes()).await;
    }
}

/// Fetching has made all the attempts that are worth it; what is left is the store's own trouble.
pub(super) fn no_image(error: ImageError) -> RunnerError {
    match error {
        ImageError::Store(error) => RunnerError::infrastructure("get the image", error),
        error => RunnerError::unsupported(format!("failed to get the image: {:#}", anyhow::Error::new(error))),
    }
}
