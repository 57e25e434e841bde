//! The output of a run's steps as its events have it: the last lines, with times, while it is written.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, BufWriter, ErrorKind, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use chrono::SecondsFormat;
use hm_exec::{
    BuildEvent, StepStatus,
    event::{self, Followed, JournalError, JournalFollower, StepRecord},
    plan::StepIndex,
    store::{Run, Store},
};
use serde_json::Value;
use uuid::Uuid;

use super::{AnswerFormat, Args};
use crate::{
    failure::{Failure, Outcome},
    reporter::{style::Style, text, to_stderr},
};

/// How often a journal is asked for more.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long the journal of a run that has just begun may be missing.
const PATIENCE: Duration = Duration::from_secs(5);

/// The steps whose output is shown.
pub(super) struct Selection<'a> {
    pub(super) run: &'a Run,
    pub(super) steps: &'a [StepRecord],
    /// `None` for all steps.
    pub(super) only: Option<&'a StepRecord>,
}

/// Prints the output of the selected steps.
pub(super) fn show(store: &Store, selection: &Selection<'_>, args: &Args) -> Outcome<ExitCode> {
    let Selection { run, steps, only } = selection;
    let chosen = match only {
        Some(step) => vec![&*step.key],
        None if args.failed => failed(steps),
        None => Vec::new(),
    };
    if args.failed && chosen.is_empty() {
        to_stderr(&format!("note: no step failed in run {}", &run.id.to_string()[..8]));
        return Ok(ExitCode::SUCCESS);
    }
    let mut journal = open(&store.runs().dir(run.id), run, args.follow)?;
    let mut printer = Printer::new(&journal, &chosen, args);
    let unreadable = |error: JournalError| {
        Failure::infrastructure(format_args!("failed to read the journal of run {}", run.id)).because(error)
    };
    let shown = loop {
        let next = match journal.next() {
            Ok(next) => next,
            Err(error) => {
                // What precedes the damage. If stdout fails, too, the damage is still the error.
                let _ = printer.finish();
                return Err(unreadable(error));
            }
        };
        match next {
            Followed::Event(event) => match printer.event(&event) {
                Ok(Next::Continue) => {}
                Ok(Next::Stop) => break printer.finish(),
                Err(error) => break Err(error),
            },
            Followed::Nothing if args.follow => {
                if let Err(error) = printer.catch_up() {
                    break Err(error);
                }
                thread::sleep(INTERVAL);
            }
            Followed::Nothing | Followed::Over => break printer.finish(),
        }
    };
    match shown {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::infrastructure("failed to write to stdout").because(error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Returns the keys of the steps that failed.
fn failed(steps: &[StepRecord]) -> Vec<&str> {
    use StepStatus::{Failed, FailedAllowed, Infrastructure, OutOfMemory, TimedOut};
    let is_failed = |step: &&StepRecord| {
        matches!(step.status, Some(Failed | FailedAllowed | TimedOut | OutOfMemory | Infrastructure))
    };
    steps.iter().filter(is_failed).map(|step| &*step.key).collect()
}

/// Opens a run's journal. That of a run which has just begun may not exist yet.
fn open(dir: &Path, run: &Run, may_wait: bool) -> Outcome<JournalFollower> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match event::follow(dir) {
            Ok(journal) => return Ok(journal),
            Err(JournalError::Io { source, .. })
                if source.kind() == ErrorKind::NotFound
                    && may_wait
                    && run.ended_at.is_none()
                    && Instant::now() < deadline =>
            {
                thread::sleep(INTERVAL);
            }
            Err(error) => {
                return Err(Failure::infrastructure(format_args!("failed to read the journal of run {}", run.id))
                    .because(error)
                    .hint("it may have been removed by garbage collection: run the pipeline again"));
            }
        }
    }
}

/// Whether there is more to show.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Stop,
}

