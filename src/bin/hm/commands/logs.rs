//! `hm logs`.

pub(super) mod connections;
mod events;

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, BufWriter, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    process::ExitCode,
};

use hm_exec::{
    StepStatus, cache,
    event::{self, LogFile, StepRecord},
    store::{Run, Store},
};

use self::events::Selection;
use super::{AnswerFormat, print, table};
use crate::{
    failure::{Failure, Outcome},
    find_step::{describe, find_run, find_step, last_run, run_with_id, steps_of},
    reporter::{style::Style, text, to_stderr},
    store,
};

/// The longest line that is shown in one piece.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The number of bytes that are read at a time.
const READ_BYTES: usize = 128 << 10;

const LONG_HELP: &str = "\
Examples:
  hm logs                     list the steps of the last run
  hm logs test                print the output of step `test` of the last run
  hm logs -f                  follow a run of another terminal
  hm logs --failed -n 20      print the last 20 lines of the steps that failed
  hm logs test --attempt 1    print the output of the first attempt of a step that ran again
  hm logs 3fa2/test           print the output of a step of the run whose id begins with 3fa2 (see `hm runs`)";

/// Print the output of a step
///
/// Prints stdout and stderr in the order in which they were written, with secrets masked: on a terminal as
/// `hm run` shows them, otherwise byte for byte. For a cached step, prints the output of the run that created
/// the cached result.
///
/// With `--network`, prints the connections of steps with a network of their own, instead of output.
#[derive(Debug, clap::Args)]
#[command(after_help = LONG_HELP)]
pub(crate) struct Args {
    /// The step, by key or label; RUN is a prefix of a run's id [default: the last run of this directory].
    /// Without a step, list the steps of the run
    #[arg(value_name = "[RUN/]STEP|RUN")]
    step: Option<String>,

    /// Print the connections of the step, or of all steps of the run
    #[arg(long, conflicts_with_all = ["follow", "lines", "timestamps", "failed", "attempt"])]
    network: bool,

    /// The pipeline's source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Print what is written from now on, too, until the step or the run ends
    #[arg(short, long)]
    follow: bool,

    /// Print only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,

    /// Print the time of each line
    #[arg(short, long)]
    timestamps: bool,

    /// Print the output of this attempt of the step, from 1 [default: the last one that printed something]
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,

    /// Print the output of the steps that failed
    #[arg(long, conflicts_with = "follow")]
    failed: bool,

