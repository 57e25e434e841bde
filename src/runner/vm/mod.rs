//! Runners based on machines that start from an image, run a command and can be saved: virtual machines,
//! containers.
//!
//! ```text
//!   create(image) ──┐
//!                   ├─▶ inject(source) ─▶ exec ─┬─ exited 0, a snapshot is needed ─▶ snapshot
//!   restore(name) ──┘                           └─ anything else ──────────────────▶ destroy
//! ```
//!
//! The input is an [`ExecutorInput`](crate::ExecutorInput). The output is the command's output on the event
//! bus, and a snapshot of the backend. The runner is responsible for the order of operations, sources, time
//! and cancellation. A backend knows none of them, and may be in a crate of its own. It is static: a
//! machine's futures are not boxed.
//!
//! A backend that supports the store's layers starts its machines over those instead ([`VmBackend::boot`]),
//! with the source as one of them, and commits a machine's changes as a layer ([`Vm::commit`]). Steps can
//! then move between it and other runners.
//!
//! # Examples
//!
//! A backend whose machines are directories, with commands that run in them. It provides no isolation, and
//! background processes of a command continue to run; the conformance suite would report both.
#![cfg_attr(feature = "conformance", doc = "```")]
#![cfg_attr(not(feature = "conformance"), doc = "```ignore")]
//! use std::{fs, path::PathBuf, process::Stdio};
//!
//! use hm_exec::{
//!     conformance::{CaseVerdict, Suite},
//!     event::StdStream,
//!     runner::{
//!         Limits, RunnerError,
//!         vm::{Command, Injection, Output, Vm, VmBackend, VmRunner},
//!     },
//!     store::StoreHandle,
//! };
//!
//! #[derive(Debug)]
//! struct Directories(PathBuf);
//!
//! struct Directory {
//!     root: tempfile::TempDir,
//!     saved: PathBuf,
//! }
//!
//! fn failed(error: std::io::Error) -> RunnerError {
//!     RunnerError::infrastructure("use a directory", error)
//! }
//!
//! impl VmBackend for Directories {
//!     const NAME: &'static str = "directories";
//!     type Vm = Directory;
//!
//!     async fn create(&self, _image: &str, _: &Limits) -> Result<Directory, RunnerError> {
//!         let root = tempfile::tempdir_in(&self.0).map_err(failed)?;
//!         Ok(Directory { root, saved: self.0.join("saved") })
//!     }
//!
//!     async fn restore(&self, snapshot: &str, limits: &Limits) -> Result<Option<Directory>, RunnerError> {
//!         let vm = self.create("", limits).await?;
//!         let from = vm.saved.join(snapshot).join(".");
//!         let mut cp = std::process::Command::new("cp");
//!         let copied = cp.arg("-a").arg(from).arg(vm.root.path()).stderr(Stdio::null()).status();
//!         Ok(copied.map_err(failed)?.success().then_some(vm))
//!     }
//!
//!     async fn remove(&self, snapshot: &str) -> Result<(), RunnerError> {
//!         fs::remove_dir_all(self.0.join("saved").join(snapshot)).map_err(failed)
//!     }
//! }
//!
//! impl Vm for Directory {
//!     async fn inject(&mut self, files: Injection) -> Result<(), RunnerError> {
//!         let dir = self.root.path().join(files.dir.strip_prefix("/").unwrap_or(&files.dir));
//!         for path in files.removed {
//!             // Directories that are not empty stay.
//!             let _ = fs::remove_file(dir.join(&path)).or_else(|_| fs::remove_dir(dir.join(&path)));
//!         }
//!         fs::create_dir_all(&dir).map_err(failed)?;
//!         tar::Archive::new(files.archive).unpack(&dir).map_err(failed)
//!     }
//!
//!     async fn exec(&self, command: &Command<'_>, output: &Output<'_>) -> Result<i32, RunnerError> {
//!         let dir = self.root.path().join(command.workdir.trim_start_matches('/'));
//!         let mut shell = tokio::process::Command::new("/bin/sh");
//!         shell.arg("-c").arg(command.script).envs(command.env).current_dir(dir);
//!         shell.stdin(Stdio::null()).kill_on_drop(true);
//!         let printed = shell.output().await.map_err(failed)?;
//!         output.write(StdStream::Stdout, &printed.stdout).await;
//!         output.write(StdStream::Stderr, &printed.stderr).await;
//!         Ok(printed.status.code().unwrap_or(128 + 9))
//!     }
//!
//!     async fn terminate(&self) {}
//!
//!     async fn snapshot(self) -> Result<String, RunnerError> {
//!         let name = self.root.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
//!         fs::create_dir_all(&self.saved).map_err(failed)?;
//!         fs::rename(self.root.path(), self.saved.join(&name)).map_err(failed)?;
//!         Ok(name)
//!     }
//!
//!     async fn destroy(self) {}
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let runner = VmRunner::new(Directories(dir.path().into()), StoreHandle::new(dir.path().join("store")));
//! let suite = Suite::new(&runner, "any");
//! for case in ["exit-codes", "order-within-a-stream", "siblings", "edited-source", "reaping"] {
//!     assert_eq!(suite.run_case(case).await, Some(CaseVerdict::Passed), "{case}");
//! }
//! # Ok(())
//! # }
//! ```

mod backend;
mod runner;
mod services;

pub use backend::{BootContext, Command, EndedStep, Injection, MachineBase, NetworkRole, Output, Vm, VmBackend};
pub use runner::VmRunner;
