//! `hm report`.

mod junit;
mod trace;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use hm_exec::{
    event::{self, LogFile, StepRecord},
    plan::StepIndex,
    store::{Run, Store},
};

use super::logs;
use crate::{
    failure::{Failure, Outcome},
    find_step::{find_run, last_run, run_with_id, steps_of},
    store,
};

const LONG_HELP: &str = "\
Examples:
  hm report --junit report.xml             write the last run for programs that read test reports
  hm report 3fa2 --trace trace.json        write a timeline of an earlier run for ui.perfetto.dev";

/// Write a report of a run, for other programs
#[derive(Debug, clap::Args)]
#[command(after_help = LONG_HELP, arg_required_else_help = true)]
pub(crate) struct Args {
    /// The run, by a prefix of its id [default: the last run of this directory]
    run: Option<String>,

    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Write each step as a test case, in the format of JUnit
    #[arg(long, value_name = "FILE", required_unless_present = "trace")]
    junit: Option<PathBuf>,

    /// Write when each step ran, in the format of Chrome's traces
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// What reports are made of.
struct Report<'a> {
    store: &'a Store,
    run: &'a Run,
    steps: &'a [StepRecord],
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let (run, steps) = match &args.run {
        None => last_run(&store, args.dir.as_deref())?,
        Some(id) => match run_with_id(&store, id)? {
            Some(run) => {
                let steps = steps_of(&store, &run)?;
                (run, steps)
            }
            // The error is that of `RUN/STEP`.
            None => find_run(&store, &format!("{id}/"), args.dir.as_deref()).and_then(|_| {
                Err(Failure::input(format_args!("`{id}` is not a run")).hint("run `hm runs` to list the runs"))
            })?,
        },
    };
    let report = Report { store: &store, run: &run, steps: &steps };
    if let Some(path) = &args.junit {
        write(path, &junit::xml(&report)?)?;
    }
    if let Some(path) = &args.trace {
        write(path, &trace::json(&report)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Outcome<()> {
    fs::write(path, text)
        .map_err(|error| Failure::input(format_args!("failed to write {}", path.display())).because(error))
}

impl Report<'_> {
    /// Returns the last lines of a step's output. Empty if there is none.
    fn last_lines(&self, index: usize, lines: usize, max_bytes: u64) -> Outcome<String> {
        let Ok(index) = u32::try_from(index) else { return Ok(String::new()) };
        let unreadable = |error: std::io::Error| {
            Failure::infrastructure(format_args!("failed to read a log of run {}", self.run.id)).because(error)
        };
        let dir = self.store.runs().dir(self.run.id);
        let Some(path) = event::last_log(dir, StepIndex(index)).map_err(unreadable)? else { return Ok(String::new()) };
        let mut file = match LogFile::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            file => file.map_err(unreadable)?,
        };
        logs::last_lines(&mut file, lines, max_bytes).map_err(unreadable)
    }
}
