//! Runs and steps given as `[RUN/]STEP`, the snapshot that a step left, and visits to it.

use hm_exec::source;
use std::{
    io,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use hm_exec::{
    SnapshotRef, StepStatus,
    event::{self, StepRecord},
    image::{ExportTarget, ImageOptions},
    runner::sandbox::{SandboxExportError, SandboxRunner, Streams, Visit, VisitError, VisitOperation},
    source::FrozenSource,
    store::{ImageDigest, Lease, Run, SnapshotConfig, Store, StoreError},
};

use crate::{
    args::existing_dir,
    failure::{Failure, Outcome},
    pipelines::{Source, nearest},
    render::to_stderr,
    runners,
};

/// How many of a directory's runs are searched for a step. The last run of each pipeline is among them.
const RUNS: u32 = 100;

/// The snapshot that a step of a run left, with a lease on it.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) run: Run,
    pub(crate) step: StepRecord,
    pub(crate) surroundings: Arc<SnapshotConfig>,
    snapshot: SnapshotRef,
    source: FrozenSource,
    sandbox: SandboxRunner,
    _lease: Lease,
}

impl Left {
    /// Finds the snapshot of `[RUN/]STEP`. Without a run, searches the last run of each pipeline of `dir`.
    pub(crate) fn find(text: &str, dir: Option<&Path>) -> Outcome<Self> {
        let store = open_store()?;
        let lease = store.lease().map_err(unreadable)?;
        let (run, steps, key) = find_run(&store, text, dir)?;
        let step = find_step(&run, &steps, key)?;
        Self::open(&store, lease, run, step)
    }

    /// Finds the snapshot and the path of `[RUN/]STEP:PATH`.
    pub(crate) fn find_path<'a>(text: &'a str, dir: Option<&Path>) -> Outcome<(Self, &'a str)> {
        let store = open_store()?;
        let lease = store.lease().map_err(unreadable)?;
        let (run, steps, rest) = find_run(&store, text, dir)?;
        // Keys may have colons, too, so the longest matching key wins.
        let fits = |step: &&StepRecord| rest.strip_prefix(&*step.key).is_some_and(|rest| rest.starts_with(':'));
        let at = steps.iter().filter(fits).map(|step| step.key.len()).max().or_else(|| rest.find(':'));
        let Some(at) = at else {
            return Err(Failure::input(format_args!("`{text}` has no path"))
                .hint("use [RUN/]STEP:PATH, as in `hm cp test:report.xml .`"));
        };
        let step = find_step(&run, &steps, &rest[..at])?;
        Ok((Self::open(&store, lease, run, step)?, &rest[at + 1..]))
    }

    fn open(store: &Arc<Store>, lease: Lease, run: Run, step: StepRecord) -> Outcome<Self> {
        let snapshot = find_snapshot(store, &run, &step)?;
        let found = store.snapshots().get(&snapshot).map_err(unreadable)?;
        if let Some(reason) = store.snapshots().damage(&snapshot).map_err(unreadable)? {
            return Err(Failure::infrastructure(format_args!(
                "the files of step `{}` are damaged: {reason}",
                step.key
            ))
            .hint("run the pipeline again"));
        }
        let source = match source::FrozenSource::find(store, &found.source).map_err(unreadable)? {
            Some(source) => source,
            None => {
                to_stderr(&format!(
                    "note: the source of that run is no longer in the store; using the current content of {}",
                    run.source_dir.display()
                ));
                let frozen = source::freeze(store, &run.source_dir, &AtomicBool::new(false));
                frozen.map_err(|error| Failure::infrastructure("failed to freeze the source").because(error))?
            }
        };
        let surroundings = store.snapshots().config(&snapshot).map_err(unreadable)?.unwrap_or_else(|| {
            // The snapshot was made by an older version.
            Arc::new(SnapshotConfig::in_workdir("/workspace"))
        });
        let sandbox = runners::sandbox(&Arc::clone(store).into(), &surroundings.host_dirs, ImageOptions::default());
        Ok(Self { run, step, surroundings, snapshot, source, sandbox, _lease: lease })
    }

    /// Describes the run, the step, and how it ended, for the user.
    pub(crate) fn describe(&self) -> String {
        let id = self.run.id.to_string();
        format!("step `{}` of run {} ({})", self.step.key, &id[..8], describe(&self.step))
    }

    /// Makes a visit. Returns the exit code, or an error if there is none.
    pub(crate) async fn visit(&self, operation: VisitOperation<'_>, streams: Streams) -> Result<i32, VisitError> {
        self.sandbox.visit(Visit::new(&self.snapshot, &self.source, operation), streams).await
    }

    /// Writes the step's snapshot as an image. Returns its digest.
    pub(crate) async fn export(&self, to: ExportTarget) -> Result<ImageDigest, SandboxExportError> {
        self.sandbox.export(&self.snapshot, &self.source, to).await
    }

    /// Returns the failure of a visit.
    pub(crate) fn failed(&self, error: VisitError) -> Failure {
        match error {
            VisitError::Operation { doing, source } if is_about_the_path(&source) => {
                Failure::input(format_args!("failed to {doing} in the files of step `{}`", self.step.key))
                    .because(source)
            }
            error => Failure::infrastructure(format_args!("failed to open the files of step `{}`", self.step.key))
                .because(error)
                .hint("run `hm doctor` to check the sandbox"),
        }
    }
}

