//! How commands that are printed for users name steps, so that they work when they are pasted.

use hm_exec::quote::quote;
use uuid::Uuid;

use crate::reporter::text;

/// The names of a run's steps in commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypedNames {
    /// Whether commands in the current directory would search the runs of another directory.
    is_elsewhere: bool,
}

impl TypedNames {
    /// Returns the names of steps of a run whose source is the current project, unless it `is_elsewhere`.
    pub(crate) fn new(is_elsewhere: bool) -> Self {
        Self { is_elsewhere }
    }

    /// Returns the name of a step, quoted for a shell and safe to print.
    ///
    /// A key that looks like an option, or like a step of another run, is given with its run.
    pub(crate) fn step(self, run: Uuid, key: &str) -> String {
        let name = if self.is_elsewhere || key.starts_with('-') || key.contains('/') {
            format!("{}/{key}", &run.to_string()[..8])
        } else {
            key.to_owned()
        };
        text::clean(&quote(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_commands_would_misread_begin_with_the_run() {
        let run = Uuid::from_u128(0x0123_4567 << 96);
        let here = |key| TypedNames::new(false).step(run, key);
        assert_eq!((here("unit"), here("a b")), ("unit".into(), "'a b'".into()));
        assert_eq!((here("-rf"), here("beef/unit")), ("01234567/-rf".into(), "01234567/beef/unit".into()));
        assert_eq!(TypedNames::new(true).step(run, "unit"), "01234567/unit");
    }
}
