//! Runs code of the project that generates pipelines: in a sandbox, where it can read only the project and
//! the installation of its language.
//!
//! Input: a program, its arguments, and the directories that it needs. Output: what it printed to stdout. Its
//! stderr is copied to hm's as it comes, without anything that could control a terminal. Everything that
//! renders pipelines uses [`Rendering::run`].

mod confined;
mod git_secrets;

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub(super) use self::confined::limits;
pub(crate) use self::confined::trial;
use super::kept::Kept;
use crate::{
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
    trust::{self, VARIABLE as TRUST},
};

/// A program that renders pipelines.
#[derive(Debug)]
pub(super) struct Rendering<'a> {
    /// The files that are rendered, for messages: `.hm/ci.py`.
    pub(super) files: String,
    /// The language's name, for messages.
    pub(super) language: &'a str,
    /// The variable that names the program, for messages.
    pub(super) variable: &'a str,
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
    /// Earlier renderings, if they are used.
    pub(super) kept: Option<&'a Kept>,
}

/// The reason why there is no sandbox, and what to do about it.
struct NoSandbox {
    reason: String,
    hint: String,
}

impl Rendering<'_> {
    /// Runs the program. Returns what it printed to stdout, if it succeeded.
    pub(super) fn run(&self) -> Outcome<Vec<u8>> {
        match confined::run(self) {
            Err(no_sandbox) => self.without_sandbox(&no_sandbox),
            Ok(answer) => answer,
        }
    }

    /// Renders without a sandbox, as the user, who has allowed it.
    fn without_sandbox(&self, NoSandbox { reason, hint }: &NoSandbox) -> Outcome<Vec<u8>> {
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
        Err(Failure::input(what).hint("see the traceback above; fix the file, then check the result with `hm plan`"))
    }
}
