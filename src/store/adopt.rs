//! Takes in snapshots that another store made, once their layers are in place, with their manifests and logs.

use std::{fs, path::Path};

use super::{LayerId, Snapshot, SourceId, Store, StoreError, error::Doing, layout::make_dir, manifest::Manifest};
use crate::model::SnapshotRef;

impl Store {
    /// Takes in a snapshot of another store under the id that it has there. Its layers, image and manifest
    /// must be in this store.
    ///
    /// # Errors
    /// Returns an error if `id` is not a valid id of a store.
    pub(crate) fn adopt_snapshot(&self, id: &str, snapshot: Snapshot) -> Result<SnapshotRef, StoreError> {
        if LayerId::parse(id).is_none() {
            return Err(StoreError::Corrupt {
                path: self.dir().into(),
                reason: format!("`{}` is not an id", id.escape_debug()),
            });
        }
        Ok(self.add_own(id.to_owned(), snapshot))
    }

    /// Returns the manifest of a source, byte for byte.
    ///
    /// # Errors
    /// Returns an error if the manifest is missing or damaged.
    pub(crate) fn manifest_bytes(&self, id: &SourceId) -> Result<Vec<u8>, StoreError> {
        Ok(self.manifest(id)?.encode())
    }

    /// Returns whether the store has the manifest of a source.
    pub(crate) fn has_manifest(&self, id: &SourceId) -> bool {
        self.source_home(id).join("manifest").is_file()
    }

    /// Takes in the manifest of a source whose files are not in this store. The manifest is enough to find
    /// out which files were edited since.
    ///
    /// # Errors
    /// Returns [`StoreError::Corrupt`] if it is not the manifest of `id`, or another error if it cannot be
    /// written.
    pub(crate) fn adopt_manifest(&self, id: &SourceId, bytes: &[u8]) -> Result<(), StoreError> {
        let home = self.source_home(id);
        let path = home.join("manifest");
        let manifest = Manifest::decode(bytes, &path)?;
        if manifest.id() != *id {
            return Err(StoreError::Corrupt { path, reason: "the manifest belongs to another source".into() });
        }
        // Deltas are written to the paths in the manifest.
        if !manifest.is_well_formed() {
            return Err(StoreError::Corrupt { path, reason: "the manifest has invalid paths".into() });
        }
        make_dir(&home)?;
        self.write_file(&path, bytes)
    }

    /// Keeps the output of a cached step as [`Store::keep_log`] does, from a file `log` that came from
    /// elsewhere.
    ///
    /// # Errors
    /// Returns an error if the file cannot be put in its place.
    pub(crate) fn adopt_log(&self, key: &[u8; 32], log: &Path) -> Result<(), StoreError> {
        let place = self.cached_log(key);
        fs::rename(log, &place).doing("make", &place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::{Entry, Kind};

    fn manifest(paths: &[&str]) -> Manifest {
        let mut manifest = Manifest::default();
        for path in paths {
            let kind = if path.is_empty() { Kind::Directory } else { Kind::Symlink { target: b"target" } };
            manifest.push(Entry { path: path.as_bytes(), mode: 0o755, mtime: (1, 0), kind });
        }
        manifest
    }

    #[test]
    fn a_manifest_with_paths_that_lead_elsewhere_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let adopt = |manifest: &Manifest| store.adopt_manifest(&manifest.id(), &manifest.encode());
        let honest = manifest(&["", "a", "b"]);
        adopt(&honest).unwrap();
        assert_eq!(store.manifest_bytes(&honest.id()).unwrap(), honest.encode());
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
            assert!(matches!(adopt(&hostile), Err(StoreError::Corrupt { .. })), "{paths:?}");
            assert!(!store.has_manifest(&hostile.id()));
        }
        let other = manifest(&["", "c"]);
        assert!(store.adopt_manifest(&honest.id(), &other.encode()).is_err());
        assert!(store.adopt_manifest(&honest.id(), b"no manifest").is_err());
    }
}
