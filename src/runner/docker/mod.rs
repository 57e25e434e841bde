//! The docker runner: each step is a container of a Docker or Podman daemon.
//!
//! ```text
//!   image at the daemon ─┐                              ┌─ docker:   an image at the daemon, for this run's containers
//!   snapshot (hm1:) ─────┴▶ image with the source ▶ container ─┤
//!                           once in a run                └─ hm1:      its new layer, taken into the store
//! ```
//!
//! In: what [`VmRunner`] makes of an attempt. A container starts from an image that has the base, then the source, then the
//! snapshot's layers, so that what a command changed is one layer over them, as in the sandbox. Such an image is loaded once
//! in a run, without the layers that the daemon has. Only what somebody else needs travels back ([`Vm::commit`]).
//!
//! Whatever is made at the daemon carries the run, the store and the process that made it. The end of a build removes what is the
//! build's, and a process of its own what a killed engine left; failing that, the next process of that store does. Knows nothing of plans, nor who needs what.
//!
//! [`Vm::commit`]: super::vm::Vm::commit
//! [`VmRunner`]: super::vm::VmRunner

mod backend;
mod collect;
mod connection;
mod container;
mod footing;
mod images;
mod load;
mod make;
mod marks;
mod processes;
mod reaper;
mod shared;
mod sweep;
mod trouble;

pub use backend::{Docker, DockerBuilder};
pub use reaper::init;
pub use sweep::Swept;

/// Runs each step in a container.
pub type DockerRunner = super::vm::VmRunner<Docker>;
