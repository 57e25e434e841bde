//! What the scheduler is held to: models that are plainly right, and nothing of how the engine does it.

mod build;
mod policy;

pub(crate) use build::{Build, GRACE, Played, RUNNERS};
pub(crate) use policy::{Model, Step, urgency};
