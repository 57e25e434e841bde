//! The `hm` command, run as a user or a script would run it.

mod cache;
mod ci_services;
mod completions;
#[cfg(target_os = "linux")]
mod compressed_logs;
mod config;
mod cp;
mod disk_errors;
mod earlier_runs;
mod errors;
mod exit_codes;
mod init;
mod inputs;
mod interrupted_runs;
mod invalid_input;
mod killed;
mod killed_at_random;
mod last_screen;
mod live_output;
mod lost_blobs;
#[cfg(target_os = "linux")]
mod memory;
mod outcomes;
mod output;
mod outputs;
mod plan;
mod private_files;
mod published_stream;
mod python;
mod remote_cache;
mod remote_run;
mod rendering;
mod report;
mod runs;
mod saved_cache;
mod shadow;
mod shell;
mod signals;
mod trust;
mod typescript;
mod untrusted_checkout;
