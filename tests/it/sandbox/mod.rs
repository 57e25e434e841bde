//! The sandbox on this machine: what a step may do, what it commits, and what remains of it.
//!
//! Run as root, the suite runs itself a second time as an ordinary user.

mod artifacts;
mod cache_dirs;
mod connections;
mod files;
mod identity;
mod inputs;
mod isolation;
mod limits;
mod network;
mod overlays;
mod processes;
mod read_only_programs;
mod rootless;
mod services;
mod soak;
mod source;
mod source_times;
mod traces;
