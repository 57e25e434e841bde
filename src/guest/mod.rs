//! The program that runs in a virtual machine, as its first process: it runs one step, over files that the host serves.
//!
//! ```text
//!   host ──Order──▶ virtio-serial ──▶ init ──clone──▶ job: the same jail as the sandbox's ──▶ the command
//!     ▲                                │ ▲                            │
//!     └──────────── Word ──────────────┘ └──── stdout, stderr, end ───┘
//! ```
//!
//! In: [`Order`]s. Out: [`Word`]s, the first of them when the machine is ready: then a template is made of it. What is the
//! same for every step happens before that, what differs (files, time, randomness) after. Knows nothing of QEMU.

mod init;
mod job;
mod network;
mod wire;

pub use init::run;
pub use wire::{Ended, Job, Order, Word};
#[cfg(feature = "qemu")]
pub(crate) use wire::{MAX_FRAME_BYTES, encode};

/// The argument that makes `hm-step` this program.
pub const MARKER: &str = "guest";

/// The version of what host and guest tell each other, and of what the guest prepares.
pub const VERSION: u32 = 2;

/// The name of the file system that the host serves.
pub const FILES: &str = "hm";

/// Where modules are that [`run`] loads, in the order of their names.
pub const MODULES: &str = "modules";
