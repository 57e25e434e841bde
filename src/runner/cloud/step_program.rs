//! The program that runs a step on a worker.

use std::path::PathBuf;

use tokio::sync::OnceCell;

use crate::{
    blocking,
    remote::{Blob, DigestFunction},
    runner::RunnerError,
    step::{self, NoStepProgram},
};

/// The path of the program, and its blob once that was requested.
#[derive(Debug, Default)]
pub(super) struct StepProgram {
    named: Option<PathBuf>,
    blob: OnceCell<Blob>,
}

impl StepProgram {
    /// Uses the given program, or the one that is found by default.
    pub(super) fn new(named: Option<PathBuf>) -> Self {
        Self { named, blob: OnceCell::new() }
    }

    /// Returns the program as a blob. The file is read only once: an engine has one digest function.
    pub(super) async fn blob(&self, function: DigestFunction) -> Result<Blob, RunnerError> {
        let blob = self.blob.get_or_try_init(async || {
            let program = self.locate().map_err(|error| RunnerError::unsupported(error.to_string()))?;
            blocking::run("read hm-step", move || {
                let failed = |error| RunnerError::unsupported(format!("failed to read {program}: {error}"));
                match program.path() {
                    Some(path) => Ok(Blob::of_file(function.of_file(path).map_err(failed)?, path)),
                    None => Ok(Blob::named_by(function, &*program.bytes().map_err(failed)?)),
                }
            })
            .await
        });
        blob.await.cloned()
    }

    /// Returns the location of the program.
    pub(super) fn locate(&self) -> Result<step::StepProgram, NoStepProgram> {
        step::locate(self.named.as_deref())
    }
}
