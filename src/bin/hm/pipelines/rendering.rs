//! Runs code of the project that generates pipelines: in a sandbox, where it can read only the project and
//! the installation of its language.
//!
//! Input: a program, its arguments, and the directories that it needs. Output: what it printed to stdout. Its
//! stderr is copied to hm's as it comes, without anything that could control a terminal. Everything that
//! renders pipelines uses [`Rendering::run`].

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

#[cfg(target_os = "linux")]
use hm_exec::runner::sandbox::{ConfinedCommand, ConfinedEnd, ConfinedError, ConfinedLimits, OutputStream};

#[cfg(target_os = "linux")]
use super::git_secrets;
use crate::{
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
    trust::{self, VARIABLE as TRUST},
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
#[cfg(target_os = "linux")]
const SIGNS: [&str; 6] = [
    "PermissionError",
    "Read-only file system",
    "No such file or directory",
    "unreachable",
    "name resolution",
    "ModuleNotFoundError",
];

/// A program that renders pipelines.
#[derive(Debug)]
pub(super) struct Rendering<'a> {
    /// The files that are rendered, for messages: `.hm/ci.py`.
    pub(super) files: String,
    /// The language's name, for messages.
    pub(super) language: &'a str,
    /// The program's absolute path, and its arguments.
    pub(super) argv: Vec<OsString>,
    /// Its environment variables.
    pub(super) env: Vec<(OsString, OsString)>,
    /// The project: the directory that contains `.hm/`.
    pub(super) project: &'a Path,
    /// The source directory, which is its working directory.
    pub(super) dir: &'a Path,
    /// The other directories that it reads.
    pub(super) places: Vec<PathBuf>,
    /// Whether the program is part of the checkout.
    pub(super) is_of_the_checkout: bool,
}

