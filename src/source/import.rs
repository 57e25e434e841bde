//! Manifests that come from another store, without the files of their sources.

use super::{frozen::manifest_path, manifest::Manifest};
use crate::store::{SourceId, Store, StoreError, files::make_dir};

/// Returns the manifest of a source, byte for byte.
///
/// # Errors
/// Returns an error if the manifest is missing or damaged.
pub(crate) fn manifest_bytes(store: &Store, id: &SourceId) -> Result<Vec<u8>, StoreError> {
    Ok(Manifest::of(store, id)?.encode())
}

/// Returns whether the store has the manifest of a source.
pub(crate) fn has_manifest(store: &Store, id: &SourceId) -> bool {
    manifest_path(store, id).is_file()
}

/// Takes in the manifest of a source whose files are not in this store. The manifest is enough to find
/// out which files were edited since.
///
/// # Errors
/// Returns [`StoreError::Corrupt`] if it is not the manifest of `id`, or another error if it cannot be
/// written.
pub(crate) fn import_manifest(store: &Store, id: &SourceId, bytes: &[u8]) -> Result<(), StoreError> {
    let path = manifest_path(store, id);
    let manifest = Manifest::decode(bytes, &path)?;
    if manifest.id() != *id {
        return Err(StoreError::Corrupt { path, reason: "the manifest belongs to another source".into() });
    }
    // Deltas are written to the paths in the manifest.
    if !manifest.is_well_formed() {
        return Err(StoreError::Corrupt { path, reason: "the manifest has invalid paths".into() });
    }
    make_dir(&store.paths().source(id))?;
    store.instance().write_file(&path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::manifest::{EntryKind, ManifestEntry};

    fn manifest(paths: &[&str]) -> Manifest {
        let mut manifest = Manifest::default();
        for path in paths {
            let kind = if path.is_empty() { EntryKind::Directory } else { EntryKind::Symlink { target: b"target" } };
            manifest.push(ManifestEntry { path: path.as_bytes(), mode: 0o755, mtime: (1, 0), kind });
        }
        manifest
    }

    #[test]
    fn a_manifest_with_paths_that_lead_elsewhere_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let import = |manifest: &Manifest| import_manifest(&store, &manifest.id(), &manifest.encode());
        let honest = manifest(&["", "a", "b"]);
        import(&honest).unwrap();
        assert_eq!(manifest_bytes(&store, &honest.id()).unwrap(), honest.encode());
        for paths in [
            &["", "../a"][..],
            &["", "/a"],
            &["", "a/../../b"],
            &["", "."],
            &["", "a", "a"],
            &["", "b", "a"],
            &["", "a\0"],
            &["", ""],
        ] {
            let hostile = manifest(paths);
            assert!(matches!(import(&hostile), Err(StoreError::Corrupt { .. })), "{paths:?}");
            assert!(!has_manifest(&store, &hostile.id()));
        }
        let other = manifest(&["", "c"]);
        assert!(import_manifest(&store, &honest.id(), &other.encode()).is_err());
        assert!(import_manifest(&store, &honest.id(), b"no manifest").is_err());
    }
}
