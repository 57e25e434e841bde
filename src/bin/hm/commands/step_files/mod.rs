//! The files of a step that has ended, and the commands that open them: `hm shell`, `hm cp`, and
//! `hm cache export`.

mod cp;
pub(super) mod export;
mod shell;

use std::{
    io,
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use hm_exec::{
    SnapshotRef, StepStatus,
    event::StepRecord,
    image::{ExportTarget, ImageOptions},
    quote::quote,
    runner::sandbox::{SandboxExportError, SandboxRunner, Streams, Visit, VisitError, VisitOperation},
    source::{self, FrozenSource, SourceTimes},
    store::{ImageDigest, Lease, Run, SnapshotConfig, Store},
};

use crate::{
    failure::{Failure, Outcome},
    find_step::{describe, find_run, find_step, unreadable},
    reporter::{text, to_stderr},
    runners::set::sandbox,
    store,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Shell(shell::Args),
    Cp(cp::Args),
}

pub(crate) fn run(command: &Command) -> Outcome<ExitCode> {
    match command {
        Command::Shell(args) => shell::run(args),
        Command::Cp(args) => cp::run(args),
    }
}

/// The files of a step that has ended, with a lease on its snapshot.
#[derive(Debug)]
struct StepFiles {
    run: Run,
    step: StepRecord,
    surroundings: Arc<SnapshotConfig>,
    snapshot: SnapshotRef,
    source: FrozenSource,
    sandbox: SandboxRunner,
    _lease: Lease,
}

impl StepFiles {
    /// Finds the snapshot of `[RUN/]STEP`. Without a run, searches the last run of each pipeline of `dir`.
    fn find(text: &str, dir: Option<&Path>) -> Outcome<Self> {
        let store = store::open()?;
        let lease = store.lease().map_err(unreadable)?;
        let (run, steps, key) = find_run(&store, text, dir)?;
        let step = find_step(&run, &steps, key)?;
        Self::open(&store, lease, run, step)
    }

    /// Finds the snapshot and the path of `[RUN/]STEP:PATH`.
    fn find_path<'a>(text: &'a str, dir: Option<&Path>) -> Outcome<(Self, &'a str)> {
        let store = store::open()?;
        let lease = store.lease().map_err(unreadable)?;
        let (run, steps, rest) = find_run(&store, text, dir)?;
        // Keys may have colons, too, so the longest matching key wins.
        let fits = |name: &str| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
        let longest =
            |name: fn(&StepRecord) -> &str| steps.iter().map(name).filter(|name| fits(name)).map(str::len).max();
        let at = longest(|step| &step.key).or_else(|| longest(|step| &step.display_name)).or_else(|| rest.find(':'));
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
            .hint(format_args!("run `hm run --refresh={}` to make them again", text::clean(&quote(&step.key)))));
        }
        let source = match FrozenSource::find(store, &found.source, SourceTimes::Normal).map_err(unreadable)? {
            Some(source) => source,
            None => {
                to_stderr(&format!(
                    "note: the source of that run is no longer in the store; using the current content of {}",
                    run.source_dir.display()
                ));
                let frozen = source::freeze(store, &run.source_dir, SourceTimes::Normal, &AtomicBool::new(false));
                frozen.map_err(|error| Failure::infrastructure("failed to freeze the source").because(error))?
            }
        };
        let surroundings = store.snapshots().config(&snapshot).map_err(unreadable)?.unwrap_or_else(|| {
            // The snapshot was made by an older version.
            Arc::new(SnapshotConfig::in_workdir("/workspace"))
        });
        let sandbox = sandbox(&Arc::clone(store).into(), &surroundings.host_dirs, ImageOptions::default());
        Ok(Self { run, step, surroundings, snapshot, source, sandbox, _lease: lease })
    }

    /// Describes the run, the step, and how it ended, for the user.
    fn describe(&self) -> String {
        let id = self.run.id.to_string();
        format!("step `{}` of run {} ({})", self.step.key, &id[..8], describe(&self.step))
    }

    /// Makes a visit. Returns the exit code, or an error if there is none.
    async fn visit(&self, operation: VisitOperation<'_>, streams: Streams) -> Result<i32, VisitError> {
        self.sandbox.visit(Visit::new(&self.snapshot, &self.source, operation), streams).await
    }

    /// Writes the step's snapshot as an image. Returns its digest.
    async fn export(&self, to: ExportTarget) -> Result<ImageDigest, SandboxExportError> {
        self.sandbox.export(&self.snapshot, &self.source, to).await
    }

    /// Returns the failure of a visit.
    fn failed(&self, error: VisitError) -> Failure {
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
fn is_about_the_path(error: &io::Error) -> bool {
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
    let passed = step.status.is_some_and(StepStatus::is_success);
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
