//! The conformance suite over this crate's runners, and over runners that break their promises.

mod broken;
#[cfg(target_os = "linux")]
mod cloud;
#[cfg(target_os = "linux")]
mod docker;
mod process;
#[cfg(target_os = "linux")]
mod qemu;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(target_os = "linux")]
mod vm;
