//! The few colours that `hm` uses itself.

use std::{
    env,
    io::IsTerminal,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether `--no-color` was given.
static IS_DISABLED: AtomicBool = AtomicBool::new(false);

/// Disables colours in every [`Style`] that is created from now on.
pub(crate) fn disable_colors() {
    IS_DISABLED.store(true, Ordering::Relaxed);
}

/// Whether to use colours, and whether to keep the colours of steps' output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// Whether to use colours.
    pub(crate) colors: bool,
}

impl Style {
    /// Enables colours if `stream` is a terminal. `--no-color`, and the variables `NO_COLOR` and
    /// `CLICOLOR_FORCE` if they are set and not empty, override this, in this order.
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let forced = is_set("CLICOLOR_FORCE") && env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        Self { colors: !IS_DISABLED.load(Ordering::Relaxed) && !is_set("NO_COLOR") && (forced || stream.is_terminal()) }
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
