//! Events: the journal, raw logs, subscribers, masking, and the JSON that readers see.
//!
//! Input: state events from the dispatcher ([`EventWriter`]) and bytes of output from runners ([`EventBus`]).
//! Output: a stream of [`BuildEvent`]s ([`EventStream`]), the same for every reader, while the build runs or
//! years later ([`JournalReader`]).
//!
//! ```text
//! dispatcher -- emit --------------------> pending -- flush: one write --> journal -+
//!                                             ^                                     +-> readers: BuildEvents
//! runner -- output --> masking --> raw log ---+ ranges         raw log files -------+
//! ```
//!
//! Output is appended as raw bytes to a file per attempt. The journal holds ranges into it, and the state
//! events; readers see an event only after it was written. Nothing waits for a reader. The module does not
//! know rendering, runners, or schedules.

mod activities;
mod attempt;
mod batch;
mod bus;
mod connections;
mod create;
mod cursor;
mod follow;
mod frames;
mod journal;
mod json;
mod lines;
mod live;
mod logs;
mod mask;
mod meta;
mod record;
mod replay;
mod run_record;
mod shared;
mod stream;
mod table;
mod temporary;
mod trailing;
mod types;
mod wake;
mod writer;

pub use crate::{
    log_file::LogFile,
    model::{
        Activity, ActivityCount, BuildRef, CacheMissReason, Connection, ConnectionEnd, Protocol, ShadowVerdict,
        StdStream,
    },
};
pub use batch::{EventBatch, LogLines};
pub use bus::EventBus;
pub use connections::{ConnectionRecord, connections};
pub use create::{RunDir, create};
pub use follow::{Followed, JournalFollower, follow, is_running};
pub use frames::JournalError;
pub(crate) use live::Subscriber;
pub use logs::{compress_logs, has_long_logs, last_log, log_files};
pub(crate) use mask::Held;
#[cfg(feature = "sandbox")]
pub(crate) use mask::SecretSearch;
pub use mask::mask;
pub use meta::{
    PlanDetails, RunMeta, ServerRun, StateEvent, StepCommand, StepEndDetails, StepMeta, step_id, step_index,
};
pub use replay::{JournalReader, StepCost, durations, open, step_costs};
pub use run_record::{AttemptTimes, LogPiece, RunRecord, StepRecord, log_pieces, run_record, step_records};
pub use stream::EventStream;
pub use types::{BuildEvent, EVENT_SCHEMA_VERSION, PlanSummary};
pub use writer::EventWriter;
pub(crate) use writer::is_full;

/// The maximum length of a line in an event, in bytes. Longer lines are split into parts.
pub const MAX_LINE_BYTES: usize = 1 << 20;
