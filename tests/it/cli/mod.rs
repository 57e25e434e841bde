//! The `hm` command, run as a user or a script would run it.

mod cache;
mod cp;
#[cfg(target_os = "linux")]
mod disk_errors;
#[cfg(target_os = "linux")]
mod earlier_runs;
mod exit_codes;
#[cfg(target_os = "linux")]
mod interrupted_runs;
mod invalid_input;
mod killed;
#[cfg(target_os = "linux")]
mod killed_at_random;
#[cfg(target_os = "linux")]
mod live_output;
#[cfg(target_os = "linux")]
mod lost_blobs;
mod output;
#[cfg(target_os = "linux")]
mod private_files;
mod python;
#[cfg(target_os = "linux")]
mod remote_cache;
#[cfg(target_os = "linux")]
mod remote_run;
#[cfg(target_os = "linux")]
mod rendering;
mod shell;
mod signals;
#[cfg(target_os = "linux")]
mod trust;
#[cfg(target_os = "linux")]
mod untrusted_checkout;
