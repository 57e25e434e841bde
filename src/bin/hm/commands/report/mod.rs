//! `hm report`.

mod file;
mod html;
mod junit;
mod trace;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use hm_exec::{
    cache::Explainer,
    event::{self, LogFile, RunRecord},
    plan::StepIndex,
    store::{Run, Store},
};

use reqwest::Url;
use uuid::Uuid;

use self::file::{is_stdout, write, write_in_store};
use super::{logs, runs::RunResult};
use crate::{
    browser, config,
    failure::{Failure, Outcome},
    find_step::{find_record, record_of, run_with_id, unreadable},
    otlp::{self, Settings, Trace},
    reporter::{text, to_stderr},
    store,
};

const LONG_HELP: &str = "\
Examples:
  hm report --open                         show the last run in your browser
  hm report --html report.html             write it as a page for a browser
  hm report --junit report.xml             write it for programs that read test reports
  hm report 3fa2 --trace trace.json        write a timeline of an earlier run for ui.perfetto.dev
  hm report --otlp                         send its steps as spans to the collector that you name

`--otlp` sends to OTEL_EXPORTER_OTLP_ENDPOINT, or to `otlp.endpoint` of your own hm.toml. If one of them is set,
`hm run` does so itself at its end.

A page is one file that needs no network. It has the ends of logs, so check who may read it.";

/// The name of a page in the directory of its run.
const PAGE: &str = "report.html";

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
    #[arg(long, value_name = "FILE", required_unless_present_any = ["junit", "open", "otlp", "trace"])]
    html: Option<PathBuf>,

    /// Open the page in your browser ($BROWSER, or that of the desktop)
    #[arg(long)]
    open: bool,

    /// Write each step as a test case, in the format of JUnit
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    /// Write when each step ran, in the format of Chrome's traces
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Send each step as a span to the collector that you name, by OpenTelemetry's protocol
    #[arg(long)]
    otlp: bool,
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
    if args.open && args.html.as_deref().is_some_and(is_stdout) {
        return Err(Failure::input("a page on stdout cannot be opened").hint("name a file, or leave out `--html`"));
    }
    if args.html.is_some() || args.open {
        report.explain();
    }
    if let Some(path) = &args.html {
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
    if args.open {
        match &args.html {
            Some(path) => show(path)?,
            None => show(&report.keep_page()?)?,
        }
    }
    if args.otlp {
        send(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a run that has just ended, and opens it.
pub(super) fn open_page(store: &Store, run: Uuid) -> Outcome<()> {
    // A build of another machine may not be recorded.
    let run = store.runs().get(run).map_err(unreadable)?;
    let run = run.ok_or_else(|| Failure::input("the run is not recorded on this machine, so it has no page"))?;
    let record = record_of(store, &run)?;
    let mut report = Report::of(store, &run, record)?;
    report.explain();
    show(&report.keep_page()?)
}

/// Opens a page. If that is not possible, the user reads where it is.
fn show(page: &Path) -> Outcome<()> {
    let failed = |error| Failure::input(format_args!("failed to find {}", page.display())).because(error);
    let page = page.canonicalize().map_err(failed)?;
    let url = Url::from_file_path(&page).map_err(|()| Failure::input(format_args!("{} has no URL", page.display())))?;
    let shown = text::clean(&page.display().to_string());
    match browser::open(url.as_str()) {
        Ok(()) => to_stderr(&format!("opened {shown}")),
        Err(why) => to_stderr(&format!(
            "the page is {shown}\nnote: it was not opened, because {}: open or copy this file, or set BROWSER",
            text::clean(&why)
        )),
    }
    Ok(())
}

/// Sends the run to the collector that the user names.
fn send(report: &Report<'_>) -> Outcome<()> {
    let settings = Settings::of_user(config::collector()?.as_deref())?.ok_or_else(|| {
        Failure::input("no collector is named").hint(
            "set OTEL_EXPORTER_OTLP_ENDPOINT, as in http://localhost:4318, or `otlp.endpoint` in ~/.config/hm/hm.toml",
        )
    })?;
    if RunResult::of(report.store, report.run) == RunResult::Running {
        return Err(Failure::input(format_args!("run {} has not ended", report.run.id))
            .hint("wait until it has ended: a span is sent once, with its end"));
    }
    let trace = Trace::new(report.run.id, &report.record, &settings);
    let sent = otlp::send_now(&settings, &trace)?;
    otlp::warn_of_rejected(&settings, &sent);
    to_stderr(&format!("sent {} to {} as trace {}", text::count(sent.spans, "span"), settings.place(), trace.id()));
    Ok(())
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

impl<'a> Report<'a> {
    fn of(store: &'a Store, run: &'a Run, record: RunRecord) -> Outcome<Self> {
        let logs = event::log_files(store.runs().dir(run.id)).map_err(|error| Self::unreadable(run, error))?;
        Ok(Self { store, run, record, logs, explainer: None })
    }

    /// Finds out why steps ran or did not have to, if that is known.
    fn explain(&mut self) {
        self.explainer = Explainer::new(self.store, self.run, COMPARED_RUNS)
            .inspect_err(|error| tracing::debug!(%error, "the report does not explain what was cached"))
            .ok();
    }

    /// Writes the page into the run's directory, with which it is removed. Returns its path.
    fn keep_page(&self) -> Outcome<PathBuf> {
        let page = self.store.runs().dir(self.run.id).join(PAGE);
        write_in_store(&page, |out| html::write(self, out))?;
        Ok(page)
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
