//! Shadow mode: `HM_CACHE_SHADOW`.

use std::env;

use crate::{
    config::variables::CACHE_SHADOW,
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

/// Whether a look-up by what steps read is compared with what they do, and what a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shadow {
    Off,
    On,
    /// A difference makes the run fail.
    Strict,
}

impl Shadow {
    /// Reads the variable. An empty one counts as unset.
    pub(super) fn from_env() -> Outcome<Self> {
        let value = env::var_os(CACHE_SHADOW).unwrap_or_default();
        match value.to_str() {
            Some("" | "0") => Ok(Self::Off),
            Some("1") => Ok(Self::On),
            Some("strict") => Ok(Self::Strict),
            _ => Err(Failure::input(format_args!("{CACHE_SHADOW} has no such value"))
                .hint("set it to `1`, or to `strict`, which makes a difference fail the run, or unset it")),
        }
    }

    pub(super) fn is_on(self) -> bool {
        self != Self::Off
    }

    /// Prints how many steps would have got another result. Returns the failure of the run, if that makes it
    /// fail.
    pub(super) fn report(self, differences: usize) -> Option<Failure> {
        if differences == 0 {
            return None;
        }
        let steps = if differences == 1 { "1 step" } else { &format!("{differences} steps") };
        let message = format!("a look-up by what steps read would have been wrong for {steps}");
        if self == Self::Strict {
            let hint = "the warnings above name them: a step that is not deterministic differs in every run";
            return Some(Failure::infrastructure(message).hint(hint));
        }
        to_stderr(&format!("warning: {message}"));
        None
    }
}
