//! The conformance suite over this crate's runners, and over runners that break their promises.

mod broken;
mod cloud;
mod docker;
mod process;
mod qemu;
mod sandbox;
mod vm;
