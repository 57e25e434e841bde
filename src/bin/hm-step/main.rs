//! `hm-step input.json`: runs one step on a machine that knows nothing about pipelines.
//!
//! Input: the file, and next to it everything that it names (see [`hm_exec::step`]). Output: the command's
//! output and exit code, `result.json`, and `layer.tar.zst` if it is requested. `hm-step guest`, as the first
//! process of a virtual machine, does the same for the runner `vm` (see [`hm_exec::guest`]). It needs only a
//! kernel that lets it create namespaces: no runtime, no store, no configuration.

#[cfg(target_os = "linux")]
mod failure;
#[cfg(target_os = "linux")]
mod layer;
#[cfg(target_os = "linux")]
mod lowers;
#[cfg(target_os = "linux")]
mod scratch;
#[cfg(target_os = "linux")]
mod step;

use std::process::ExitCode;

/// The exit code if the command could not be run.
const FAILED: u8 = 125;

#[allow(clippy::print_stderr, clippy::print_stdout, reason = "this is a command")]
fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (Some(arg), None) if arg == "--version" => {
            println!("hm-step {}, format {}", env!("CARGO_PKG_VERSION"), hm_exec::step::VERSION);
            ExitCode::SUCCESS
        }
        #[cfg(target_os = "linux")]
        (Some(arg), None) if arg == hm_exec::guest::MARKER && std::process::id() == 1 => {
            // The machine ends when its first process ends.
            if let Err(why) = hm_exec::guest::run() {
                eprintln!("hm-step: {why}");
            }
            ExitCode::from(FAILED)
        }
        #[cfg(target_os = "linux")]
        (Some(input), again) if again.is_none() || hm_exec::jail::is_again() => {
            match step::run(std::path::Path::new(&input)) {
                Ok(code) => ExitCode::from(code),
                Err(failure) => {
                    eprintln!("hm-step: {failure}");
                    ExitCode::from(FAILED)
                }
            }
        }
        #[cfg(not(target_os = "linux"))]
        (Some(_), None) => {
            eprintln!("hm-step: steps run on Linux");
            ExitCode::from(FAILED)
        }
        _ => {
            eprintln!("usage: hm-step input.json");
            ExitCode::from(FAILED)
        }
    }
}
