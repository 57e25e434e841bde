//! The user namespace of steps: one helper process (the zygote), how it maps ids, and operations on trees
//! whose files belong to those ids.
//!
//! ```text
//!   sandbox, docker, cloud, qemu, remote cache ──▶ UsernsHelper ──starts──▶ zygote ──▶ steps
//!                                                      │                      ▲
//!                                      store ◀─TreeOps─┘──────tree operations─┘
//! ```
//!
//! Input: which program to start, and how to map ids. Output: the [`IdMap`](crate::store::IdMap) of layers, a
//! running zygote, and stores that can handle files of subordinate ids. Does not know what a step or a runner
//! is: [`jail`](crate::jail) contains the code that runs in the helper process.

mod helper;
mod id_ranges;
mod program;
mod tree_ops;
mod zygote;

pub use helper::{UsernsHelper, UsernsOptions};
pub(crate) use id_ranges::IdRanges;
pub use program::{HELPER_VARIABLE, NoHelper};
pub(crate) use program::{locate, mark_initialized};
pub(crate) use zygote::{PATIENCE, StartError, Zygote, register};
