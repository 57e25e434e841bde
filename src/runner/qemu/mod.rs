//! The runner of virtual machines: each step has a kernel of its own, under QEMU.
//!
//! ```text
//!   template: a machine that booted, and waits ─┐ memory, state
//!                                               ▼
//!   layers ─▶ overlay ─▶ virtiofsd ◀─virtiofs─▶ QEMU: guest ─▶ the command in a jail
//!                │                                │
//!                └─▶ its upper layer ─▶ commit    └─▶ output, exit code
//! ```
//!
//! In: what [`VmRunner`] makes of an attempt. The host mounts the step's overlay as the sandbox does, and `virtiofsd` shows it
//! to the machine, so that what a command changes lands in a layer of the store, whiteouts and all. Machines boot once for
//! each shape and store; a step's machine is a copy of the one that booted. Both programs run in the
//! namespaces of a step, and die with the engine.
//!
//! Knows nothing of plans. What happens inside of a machine is [`guest`](crate::guest)'s.
//!
//! [`VmRunner`]: super::vm::VmRunner

mod accel;
mod backend;
mod channel;
mod initrd;
mod kernel;
mod launch;
mod machine;
mod programs;
mod qmp;
mod shape;
mod template;
mod trouble;

pub use accel::Accelerator;
pub use backend::{Qemu, QemuBuilder};

/// Runs each step in a virtual machine.
pub type QemuRunner = super::vm::VmRunner<Qemu>;
