//! Plain names that several modules share: references to builds, steps and snapshots, how they end, and
//! secrets.
//!
//! A leaf: this module imports nothing of the crate, and holds no behaviour that needs more than its own
//! values. The public paths of these types are those of the modules that they belong to, such as
//! [`crate::runner::SnapshotRef`].

mod activity;
mod build;
mod connection;
mod egress;
mod outcome_rules;
mod pool;
mod secrets;
mod shadow;
mod snapshot;
mod step;
mod test_results;
mod usage;

pub(crate) use activity::REPORTED_EVERY;
pub use activity::{Activity, ActivityCount};
pub use build::{BuildRef, BuildStatus};
pub use connection::{Connection, ConnectionEnd, Protocol};
pub use egress::EgressRule;
pub use outcome_rules::{OutcomeRules, SoftFail};
pub use pool::Pool;
pub use secrets::Secrets;
pub use shadow::{ShadowVerdict, VerifiedStep};
pub use snapshot::{ArchiveId, ArtifactRef, SnapshotRef};
pub use step::{CacheMissReason, StdStream, StepIndex, StepStatus};
pub use test_results::{FailedTest, TestResults};
pub use usage::StepUsage;
