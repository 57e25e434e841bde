//! The jail: everything that happens in other processes than the engine's.
//!
//! ```text
//!   engine ──request──▶ zygote ──clone3──▶ pid 1 of a step ──clone3──▶ the command
//!      ▲                  │ pidfd            │ exit code, setup errors
//!      └──────────────────┴── status socket ─┘
//! ```
//!
//! A zygote without namespaces starts steps without isolation. The supervisor of such a step takes the place
//! of pid 1: see `supervisor`.
//!
//! Input: a [`JailSpec`] per step, its status socket and its streams. Output: one or two [`Report`]s. The
//! module depends neither on tokio nor on the rest of the crate, except for [`tree`](crate::tree), so that it
//! can run in a program of its own. The only `unsafe` code of the crate is in `sys` and `notify`.

mod apt;
mod caps;
mod dev;
mod error;
mod exe;
mod groups;
mod hint;
mod hosts;
mod identity;
mod init;
mod landlock;
mod memory;
mod memory_root;
mod mounts;
pub mod network;
mod notify;
mod oneshot;
mod overlay;
mod resolver;
mod seccomp;
mod small_file;
mod spec;
mod supervisor;
mod sys;
pub mod trace;
mod tree;
mod watch;
pub mod wire;
mod zygote;

/// The system calls that the init of a virtual machine makes.
pub(crate) mod guest_ops {
    pub(crate) use super::sys::{
        Cloned, clone_process, default_route, exit, interface_up, load_module, loopback_up, move_to, reseed,
    };
}

pub use error::SetupError;
pub use exe::is_again;
pub use hint::user_namespace_hint;
pub use oneshot::may_mount;
pub use oneshot::{Bounds, End, OneShot};
pub use resolver::resolver;
pub use spec::{
    Bind, DEFAULT_ENV, FIRST_FD, GroupView, InnerOverlay, JailPlace, JailSpec, MemoryEntry, MemoryRoot, MountApi,
    MountedOverlay, Overlay, Pack, ProcessSpec, Report, Request, Root, Screen, SecretFile, StepNetwork, TraceSpec,
    TreeOp, UpperDir, UserNamespace, Watch,
};
pub use spec::{GREETING, greeting};
pub use sys::close_from;
pub use zygote::{MARKER, UNISOLATED, run_if_marked};
