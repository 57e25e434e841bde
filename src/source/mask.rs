//! Masks: the layer that hides files of a source from a step. It has nothing but whiteouts, and the
//! directories that lead to them.
//!
//! A mask belongs just over the layers of the source, and below those of the step's parent: what an earlier
//! step made is seen. It belongs to what a step boots from and not to its snapshot, so that the next step
//! sees the files.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
};

use super::{FrozenSource, HiddenFiles, touched::parent};
use crate::{
    store::{LayerId, Store, StoreError, error::IoContext, files::stat, staging::imitate},
    tree,
};

/// Returns the layer to put over those of a source so that a step does not see the `hidden` files. It is made
/// once for the same source and patterns. Blocks while the manifest is read, if the layer is new.
///
/// # Errors
/// Returns an error if the manifest cannot be read, or if the layer cannot be written.
pub(crate) fn mask(store: &Arc<Store>, source: &FrozenSource, hidden: &HiddenFiles) -> Result<LayerId, StoreError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("hm-exec mask 1\n{}\n{}\n", source.id, source.times.as_str()).as_bytes());
    hasher.update(&hidden.digest());
    let id = LayerId::of_delta(hasher.finalize());
    // Steps that start at once often need the same mask.
    let _turn = store.layers().delta_turn();
    if store.layers().find(&id)? {
        return Ok(id);
    }
    let manifest = source.manifest()?;
    let (_, entries) = hidden.split(&manifest);
    let staging = store.stage()?;
    let root = staging.upper().join("workspace");
    // The source itself is always there: a mask is made, and found, also if nothing is hidden.
    let mut dirs = BTreeSet::from([&b""[..]]);
    for entry in &entries {
        let mut dir = parent(entry.path);
        while dirs.insert(dir) {
            dir = parent(dir);
        }
    }
    let place = |path: &[u8]| root.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
    // In their order, a directory comes before what is in it.
    for dir in &dirs {
        let dir = place(dir);
        DirBuilder::new().mode(0o700).create(&dir).doing("make the directory", &dir)?;
    }
    for entry in &entries {
        let place = place(entry.path);
        tree::whiteout(&place).doing("hide", &place)?;
    }
    for dir in dirs.iter().rev() {
        let path = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(dir));
        let (made, shown) = (root.join(path), source.locate(path));
        imitate(&made, stat(&shown)?.as_ref()).doing("set the attributes of", &made)?;
    }
    let home = store.layers().home(&id);
    match fs::rename(staging.home(), &home) {
        // Another process made the same mask first.
        Err(_) if home.is_dir() => {}
        renamed => renamed.doing("make the layer", &home)?,
    }
    Ok(id)
}
