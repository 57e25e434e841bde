//! The traces of a run's steps: where they lie, and how what a step read compares with what it declares.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    parts::{CacheVerdict, RunParts},
    why::WhyError,
};
use crate::{
    ir::{CommandStep, on_change_paths},
    jail::trace::{Kinds, Trace, check_support},
    source::path_matches,
    store::{Run, Store},
};

/// The directory of a run's traces, in the run's directory.
pub(crate) const DIR: &str = "traces";

/// A step's trace, and the run that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepTrace {
    /// The run in which the step was executed. Not the one that was asked for, if the step was found in the
    /// cache.
    pub run: Uuid,
    /// The key of the step there.
    pub step: String,
    /// What it read.
    pub trace: Trace,
}

/// How what a step read of the source compares with the paths of its `on_change`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CheckedInputs {
    /// The files of the source that it read and that no path matches, relative to the source.
    pub undeclared: Vec<PathBuf>,
    /// The paths that match nothing of what it read.
    pub unused: Vec<String>,
}

/// Checks whether what steps in the sandbox read can be recorded by this process. Takes some 100 µs.
///
/// # Errors
/// Returns the reason if it cannot.
pub fn check_traces() -> Result<(), String> {
    check_support()
}

/// Returns the path of a step's trace in the directory of a run's traces. A step's key may contain any
/// character.
pub(crate) fn path(dir: &Path, step: &str) -> PathBuf {
    dir.join(&*blake3::hash(step.as_bytes()).to_hex())
}

/// Returns the trace of a run's step. If the step was found in the cache, returns that of the step that made
/// the result. Returns `None` if it was not traced.
///
/// # Errors
/// Returns an error if the trace, or the run's records, cannot be read.
pub fn trace_of(store: &Store, run: &Run, step: &str) -> Result<Option<StepTrace>, WhyError> {
    let dir = store.runs().dir(run.id);
    let unreadable = |dir: &Path| {
        let dir = dir.to_owned();
        move |source| WhyError::Run { dir, source }
    };
    let parts = RunParts::read(&dir).map_err(unreadable(&dir))?;
    let verdict = parts.as_ref().and_then(|parts| parts.step(step)).map(|parts| &parts.verdict);
    let (run, step) = match verdict {
        Some(CacheVerdict::Hit { run, step, .. }) => (*run, step.to_string()),
        Some(CacheVerdict::Miss { .. }) | None => (run.id, step.to_owned()),
    };
    let dir = store.runs().dir(run);
    let bytes = match fs::read(path(&dir.join(DIR), &step)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(unreadable(&dir))?,
    };
    let trace = Trace::decode(&bytes).map_err(|error| unreadable(&dir)(io::Error::other(error)))?;
    Ok(Some(StepTrace { run, step, trace }))
}

/// Returns the paths of a step's `on_change`, or `None` if its cache policy has none.
#[must_use]
pub fn declared_inputs(step: &CommandStep) -> Option<Vec<String>> {
    let paths = on_change_paths(step.cache.as_deref()?).ok().filter(|paths| !paths.is_empty())?;
    Some(paths.into_iter().map(str::to_owned).collect())
}

/// Compares a trace with the paths of `on_change`. The step saw the source at `workdir`; `source` is its
/// directory on this machine, by which files of the source are told from those of images and other steps.
#[must_use]
pub fn check_inputs(trace: &Trace, on_change: &[String], workdir: &str, source: &Path) -> CheckedInputs {
    let below = format!("{}/", workdir.trim_end_matches('/'));
    let root = source.canonicalize().ok();
    // A link counts with what it leads to in the source.
    let leads_to = |pattern: &String| -> Option<Vec<u8>> {
        let real = source.join(pattern).canonicalize().ok()?;
        Some(real.strip_prefix(root.as_ref()?).ok()?.as_os_str().as_bytes().to_vec())
    };
    let targets: Vec<_> = on_change.iter().map(leads_to).collect();
    let is_in = |path: &[u8], dir: &[u8]| {
        path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || dir.is_empty() || rest[0] == b'/')
    };
    let mut used = vec![false; on_change.len()];
    let mut undeclared = Vec::new();
    for (path, kinds) in &trace.entries {
        let Some(path) = path.strip_prefix(below.as_bytes()) else { continue };
        let is_read =
            [Kinds::CONTENT, Kinds::METADATA, Kinds::LINK, Kinds::LISTING].iter().any(|kind| kinds.contains(*kind));
        if !is_read {
            continue;
        }
        let mut is_declared = false;
        for ((pattern, target), used) in on_change.iter().zip(&targets).zip(&mut used) {
            if path_matches(pattern, path) || target.as_ref().is_some_and(|target| is_in(path, target)) {
                (*used, is_declared) = (true, true);
            }
        }
        let has_content = kinds.contains(Kinds::CONTENT) || kinds.contains(Kinds::LINK);
        if !is_declared && has_content {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            if source.join(path).symlink_metadata().is_ok() {
                undeclared.push(path.to_owned());
            }
        }
    }
    let unused = on_change.iter().zip(used).filter(|(_, used)| !used).map(|(pattern, _)| pattern.clone()).collect();
    CheckedInputs { undeclared, unused }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(paths: &[(&str, Kinds)]) -> Trace {
        let entries = paths.iter().map(|(path, kinds)| (path.as_bytes().to_vec(), *kinds)).collect();
        Trace { entries, ..Trace::default() }
    }

    #[test]
    fn a_key_is_no_path() {
        let dir = Path::new("/run/traces");
        for step in ["build", "../../etc", "a/b", ""] {
            assert_eq!(path(dir, step).parent(), Some(dir), "{step}");
        }
        assert_ne!(path(dir, "a"), path(dir, "b"));
    }

    #[test]
    fn files_of_the_source_that_no_path_matches_are_undeclared() {
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("src")).unwrap();
        for file in ["Makefile", "src/a.c", "README"] {
            fs::write(source.path().join(file), "").unwrap();
        }
        let it = trace(&[
            ("/usr/bin/make", Kinds::CONTENT),
            ("/workspace", Kinds::LISTING),
            ("/workspace/Makefile", Kinds::CONTENT),
            ("/workspace/README", Kinds::METADATA),
            ("/workspace/made.o", Kinds::CONTENT),
            ("/workspace/src/a.c", Kinds::CONTENT),
        ]);
        let checked = check_inputs(&it, &["src".into(), "*.md".into()], "/workspace", source.path());
        assert_eq!(checked.undeclared, [PathBuf::from("Makefile")]);
        assert_eq!(checked.unused, ["*.md"]);
        assert_eq!(check_inputs(&it, &["**".into()], "/workspace", source.path()), CheckedInputs::default());
        std::os::unix::fs::symlink("src", source.path().join("link")).unwrap();
        let checked = check_inputs(&it, &["link".into(), "Makefile".into()], "/workspace", source.path());
        assert_eq!(checked, CheckedInputs::default(), "a link counts with its target");
    }
}
