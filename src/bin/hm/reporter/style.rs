//! The few colours that `hm` uses itself.

use std::{
    env,
    io::IsTerminal,
    sync::atomic::{AtomicU8, Ordering},
};

use clap::ValueEnum;

/// What the user chose.
static CHOICE: AtomicU8 = AtomicU8::new(AUTO);
const AUTO: u8 = 0;
const ALWAYS: u8 = 1;
const NEVER: u8 = 2;

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On terminals
    Auto,
    /// Also in files and pipes
    Always,
    /// Not at all
    Never,
}

/// Applies the user's choice to every [`Style`] that is created from now on.
pub(crate) fn choose_colors(choice: ColorChoice) {
    let choice = match choice {
        ColorChoice::Auto => AUTO,
        ColorChoice::Always => ALWAYS,
        ColorChoice::Never => NEVER,
    };
    CHOICE.store(choice, Ordering::Relaxed);
}

/// Whether to use colours, and whether to keep the colours of steps' output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// Whether to use colours.
    pub(crate) colors: bool,
}

/// Returns whether the terminal, if there is one, shows plain lines only: no colours, and nothing above the
/// last line can change.
pub(super) fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

impl Style {
    /// No colours.
    pub(super) const PLAIN: Self = Self { colors: false };

    /// Enables colours if `stream` is a terminal that can show them. `--color` and `--no-color`, and the
    /// variables `NO_COLOR`, `FORCE_COLOR` and `CLICOLOR_FORCE` if they are set and not empty, override this,
    /// in this order.
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        Self::or(stream.is_terminal() && !is_dumb())
    }

    /// Enables colours if the stream `has_colors`. The same options and variables override this.
    pub(super) fn or(has_colors: bool) -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_forced = |name| env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let colors = match CHOICE.load(Ordering::Relaxed) {
            ALWAYS => true,
            NEVER => false,
            _ if is_set("NO_COLOR") => false,
            _ => has_colors || is_forced("FORCE_COLOR") || is_forced("CLICOLOR_FORCE"),
        };
        Self { colors }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn odd(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn name(self, text: &str) -> String {
        self.paint("36", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
