//! Exporting snapshots of sandbox steps.

use crate::image;
use std::sync::Arc;

use super::runner::SandboxRunner;
use crate::{
    image::{ExportError, ExportTarget},
    model::SnapshotRef,
    runner::RunnerError,
    source::FrozenSource,
    store::{IdMap, ImageDigest},
};

/// Why a snapshot of the sandbox could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxExportError {
    /// The sandbox's helper, which reads layers that belong to subordinate ids, cannot be started.
    #[error("failed to start the sandbox")]
    Sandbox(#[source] RunnerError),
    /// The export failed.
    #[error(transparent)]
    Export(#[from] ExportError),
}

impl SandboxRunner {
    /// Does the same as [`image::export`](crate::image::export), in the steps' user namespace if
    /// layers belong to subordinate ids.
    ///
    /// # Errors
    /// Returns an error if the snapshot cannot be exported.
    ///
    /// # Cancel safety
    /// If the future is dropped, the export continues on its thread until it ends.
    pub async fn export(
        &self,
        snapshot: &SnapshotRef,
        source: &FrozenSource,
        to: ExportTarget,
    ) -> Result<ImageDigest, SandboxExportError> {
        let failed = |doing: &'static str| {
            move |error: anyhow::Error| SandboxExportError::Sandbox(RunnerError::infrastructure(doing, error))
        };
        let store = self.store().map_err(ExportError::Store)?;
        if store.snapshots().get(snapshot).map_err(ExportError::Store)?.id_map == IdMap::Range {
            let zygote = self.zygote(&store).await.map_err(|error| SandboxExportError::Sandbox(error.into()))?;
            if zygote.id_map() != IdMap::Range {
                let error = anyhow::anyhow!("the layers belong to subordinate ids that this user no longer has");
                return Err(failed("read the layers")(error));
            }
        }
        let (store, snapshot, source) = (Arc::clone(&store), snapshot.clone(), source.clone());
        let exported = tokio::task::spawn_blocking(move || image::export(&store, &snapshot, &source.roots, &to));
        Ok(exported.await.map_err(|error| failed("export")(error.into()))??)
    }
}
