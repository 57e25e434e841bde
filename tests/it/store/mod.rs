//! The store, at the level of directories; the sandbox's tests cover mounting its layers.

mod content;
mod full_disk;
mod gc;
mod kept_snapshots;
mod layers;
mod several_processes;
