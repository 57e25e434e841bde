//! The docker runner: each step is a container of a Docker or Podman daemon.
//!
//! ```text
//!   image at the daemon ─┐                                     ┌─ docker: an image for this run
//!   snapshot (hm1:) ─────┴▶ image with the source ▶ container ─┤
//!                           once in a run                      └─ hm1: its new layer, in the store
//! ```
//!
//! The input is an attempt as [`VmRunner`] passes it on. A container starts from an image that consists of
//! the base, then the source, then the snapshot's layers. So a command's changes are one layer over them, as
//! in the sandbox. Such an image is loaded once in a run, without the layers that the daemon has. Only
//! snapshots that are needed elsewhere are imported into the store ([`Vm::commit`]).
//!
//! Everything created at the daemon is labelled with the run, the store and the process that created it. The
//! end of a build removes the build's objects. If an engine is killed, a separate process removes its
//! objects; if that fails, the next process of the same store does. This module knows neither plans, nor who
//! needs which snapshot.
//!
//! [`Vm::commit`]: super::vm::Vm::commit
//! [`VmRunner`]: super::vm::VmRunner

mod backend;
mod collect;
mod connection;
mod container;
mod container_image;
mod error;
mod images;
mod inputs;
mod labels;
mod load;
mod local_trees;
mod make;
mod outputs;
mod processes;
mod reaper;
mod shared;
mod sweep;

pub use backend::{Docker, DockerBuilder};
pub use reaper::init;
pub use sweep::Swept;

/// Runs each step in a container.
pub type DockerRunner = super::vm::VmRunner<Docker>;