/// Prints lines of output as the arguments request.
struct Printer {
    out: BufWriter<io::Stdout>,
    /// On a terminal: whether to keep colours. Elsewhere, lines are printed as they are.
    terminal: Option<Style>,
    /// The steps to show: their keys by id.
    steps: HashMap<Uuid, String>,
    /// Whether each line begins with its step.
    has_prefix: bool,
    has_time: bool,
    /// The only attempt to show, if the user chose one.
    attempt: Option<u32>,
    format: AnswerFormat,
    /// With `-n`: the last lines, until everything that exists was read.
    last: Option<(usize, VecDeque<String>)>,
    /// The number of shown steps that have not ended.
    open: usize,
}

impl Printer {
    fn new(journal: &JournalFollower, chosen: &[&str], args: &Args) -> Self {
        let meta = journal.meta();
        let assigned = meta.server.as_ref().map(|server| server.step_ids.as_slice()).unwrap_or_default();
        let id = |index: usize| {
            let own = u32::try_from(index).map(|index| event::step_id(meta.build.run_id, StepIndex(index)));
            assigned.get(index).copied().or(own.ok())
        };
        let steps = meta.steps.iter().enumerate();
        let steps = steps.filter(|(_, step)| chosen.is_empty() || chosen.contains(&&*step.key));
        let steps: HashMap<_, _> = steps.filter_map(|(index, step)| Some((id(index)?, step.key.to_string()))).collect();
        let stdout = io::stdout();
        Self {
            terminal: stdout.is_terminal().then(|| Style::of(&stdout)),
            out: BufWriter::new(stdout),
            has_prefix: chosen.len() != 1,
            has_time: args.timestamps,
            attempt: args.attempt,
            format: args.format,
            last: args.lines.map(|lines| (lines, VecDeque::new())),
            open: steps.len(),
            steps,
        }
    }

    fn event(&mut self, event: &BuildEvent) -> io::Result<Next> {
        match event {
            BuildEvent::StepLog { step_id, attempt, .. } => {
                if let Some(key) = self.steps.get(step_id)
                    && self.attempt.is_none_or(|only| only == *attempt)
                {
                    let line = self.line(key, event)?;
                    self.print(line)?;
                }
            }
            BuildEvent::StepLogLost { step_id, message, .. } => {
                if let Some(key) = self.steps.get(step_id) {
                    to_stderr(&format!("warning: output of step `{}` is missing: {message}", text::clean(key)));
                }
            }
            BuildEvent::StepEnd { step_id, .. } if self.steps.contains_key(step_id) => {
                self.open -= 1;
                if self.open == 0 {
                    return Ok(Next::Stop);
                }
            }
            _ => {}
        }
        Ok(Next::Continue)
    }

    fn line(&self, key: &str, event: &BuildEvent) -> io::Result<String> {
        let BuildEvent::StepLog { line, ts, .. } = event else { return Ok(String::new()) };
        let mut shown = String::new();
        if self.format == AnswerFormat::Json {
            let mut json = serde_json::to_value(event)?;
            if let Value::Object(fields) = &mut json {
                fields.insert("step".into(), key.into());
            }
            shown = json.to_string();
        } else {
            if self.has_time {
                shown.push_str(&ts.to_rfc3339_opts(SecondsFormat::Millis, true));
                shown.push(' ');
            }
            if self.has_prefix {
                let key = text::clean(key);
                shown.push_str(&self.terminal.map_or_else(|| key.clone(), |style| style.name(&key)));
                shown.push_str(" | ");
            }
            match self.terminal {
                Some(style) => text::push_clean(&mut shown, line, style.colors),
                None => shown.push_str(line),
            }
        }
        shown.push('\n');
        Ok(shown)
    }

    fn print(&mut self, line: String) -> io::Result<()> {
        let Some((limit, last)) = &mut self.last else { return self.out.write_all(line.as_bytes()) };
        if last.len() == *limit {
            last.pop_front();
        }
        if *limit > 0 {
            last.push_back(line);
        }
        Ok(())
    }

    /// Prints everything so far. Later lines are printed at once.
    fn catch_up(&mut self) -> io::Result<()> {
        for line in self.last.take().into_iter().flat_map(|(_, last)| last) {
            self.out.write_all(line.as_bytes())?;
        }
        self.out.flush()
    }

    fn finish(mut self) -> io::Result<()> {
        self.catch_up()
    }
}
