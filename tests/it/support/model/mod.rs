//! Reference models of the scheduler that are evidently right and do not depend on how the engine works.

mod build;
mod policy;

pub(crate) use build::{Build, GRACE, Played, RUNNERS};
pub(crate) use policy::{Alone, Model, Step, urgency};
