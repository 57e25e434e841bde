//! Leases: garbage collection does not remove what a process may be using.
//!
//! The index counts epochs. Garbage collection first forgets names, dooms layers that have none left, and
//! begins a new epoch. A doomed layer is removed when every process that took its lease in that epoch or an
//! earlier one has released it. Processes therefore need not record which layers they use, and a lease costs
//! a few bytes in the process's lock file. The kernel releases it when the process ends.

use std::sync::Arc;

use super::{Store, StoreError, index, shared::Shared};
use crate::sync::Mutex;

/// A lease on kept snapshots, sources and images. All leases of one process count as one.
#[derive(Debug)]
#[must_use = "what is used without a lease may be removed"]
pub struct Lease {
    store: Arc<Store>,
}

impl Lease {
    pub(super) fn take(store: &Arc<Store>) -> Result<Self, StoreError> {
        store.leases().take()?;
        Ok(Self { store: Arc::clone(store) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.leases().release();
    }
}

/// The leases of this process.
#[derive(Debug)]
pub(super) struct Leases {
    shared: Arc<Shared>,
    count: Mutex<usize>,
}

impl Leases {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, count: Mutex::default() }
    }

    fn take(&self) -> Result<(), StoreError> {
        let mut count = self.count.lock();
        if *count == 0 {
            // Everything is protected until the epoch is known.
            self.shared.instance.set_epoch(0)?;
            self.shared.instance.set_epoch(self.shared.index.read(index::epoch)?)?;
        }
        *count += 1;
        Ok(())
    }

    fn release(&self) {
        let mut count = self.count.lock();
        *count -= 1;
        if *count == 0
            && let Err(error) = self.shared.instance.clear_epoch()
        {
            tracing::debug!(%error, "failed to release a lease; it ends when the store is closed");
        }
    }
}