    /// Output format; `json` prints one event, or one connection, a line
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

impl Args {
    /// Returns whether the output is read from the run's events, which have times and arrive live.
    fn needs_events(&self) -> bool {
        self.follow || self.lines.is_some() || self.timestamps || self.failed || self.format == AnswerFormat::Json
    }
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let (run, steps, step) = find(&store, args)?;
    check_attempt(args.attempt, step.as_ref())?;
    if args.network {
        return connections::show(&store, &run, &steps, step.as_ref(), args.format);
    }
    // The events of this run do not have the output of a step that did not run.
    let is_cached = |step: &StepRecord| step.status == Some(StepStatus::CacheHit);
    if args.needs_events() && !step.as_ref().is_some_and(is_cached) {
        let selection = Selection { run: &run, steps: &steps, only: step.as_ref() };
        return events::show(&store, &selection, args);
    }
    if step.is_some() && (args.timestamps || args.format == AnswerFormat::Json) {
        return Err(Failure::input("the output of a cached step has no times and no events")
            .hint("leave out `--format json` and `-t`, or run the step again with `--no-cache`"));
    }
    let Some(step) = step else {
        let rows: Vec<_> = steps.iter().map(|step| vec![text::clean(&step.key), describe(step)]).collect();
        let head = format!("run {} of {}\n", run.id, text::clean(&run.pipeline));
        return print(&(head + &table(&rows)));
    };
    print_log(&store, &run, &steps, &step, args)
}

/// Returns an error if the step has no such attempt.
fn check_attempt(attempt: Option<u32>, step: Option<&StepRecord>) -> Outcome<()> {
    let Some(attempt) = attempt else { return Ok(()) };
    let Some(step) = step else {
        return Err(Failure::input("`--attempt` needs a step").hint("name it, as in `hm logs test --attempt 1`"));
    };
    // How many there are is known when the step has ended.
    if step.status.is_none() || (1..=step.attempts).contains(&attempt) {
        return Ok(());
    }
    let count = text::count(step.attempts as usize, "attempt");
    Err(Failure::input(format_args!("step `{}` has no attempt {attempt}", step.key))
        .hint(format_args!("it had {count}")))
}

/// Finds the run and the step that the arguments name. Returns no step if they name a whole run.
fn find(store: &Store, args: &Args) -> Outcome<(Run, Vec<StepRecord>, Option<StepRecord>)> {
    let Some(name) = &args.step else {
        let (run, steps) = last_run(store, args.dir.as_deref())?;
        return Ok((run, steps, None));
    };
    let found = find_run(store, name, args.dir.as_deref());
    if let Ok((run, steps, key)) = &found
        && let Some(step) = named(steps, key)
    {
        return Ok((run.clone(), steps.clone(), step));
    }
    // A step's key may look like a run's id, so that comes second.
    if let Some(run) = run_with_id(store, name)? {
        let steps = steps_of(store, &run)?;
        return Ok((run, steps, None));
    }
    let (run, steps, key) = found?;
    let step = find_step(&run, &steps, key)?;
    Ok((run, steps, Some(step)))
}

/// Returns the step with this name, or no step if the name is empty. Returns `None` if there is no such step,
/// or if it is the label of several.
fn named(steps: &[StepRecord], name: &str) -> Option<Option<StepRecord>> {
    if name.is_empty() {
        return Some(None);
    }
    let step = steps.iter().find(|step| *step.key == *name);
    let mut with_label = steps.iter().filter(|step| *step.display_name == *name);
    let only = with_label.next().filter(|_| with_label.next().is_none());
    step.or(only).map(|step| Some(step.clone()))
}

/// Prints the log of a step as it is, or its last lines.
fn print_log(store: &Store, run: &Run, steps: &[StepRecord], step: &StepRecord, args: &Args) -> Outcome<ExitCode> {
    let unreadable = |error: anyhow::Error| {
        Failure::infrastructure(format_args!("failed to read the log of step `{}`", step.key)).because(error)
    };
    let log = if step.status == Some(StepStatus::CacheHit) {
        let key = cache::key_of(store, run, &step.key).map_err(|error| unreadable(error.into()))?;
        key.map(|key| store.steps().log(&key.0))
    } else {
        let index = steps.iter().position(|known| known.key == step.key).and_then(|at| u32::try_from(at).ok());
        let all = event::log_files(store.runs().dir(run.id)).map_err(|error| unreadable(error.into()))?;
        let all = all.into_iter().filter(|((of, _), _)| Some(of.0) == index);
        let mut all: BTreeMap<u32, PathBuf> = all.map(|((_, attempt), log)| (attempt, log)).collect();
        match args.attempt {
            Some(attempt) => all.remove(&attempt),
            None => {
                note_attempts(all.keys().copied());
                all.pop_last().map(|(_, log)| log)
            }
        }
    };
    let mut file = match log.map(LogFile::open) {
        None => return Ok(ExitCode::SUCCESS),
        // The step printed nothing.
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => return Ok(ExitCode::SUCCESS),
        Some(file) => file.map_err(|error| unreadable(error.into()))?,
    };
    if let Some(lines) = args.lines {
        seek_last_lines(&mut file, lines).map_err(|error| unreadable(error.into()))?;
    }
    let stdout = io::stdout().lock();
    let mut trouble = None;
    let mut log = BufReader::with_capacity(READ_BYTES, UntilError { file, error: &mut trouble });
    let shown = match stdout.is_terminal() {
        true => show(log, stdout),
        false => io::copy(&mut log, &mut { stdout }).map(drop),
    };
    if let Some(error) = trouble {
        return Err(unreadable(error.into()));
    }
    match shown {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::infrastructure("failed to write to stdout").because(error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Says which attempts a step with several logs has, of which the last one is shown.
fn note_attempts(mut attempts: impl DoubleEndedIterator<Item = u32>) {
    let Some(last) = attempts.next_back() else { return };
    let earlier: Vec<String> = attempts.map(|attempt| attempt.to_string()).collect();
    if !earlier.is_empty() {
        to_stderr(&format!("note: this is attempt {last}; `--attempt N` shows an earlier one: {}", earlier.join(", ")));
    }
}

/// Returns the last `lines` lines of a log, but no more than its last `max_bytes`. Bytes that are not UTF-8
/// are replaced.
pub(super) fn last_lines(file: &mut (impl Read + Seek), lines: usize, max_bytes: u64) -> io::Result<String> {
    let end = file.seek(SeekFrom::End(0))?;
    seek_last_lines(file, lines)?;
    let start = file.stream_position()?.max(end.saturating_sub(max_bytes));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Moves to the beginning of the last `lines` lines.
fn seek_last_lines(file: &mut (impl Read + Seek), lines: usize) -> io::Result<()> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; READ_BYTES];
    // The end of the last line is none before it.
    let (mut wanted, mut is_first) = (lines, true);
    while end > 0 {
        let start = end.saturating_sub(READ_BYTES as u64);
        let chunk = &mut buffer[..usize::try_from(end - start).unwrap_or(READ_BYTES)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(chunk)?;
        if is_first && lines > 0 && chunk.last() == Some(&b'\n') {
            wanted += 1;
        }
        is_first = false;
        for at in memchr::memrchr_iter(b'\n', chunk) {
            if wanted <= 1 {
                file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                return Ok(());
            }
            wanted -= 1;
        }
        end = start;
    }
    file.seek(if lines == 0 { SeekFrom::End(0) } else { SeekFrom::Start(0) }).map(drop)
}

/// A log that ends where it cannot be read any further, so that what is before that can be shown.
struct UntilError<'a> {
    file: LogFile,
    error: &'a mut Option<io::Error>,
}

impl Read for UntilError<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.file.read(buffer).unwrap_or_else(|error| {
            *self.error = Some(error);
            0
        }))
    }
}

/// Prints a log as `hm run` shows it, so that a step cannot control the reader's terminal.
fn show(mut log: impl BufRead, terminal: impl Write + IsTerminal) -> io::Result<()> {
    let colors = Style::of(&terminal).colors;
    let mut terminal = BufWriter::new(terminal);
    let (mut line, mut shown) = (Vec::new(), String::new());
    while log.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
        text::push_clean(&mut shown, String::from_utf8_lossy(&line).trim_end_matches('\n'), colors);
        shown.push('\n');
        terminal.write_all(shown.as_bytes())?;
        line.clear();
        shown.clear();
    }
    terminal.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let long = format!("{}\nlast\n", "x".repeat(3 * READ_BYTES));
        for (log, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("\n\n\n", 1, "\n"),
            ("", 3, ""),
            (&long, 1, "last\n"),
            (&long, 2, &long),
        ] {
            let mut file = Cursor::new(log.as_bytes());
            seek_last_lines(&mut file, lines).unwrap();
            let mut rest = String::new();
            file.read_to_string(&mut rest).unwrap();
            assert!(rest == expected, "{lines} of {:.20?}: {:.20?}", log, rest);
        }
    }
}
