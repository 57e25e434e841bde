//! How commands that are printed for users name steps, so that they work when they are pasted.

use hm_exec::quote::quote;
use uuid::Uuid;

use crate::reporter::text;

/// Returns the name of a run's step in commands, quoted for a shell and safe to print.
///
/// It begins with the run, so that it names the same step after further runs, and in other directories.
pub(crate) fn step(run: Uuid, key: &str) -> String {
    text::clean(&quote(&format!("{}/{key}", &run.to_string()[..8])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_the_run_and_are_quoted() {
        let run = Uuid::from_u128(0x0123_4567 << 96);
        assert_eq!(step(run, "unit"), "01234567/unit");
        assert_eq!(step(run, "a b"), "'01234567/a b'");
        assert_eq!(step(run, "-rf"), "01234567/-rf");
    }
}
