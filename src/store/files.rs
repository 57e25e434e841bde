//! Files of the store: created for their owner only, with errors that name them.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use super::{StoreError, error::IoContext};

/// Writes a new file, accessible to its owner only. Fails if the file exists.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    create_new(path).and_then(|mut file| file.write_all(bytes)).doing("write", path)
}

/// Creates a new file, accessible to its owner only. Fails if the file exists.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Opens a file to lock it, and creates it if it is missing.
pub(crate) fn open_lock(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).doing("open", path)
}

/// Creates a directory and its parents, accessible to their owner only, unless they exist.
pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).doing("make the directory", path)
}

/// Returns the metadata at a path without following links, or `None` if there is nothing.
pub(crate) fn stat(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(StoreError::io("read", path, error)),
    }
}

/// Returns the names in a directory that belong to the store (all are UTF-8), sorted.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).doing("list", dir)? {
        found.extend(entry.doing("list", dir)?.file_name().into_string());
    }
    found.sort_unstable();
    Ok(found)
}
