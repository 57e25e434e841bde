//! The program that becomes the zygote.
//!
//! The zygote is a program with this library, started with a marker as its first argument. `hm` is one. A
//! program that embeds the library becomes one by calling [`init`] first thing in `main`.
//!
//! [`init`]: crate::runner::sandbox::init

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// The variable that names the helper program. Only the builder's setting has precedence over it.
pub const HELPER_VARIABLE: &str = "HM_SANDBOX_HELPER";

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// Records that this program can become the helper itself.
pub(crate) fn mark_initialized() {
    INITIALIZED.store(true, Ordering::Release);
}

/// The error if no program can become the sandbox's helper.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no helper program for the sandbox: call `hm_exec::runner::sandbox::init()` first thing in `main`, or set an \
     `hm` by `SandboxRunner::builder().helper(..)` or {HELPER_VARIABLE}"
)]
pub struct NoHelper;

/// Returns the helper: the given program, the one named by the environment, this very program, or the `hm`
/// next to it.
pub(crate) fn locate(given: Option<&Path>) -> Result<PathBuf, NoHelper> {
    if let Some(path) = given {
        return Ok(path.into());
    }
    if let Some(path) = std::env::var_os(HELPER_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    if INITIALIZED.load(Ordering::Acquire) {
        // This path also works after an upgrade replaced the file.
        return Ok("/proc/self/exe".into());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("hm")));
    beside.filter(|path| path.is_file()).ok_or(NoHelper)
}
