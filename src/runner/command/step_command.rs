//! What to run, and in which environment.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::PathBuf,
    sync::Arc,
};

use futures_util::{FutureExt, future::BoxFuture};
use uuid::Uuid;

use super::{
    launch::Launch,
    supervised::{self, Helper},
    watched,
};
use crate::runner::{RunnerError, StepContext, StepResult};

/// A command of a step, to be run once.
///
/// It starts in a session of its own, without standard input, and with `PATH` and `LANG` of the caller as its
/// only variables, besides one by which its processes are found.
///
/// ```
/// use hm_exec::{
///     ExecutorInput, StepResult,
///     runner::{RunnerError, StepContext, StepRunner, command::StepCommand},
/// };
///
/// /// Runs steps in an empty directory.
/// #[derive(Debug)]
/// struct Plain;
///
/// impl StepRunner for Plain {
///     const NAME: &'static str = "plain";
///
///     async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
///         let dir = tempfile::tempdir()?;
///         let command = StepCommand::shell(&*input.step.cmd).current_dir(dir.path()).envs(&*input.env);
///         Ok(StepResult::exited(command.run(ctx, input.step_id).await?))
///     }
/// }
/// ```
#[derive(Debug, Clone)]
#[must_use = "call `run`"]
pub struct StepCommand {
    pub(super) program: Program,
    pub(super) args: Vec<OsString>,
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) dir: PathBuf,
    pub(super) scratch: Option<PathBuf>,
    helper: Option<Arc<Helper>>,
}

#[derive(Debug, Clone)]
pub(super) enum Program {
    /// `/bin/sh`, with a script.
    Shell(Arc<str>),
    Other(OsString),
}

impl StepCommand {
    /// Runs `script` by `/bin/sh -c`. It may be of any length.
    pub fn shell(script: impl Into<Arc<str>>) -> Self {
        Self::of(Program::Shell(script.into()))
    }

    /// Runs a program: a path, or a name to look up in the caller's `PATH`. Directories of the checkout that
    /// the caller works in are left out.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self::of(Program::Other(program.into()))
    }

    fn of(program: Program) -> Self {
        Self { program, args: Vec::new(), env: BTreeMap::new(), dir: "/".into(), scratch: None, helper: None }
    }

    /// Adds an argument. The arguments of a script follow its `$0`, which is `/bin/sh`.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets variables, such as those of a step: `envs(&*input.env)`.
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let owned = |(name, value): (K, V)| (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.env.extend(variables.into_iter().map(owned));
        self
    }

    /// Sets the working directory. By default, `/`.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = dir.into();
        self
    }

    /// Gives the command a `HOME` and a `TMPDIR`: the directories `home` and `tmp` in `dir`, which are made
    /// if they do not exist. The caller removes them.
    pub fn scratch_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.scratch = Some(dir.into());
        self
    }

    /// Starts this `hm` as the helper, instead of the one found by default. All commands of this process with
    /// the same helper share it.
    pub fn helper(self, program: impl Into<PathBuf>) -> Self {
        self.with_helper(Helper::shared(Some(program.into())))
    }

    pub(in crate::runner) fn with_helper(mut self, helper: Arc<Helper>) -> Self {
        self.helper = Some(helper);
        self
    }

    /// Runs the command to its end, and returns its exit code: 128+n if signal n ended it. All output has
    /// been forwarded, and no process is left, when this returns.
    ///
    /// When `ctx.cancel` fires, all processes get TERM, and after `ctx.grace` KILL.
    ///
    /// # Errors
    /// Returns [`ctx.interrupted()`](StepContext::interrupted) if the command was cancelled, and an error if
    /// it cannot be started or watched.
    ///
    /// # Cancel safety
    /// Dropping the future kills the processes at once.
    pub async fn run(self, ctx: &StepContext, step_id: Uuid) -> Result<i32, RunnerError> {
        Ok(self.boxed_run(ctx, step_id).await?.exit_code)
    }

    /// Does the same as [`run`](Self::run), and returns what the command used of the machine, too, if that is
    /// known.
    ///
    /// # Errors
    /// Returns the same errors as [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_measured(self, ctx: &StepContext, step_id: Uuid) -> Result<StepResult, RunnerError> {
        self.boxed_run(ctx, step_id).await
    }

    /// The future of a command, boxed: see `docs/design/runners.md`, section Compile time.
    fn boxed_run(self, ctx: &StepContext, step_id: Uuid) -> BoxFuture<'_, Result<StepResult, RunnerError>> {
        async move {
            let helper = self.helper.clone().unwrap_or_else(|| Helper::shared(None));
            let launch = move || Ok(Launch::new(self, step_id)?);
            let launch = RunnerError::blocking("prepare the command", launch).await?;
            match helper.zygote().await? {
                Some(zygote) => supervised::run(&zygote, ctx, step_id, &launch).await,
                None => watched::run(ctx, step_id, &launch).await.map(StepResult::exited),
            }
        }
        .boxed()
    }
}
