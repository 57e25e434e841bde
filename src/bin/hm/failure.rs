//! The reasons why `hm` could not do what was requested: what happened, why, what to do next, and the
//! matching exit code.

use std::{fmt::Display, io::Write, process::ExitCode};

use hm_exec::{
    BackendError,
    project::ProjectFileError,
    store::{Filesystem, StoreError},
};

use crate::{
    exit_code,
    reporter::{style::Style, text},
    store,
};

/// The result of every command.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// A failure of a command to do its work. (A build that failed is no `Failure`: it did run.)
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    error: anyhow::Error,
    details: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// Creates a failure caused by invalid input or usage.
    pub(crate) fn input(what: impl Display) -> Self {
        Self { code: exit_code::INVALID, error: anyhow::anyhow!("{what}"), details: Vec::new(), hint: None }
    }

    /// Creates a failure of this machine, or of something on it.
    pub(crate) fn infrastructure(what: impl Display) -> Self {
        Self { code: exit_code::COULD_NOT_RUN, ..Self::input(what) }
    }

    /// Creates a failure of the service or of the way to it, with one of its exit codes.
    pub(crate) fn service(code: u8, what: impl Display) -> Self {
        Self { code, ..Self::input(what) }
    }

    /// Adds the cause.
    pub(crate) fn because(mut self, source: impl Into<anyhow::Error>) -> Self {
        let what = self.error.to_string();
        self.error = source.into().context(what);
        self
    }

    /// Adds details, which are printed one a line.
    pub(crate) fn details(mut self, details: impl IntoIterator<Item = impl Display>) -> Self {
        self.details.extend(details.into_iter().map(|detail| detail.to_string()));
        self
    }

    /// Adds a hint on what to do next.
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Returns the failure for a full disk below the store.
    pub(crate) fn full_store() -> Self {
        let place = store::dir().map_or_else(
            |_| "the store's disk".into(),
            |dir| {
                let room = Filesystem::of(&dir).map(|of| format!(" ({})", of.room())).unwrap_or_default();
                format!("{}{room}", dir.display())
            },
        );
        Self::infrastructure(format_args!("no space left on {place}"))
            .hint("run `hm cache gc`, or set HM_CACHE_DIR to a directory on another disk")
    }

    /// Returns whether the cause is a full disk below the store.
    fn is_full_store(&self) -> bool {
        self.error.chain().any(|cause| matches!(cause.downcast_ref(), Some(StoreError::Full { .. })))
    }

    /// Prints the failure on stderr. Returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if self.is_full_store() {
            return Self::full_store().report();
        }
        self.print(&Style::of(&std::io::stderr()).bad("error:"));
        ExitCode::from(self.code)
    }

    /// Prints the failure on stderr as a warning, because it changes no result.
    pub(crate) fn warn(&self) {
        self.print("warning:");
    }

    fn print(&self, kind: &str) {
        let style = Style::of(&std::io::stderr());
        let mut message = format!("{kind} ");
        text::push_clean_lines(&mut message, &self.error.to_string());
        for cause in self.error.chain().skip(1) {
            message.push_str(": ");
            text::push_clean_lines(&mut message, &cause.to_string());
        }
        for detail in &self.details {
            message.push_str("\n  - ");
            text::push_clean_lines(&mut message, detail);
        }
        for line in self.hint.iter().flat_map(|hint| hint.lines()) {
            message.push_str(&format!("\n{} ", style.good("hint:")));
            text::push_clean(&mut message, line, false);
        }
        message.push('\n');
        // Best effort: if stderr is closed, there is nowhere to report it.
        let _ = std::io::stderr().write_all(message.as_bytes());
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl From<ProjectFileError> for Failure {
    fn from(error: ProjectFileError) -> Self {
        Self { error: anyhow::Error::new(error).context("failed to read a project file"), ..Self::input("") }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Invalid(invalid) => Self::input("the pipeline is invalid").details(invalid.problems()),
            BackendError::Unusable { runner, reason, hint } => {
                let failure = Self::infrastructure(format_args!("runner `{runner}` is not available: {reason}"));
                let else_process = "or run without isolation, in a private copy of the source: `--runner process`";
                let more = "run `hm doctor` for all checks";
                // With the store, no runner works.
                if runner == "process" || hint.contains("--runner process") || hint.starts_with("set HM_CACHE_DIR") {
                    failure.hint(format_args!("{hint}\n{more}"))
                } else {
                    failure.hint(format_args!("{hint}\n{else_process}\n{more}"))
                }
            }
            other => Self::infrastructure("failed to run the build").because(other),
        }
    }
}
