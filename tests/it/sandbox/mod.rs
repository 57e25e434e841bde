//! The sandbox on this machine: what a step may do, what it commits, and what remains of it.
//!
//! Run as root, the suite runs itself a second time as an ordinary user.

mod confined;
mod files;
pub(crate) mod harness;
mod identity;
mod isolation;
mod left;
mod limits;
mod overlays;
mod processes;
mod rootless;
mod source;
