//! The conformance suite: what every runner promises, as cases that run over any of them.
//!
//! In: a runner and an image that it boots. Out: a [`Report`] with one named case for each promise. Which of them apply comes
//! from the runner's [`capabilities`](crate::runner::RunnerCapabilities): what it does not claim is in the report as not
//! promised. The cases drive the runner through the [`StepRunner`](crate::runner::StepRunner) contract and look at what it
//! did through the public events, as an engine would; they know nothing of any runner.
//!
//! Commands of the cases need a POSIX shell with the usual small programs, such as those of busybox. A runner whose steps
//! run on this machine is also held to leave no process of theirs in `/proc`.
//!
//! # Examples
//!
//! ```
//! use hm_exec::{
//!     conformance::{Suite, Verdict},
//!     runner::process::ProcessRunner,
//!     store::StoreHandle,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let runner = ProcessRunner::new(StoreHandle::new(dir.path()));
//! let suite = Suite::new(&runner, "host");
//! assert_eq!(suite.run_case("no-trailing-newline").await, Some(Verdict::Passed));
//! assert_eq!(suite.run_case("host-files").await, Some(Verdict::NotPromised { capability: "isolation" }));
//! // The whole of it, in a test of the runner's: `suite.run().await.assert_passed()`.
//! # Ok(())
//! # }
//! ```

mod case;
mod cases;
mod lab;
mod report;
mod suite;

pub use report::{CaseReport, Report, Verdict};
pub use suite::Suite;
