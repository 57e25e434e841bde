//! The saved cache: results of cached steps in a directory that can be copied to another machine.
//!
//! ```text
//!   store ──save──▶ DIR: hm-cache.json, blobs/SHA256 ──restore──▶ store of another machine
//! ```
//!
//! `list` is the list of results in the directory, and `dir` the files there. Images are named, and pulled by
//! a restore. This module knows nothing about steps or keys: a key is 32 bytes.

mod dir;
mod error;
mod list;
mod restore;
mod save;

pub use self::{
    error::SavedCacheError,
    restore::{Restored, Skipped, restore},
    save::{SaveLimits, Saved, save},
};
