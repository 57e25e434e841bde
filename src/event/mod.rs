//! Events: the journal, raw logs, subscribers, masking, and the JSON that readers see.
//!
//! Output is appended as raw bytes to a file per attempt; the journal holds ranges into it, and the state events, each
//! shown after it was written. Nobody waits for a reader. Knows nothing of rendering.

mod log;
mod types;

pub use log::{EventBus, EventStream, EventWriter, RunDir, RunMeta, StateEvent, StepMeta, create};
pub use types::{BuildEvent, BuildRef, EVENT_SCHEMA_VERSION, PlanSummary, StdStream};

/// Lines longer than this are given to readers in parts, in bytes.
pub const MAX_LINE_BYTES: usize = 1 << 20;
