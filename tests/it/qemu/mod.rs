//! Virtual machines on QEMU, with the distribution's kernel.

pub(crate) mod bench;
#[cfg(feature = "docker")]
mod chains;
#[cfg(feature = "cli")]
mod left;
