//! The environment of a case: a source tree, runs of steps on the runner, and their results.

mod expect;
mod run;
mod step;

use std::{fs, io, mem, path::PathBuf, sync::Arc};

use tempfile::TempDir;

pub(super) use self::{
    expect::{Broken, expect},
    run::Run,
    step::{Done, Step},
};
use crate::{
    model::{Secrets, SnapshotRef, StdStream},
    runner::{DynStepRunner, StepContext},
    sync::Mutex,
};

/// The environment of one case.
#[derive(Debug)]
pub(super) struct Harness<'r> {
    pub(super) runner: &'r dyn DynStepRunner,
    pub(super) peer: Option<&'r dyn DynStepRunner>,
    /// Whether cases with many steps run only a few of them.
    pub(super) sampled: bool,
    image: Arc<str>,
    dir: TempDir,
    /// The contexts of all runs so far.
    contexts: Mutex<Vec<StepContext>>,
}

impl<'r> Harness<'r> {
    pub(super) fn new(
        runner: &'r dyn DynStepRunner,
        peer: Option<&'r dyn DynStepRunner>,
        image: Arc<str>,
        sampled: bool,
    ) -> io::Result<Self> {
        let harness = Self { runner, peer, sampled, image, dir: tempfile::tempdir()?, contexts: Mutex::default() };
        fs::create_dir(harness.source())?;
        Ok(harness)
    }

    /// Ends all runs.
    pub(super) async fn end(&self) {
        let contexts = mem::take(&mut *self.contexts.lock());
        for context in contexts {
            context.end_build().await;
        }
    }

    /// Returns the user's source tree.
    pub(super) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// Returns a path on this machine that no step may see.
    pub(super) fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Returns the image that root steps boot from.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    pub(super) fn run(&self) -> Result<Run, Broken> {
        self.run_with(Secrets::new())
    }

    pub(super) fn run_with(&self, secrets: Secrets) -> Result<Run, Broken> {
        Run::new(self, secrets)
    }

    /// Runs one step in a run of its own.
    pub(super) async fn step(&self, step: Step) -> Result<Done, Broken> {
        self.run()?.step(self.runner, step).await
    }

    /// Runs a step that must pass, in a run of its own. Returns its standard output.
    pub(super) async fn sh(&self, step: Step) -> Result<Vec<String>, Broken> {
        let done = self.step(step).await?;
        done.passed()?;
        Ok(done.lines(StdStream::Stdout))
    }

    /// Runs a step that must pass, in a run of its own. Returns its snapshot.
    pub(super) async fn snapshot(&self, step: Step) -> Result<SnapshotRef, Broken> {
        self.step(step.commit()).await?.snapshot()
    }
}
