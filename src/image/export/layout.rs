//! Writes OCI layouts.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{
    super::{ImageDigest, manifest::REF_NAME},
    blobs::PackedLayer,
    error::{ExportError, Writing},
};
use crate::project::{ProjectDir, ProjectFileErrorKind};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The maximum size of an existing index, in bytes.
const INDEX_BYTES: u64 = 64 << 20;

/// Adds an image to the layout in `dir`, under `tag`. Each file is written to a temporary file and renamed,
/// the index last.
pub(super) fn write_layout(dir: &Path, tag: &str, config: &[u8], layers: Vec<PackedLayer>) -> Result<(), ExportError> {
    let mut manifests = existing(dir)?;
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).writing(&blobs)?;
    let descriptor = |media_type: &str, digest: ImageDigest, size: u64| json!({ "mediaType": media_type, "digest": digest, "size": size });
    let mut described = Vec::new();
    for layer in layers {
        described.push(descriptor(LAYER, layer.digest, layer.size));
        persist(layer.file, &blobs.join(layer.digest.hex()))?;
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, ImageDigest::of(config), config.len() as u64),
        "layers": described,
    });
    let manifest = encode(&manifest)?;
    for blob in [config, &manifest] {
        put(dir, &blobs.join(ImageDigest::of(blob).hex()), blob)?;
    }
    let mut entry = descriptor(MANIFEST, ImageDigest::of(&manifest), manifest.len() as u64);
    entry["annotations"] = json!({ REF_NAME: tag });
    manifests.retain(|other| other["annotations"][REF_NAME] != tag);
    manifests.push(entry);
    put(dir, &dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put(dir, &dir.join("index.json"), &encode(&json!({ "schemaVersion": 2, "manifests": manifests }))?)
}

/// Returns the images of the layout in `dir`, or none if the directory contains only what we are writing.
fn existing(dir: &Path) -> Result<Vec<Value>, ExportError> {
    let occupied = || ExportError::Occupied { path: dir.into() };
    let unreadable = |error: io::Error| ExportError::Read { path: dir.join("index.json"), source: error };
    let layout = ProjectDir::open(dir).map_err(|error| unreadable(io::Error::other(error)))?;
    // The directory may have come with a checkout, so links in it must not redirect the writes.
    for blobs in ["blobs", "blobs/sha256"] {
        if layout.names(blobs).is_err_and(|error| error.kind() != ProjectFileErrorKind::Missing) {
            return Err(occupied());
        }
    }
    let bytes = match layout.read("index.json", INDEX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ProjectFileErrorKind::Missing => {
            let foreign = fs::read_dir(dir).writing(dir)?.flatten().any(|entry| {
                let name = entry.file_name();
                let name = name.as_encoded_bytes();
                !name.starts_with(b".hm-export-") && name != b"blobs" && name != b"oci-layout"
            });
            return if foreign { Err(occupied()) } else { Ok(Vec::new()) };
        }
        Err(error) if error.kind() == ProjectFileErrorKind::Unreadable => {
            return Err(unreadable(io::Error::other(error)));
        }
        Err(_) => return Err(occupied()),
    };
    let mut index: Value = serde_json::from_slice(&bytes).map_err(|_| occupied())?;
    match index["manifests"].take() {
        Value::Array(manifests) => Ok(manifests),
        _ => Err(occupied()),
    }
}

fn encode(document: &Value) -> Result<Vec<u8>, ExportError> {
    serde_json::to_vec(document).map_err(|error| ExportError::Encode(error.to_string()))
}

/// Writes a small file atomically.
fn put(dir: &Path, path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    let mut file = tempfile::Builder::new().prefix(".hm-export-").tempfile_in(dir).writing(path)?;
    file.write_all(bytes).writing(path)?;
    persist(file, path)
}

/// Puts a file in its place, readable by all users as is usual for images.
pub(super) fn persist(file: NamedTempFile, path: &Path) -> Result<(), ExportError> {
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).writing(path)?;
    file.persist(path).map_err(|error| error.error).writing(path).map(drop)
}
