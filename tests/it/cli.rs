//! The `hm` command, run as a user or a script would run it.

#![cfg(feature = "cli")]

mod cache;
mod cp;
#[cfg(target_os = "linux")]
mod disks;
#[cfg(target_os = "linux")]
pub(crate) mod ends;
pub(crate) mod hm;
mod inputs;
mod killed;
#[cfg(target_os = "linux")]
mod killed_runs;
#[cfg(target_os = "linux")]
mod live_output;
#[cfg(target_os = "linux")]
mod looking_back;
mod output;
#[cfg(target_os = "linux")]
mod private_files;
pub(crate) mod python;
#[cfg(target_os = "linux")]
mod recorder;
#[cfg(target_os = "linux")]
mod remote;
#[cfg(target_os = "linux")]
mod remote_cache;
#[cfg(target_os = "linux")]
mod remote_losses;
#[cfg(target_os = "linux")]
mod rendering;
pub(crate) mod shell;
mod signals;
mod terminal;
#[cfg(target_os = "linux")]
mod trust;
#[cfg(target_os = "linux")]
mod untrusted;
mod verdicts;
