//! Exports snapshots as OCI images.
//!
//! The input is a snapshot and a file or directory to write. The output is an image that any tool can read,
//! with one layer for each layer of the store: those of the base image, of the source, and of the steps. The
//! same snapshot produces the same bytes. Layers of the store may belong to user ids that exist only in the
//! steps' user namespace, so they are read through [`TreeOps`](crate::store::TreeOps).

mod archive;
mod blobs;
mod error;
mod layout;

use std::path::{Path, PathBuf};

use serde_json::json;

pub(crate) use self::blobs::{pack_layer_in, pack_layer_tar, read_layer_tar};
use self::{archive::write_archive, blobs::LayerCompression, layout::write_layout};
pub use self::{
    blobs::{PackedLayer, pack_layer},
    error::ExportError,
};
use super::{base_layer, platform::this_platform, reference::ImageName, stored::StoredImage};
use crate::{
    model::SnapshotRef,
    store::{Base, IdMap, ImageDigest, Snapshot, Store},
};

/// The target of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTarget {
    /// An OCI layout. The image is added to an existing layout.
    OciDir {
        /// The directory.
        path: PathBuf,
        /// The image's name in the layout.
        tag: String,
    },
    /// An archive for `docker load`.
    DockerArchive {
        /// The file. An existing file is replaced.
        path: PathBuf,
        /// The image's name in the archive, as `NAME:TAG`.
        name: Option<String>,
    },
}

impl ExportTarget {
    /// Parses `oci:DIR[:TAG]` or `docker-archive:FILE[:NAME:TAG]`.
    ///
    /// # Errors
    /// Returns [`ExportError::BadTarget`] for anything else.
    pub fn parse(text: &str) -> Result<Self, ExportError> {
        match ImageName::parse(text) {
            Ok(ImageName::OciDir { path, tag }) => {
                Ok(Self::OciDir { path, tag: tag.unwrap_or_else(|| "latest".into()) })
            }
            Ok(ImageName::DockerArchive { path, tag }) => Ok(Self::DockerArchive { path, name: tag }),
            _ => Err(ExportError::BadTarget { target: text.into() }),
        }
    }
}

/// Writes an archive of an image with these labels to the free path `path`, for a daemon. The layers
/// given only by digest are those that the daemon has already. Layers are in order from the lowest.
/// Returns the digest of the image.
pub(crate) fn thin_archive(
    path: &Path,
    labels: &std::collections::HashMap<String, String>,
    layers: &[(ImageDigest, Option<&PackedLayer>)],
) -> Result<ImageDigest, ExportError> {
    let diff_ids: Vec<_> = layers.iter().map(|(diff_id, _)| *diff_id).collect();
    let config = configuration(&json!({ "Labels": labels }), &diff_ids)?;
    archive::write_thin_archive(path, &config, layers)?;
    Ok(ImageDigest::of(&config))
}

/// Writes a snapshot, over the source that its steps saw last, as an image. `source` are the directories of
/// the source's layers, topmost first. Blocks for as long as packing takes. Returns the digest by which runs
/// identify the image.
///
/// # Errors
/// Returns an error if the image cannot be written. The target is then unchanged, except for blobs in an
/// OCI layout that nothing refers to.
pub fn export(
    store: &Store,
    snapshot: &SnapshotRef,
    source: &[PathBuf],
    to: &ExportTarget,
) -> Result<ImageDigest, ExportError> {
    let snapshot = store.snapshots().get(snapshot)?;
    let layers = layers_to_export(store, &snapshot, source)?;
    let near = match to {
        ExportTarget::OciDir { path, .. } => path,
        ExportTarget::DockerArchive { path, .. } => {
            path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."))
        }
    };
    let compression = match to {
        ExportTarget::OciDir { .. } => LayerCompression::Gzip,
        ExportTarget::DockerArchive { .. } => LayerCompression::Plain,
    };
    let packed = blobs::pack(store, &layers, snapshot.id_map, near, compression)?;
    let config = config_to_export(store, &snapshot, &packed)?;
    match to {
        ExportTarget::OciDir { path, tag } => write_layout(path, tag, &config, packed)?,
        ExportTarget::DockerArchive { path, name } => write_archive(path, name.as_deref(), &config, &packed)?,
    }
    Ok(ImageDigest::of(&config))
}

/// Returns the directories of the layers, lowest first.
fn layers_to_export(store: &Store, snapshot: &Snapshot, source: &[PathBuf]) -> Result<Vec<PathBuf>, ExportError> {
    let mut dirs = layer_dirs(store, &snapshot.base, snapshot.id_map)?;
    dirs.extend(source.iter().rev().cloned());
    dirs.extend(snapshot.layers.iter().rev().map(|layer| store.layers().dir(layer)));
    Ok(dirs)
}

/// Returns the directories of an image's layers, lowest first.
pub(crate) fn layer_dirs(store: &Store, base: &Base, id_map: IdMap) -> Result<Vec<PathBuf>, ExportError> {
    match base {
        Base::Host => Err(ExportError::Host),
        Base::Rootfs(dir) => Ok(vec![dir.clone()]),
        Base::Image(digest) => {
            let base = base_layer::layer_id(id_map);
            let layers = StoredImage::find(store, digest, id_map)?.layers;
            let layers = layers.iter().rev().filter(|layer| **layer != base);
            Ok(layers.map(|layer| store.layers().dir(layer)).collect())
        }
    }
}

/// Returns the configuration: the variables of the base image, and a constant time.
fn config_to_export(store: &Store, snapshot: &Snapshot, packed: &[PackedLayer]) -> Result<Vec<u8>, ExportError> {
    let env = match &snapshot.base {
        Base::Image(digest) => StoredImage::find(store, digest, snapshot.id_map)?.env,
        Base::Host | Base::Rootfs(_) => std::collections::BTreeMap::new(),
    };
    let env: Vec<String> = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let diff_ids: Vec<_> = packed.iter().map(|layer| layer.diff_id).collect();
    configuration(&json!({ "Cmd": ["/bin/sh"], "Env": env, "WorkingDir": "/workspace" }), &diff_ids)
}

/// Returns an image's configuration: how it runs, and its layers, lowest first.
fn configuration(run: &serde_json::Value, diff_ids: &[ImageDigest]) -> Result<Vec<u8>, ExportError> {
    const CREATED: &str = "1970-01-01T00:00:00Z";
    let platform = this_platform();
    let config = json!({
        "created": CREATED,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|_| json!({ "created": CREATED, "created_by": "hm" })).collect::<Vec<_>>(),
    });
    serde_json::to_vec(&config).map_err(|error| ExportError::Encode(error.to_string()))
}
