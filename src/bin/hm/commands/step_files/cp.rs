//! `hm cp`.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use hm_exec::{
    runner::sandbox::{Streams, VisitOperation},
    store::tree,
};
use rustix::pipe::PipeFlags;

use super::{StepFiles, is_about_the_path};
use crate::{
    exit_code,
    failure::{Failure, Outcome},
    runtime::runtime,
    signals::Interrupts,
};

const LONG_HELP: &str = "\
Examples:
  hm cp test:report.xml .            copy a file from the work directory of the last run's step `test`
  hm cp test:/tmp/core-dumps dumps   copy a directory under another name
  hm cp 3fa2/test:target/. out       copy the content of a directory from an earlier run
  hm cp test:coverage - | tar t      write a tar stream to stdout

The files of failed and interrupted steps are kept for a while, those of passed steps only with `hm run --keep`
or a cache policy.";

/// Copy files out of a step's filesystem
///
/// Copies like `cp -a`, except that you own the copies. Sockets and devices are skipped.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// What to copy; RUN is a prefix of a run's id [default: the last run of this directory]
    #[arg(value_name = "[RUN/]STEP:PATH")]
    from: String,

    /// A directory to copy into, or the path of the copy; `-` writes a tar stream to stdout
    #[arg(value_name = "DEST")]
    to: PathBuf,

    /// The pipeline's source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let (files, path) = StepFiles::find_path(&args.from, args.dir.as_deref())?;
    if path.is_empty() {
        return Err(Failure::input("the path is empty")
            .hint("use `.` for the step's work directory, or `/.` for its whole filesystem"));
    }
    let failed = |error: io::Error| Failure::infrastructure("failed to create a pipe").because(error);
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    let streams = Streams { stdin: None, stdout: write, stderr: null.into(), terminal: false };
    // `join` would drop a trailing `/.`, which selects the content of a directory.
    let path = if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", files.surroundings.workdir) };

    let to = args.to.clone();
    let writer = thread::spawn(move || write_out(read, &to));
    let runtime = runtime()?;
    let packed = runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let packed = tokio::select! {
            packed = files.visit(VisitOperation::Pack { path: path.into() }, streams) => Some(packed),
            () = interrupts.next() => None,
        };
        Outcome::Ok(packed)
    })?;
    let Some(packed) = packed else { return Ok(ExitCode::from(exit_code::INTERRUPTED)) };
    let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")));
    match (packed, written) {
        (Ok(0), Ok(())) => Ok(ExitCode::SUCCESS),
        // A reader that closed the pipe early has what it needs.
        (_, Err(error)) if args.to == Path::new("-") && error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::SUCCESS)
        }
        // If nothing could be read, there was nothing to write either.
        (Err(error), Ok(())) => Err(files.failed(error)),
        (Err(error), Err(end)) if end.kind() == io::ErrorKind::UnexpectedEof => Err(files.failed(error)),
        (_, Err(error)) => {
            let doing = "failed to write the copy";
            let failure =
                if is_about_the_path(&error) { Failure::input(doing) } else { Failure::infrastructure(doing) };
            Err(failure.because(error))
        }
        (Ok(code), Ok(())) => {
            Err(Failure::infrastructure(format_args!("the copy is incomplete: reading ended with exit code {code}")))
        }
    }
}

fn write_out(read: OwnedFd, to: &Path) -> io::Result<()> {
    let mut stream = File::from(read);
    if to == Path::new("-") {
        return io::copy(&mut stream, &mut io::stdout().lock()).map(drop);
    }
    tree::copy_out(&mut stream, to)?;
    // Drain what follows the last entry: the writer would fail on a closed pipe.
    io::copy(&mut stream, &mut io::sink()).map(drop)
}
