//! Shadow mode: `HM_CACHE_SHADOW`.

use std::env;

use hm_exec::{BuildOutcome, BuildStatus};

use super::Verified;
use crate::{
    config::variables::{CACHE_SHADOW, VERIFY},
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
};

/// Whether a look-up by what steps read is compared with what they do, and what a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shadow {
    Off,
    On,
    /// A difference, or a step that could not be compared, makes the run fail.
    Strict,
}

impl Shadow {
    /// Reads the variable. An empty one counts as unset. It is refused if the run compares something itself.
    pub(super) fn from_env_beside(verified: &Verified) -> Outcome<Self> {
        let shadow = Self::from_env()?;
        if shadow.is_on() && *verified != Verified::Nothing {
            let other = if verified.is_alone() { "`hm verify`" } else { VERIFY };
            return Err(Failure::input(format_args!("{CACHE_SHADOW} and {other} cannot be used together"))
                .hint(format_args!("unset {CACHE_SHADOW}: with it, nothing is found by what steps read")));
        }
        Ok(shadow)
    }

    /// Reads the variable. An empty one counts as unset.
    fn from_env() -> Outcome<Self> {
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

    /// Prints for how many steps a look-up would have been wrong, or that some could not be compared.
    /// Returns the failure of the run, if that makes it fail.
    pub(super) fn report(self, outcome: &BuildOutcome) -> Option<Failure> {
        let (wrong, failed) = (outcome.shadow_differences, outcome.shadow_failures);
        let (message, hint) = if wrong > 0 {
            let hint = "the warnings above name them: a step that is not deterministic differs in every run";
            (format!("a look-up by what steps read would have been wrong for {}", text::count(wrong, "step")), hint)
        } else if failed > 0 {
            ("what steps read was not compared for all of them".to_owned(), "the warnings above say why")
        } else {
            return None;
        };
        // A run that fails by itself has an exit code of its own.
        let fails = wrong > 0 || outcome.status == BuildStatus::Passed;
        if self == Self::Strict && fails {
            return Some(Failure::infrastructure(message).hint(hint));
        }
        to_stderr(&format!("warning: {message}"));
        None
    }
}