impl Rendering<'_> {
    /// Runs the program. Returns what it printed to stdout, if it succeeded.
    pub(super) fn run(&self) -> Outcome<Vec<u8>> {
        #[cfg(target_os = "linux")]
        match self.confined() {
            Err(ConfinedError::NoSandbox { reason, hint }) => {
                self.without_sandbox(&format!("failed to {reason}"), &hint)
            }
            Err(ConfinedError::Program(error)) => {
                let failure = Failure::input(format_args!("failed to {error}, which {} needs", self.files));
                let here = "it runs in a sandbox with only the project and the interpreter's own directories";
                Err(failure.hint(format_args!("{here}\nset HM_PYTHON to an interpreter outside of the project")))
            }
            Err(error @ ConfinedError::Path { .. }) => {
                Err(Failure::input(format_args!("failed to render {}", self.files))
                    .because(error)
                    .hint("move the project to a directory of its own"))
            }
            Err(error) => Err(Failure::infrastructure(format_args!("failed to render {}", self.files)).because(error)),
            Ok(answer) => answer,
        }
        #[cfg(not(target_os = "linux"))]
        self.without_sandbox("the sandbox needs Linux", "render on Linux: `hm render` prints the result")
    }

    /// Renders in the sandbox. The outer error is the reason why there is no sandbox.
    #[cfg(target_os = "linux")]
    fn confined(&self) -> Result<Outcome<Vec<u8>>, ConfinedError> {
        let mut show = self.places.clone();
        show.push(self.project.into());
        let command = ConfinedCommand {
            argv: self.argv.clone(),
            env: self.env.clone(),
            dir: self.dir.into(),
            show,
            hide: git_secrets::find(self.project)
                .map_err(|source| ConfinedError::Io { doing: "look for repositories in the project", source })?,
            limits: limits(),
            helper: None,
        };
        let mut printed = Printed::default();
        let output = command.run(&mut |bytes| printed.push(bytes))?;
        printed.end();
        let because = |what: String| Failure::input(format_args!("failed to render {}: {what}", self.files));
        let language = self.language;
        let only_describe = "a pipeline file only describes the pipeline: move expensive work into a step";
        Ok(match output.end {
            ConfinedEnd::Exited { code: 0 } => Ok(output.stdout),
            ConfinedEnd::Exited { code } => {
                let failure = because(format!("{language} failed with {}", status(code)));
                let correct = "see the traceback above; fix the file, then check the result with `hm render`";
                Err(if SIGNS.iter().any(|sign| printed.tail.contains(sign)) {
                    let sandboxed = "it runs in a sandbox with only the project and its language: without a network or \
                                     a home directory, with only /tmp writable, and with few variables \
                                     (HM_RENDER_ENV adds more)";
                    failure.hint(format_args!("{correct}\n{sandboxed}"))
                } else {
                    failure.hint(correct)
                })
            }
            ConfinedEnd::TimedOut => Err(because(format!("{language} timed out after {} s", time().as_secs()))
                .hint(format_args!("{only_describe}\nset {TIMEOUT}=SECONDS to allow more time"))),
            ConfinedEnd::OutOfMemory => {
                Err(because(format!("{language} used more than {} MiB of memory", MEMORY_BYTES >> 20))
                    .hint(only_describe))
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
                self.files
            ))
            .hint("try again, and check that this machine has enough memory")),
        })
    }

    /// Renders without a sandbox, as the user, who has allowed it.
    fn without_sandbox(&self, reason: &str, hint: &str) -> Outcome<Vec<u8>> {
        let no_sandbox = format!("no sandbox to render {} in: {reason}", self.files);
        if !trust::variable_trusts()? {
            return Err(Failure::input(no_sandbox).hint(format_args!(
                "{hint}\nor, if you trust this project with everything that your user may do, set {TRUST}=1 to render \
                 without a sandbox"
            )));
        }
        to_stderr(&format!("warning: {}; rendering as your user because of {TRUST}", text::clean(&no_sandbox)));
        if self.is_of_the_checkout {
            tracing::warn!("the interpreter is part of the project");
        }
        let (program, args) = self.argv.split_first().ok_or_else(|| Failure::input("there is nothing to run"))?;
        let output = Command::new(program)
            .args(args)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs(env::var_os("HOME").map(|home| ("HOME", home)))
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| {
                Failure::input(format_args!("failed to start `{}`", program.to_string_lossy())).because(error)
            })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let what = format_args!("failed to render {}: {} failed with {}", self.files, self.language, output.status);
        Err(Failure::input(what).hint("see the traceback above; fix the file, then check the result with `hm render`"))
    }
}

/// Runs a program that does nothing in the sandbox. The error is the reason why there is no sandbox, and what
/// to do about it.
pub(crate) fn trial() -> Result<(), (String, String)> {
    #[cfg(target_os = "linux")]
    {
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
    #[cfg(not(target_os = "linux"))]
    Err(("the sandbox needs Linux".into(), format!("set {TRUST}=1 to render without a sandbox")))
}

/// Returns how long a rendering may take.
#[cfg(target_os = "linux")]
fn time() -> Duration {
    let seconds = env::var(TIMEOUT).ok().and_then(|value| value.parse().ok());
    Duration::from_secs(seconds.filter(|seconds| (1..=86_400).contains(seconds)).unwrap_or(SECONDS))
}

#[cfg(target_os = "linux")]
fn limits() -> ConfinedLimits {
    ConfinedLimits {
        time: time(),
        memory_bytes: MEMORY_BYTES,
        processes: PROCESSES,
        stdout_bytes: ANSWER_BYTES,
        stderr_bytes: PRINTED_BYTES,
    }
}

#[cfg(target_os = "linux")]
fn status(code: i32) -> String {
    if code > 128 { format!("signal {}", code - 128) } else { format!("exit code {code}") }
}

/// The output of a rendering: complete lines go to stderr at once, the rest at its end.
#[cfg(target_os = "linux")]
#[derive(Debug, Default)]
struct Printed {
    line: Vec<u8>,
    /// The last part of the output, which is searched for the cause of a failure.
    tail: String,
}

#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
fn write(text: &str) {
    // Best effort: if stderr is closed, there is nowhere to report it.
    let _ = io::Write::write_all(&mut io::stderr(), text.as_bytes());
}

#[cfg(all(test, target_os = "linux"))]
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
