//! The program that runs in a virtual machine, as its init process: it runs one step, over files that the
//! host serves.
//!
//! ```text
//!   host ──Order──▶ virtio-serial ──▶ init ──clone──▶ job: the same jail as the sandbox's ──▶ the command
//!     ▲                                │ ▲                            │
//!     └──────────── Word ──────────────┘ └──── stdout, stderr, end ───┘
//! ```
//!
//! Input: [`Order`]s. Output: [`Word`]s. The first one reports that the machine is ready; a template is then
//! made of the machine. Work that is the same for every step is done before that, and work that differs
//! (files, time, randomness) after it. The module does not know QEMU.

mod init;
mod job;
mod network;
mod wire;

pub use init::run;
pub use wire::{Ended, Job, Order, Word};
pub use wire::{MAX_FRAME_BYTES, encode};

/// The argument that makes `hm-step` run this program.
pub const MARKER: &str = "guest";

/// The version of the protocol between host and guest, and of the guest's preparations.
pub const VERSION: u32 = 2;

/// The name of the file system that the host serves.
pub const FILES: &str = "hm";

/// The directory of the modules that [`run`] loads, in the order of their names.
pub const MODULES: &str = "modules";
