//! `hm logs`.

use std::{
    io::{self, BufRead, BufReader, BufWriter, ErrorKind, IsTerminal, Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use hm_exec::{
    StepStatus, cache,
    event::{self, LogFile},
    plan::StepIndex,
};

use super::{print, table};
use crate::{
    failure::{Failure, Outcome},
    find_step::{describe, find_run, find_step, last_run},
    reporter::{style::Style, text},
    store,
};

/// The longest line that is shown in one piece.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The number of bytes that are read at a time.
const READ_BYTES: usize = 128 << 10;

/// Print the output of a step
///
/// Prints stdout and stderr in the order in which they were written, with secrets masked: on a terminal as
/// `hm run` shows them, otherwise byte for byte. For a cached step, prints the output of the run that created
/// the cached result.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The step; RUN is a prefix of a run's id [default: the last run of this directory]. Without a step,
    /// list the steps of the last run
    #[arg(value_name = "[RUN/]STEP")]
    step: Option<String>,

    /// The pipeline's source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let Some(step) = &args.step else {
        let (run, steps) = last_run(&store, args.dir.as_deref())?;
        let rows: Vec<_> = steps.iter().map(|step| vec![text::clean(&step.key), describe(step)]).collect();
        let head = format!("run {} of {}\n", run.id, text::clean(&run.pipeline));
        return print(&(head + &table(&rows)));
    };
    let (run, steps, key) = find_run(&store, step, args.dir.as_deref())?;
    let step = find_step(&run, &steps, key)?;
    let unreadable = |error: anyhow::Error| {
        Failure::infrastructure(format_args!("failed to read the log of step `{}`", step.key)).because(error)
    };
    let log = if step.status == Some(StepStatus::CacheHit) {
        let key = cache::key_of(&store, &run, &step.key).map_err(|error| unreadable(error.into()))?;
        key.map(|key| store.steps().log(&key.0))
    } else {
        let index = steps.iter().position(|known| known.key == step.key).and_then(|at| u32::try_from(at).ok());
        let last = index.map(|index| event::last_log(store.runs().dir(run.id), StepIndex(index))).transpose();
        last.map_err(|error| unreadable(error.into()))?.flatten()
    };
    let file = match log.map(LogFile::open) {
        None => return Ok(ExitCode::SUCCESS),
        // The step printed nothing.
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => return Ok(ExitCode::SUCCESS),
        Some(file) => file.map_err(|error| unreadable(error.into()))?,
    };
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
