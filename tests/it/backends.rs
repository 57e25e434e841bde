//! Tests that need something that a machine may lack.

/// Returns whether `what` can be used. If it cannot, prints the reason, and fails under
/// `HM_REQUIRE_BACKENDS=1`.
#[track_caller]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn usable(what: &str, is_usable: bool, why: &str) -> bool {
    if !is_usable {
        let required = std::env::var_os("HM_REQUIRE_BACKENDS").is_some_and(|value| value == "1");
        assert!(!required, "{what} can't be used here, and HM_REQUIRE_BACKENDS is set: {why}");
        eprintln!("SKIPPED: {what} can't be used here: {why}");
    }
    is_usable
}

/// Prints that a test needs something that no machine is required to have.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn told_skip(what: &str, why: &str) {
    eprintln!("SKIPPED: {what} can't be used here: {}", why.trim());
}
