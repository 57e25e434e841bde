//! Renders in the sandbox.

use std::{env, io, time::Duration};

use hm_exec::runner::sandbox::{ConfinedCommand, ConfinedEnd, ConfinedError, ConfinedLimits, OutputStream};

use super::{
    super::{
        envelope::{Answer, SANDBOXED},
        kept::Owner,
    },
    NoSandbox, Rendering,
};
use crate::{
    failure::{Failure, Outcome},
    reporter::text,
};

/// How long a rendering may take, in seconds, and the variable that overrides it.
const SECONDS: u64 = 60;
const TIMEOUT: &str = "HM_RENDER_TIMEOUT";
/// The memory limit.
const MEMORY_BYTES: u64 = 1 << 30;
/// The limit on processes.
const PROCESSES: u64 = 256;
/// The maximum size of its answer.
const ANSWER_BYTES: u64 = 64 << 20;
/// The maximum amount that it may print.
const PRINTED_BYTES: u64 = 16 << 20;

/// The longest line that is held back until it ends, in bytes.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Signs in error messages that the sandbox is the cause.
const SIGNS: [&str; 6] = [
    "PermissionError",
    "Read-only file system",
    "No such file or directory",
    "unreachable",
    "name resolution",
    "ModuleNotFoundError",
];

/// Runs the program in the sandbox. The outer error means that there is no sandbox.
pub(super) fn run(rendering: &Rendering<'_>) -> Result<Outcome<Vec<u8>>, NoSandbox> {
    let files = &rendering.files;
    Ok(match confined(rendering) {
        Err(ConfinedError::NoSandbox { reason, hint }) => {
            return Err(NoSandbox { reason: format!("failed to {reason}"), hint });
        }
        Err(ConfinedError::Program(error)) => {
            let failure = Failure::input(format_args!("failed to {error}, which {files} needs"));
            let here = "it runs in a sandbox with only the project and the interpreter's own directories";
            Err(failure
                .hint(format_args!("{here}\nset {} to an interpreter outside of the project", rendering.variable)))
        }
        Err(error @ ConfinedError::Path { .. }) => Err(Failure::input(format_args!("failed to render {files}"))
            .because(error)
            .hint("move the project to a directory of its own")),
        Err(error) => Err(Failure::infrastructure(format_args!("failed to render {files}")).because(error)),
        Ok(answer) => answer,
    })
}

fn confined(rendering: &Rendering<'_>) -> Result<Outcome<Vec<u8>>, ConfinedError> {
    let mut show = rendering.places.clone();
    show.push(rendering.project.into());
    let command = ConfinedCommand {
        argv: rendering.argv.clone(),
        env: rendering.env.clone(),
        dir: rendering.dir.into(),
        show,
        hide: super::git_secrets::find(rendering.project)
            .map_err(|source| ConfinedError::Io { doing: "look for repositories in the project", source })?,
        limits: limits(),
        helper: None,
    };
    let mut printed = Printed::default();
    let found = rendering.kept.and_then(|kept| kept.find(Owner::Project, &command));
    if let Some(found) = found.filter(|found| Answer::is_current(&found.stdout, found.started)) {
        printed.push(&found.stderr);
        printed.end();
        return Ok(Ok(found.stdout));
    }
    let mut on_stderr = |bytes: &[u8]| printed.push(bytes);
    let output = match rendering.kept {
        Some(kept) => kept.run(Owner::Project, &command, &Answer::has_pipelines, &mut on_stderr)?,
        None => command.run(&mut on_stderr)?,
    };
    printed.end();
    let because = |what: String| Failure::input(format_args!("failed to render {}: {what}", rendering.files));
    let language = rendering.language;
    let only_describe = "a pipeline file only describes the pipeline: move expensive work into a step";
    Ok(match output.end {
        ConfinedEnd::Exited { code: 0 } => Ok(output.stdout),
        ConfinedEnd::Exited { code } => {
            let failure = because(format!("{language} failed with {}", status(code)));
            let correct = "see the traceback above; fix the file, then check the result with `hm plan`";
            Err(if SIGNS.iter().any(|sign| printed.tail.contains(sign)) {
                failure.hint(format_args!("{correct}\n{SANDBOXED}"))
            } else {
                failure.hint(correct)
            })
        }
        ConfinedEnd::TimedOut => Err(because(format!("{language} timed out after {} s", time().as_secs()))
            .hint(format_args!("{only_describe}\nset {TIMEOUT}=SECONDS to allow more time"))),
        ConfinedEnd::OutOfMemory => {
            Err(because(format!("{language} used more than {} MiB of memory", MEMORY_BYTES >> 20)).hint(only_describe))
        }
        ConfinedEnd::TooManyProcesses => {
            Err(because(format!("{language} started more than {PROCESSES} processes")).hint(only_describe))
        }
        ConfinedEnd::TooMuchOutput(OutputStream::Stderr) => {
            Err(because(format!("{language} printed more than {} MiB", PRINTED_BYTES >> 20))
                .hint("print less: hm shows all of it"))
        }
        ConfinedEnd::TooMuchOutput(OutputStream::Stdout) => {
            Err(because(format!("the pipelines are larger than {} MiB", ANSWER_BYTES >> 20))
                .hint("leave large files out of the pipeline: steps can read them from /workspace"))
        }
        _ => Err(Failure::infrastructure(format_args!(
            "failed to render {}: {language} was killed by another process",
            rendering.files
        ))
        .hint("try again, and check that this machine has enough memory")),
    })
}

