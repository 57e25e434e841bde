//! The conformance suite: the promises of every runner, as cases that work with any of them.
//!
//! The input is a runner and an image that it boots. The output is a [`Report`] with one named case for each
//! promise. The runner's [`capabilities`](crate::runner::RunnerCapabilities) determine which cases apply: the
//! report lists what it does not claim as not promised. The cases drive the runner through the
//! [`StepRunner`](crate::runner::StepRunner) contract and observe it through the public events, as an engine
//! would. They know nothing of any particular runner.
//!
//! Commands of the cases need a POSIX shell with the usual small programs, such as those of busybox. If steps
//! run on this machine, the suite also checks that none of their processes is left in `/proc`.
//!
//! # Examples
//!
//! ```
//! use hm_exec::{
//!     conformance::{Suite, CaseVerdict},
//!     runner::process::ProcessRunner,
//!     store::StoreHandle,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let runner = ProcessRunner::new(StoreHandle::new(dir.path()));
//! let suite = Suite::new(&runner, "host");
//! assert_eq!(suite.run_case("no-trailing-newline").await, Some(CaseVerdict::Passed));
//! assert_eq!(suite.run_case("host-files").await, Some(CaseVerdict::NotPromised { capability: "isolation" }));
//! // To run the whole suite in a test of the runner: `suite.run().await.assert_passed()`.
//! # Ok(())
//! # }
//! ```

mod case;
mod cases;
mod harness;
mod report;
mod suite;

pub use report::{CaseReport, CaseVerdict, Report};
pub use suite::Suite;
