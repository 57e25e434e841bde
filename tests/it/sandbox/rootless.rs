//! The same suite as an ordinary user.

use crate::support::users::{is_root, run_again};

#[test]
fn the_suite_passes_as_an_ordinary_user() {
    if !is_root() {
        // The rest of the suite has just run as an ordinary user.
        return;
    }
    let filters = [
        "sandbox::",
        "conformance::sandbox::the_sandbox_conforms_on_this",
        "images::",
        "cli::cp",
        "cli::inputs",
        "cli::outputs",
        "cli::rendering",
        "cli::shell",
    ];
    let passed = run_again(&[&filters[..], &["--test-threads=2"]].concat(), &[]);
    // A filter that matches nothing would succeed too.
    assert!(passed.is_none_or(|passed| passed > 250), "{passed:?}");
}
