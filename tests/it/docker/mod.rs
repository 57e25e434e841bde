//! The docker runner, on a test daemon.

pub(crate) mod bench;
mod chains;
pub(crate) mod daemon;
#[cfg(feature = "cli")]
mod kept;
#[cfg(feature = "cli")]
mod left;
mod limits;
mod odd_layers;
