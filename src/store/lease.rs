//! Leases: garbage collection does not remove what a process may be using.
//!
//! The index counts epochs. Garbage collection first forgets names, dooms layers that have none left, and
//! begins a new epoch. A doomed layer is removed when every process that took its lease in that epoch or an
//! earlier one has released it. Processes therefore need not record which layers they use, and a lease costs
//! a few bytes in the process's lock file. The kernel releases it when the process ends.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::FlockOperation;

use super::{Store, StoreError, error::Doing, index};

/// A lease on kept snapshots, sources and images. All leases of one process count as one.
#[derive(Debug)]
#[must_use = "what is used without a lease may be removed"]
pub struct Lease {
    store: Arc<Store>,
}

/// The number of leases that this process has.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<usize>);

impl Store {
    /// Protects everything that can be found from now on from removal, until the lease is dropped. Take the
    /// lease first, then look things up.
    ///
    /// # Errors
    /// Returns an error if the lock file cannot be written, or if the index cannot be read.
    pub fn lease(self: &Arc<Self>) -> Result<Lease, StoreError> {
        let mut count = self.leases.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0 {
            // Everything is protected until the epoch is known.
            self.write_epoch(0)?;
            self.write_epoch(self.index.read(index::epoch)?)?;
        }
        *count += 1;
        Ok(Lease { store: Arc::clone(self) })
    }

    /// Returns a name that identifies this process among all processes that ever open the store, for marks on
    /// what it creates elsewhere.
    #[cfg(feature = "docker")]
    pub(crate) fn instance(&self) -> &str {
        self.instance_name()
    }

    /// Returns whether the process with that name still has the store open.
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

    /// Returns the epoch of the oldest lease of any living process.
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
            tracing::debug!(%error, "failed to release a lease; it ends when the store is closed");
        }
    }
}

/// Returns the epoch in a lock file, or `None` if its process has no lease.
fn read_epoch(path: &Path) -> Result<Option<u64>, StoreError> {
    let bytes = fs::read(path).doing("read", path)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(bytes.try_into().map_or(0, u64::from_le_bytes)))
}
