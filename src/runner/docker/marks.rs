//! Labels on everything that is made at a daemon: whose it is.

use std::{collections::HashMap, sync::Arc};

use uuid::Uuid;

use crate::store::{Store, StoreError};

/// The run that something was made for.
pub(super) const RUN: &str = "hm-exec.run";
/// The store whose process made it. Daemons are shared: what is another store's is left alone.
pub(super) const STORE: &str = "hm-exec.store";
/// The process, as its store knows it: alive for as long as it has the store open, which the kernel tells.
pub(super) const PROCESS: &str = "hm-exec.process";

/// This process, on its store.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    store: String,
    process: String,
}

impl Marks {
    pub(super) fn of(store: &Arc<Store>) -> Result<Self, StoreError> {
        // Others must not be able to tell the store's secret from it, nor to make a mark like it.
        let name = blake3::Hasher::new_keyed(&store.secret()?).update(b"hm-exec docker 1").finalize();
        Ok(Self { store: name.to_hex()[..32].to_owned(), process: store.instance().to_owned() })
    }

    /// The labels of what is made for a run.
    pub(super) fn labels(&self, run: Uuid) -> HashMap<String, String> {
        let labels = [(RUN, run.to_string()), (STORE, self.store.clone()), (PROCESS, self.process.clone())];
        labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// This process, as labels name it.
    pub(super) fn process(&self) -> &str {
        &self.process
    }

    /// The filter that finds what processes of this store made.
    pub(super) fn of_store(&self) -> String {
        format!("{STORE}={}", self.store)
    }
}

/// The filter that finds what was made for a run.
pub(super) fn of_run(run: Uuid) -> String {
    format!("{RUN}={run}")
}
