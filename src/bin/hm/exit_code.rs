//! The exit codes of `hm`. `hm run --help` lists them for users.
//!
//! | code | meaning | defined in |
//! |---|---|---|
//! | 0 | success | [`BuildStatus::exit_code`] |
//! | 1 | the build failed | [`BuildStatus::exit_code`] |
//! | 2 | wrong usage or invalid input | [`INVALID`] |
//! | 3 | something other than a step's command failed | [`BuildStatus::exit_code`] |
//! | 3 | of the service: not logged in | [`AUTH`] |
//! | 4 | of the service: it cannot be reached | [`NETWORK`] |
//! | 5 | of the service: it does not have it, or could not answer | [`API`] |
//! | 7 | of the service: it refused the build | [`PIPELINE`] |
//! | 124 | the build timed out | [`BuildStatus::exit_code`] |
//! | 130 | interrupted | [`BuildStatus::exit_code`] |
//! | other | that of the program which `hm shell` ran | [`of_program`] |

use std::process::ExitCode;

use hm_exec::BuildStatus;

/// The exit code for wrong usage or invalid input: nothing has run.
pub(crate) const INVALID: u8 = 2;

/// The exit code if this machine, or something on it, prevented the command from doing its work.
pub(crate) const COULD_NOT_RUN: u8 = BuildStatus::Infrastructure.exit_code() as u8;

/// The exit code if the user is not logged in to the service.
pub(crate) const AUTH: u8 = 3;

/// The exit code if the service cannot be reached.
pub(crate) const NETWORK: u8 = 4;

/// The exit code if the service does not have what was requested, or could not answer.
pub(crate) const API: u8 = 5;

/// The exit code if the service refused a build.
pub(crate) const PIPELINE: u8 = 7;

/// The exit code after Ctrl-C, or another signal to stop.
pub(crate) const INTERRUPTED: u8 = BuildStatus::Canceled.exit_code() as u8;

/// Returns the exit code of `hm run` for a build that has ended.
pub(crate) fn of_build(status: BuildStatus) -> ExitCode {
    of_program(status.exit_code())
}

/// Returns the exit code that passes on the one of another program.
pub(crate) fn of_program(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
