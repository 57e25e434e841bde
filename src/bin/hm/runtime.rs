//! The async runtime of a command.

use tokio::runtime::{Builder, Runtime};

use crate::failure::{Failure, Outcome};

/// Starts a runtime with one thread, and others for blocking work when it is needed.
pub(crate) fn runtime() -> Outcome<Runtime> {
    let built = Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::infrastructure("failed to start the runtime").because(error))
}
