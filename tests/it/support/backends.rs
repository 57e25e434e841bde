//! Tests that need something that a machine may lack.

use std::{path::Path, process::Command};

/// Prints why a test does nothing, and fails under `HM_REQUIRE_BACKENDS=1`.
#[track_caller]
#[allow(clippy::print_stderr, reason = "a skipped test prints the reason")]
pub(crate) fn skip(reason: &str) {
    let required = std::env::var_os("HM_REQUIRE_BACKENDS").is_some_and(|value| value == "1");
    assert!(!required, "{reason} (HM_REQUIRE_BACKENDS is set)");
    eprintln!("SKIPPED: {reason}");
}

/// Returns whether `what` can be used. [Skips](skip) the test if it cannot.
#[track_caller]
pub(crate) fn usable(what: &str, is_usable: bool, why: &str) -> bool {
    if !is_usable {
        skip(&format!("{what} can't be used here: {}", why.trim()));
    }
    is_usable
}

/// Returns whether a program runs, which is then part of this machine's image.
pub(crate) fn runs(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Returns whether this machine has a program. [Skips](skip) the test if it has not.
#[track_caller]
pub(crate) fn usable_program(program: &str) -> bool {
    usable(program, runs(program.as_ref()), "install it")
}

/// Prints that a test, or a part of it, needs something that no machine is required to have.
#[allow(clippy::print_stderr, reason = "a skipped test prints the reason")]
pub(crate) fn skip_optional(what: &str, why: &str) {
    eprintln!("SKIPPED: {what} can't be used here: {}", why.trim());
}
