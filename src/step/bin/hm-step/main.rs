//! `hm-step input.json`: runs one step on a machine that knows nothing about pipelines.
//!
//! Input: the file, and next to it everything that it names (see [`hm_exec_step`]). Output: the command's
//! output and exit code, `result.json`, and `layer.tar.zst` if it is requested. `hm-step guest`, as the first
//! process of a virtual machine, does the same for the runner `vm` (see [`hm_exec_step::guest`]). It needs
//! only a kernel that lets it create namespaces: no runtime, no store, no configuration.

mod step;

use std::process::ExitCode;

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
        (Some(input), again) => step::answer(&input, again.is_some()),
        _ => usage(),
    }
}

#[expect(clippy::print_stderr, reason = "this is a command")]
fn usage() -> ExitCode {
    eprintln!("usage: hm-step input.json");
    ExitCode::from(FAILED)
}
