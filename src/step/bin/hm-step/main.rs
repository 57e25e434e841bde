//! `hm-step input.json`: runs one step on a machine that knows nothing about pipelines.
//!
//! Input: the file, and next to it everything that it names (see [`hm_exec_step`]). Output: the command's
//! output and exit code, `result.json`, and `layer.tar.zst` if it is requested. `hm-step guest`, as the first
//! process of a virtual machine, does the same for the runner `vm` (see [`hm_exec_step::guest`]). It needs
//! only a kernel that lets it create namespaces: no runtime, no store, no configuration.

#[cfg(target_os = "linux")]
mod step;

use std::{ffi::OsStr, process::ExitCode};

/// The exit code if the command could not be run.
const FAILED: u8 = 125;

#[expect(clippy::print_stdout, reason = "this is a command")]
fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (Some(arg), None) if arg == "--version" => {
            println!("hm-step {}, format {}", env!("CARGO_PKG_VERSION"), hm_exec_step::VERSION);
            ExitCode::SUCCESS
        }
        (Some(input), again) => answer(&input, again.is_some()),
        _ => usage(),
    }
}

#[expect(clippy::print_stderr, reason = "this is a command")]
fn usage() -> ExitCode {
    eprintln!("usage: hm-step input.json");
    ExitCode::from(FAILED)
}

/// Runs what the first argument names. A second argument is right only if this program runs itself again.
#[cfg(target_os = "linux")]
#[expect(clippy::print_stderr, reason = "this is a command")]
fn answer(input: &OsStr, has_more: bool) -> ExitCode {
    if !has_more && input == hm_exec_step::guest::MARKER && std::process::id() == 1 {
        // The machine ends when its first process ends.
        if let Err(why) = hm_exec_step::guest::run() {
            eprintln!("hm-step: {why}");
        }
        return ExitCode::from(FAILED);
    }
    if has_more && !hm_exec_step::jail::is_again() {
        return usage();
    }
    match step::run(input.as_ref()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("hm-step: {failure}");
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::print_stderr, reason = "this is a command")]
fn answer(_: &OsStr, has_more: bool) -> ExitCode {
    if has_more {
        return usage();
    }
    eprintln!("hm-step: steps run on Linux");
    ExitCode::from(FAILED)
}
