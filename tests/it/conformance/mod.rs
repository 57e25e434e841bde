//! The conformance suite over this crate's runners, and over runners that break their promises.

mod broken;
#[cfg(all(feature = "cloud", target_os = "linux"))]
mod cloud;
#[cfg(all(feature = "docker", target_os = "linux"))]
mod docker;
#[cfg(feature = "process")]
mod process;
#[cfg(all(feature = "qemu", target_os = "linux"))]
mod qemu;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(all(feature = "vm", target_os = "linux"))]
mod vm;
