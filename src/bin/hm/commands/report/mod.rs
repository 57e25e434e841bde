//! `hm report`.

mod html;
mod junit;
mod trace;

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use hm_exec::{
    cache::Explainer,
    event::{self, LogFile, RunRecord},
    plan::StepIndex,
    store::{Run, Store},
};

use super::logs;
use crate::{
    failure::{Failure, Outcome},
    find_step::{find_record, record_of, run_with_id},
    store,
};

const LONG_HELP: &str = "\
Examples:
  hm report --html report.html             write the last run as a page for a browser
  hm report --junit report.xml             write it for programs that read test reports
  hm report 3fa2 --trace trace.json        write a timeline of an earlier run for ui.perfetto.dev

A page is one file that needs no network. It has the ends of logs, so check who may read it.";

/// The number of earlier runs with which a page compares cache keys.
const COMPARED_RUNS: u32 = 10;

/// Write a report of a run, for people or for other programs
#[derive(Debug, clap::Args)]
#[command(after_help = LONG_HELP, arg_required_else_help = true)]
pub(crate) struct Args {
    /// The run, by a prefix of its id [default: the last run of this directory]
    run: Option<String>,

    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Write a page for a browser: timeline, graph, logs, cache, tests (`-` for stdout)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["junit", "trace"])]
    html: Option<PathBuf>,

    /// Write each step as a test case, in the format of JUnit
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    /// Write when each step ran, in the format of Chrome's traces
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// What reports are made of.
struct Report<'a> {
    store: &'a Store,
    run: &'a Run,
    record: RunRecord,
    logs: BTreeMap<(StepIndex, u32), PathBuf>,
    /// `None` if no page is written, or if the records of cache keys cannot be read.
    explainer: Option<Explainer<'a>>,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let (run, record) = find(&store, args)?;
    let mut report = Report::of(&store, &run, record)?;
    let reports = [&args.html, &args.junit, &args.trace];
    if reports.into_iter().flatten().filter(|path| is_stdout(path)).count() > 1 {
        return Err(Failure::input("only one report can be written to stdout").hint("name files for the others"));
    }
    if let Some(path) = &args.html {
        report.explainer = Explainer::new(&store, &run, COMPARED_RUNS)
            .inspect_err(|error| tracing::debug!(%error, "the report does not explain what was cached"))
            .ok();
        write(path, |out| html::write(&report, out))?;
    }
    if let Some(path) = &args.junit {
        let xml = junit::xml(&report)?;
        write(path, |out| out.write_all(xml.as_bytes()))?;
    }
    if let Some(path) = &args.trace {
        let json = trace::json(&report)?;
        write(path, |out| out.write_all(json.as_bytes()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the run that the arguments name, and its record.
fn find(store: &Store, args: &Args) -> Outcome<(Run, RunRecord)> {
    let Some(id) = &args.run else {
        // No step has an empty key, so the newest run is the result.
        return find_record(store, "", args.dir.as_deref()).map(|(run, record, _)| (run, record));
    };
    match run_with_id(store, id)? {
        Some(run) => record_of(store, &run).map(|record| (run, record)),
        // The error is that of `RUN/STEP`.
        None => find_record(store, &format!("{id}/"), args.dir.as_deref()).and_then(|_| {
            Err(Failure::input(format_args!("`{id}` is not a run")).hint("run `hm runs` to list the runs"))
        }),
    }
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Writes a report. A reader of the file sees the whole report, or what was there before.
fn write(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Outcome<()> {
    let written = if is_stdout(path) {
        match buffered(io::stdout().lock(), write) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map(drop),
        }
    } else {
        write_file(path, write)
    };
    let name = if is_stdout(path) { "to stdout".into() } else { path.display().to_string() };
    written.map_err(|error| Failure::input(format_args!("failed to write {name}")).because(error))
}

fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // A link stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = fs::metadata(&target).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        // A pipe or a terminal, such as /dev/stdout. Opening a directory is an error.
        return buffered(File::options().write(true).open(&target)?, write).map(drop);
    }
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // A new file is for others as far as the user's mask allows. One that replaces another is for no more
    // users than that.
    let mode = old.as_ref().map_or(0o666, |old| old.permissions().mode() & 0o777);
    let builder = builder.prefix(".hm-report-").permissions(Permissions::from_mode(mode));
    let file = match builder.tempfile_in(dir) {
        // Only the file may be written to, and not its directory.
        Err(error) if old.is_some() && error.kind() == io::ErrorKind::PermissionDenied => {
            return buffered(File::create(&target)?, write).map(drop);
        }
        made => buffered(made?, write)?,
    };
    file.persist(&target).map(drop).map_err(|error| error.error)
}

/// Writes to `file` through a buffer, and returns the file.
fn buffered<W: Write>(file: W, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<W> {
    let mut out = BufWriter::with_capacity(256 << 10, file);
    write(&mut out)?;
    // Also what the file itself holds back, as the standard output does.
    out.flush()?;
    out.into_inner().map_err(io::IntoInnerError::into_error)
}

impl<'a> Report<'a> {
    fn of(store: &'a Store, run: &'a Run, record: RunRecord) -> Outcome<Self> {
        let logs = event::log_files(store.runs().dir(run.id)).map_err(|error| Self::unreadable(run, error))?;
        Ok(Self { store, run, record, logs, explainer: None })
    }

    fn unreadable(run: &Run, error: io::Error) -> Failure {
        Failure::infrastructure(format_args!("failed to read a log of run {}", run.id)).because(error)
    }

    /// Returns the last lines of a step's output. Empty if there is none.
    fn last_lines(&self, index: usize, lines: usize, max_bytes: u64) -> Outcome<String> {
        let Ok(index) = u32::try_from(index).map(StepIndex) else { return Ok(String::new()) };
        let unreadable = |error| Self::unreadable(self.run, error);
        let last = self.logs.range((index, 0)..=(index, u32::MAX)).next_back();
        let Some((_, path)) = last else { return Ok(String::new()) };
        let mut file = match LogFile::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            file => file.map_err(unreadable)?,
        };
        logs::last_lines(&mut file, lines, max_bytes).map_err(unreadable)
    }
}
