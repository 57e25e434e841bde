//! Outputs: files of steps that are copied to `.hm/out` of the source directory, and the test results among
//! them.
//!
//! Input: a tar stream that a runner makes of the files which match a step's patterns. Output: the files, the
//! names under which users find them, and test results. The module knows neither runners nor the plan.

#![allow(dead_code, reason = "only some runners have outputs")]

#[cfg(feature = "junit")]
mod junit;
#[cfg(all(test, feature = "junit"))]
mod junit_oracle;
mod out_dir;
mod receive;

use std::{
    fmt,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

#[cfg(feature = "junit")]
pub use self::junit::{MalformedJunit, read_junit};
pub(crate) use self::out_dir::clear;
pub(crate) use self::receive::{Chosen, Receiving, StreamNames};
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
    /// The paths at which the step has files of other steps.
    inputs: Vec<Arc<str>>,
    mask: Mask,
    collected: Mutex<Option<Collected>>,
}

/// Whether everything has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complete {
    Yes,
    /// The sender failed, and reports why.
    No,
}

/// What became of outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// They are in their place.
    All,
    /// They were incomplete, which the sender reports.
    Incomplete,
    /// They could not be written, which has been reported. The sender may have failed because of that.
    Failed,
}

/// A stream whose end is noted.
struct Watched<R> {
    stream: R,
    has_ended: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.has_ended |= read == 0 && !buffer.is_empty();
        Ok(read)
    }
}

/// How secrets are replaced in texts.
#[derive(Clone, Default)]
pub(crate) struct Mask(Option<Arc<MaskFn>>);

type MaskFn = dyn Fn(&str) -> String + Send + Sync;

impl Mask {
    /// Returns a text without secrets.
    pub(crate) fn text(&self, text: &str) -> String {
        self.0.as_ref().map_or_else(|| text.to_owned(), |mask| mask(text))
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Mask" } else { "no mask" })
    }
}

/// The directory that the outputs of a step are copied to.
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
        Self { patterns, place, inputs: Vec::new(), mask: Mask::default(), collected: Mutex::new(None) }
    }

    /// Sets the paths at which the step has files of other steps. What is there is not the step's own.
    pub(crate) fn without(self, inputs: impl Iterator<Item = Arc<str>>) -> Self {
        Self { inputs: inputs.collect(), ..self }
    }

    /// Sets how secrets are replaced in names of files and in test results, also in warnings.
    pub(crate) fn mask(self, mask: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self { mask: Mask(Some(Arc::new(mask))), ..self }
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

    /// Returns the patterns that are relative to the work directory, for a runner whose steps see the files
    /// of the machine. Logs a warning if there are others.
    pub(crate) fn below_workdir(&self) -> Vec<String> {
        let (absolute, relative): (Vec<_>, Vec<_>) =
            self.patterns.iter().map(ToString::to_string).partition(|pattern| pattern.starts_with('/'));
        if let Some(first) = absolute.first() {
            let step = &*self.place.step;
            tracing::warn!(step, "outputs outside of the work directory are not copied on this runner: `{first}`");
        }
        relative
    }

    /// Copies the files of a stream that [`pack_matching`](crate::tree::pack_matching) made. The work
    /// directory is `workdir` in its names. Blocks.
    ///
    /// `is_complete` is asked at the end of the stream. If it returns false, nothing is replaced, and the
    /// sender reports why.
    pub(crate) fn receive(&self, stream: impl Read, workdir: &str, is_complete: impl FnOnce() -> bool) -> Received {
        self.receive_by(|receiving| {
            let mut stream = Watched { stream, has_ended: false };
            let added = receiving.add(&mut stream, StreamNames { workdir, only: None });
            if added.is_ok() {
                // What follows the archive is nothing but padding.
                io::copy(&mut stream, &mut io::sink())?;
            }
            if stream.has_ended && !is_complete() { Ok(Complete::No) } else { added.map(|()| Complete::Yes) }
        })
    }

    /// Copies the files that `add` adds, and replaces what was copied for an earlier attempt if they are
    /// complete. Blocks.
    pub(crate) fn receive_by(&self, add: impl FnOnce(&mut Receiving<'_>) -> io::Result<Complete>) -> Received {
        let received = Receiving::new(&self.place, &self.mask).and_then(|receiving| {
            let mut receiving = receiving.without(&self.inputs);
            match add(&mut receiving)? {
                Complete::Yes => receiving.finish().map(Some),
                Complete::No => Ok(None),
            }
        });
        let OutputPlace { source_dir, pipeline, step } = &self.place;
        let received = match received {
            Ok(Some(collected)) => {
                *self.collected.lock() = Some(collected);
                return Received::All;
            }
            Ok(None) => Received::Incomplete,
            Err(error) => {
                let place = self.place.shown();
                tracing::warn!(step = &**step, "failed to copy the step's outputs to {}: {error}", place.display());
                Received::Failed
            }
        };
        // What an earlier attempt left is not what this one has.
        *self.collected.lock() = None;
        if let Err(error) = clear(source_dir, pipeline, Some(&**step)) {
            tracing::debug!(step = &**step, %error, "failed to remove outputs of an earlier attempt");
        }
        received
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