/// Returns whether an error is caused by the path rather than by the machine.
pub(crate) fn is_about_the_path(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidFilename
    )
}

pub(crate) fn open_store() -> Outcome<Arc<Store>> {
    runners::store()?.get().map_err(|error| Failure::infrastructure("failed to open the store").because(error))
}

fn unreadable(error: StoreError) -> Failure {
    Failure::infrastructure("failed to read the store").because(error)
}

/// Returns the run that `text` names, its steps, and the part of the text after the run.
pub(crate) fn find_run<'a>(
    store: &Store,
    text: &'a str,
    dir: Option<&Path>,
) -> Outcome<(Run, Vec<StepRecord>, &'a str)> {
    let head = text.split_once(':').map_or(text, |(head, _)| head);
    let is_id = |prefix: &str| prefix.len() >= 4 && prefix.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if let Some((prefix, _)) = head.split_once('/').filter(|(prefix, _)| is_id(prefix)) {
        let mut found = store.runs().find(prefix).map_err(unreadable)?;
        let rest = &text[prefix.len() + 1..];
        match found.len() {
            0 => {
                return Err(Failure::input(format_args!("no run with id prefix `{prefix}`")).hint(
                    "it may have been removed by garbage collection; without `RUN/`, the last run of this directory \
                     is used",
                ));
            }
            1 => {
                let run = found.remove(0);
                let steps = steps_of(store, &run)?;
                return Ok((run, steps, rest));
            }
            _ => {
                return Err(Failure::input(format_args!("several runs have id prefix `{prefix}`"))
                    .details(found.iter().map(|run| format!("{} ({})", run.id, run.pipeline)))
                    .hint("use a longer prefix"));
            }
        }
    }
    let here = existing_dir(dir.unwrap_or(Path::new(".")))?;
    let dirs = [Source::locate(dir)?.dir, here];
    let mut runs = Vec::new();
    for dir in if dirs[0] == dirs[1] { &dirs[..1] } else { &dirs[..] } {
        runs.extend(store.runs().of(dir, None, RUNS).map_err(unreadable)?);
    }
    let mut pipelines: Vec<String> = Vec::new();
    let mut newest = None;
    for run in runs {
        if pipelines.contains(&run.pipeline) {
            continue;
        }
        pipelines.push(run.pipeline.clone());
        let steps = steps_of(store, &run)?;
        let key_of = |step: &StepRecord| {
            let rest = text.strip_prefix(&*step.key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        if steps.iter().any(key_of) {
            return Ok((run, steps, text));
        }
        newest.get_or_insert((run, steps, text));
    }
    newest.ok_or_else(|| {
        Failure::input(format_args!("no runs of pipelines in {}", dirs[0].display()))
            .hint("run a pipeline first, set its source directory with `-d DIR`, or name a run, as in `RUN/STEP`")
    })
}

/// Returns the last run of a directory, and its steps.
pub(crate) fn last_run(store: &Store, dir: Option<&Path>) -> Outcome<(Run, Vec<StepRecord>)> {
    // No step has an empty key, so the newest run is the result.
    find_run(store, "", dir).map(|(run, steps, _)| (run, steps))
}

fn steps_of(store: &Store, run: &Run) -> Outcome<Vec<StepRecord>> {
    event::step_records(store.runs().dir(run.id)).map_err(|error| {
        Failure::infrastructure(format_args!("failed to read the journal of run {}", run.id))
            .because(error)
            .hint("it may have been removed by garbage collection: run the pipeline again")
    })
}

pub(crate) fn find_step(run: &Run, steps: &[StepRecord], key: &str) -> Outcome<StepRecord> {
    if let Some(step) = steps.iter().find(|step| &*step.key == key) {
        return Ok(step.clone());
    }
    let keys: Vec<String> = steps.iter().map(|step| step.key.to_string()).collect();
    let failure = Failure::input(format_args!(
        "no step named `{key}` in run {} of pipeline `{}`",
        &run.id.to_string()[..8],
        run.pipeline
    ));
    let known = if keys.len() > 20 { format!("{}, ...", keys[..20].join(", ")) } else { keys.join(", ") };
    Err(match nearest(key, &keys) {
        Some(near) => failure.hint(format_args!("did you mean `{near}`? (steps: {known})")),
        None => failure.hint(format_args!("steps: {known}")),
    })
}

fn find_snapshot(store: &Store, run: &Run, step: &StepRecord) -> Outcome<SnapshotRef> {
    if let Some((snapshot, _)) = store.steps().of_run(run.id, &step.key).map_err(unreadable)? {
        return Ok(snapshot);
    }
    if let Some(snapshot) = &step.snapshot
        && store.snapshots().get(snapshot).is_ok()
    {
        return Ok(snapshot.clone());
    }
    let key = &step.key;
    let passed = matches!(step.status, Some(StepStatus::Passed | StepStatus::CacheHit));
    Err(if step.status.is_some() && step.exit_code == Some(-1) {
        Failure::input(format_args!("step `{key}` did not run ({}), so it has no files", describe(step)))
            .hint("inspect the step before it that did not pass")
    } else if step.status.is_none() {
        Failure::input(format_args!("step `{key}` has not ended, or hm was killed: its files were not kept"))
            .hint("see its output with `hm logs`, or run the pipeline again")
    } else if &*step.runner == "process" || &*step.runner == "cloud" && !passed {
        Failure::input(format_args!(
            "runner `{}` does not keep the files of step `{key}` ({})",
            step.runner,
            describe(step)
        ))
        .hint("run it in the sandbox: `hm run --runner sandbox`")
    } else if passed {
        Failure::input(format_args!("the files of step `{key}` were not kept ({})", describe(step)))
            .hint("run with `hm run --keep` to keep the files of every step, or give the step a cache policy")
    } else if step.status == Some(StepStatus::Infrastructure) {
        Failure::input(format_args!("step `{key}` could not run: its files were not kept"))
            .hint("see the run's output for the reason, then run the pipeline again")
    } else if &*step.runner == "docker" {
        Failure::input(format_args!("the container of step `{key}` was not kept ({})", describe(step)))
            .hint("run with `hm run --keep` to keep the files of every step, which is slow on runner docker")
    } else {
        Failure::input(format_args!("the files of step `{key}` are no longer in the store ({})", describe(step)))
            .hint("they were removed by garbage collection, or could not be stored: run the pipeline again")
    })
}

/// Describes how a step ended, for the user.
pub(crate) fn describe(step: &StepRecord) -> String {
    let code = || step.exit_code.unwrap_or(-1);
    match step.status {
        None => "not ended".into(),
        Some(StepStatus::Passed) => "passed".into(),
        Some(StepStatus::CacheHit) => "passed, cached".into(),
        Some(StepStatus::Failed) => format!("failed with exit code {}", code()),
        Some(StepStatus::Skipped) => "skipped".into(),
        Some(StepStatus::Canceled) => "cancelled".into(),
        Some(StepStatus::TimedOut) => "timed out".into(),
        Some(StepStatus::OutOfMemory) => "out of memory".into(),
        Some(StepStatus::Infrastructure) => "could not run".into(),
        Some(other) => format!("{other:?}").to_lowercase(),
    }
}
