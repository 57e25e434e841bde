//! One opening of the store by a process: its id, its lock file, and its directory for temporary files.
//!
//! The lock file is locked for as long as the process has the store open. It contains the epoch of the
//! process's lease, if it has one: see [`lease`](super::lease). A process is dead if its lock is free.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use uuid::Uuid;

use super::{
    LayerId, StoreError,
    error::IoContext,
    files::{make_dir, names, write_new},
    paths::Paths,
};

/// This process among those that have the store open.
#[derive(Debug)]
pub(crate) struct Instance {
    paths: Paths,
    id: String,
    boot: String,
    lock_path: PathBuf,
    /// Held until the store is closed.
    lock: File,
    next: AtomicU64,
}

impl Instance {
    /// Registers this process: creates a locked file, then a directory for what the process makes.
    pub(super) fn register(paths: &Paths) -> Result<Self, StoreError> {
        let id = Uuid::new_v4().simple().to_string()[..24].to_owned();
        let lock_path = paths.locks().join(&id);
        let lock =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock_path).doing("make", &lock_path)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).doing("lock", &lock_path)?;
        let instance = Self { paths: paths.clone(), boot: boot_id(&id), id, lock_path, lock, next: AtomicU64::new(0) };
        make_dir(&instance.tmp())?;
        Ok(instance)
    }

    /// Returns a name that identifies this process among all processes that ever open the store.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the name of this boot of the machine.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Returns a name that is unique across all stores: 32 hexadecimal digits, of which the first 24 identify
    /// this process.
    pub(crate) fn new_id(&self) -> String {
        format!("{}{:08x}", self.id, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns a [new id](Self::new_id) for a layer.
    pub(crate) fn new_layer_id(&self) -> Result<LayerId, StoreError> {
        let id = self.new_id();
        LayerId::parse(&id).ok_or_else(|| StoreError::Corrupt {
            path: self.paths.dir().into(),
            reason: format!("`{id}` is not an id"),
        })
    }

    /// Returns whether this process made the layer or file with this name.
    pub(crate) fn made(&self, name: &str) -> bool {
        name.starts_with(&self.id)
    }

    /// Returns the directory of files that this process is about to create or to remove.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.paths.tmps().join(&self.id)
    }

    /// Returns a free path on the store's filesystem for something to be created. Nothing exists there yet.
    pub(crate) fn new_tmp(&self) -> PathBuf {
        self.tmp().join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Writes a small file atomically.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let tmp = self.new_tmp();
        write_new(&tmp, bytes)?;
        fs::rename(&tmp, path).doing("make", path)
    }

    /// Writes a file atomically, like [`write_file`](Self::write_file). After a loss of power it may be
    /// incomplete even if there was a whole one before: this is for a file that has a checksum and can be
    /// made again.
    ///
    /// Ext4 begins to write a file to the disk when it is renamed over another, which takes longer than all
    /// the rest. It does not if both change places.
    pub(crate) fn replace_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let tmp = self.new_tmp();
        write_new(&tmp, bytes)?;
        match rustix::fs::renameat_with(CWD, &tmp, CWD, path, RenameFlags::EXCHANGE) {
            Ok(()) => fs::remove_file(&tmp).doing("remove", &tmp),
            // There is none yet, or the filesystem cannot do it.
            Err(_) => fs::rename(&tmp, path).doing("make", path),
        }
    }

    /// Returns whether the process with that id still has the store open.
    pub(crate) fn is_open_in(&self, id: &str) -> bool {
        if self.made(id) {
            return true;
        }
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return false;
        }
        let Ok(lock) = File::open(self.paths.locks().join(id)) else { return false };
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// Records the epoch of this process's lease for the other processes.
    pub(super) fn set_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        self.lock.write_all_at(&epoch.to_le_bytes(), 0).doing("write", &self.lock_path)
    }

    /// Records that this process has no lease.
    pub(super) fn clear_epoch(&self) -> std::io::Result<()> {
        self.lock.set_len(0)
    }

    /// Returns the epoch of the oldest lease of any living process.
    pub(super) fn oldest_epoch(&self) -> Result<Option<u64>, StoreError> {
        let mut oldest: Option<u64> = None;
        for name in names(&self.paths.locks())? {
            let path = self.paths.locks().join(&name);
            let Ok(lock) = File::open(&path) else { continue };
            if !self.made(&name) && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_ok() {
                continue;
            }
            oldest = match (oldest, read_epoch(&path)?) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        Ok(oldest)
    }

    /// Removes the lock file, after the directory for temporary files.
    pub(super) fn unregister(&self) -> std::io::Result<()> {
        fs::remove_file(&self.lock_path)
    }
}

/// Returns the name of this boot of the machine. If the system does not report one, each process counts as a
/// boot of its own.
fn boot_id(instance: &str) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.trim().is_empty() { instance.to_owned() } else { boot.trim().to_owned() }
}

/// Returns the epoch in a lock file, or `None` if its process has no lease.
fn read_epoch(path: &Path) -> Result<Option<u64>, StoreError> {
    let bytes = fs::read(path).doing("read", path)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(bytes.try_into().map_or(0, u64::from_le_bytes)))
}
