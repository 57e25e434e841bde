//! Stands for `step` on systems that run no steps.

use std::{ffi::OsStr, process::ExitCode};

use crate::{FAILED, usage};

/// Prints that no step can run.
#[expect(clippy::print_stderr, reason = "this is a command")]
pub(crate) fn answer(_: &OsStr, has_more: bool) -> ExitCode {
    if has_more {
        return usage();
    }
    eprintln!("hm-step: steps run on Linux");
    ExitCode::from(FAILED)
}