/// Runs a program that does nothing in the sandbox. The error is the reason why there is no sandbox, and what
/// to do about it.
pub(crate) fn trial() -> Result<(), (String, String)> {
    let nothing = ConfinedCommand {
        argv: vec!["/bin/sh".into(), "-c".into(), ":".into()],
        env: Vec::new(),
        dir: "/usr/bin".into(),
        show: Vec::new(),
        hide: Vec::new(),
        limits: limits(),
        helper: None,
    };
    match nothing.run(&mut |_| {}) {
        Ok(output) if output.end == (ConfinedEnd::Exited { code: 0 }) => Ok(()),
        Ok(output) => Err((format!("a test program failed: {:?}", output.end), "please report this".into())),
        Err(ConfinedError::NoSandbox { reason, hint }) => Err((format!("no sandbox: failed to {reason}"), hint)),
        Err(error) => Err((format!("{:#}", anyhow::Error::new(error)), "see the other checks".into())),
    }
}

/// Returns how long a rendering may take.
fn time() -> Duration {
    let seconds = env::var(TIMEOUT).ok().and_then(|value| value.parse().ok());
    Duration::from_secs(seconds.filter(|seconds| (1..=86_400).contains(seconds)).unwrap_or(SECONDS))
}

/// Returns the limits of everything that takes part in a rendering.
pub(in crate::pipelines) fn limits() -> ConfinedLimits {
    ConfinedLimits {
        time: time(),
        memory_bytes: MEMORY_BYTES,
        processes: PROCESSES,
        stdout_bytes: ANSWER_BYTES,
        stderr_bytes: PRINTED_BYTES,
    }
}

fn status(code: i32) -> String {
    if code > 128 { format!("signal {}", code - 128) } else { format!("exit code {code}") }
}

/// The output of a rendering: complete lines go to stderr at once, the rest at its end.
#[derive(Debug, Default)]
struct Printed {
    line: Vec<u8>,
    /// The last part of the output, which is searched for the cause of a failure.
    tail: String,
}

impl Printed {
    fn push(&mut self, bytes: &[u8]) {
        let mut out = String::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() > MAX_LINE_BYTES {
                self.take(&mut out);
            }
        }
        write(&out);
    }

    fn end(&mut self) {
        let mut out = String::new();
        if !self.line.is_empty() {
            self.take(&mut out);
        }
        write(&out);
    }

    fn take(&mut self, out: &mut String) {
        let line = std::mem::take(&mut self.line);
        let start = out.len();
        text::push_clean(out, String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']), false);
        if self.tail.len() > MAX_LINE_BYTES {
            self.tail.clear();
        }
        self.tail.push_str(&out[start..]);
        out.push('\n');
    }
}

fn write(text: &str) {
    // Best effort: if stderr is closed, there is nowhere to report it.
    let _ = io::Write::write_all(&mut io::stderr(), text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_cut_into_lines_and_can_not_hold_memory() {
        let mut printed = Printed::default();
        printed.push(b"half");
        assert_eq!((printed.line.len(), printed.tail.as_str()), (4, ""));
        printed.push(b" a line\n\x1b]0;title\x07rest");
        assert_eq!(printed.tail, "half a line");
        for _ in 0..100 {
            printed.push(&[b'x'; 1 << 12]);
        }
        assert!(printed.line.len() <= 2 * MAX_LINE_BYTES && printed.tail.len() <= 3 * MAX_LINE_BYTES);
        printed.end();
        assert!(printed.line.is_empty());
    }
}
