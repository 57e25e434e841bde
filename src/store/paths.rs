//! The names of everything in the store's directory.
//!
//! ```text
//! format                    the version of this layout
//! index.db                  the layers and their names (SQLite)
//! locks/INSTANCE            locked (flock) by a process while it has the store open; contains its lease
//! tmp/INSTANCE/             files that the process is about to create or to remove
//! layers/LAYER/root/        the changes of a step, a source tree or its changes, a part of an image
//! sources/SOURCE/           the manifest of a frozen source
//! stat/DIRECTORY            the stat cache of a source directory
//! gc.lock                   locked by a process that collects garbage
//! reserve                   deleted when the disk is full, so that garbage can be collected
//! pulling/                  locks for creating layers of images
//! logs/KEY, logs/KEY.zst    the output of a cached step, raw or compressed
//! runs/RUN/                 a run's journal and logs
//! secret                    a key for hashes that must not reveal their input
//! workspaces/WORKSPACE/     the process runner's snapshots
//! vm/TEMPLATE/              booted virtual machines, which are copied for each step
//! ```
//!
//! Everything is created in `tmp`, then renamed to its place, and then its rows are written. If the process
//! is killed at any moment, nothing incomplete remains outside of `tmp`. At worst there is a layer without a
//! row, and its name identifies the process that made it (INSTANCE + counter). `recover` finds such layers.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{LayerId, SourceId};

/// The names in a store's directory.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    dir: PathBuf,
}

impl Paths {
    /// Names what is in `dir`, which is canonical.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Returns the store's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn format(&self) -> PathBuf {
        self.dir.join("format")
    }

    pub(super) fn locks(&self) -> PathBuf {
        self.dir.join("locks")
    }

    /// Returns the directory that contains each process's directory for temporary files.
    pub(super) fn tmps(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    /// Returns the directory of a layer, with its files in `root`.
    pub(crate) fn layer(&self, layer: &LayerId) -> PathBuf {
        self.layers().join(layer.as_str())
    }

    /// Returns the directory of a layer's files.
    pub(crate) fn layer_root(&self, layer: &LayerId) -> PathBuf {
        self.layer(layer).join("root")
    }

    /// Returns the directory with locks for creating layers that are named by their content.
    pub(crate) fn layer_locks(&self) -> PathBuf {
        self.dir.join("pulling")
    }

    pub(super) fn sources(&self) -> PathBuf {
        self.dir.join("sources")
    }

    /// Returns the directory of a source's manifest.
    pub(crate) fn source(&self, source: &SourceId) -> PathBuf {
        self.sources().join(source.as_str())
    }

    /// Returns the directory of stat caches.
    pub(crate) fn stat_caches(&self) -> PathBuf {
        self.dir.join("stat")
    }

    pub(super) fn gc_lock(&self) -> PathBuf {
        self.dir.join("gc.lock")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Returns the file with the output of a cached step.
    pub(super) fn log(&self, key: &[u8; 32]) -> PathBuf {
        self.logs().join(blake3::Hash::from_bytes(*key).to_hex().as_str())
    }

    pub(super) fn runs(&self) -> PathBuf {
        self.dir.join("runs")
    }

    /// Returns the directory of a run's journal and logs.
    pub(super) fn run(&self, run: Uuid) -> PathBuf {
        self.runs().join(run.to_string())
    }

    pub(super) fn secret(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// Returns the directory of workspaces. Their names begin with that of the process that made them.
    pub(crate) fn workspaces(&self) -> PathBuf {
        self.dir.join("workspaces")
    }

    pub(super) fn vm_templates(&self) -> PathBuf {
        self.dir.join("vm")
    }
}
