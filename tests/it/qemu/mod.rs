//! Virtual machines on QEMU, with the distribution's kernel.

mod chains;
mod cleanup;
mod network;
