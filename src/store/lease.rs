//! Leases: what a process may be using, garbage collection leaves on disk.
//!
//! The index counts epochs. Garbage collection first forgets names, dooming layers that have none left, and begins a new
//! epoch; a doomed layer is removed when every process that took its lease in that epoch or an earlier one has let go.
//! So nobody writes down which layers it uses, and a lease costs a few bytes in the process's lock file. The kernel ends
//! it with the process.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::FlockOperation;

use super::{Store, StoreError, error::Doing, index};

/// Held by what relies on kept snapshots, sources or images. Leases of one process are one.
#[derive(Debug)]
#[must_use = "what is used without a lease may be removed"]
pub struct Lease {
    store: Arc<Store>,
}

/// How many leases this process has.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<usize>);

impl Store {
    /// Keeps whatever can be found from now on from being removed, until the lease is dropped. Take it first, then look.
    ///
    /// # Errors
    /// Where the lock file can't be written, or the index not be read.
    pub fn lease(self: &Arc<Self>) -> Result<Lease, StoreError> {
        let mut count = self.leases.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0 {
            // Before the epoch is known, everything is protected.
            self.write_epoch(0)?;
            self.write_epoch(self.index.read(index::epoch)?)?;
        }
        *count += 1;
        Ok(Lease { store: Arc::clone(self) })
    }

    /// This process among all that have the store open, and no other ever: for marks on what it makes elsewhere.
    #[cfg(feature = "docker")]
    pub(crate) fn instance(&self) -> &str {
        self.instance_name()
    }

    /// Whether the process of that mark still has the store open.
    #[cfg(feature = "docker")]
    pub(crate) fn is_open_in(&self, instance: &str) -> bool {
        if self.made(instance) {
            return true;
        }
        if instance.is_empty() || !instance.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return false;
        }
        let Ok(lock) = File::open(self.dir().join("locks").join(instance)) else { return false };
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
    }

    fn write_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        self.locked.write_all_at(&epoch.to_le_bytes(), 0).doing("write", &self.lock)
    }

    /// The epoch of the oldest lease that any living process has.
    pub(super) fn oldest_lease(&self) -> Result<Option<u64>, StoreError> {
        let mut oldest: Option<u64> = None;
        for name in super::layout::names(&self.dir().join("locks"))? {
            let path = self.dir().join("locks").join(&name);
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
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut count = self.store.leases.0.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0
            && let Err(error) = self.store.locked.set_len(0)
        {
            tracing::debug!(%error, "a lease stays until the store is closed");
        }
    }
}

/// The epoch in a lock file; `None` where its process has no lease.
fn read_epoch(path: &Path) -> Result<Option<u64>, StoreError> {
    let bytes = fs::read(path).doing("read", path)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(bytes.try_into().map_or(0, u64::from_le_bytes)))
}
