//! Renders nothing: there is no sandbox on this system.

use super::{NoSandbox, Rendering};
use crate::{failure::Outcome, trust::VARIABLE as TRUST};

/// Returns an error: there is no sandbox.
pub(super) fn run(_: &Rendering<'_>) -> Result<Outcome<Vec<u8>>, NoSandbox> {
    let hint = "render on Linux: `hm render` prints the result".into();
    Err(NoSandbox { reason: "the sandbox needs Linux".into(), hint })
}

/// Returns an error: there is no sandbox.
pub(crate) fn trial() -> Result<(), (String, String)> {
    Err(("the sandbox needs Linux".into(), format!("set {TRUST}=1 to render without a sandbox")))
}
