//! Outputs: files of steps that are copied to `.hm/out` of the source directory, and the test results among
//! them.
//!
//! Input: a tar stream that a runner makes of the files which match a step's patterns. Output: the files, the
//! names under which users find them, and test results. The module knows neither runners nor the plan.

#![allow(dead_code, reason = "only some runners have outputs")]

mod junit;
#[cfg(test)]
mod junit_oracle;
mod out_dir;
mod receive;

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::junit::{MalformedJunit, read_junit};
use crate::{
    model::{ArtifactRef, TestResults},
    sync::Mutex,
    tree::{PackLimits, PathPatterns, PatternError},
};

/// The limits of one step's outputs.
pub(crate) const LIMITS: PackLimits = PackLimits { files: 10_000, bytes: 4 << 30 };

/// The outputs that a step has asked for, and what was copied so far.
#[derive(Debug)]
pub struct StepOutputs {
    patterns: Arc<[Arc<str>]>,
    place: OutputPlace,
    collected: Mutex<Option<Collected>>,
}

/// Where the outputs of a step are copied to.
#[derive(Debug, Clone)]
pub(crate) struct OutputPlace {
    pub(crate) source_dir: PathBuf,
    pub(crate) pipeline: Arc<str>,
    pub(crate) step: Arc<str>,
}

/// What was copied.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) artifacts: Vec<ArtifactRef>,
    pub(crate) tests: Option<TestResults>,
}

impl StepOutputs {
    pub(crate) fn new(patterns: Arc<[Arc<str>]>, place: OutputPlace) -> Self {
        Self { patterns, place, collected: Mutex::new(None) }
    }

    /// Returns the patterns as paths below the root of the step's files. `workdir` is where relative patterns
    /// start.
    pub(crate) fn below_root(&self, workdir: &str) -> Vec<String> {
        let below = |pattern: &Arc<str>| match pattern.starts_with('/') {
            true => pattern.to_string(),
            false => format!("{workdir}/{pattern}"),
        };
        self.patterns.iter().map(below).collect()
    }

    /// Returns the patterns that are relative to the work directory.
    pub(crate) fn below_workdir(&self) -> Vec<String> {
        self.patterns.iter().filter(|pattern| !pattern.starts_with('/')).map(ToString::to_string).collect()
    }

    /// Copies the files of a stream that [`pack_matching`](crate::tree::pack_matching) made. The work
    /// directory is `workdir` in its names. What was copied for an earlier attempt is replaced when
    /// `is_complete` returns true at the end of the stream. Problems are warnings. Blocks.
    pub(crate) fn receive(&self, stream: impl Read, workdir: &str, is_complete: impl FnOnce() -> bool) {
        let step = &*self.place.step;
        let collected = match receive::receive(&self.place, stream, Path::new(workdir.trim_matches('/')), is_complete) {
            Ok(collected) => collected,
            Err(error) => {
                let place = self.place.shown();
                tracing::warn!(step, "failed to copy the step's outputs to {}: {error}", place.display());
                Collected::default()
            }
        };
        *self.collected.lock() = Some(collected);
    }

    /// Notes that the outputs could not be read.
    pub(crate) fn failed(&self, error: impl std::fmt::Display) {
        tracing::warn!(step = &*self.place.step, "failed to read the step's outputs: {error}");
    }

    /// Returns what was copied since the last call.
    pub(crate) fn take(&self) -> Collected {
        self.collected.lock().take().unwrap_or_default()
    }
}

impl OutputPlace {
    /// Returns the directory to display.
    fn shown(&self) -> PathBuf {
        self.source_dir.join(out_dir::path(&self.pipeline, &self.step))
    }
}

/// Checks the patterns of a step.
///
/// # Errors
/// Returns the first pattern that is wrong, with the reason.
pub(crate) fn check<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<(), (&'a str, PatternError)> {
    PathPatterns::parse(patterns).map(drop)
}

/// Parses patterns that were checked before.
///
/// # Errors
/// Returns an error if they were not.
pub(crate) fn parse(patterns: &[String]) -> io::Result<PathPatterns> {
    let parsed = PathPatterns::parse(patterns.iter().map(String::as_str));
    parsed.map_err(|(pattern, error)| io::Error::other(format!("`{pattern}` is not {error}")))
}
