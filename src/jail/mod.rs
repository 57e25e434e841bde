//! The jail: everything that happens in another process than the engine's.
//!
//! ```text
//!   engine ──request──▶ zygote ──clone3──▶ pid 1 of a step ──clone3──▶ the command
//!      ▲                  │ pidfd            │ exit code, setup errors
//!      └──────────────────┴── status socket ─┘
//! ```
//!
//! In: a [`JailSpec`] per step, and its status socket and streams. Out: a [`Report`] or two. Knows neither tokio nor the
//! rest of the crate but for [`tree`](crate::tree), so that it can run in a program of its own; the only `unsafe` of the
//! crate is in `sys`.

mod caps;
mod error;
mod init;
mod mounts;
mod seccomp;
mod spec;
mod sys;
mod tree;
mod watch;
#[cfg_attr(not(feature = "sandbox"), allow(dead_code, reason = "some of it is for the engine's side"))]
pub(crate) mod wire;
mod zygote;

pub use error::SetupError;
pub use spec::{Bind, JailSpec, MountApi, Overlay, Report, Request, SecretFile, TreeOp, UserNamespace, Watch};
pub use zygote::{MARKER, run_if_marked};
