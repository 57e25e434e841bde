//! How runners that fetch images report progress and errors to the user of a step.

use uuid::Uuid;

use crate::{
    event::EventBus,
    image::{ImageError, Notes},
    model::{Activity, ActivityCount, StdStream},
    runner::RunnerError,
};

/// Reports the progress of a step's image to the user.
pub(crate) struct StepNotes<'a> {
    pub(super) bus: &'a EventBus,
    pub(super) step_id: Uuid,
}

impl Notes for StepNotes<'_> {
    async fn note(&self, mut line: String) {
        line.push('\n');
        self.bus.output(self.step_id, StdStream::Stderr, line.as_bytes()).await;
    }

    fn progress(&self, activity: Activity, count: Option<ActivityCount>) {
        self.bus.progress(Some(self.step_id), activity, count);
    }
}

/// Converts an image error to a runner error. Fetching has already made all worthwhile attempts, so only the
/// store's own errors can be retried.
pub(super) fn no_image(error: ImageError) -> RunnerError {
    match error {
        ImageError::Store(error) => RunnerError::infrastructure("get the image", error),
        error => RunnerError::unsupported(format!("failed to get the image: {:#}", anyhow::Error::new(error))),
    }
}
