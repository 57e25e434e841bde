//! Labels on everything that is created at a daemon, which name its owner.

use std::{collections::HashMap, sync::Arc};

use uuid::Uuid;

use crate::store::{Store, StoreError};

/// The label for the run that an object was created for.
pub(super) const RUN: &str = "hm-exec.run";
/// The label for the store whose process created the object. Daemons are shared, so objects of other stores
/// are left alone.
pub(super) const STORE: &str = "hm-exec.store";
/// The label for the process, as its store names it. A process is alive as long as it has the store open,
/// which the kernel reports.
pub(super) const PROCESS: &str = "hm-exec.process";

/// The identity of this process and its store.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    store: String,
    process: String,
}

impl Owner {
    pub(super) fn of(store: &Arc<Store>) -> Result<Self, StoreError> {
        // The name must neither reveal the store's secret nor allow others to forge a mark.
        let name = blake3::Hasher::new_keyed(&store.secret()?).update(b"hm-exec docker 1").finalize();
        Ok(Self { store: name.to_hex()[..32].to_owned(), process: store.instance().id().to_owned() })
    }

    /// Returns the labels of an object that is created for a run.
    pub(super) fn labels(&self, run: Uuid) -> HashMap<String, String> {
        let labels = [(RUN, run.to_string()), (STORE, self.store.clone()), (PROCESS, self.process.clone())];
        labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Returns the id of this process in labels.
    pub(super) fn process(&self) -> &str {
        &self.process
    }

    /// Returns the filter for objects that processes of this store created.
    pub(super) fn of_store(&self) -> String {
        format!("{STORE}={}", self.store)
    }
}

/// Returns the filter for objects that were created for a run.
pub(super) fn of_run(run: Uuid) -> String {
    format!("{RUN}={run}")
}
