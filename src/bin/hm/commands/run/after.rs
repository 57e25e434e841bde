//! What follows a build that has ended: its page in a browser, and its trace for a collector.
//!
//! The result of the build is known and shown by then. Nothing here changes it.

use hm_exec::{BuildOutcome, BuildStatus, store::StoreHandle};

use crate::{commands::report, otlp};

/// What the user wants after a build.
#[derive(Debug)]
pub(super) struct After {
    /// Whether to show it in a browser.
    pub(super) open: bool,
    /// The collector that the user's files name.
    pub(super) collector: Option<String>,
}

impl After {
    pub(super) fn run(&self, store: &StoreHandle, outcome: &BuildOutcome) {
        let Some(store) = store.get_opened() else { return };
        let run = outcome.build.run_id;
        // A user who cancels a build does not want to see its page.
        let is_cancelled = outcome.status == BuildStatus::Canceled;
        if self.open
            && !is_cancelled
            && let Err(failure) = report::open_page(&store, run)
        {
            failure.warn();
        }
        otlp::export(&store, run, self.collector.as_deref(), is_cancelled);
    }
}
