//! Python with the package `harmont`.

use std::{
    env,
    process::{Command, Stdio},
};

use super::backends::usable;

/// Returns a Python that has harmont. If there is none, prints a note and returns `None`.
pub(crate) fn python_with_harmont() -> Option<String> {
    let candidates = [env::var("HM_PYTHON").unwrap_or_default(), "python3".into()];
    let has_harmont = |python: &String| {
        let mut import = Command::new(python);
        import.args(["-c", "import harmont"]).stdout(Stdio::null()).stderr(Stdio::null());
        import.status().is_ok_and(|status| status.success())
    };
    let found = candidates.into_iter().filter(|python| !python.is_empty()).find(has_harmont);
    let why = "no python3 with the package harmont: `pip install harmont`, or set HM_PYTHON";
    usable("harmont", found.is_some(), why).then_some(found).flatten()
}
