//! The runner with virtual machines: each step has a kernel of its own, under QEMU.
//!
//! ```text
//!   template: a machine that booted, and waits ─┐ memory, state
//!                                               ▼
//!   layers ─▶ overlay ─▶ virtiofsd ◀─virtiofs─▶ QEMU: guest ─▶ the command in a jail
//!                │                                │
//!                └─▶ its upper layer ─▶ commit    └─▶ output, exit code
//! ```
//!
//! The input is an attempt as [`VmRunner`] passes it on. The host mounts the step's overlay as the sandbox
//! does, and `virtiofsd` serves it to the machine. So a command's changes go to a layer of the store,
//! including whiteouts. A machine boots once for each size and store; a step's machine is a copy of the one
//! that booted. Both programs run in the namespaces of a step, and die with the engine.
//!
//! This module knows nothing of plans. [`guest`](crate::guest) has the code that runs inside a machine.
//!
//! [`VmRunner`]: super::vm::VmRunner

mod accel;
mod backend;
mod channel;
mod error;
mod initrd;
mod kernel;
mod launch;
mod machine;
mod machine_size;
mod programs;
mod qmp;
mod template;

pub use accel::Accelerator;
pub use backend::{Qemu, QemuBuilder};

/// Runs each step in a virtual machine.
pub type QemuRunner = super::vm::VmRunner<Qemu>;
