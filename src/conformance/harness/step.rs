//! Steps to run, and their results.

use serde_json::Value;

use super::{Broken, expect::clipped};
use crate::{
    event::BuildEvent,
    ir::Env,
    model::{SnapshotRef, StdStream},
    runner::{InputFiles, RunnerError, RunnerErrorKind, StepResult},
};

/// A step to run.
#[derive(Debug, Clone)]
pub(in crate::conformance) struct Step {
    pub(super) cmd: String,
    pub(super) parent: Option<SnapshotRef>,
    pub(super) env: Env,
    pub(super) args: Option<Value>,
    pub(super) commit: bool,
    pub(super) inputs: Vec<InputFiles>,
}

impl Step {
    pub(in crate::conformance) fn new(cmd: impl Into<String>) -> Self {
        Self { cmd: cmd.into(), parent: None, env: Env::new(), args: None, commit: false, inputs: Vec::new() }
    }

    pub(in crate::conformance) fn cmd(mut self, cmd: impl Into<String>) -> Self {
        self.cmd = cmd.into();
        self
    }

    /// Boots from a snapshot.
    pub(in crate::conformance) fn after(mut self, parent: &SnapshotRef) -> Self {
        self.parent = Some(parent.clone());
        self
    }

    /// Requests a snapshot.
    pub(in crate::conformance) fn commit(mut self) -> Self {
        self.commit = true;
        self
    }

    pub(in crate::conformance) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Gets files of another step.
    pub(in crate::conformance) fn input(mut self, files: InputFiles) -> Self {
        self.inputs.push(files);
        self
    }

    pub(in crate::conformance) fn args(mut self, args: Value) -> Self {
        self.args = Some(args);
        self
    }
}

/// The result of a step.
#[derive(Debug)]
pub(in crate::conformance) struct Done {
    pub(in crate::conformance) result: Result<StepResult, RunnerError>,
    pub(in crate::conformance) events: Vec<BuildEvent>,
}

impl Done {
    /// Returns the lines of a stream, joined if events have them in parts.
    pub(in crate::conformance) fn lines(&self, from: StdStream) -> Vec<String> {
        let (mut lines, mut open) = (Vec::<String>::new(), false);
        for event in &self.events {
            let BuildEvent::StepLog { stream, line, partial, .. } = event else { continue };
            if *stream != from {
                continue;
            }
            match lines.last_mut() {
                Some(last) if open => last.push_str(line),
                _ => lines.push(line.clone()),
            }
            open = *partial;
        }
        lines
    }

    /// Returns the exit code of a command that ended by itself.
    pub(in crate::conformance) fn exit_code(&self) -> Result<i32, Broken> {
        match &self.result {
            Ok(result) => Ok(result.exit_code),
            Err(error) => Err(Broken::new(format!("the step failed: {}", error.to_line()))),
        }
    }

    /// Checks that the command exited with 0.
    pub(in crate::conformance) fn passed(&self) -> Result<(), Broken> {
        match self.exit_code()? {
            0 => Ok(()),
            code => {
                let said = clipped(&(self.lines(StdStream::Stdout), self.lines(StdStream::Stderr)));
                Err(Broken::new(format!("the command exited {code}; it printed {said}")))
            }
        }
    }

    /// Returns the snapshot of a step that passed.
    pub(in crate::conformance) fn snapshot(&self) -> Result<SnapshotRef, Broken> {
        self.passed()?;
        let snapshot = self.result.as_ref().ok().and_then(|result| result.committed_snapshot.clone());
        snapshot.ok_or_else(|| Broken::new("a step that passed did not commit the requested snapshot"))
    }

    /// Checks that the step ended with an error of this kind.
    pub(in crate::conformance) fn failed_as(&self, kind: RunnerErrorKind) -> Result<&RunnerError, Broken> {
        match &self.result {
            Err(error) if error.kind() == kind => Ok(error),
            Err(error) => {
                let (found, line) = (error.kind(), error.to_line());
                Err(Broken::new(format!("expected an error of kind {kind:?}, found {found:?}: {line}")))
            }
            Ok(result) => {
                let code = result.exit_code;
                Err(Broken::new(format!("expected an error of kind {kind:?}, but the command exited {code}")))
            }
        }
    }
}
