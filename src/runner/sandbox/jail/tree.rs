//! File operations in the zygote's user namespace, for trees that the user's own ids can't remove.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{BufWriter, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use super::{SetupError, error::Doing, spec::TreeOp};
use crate::store::{IdMap, tree};

/// Does `op`.
pub(crate) fn run(op: &TreeOp) -> Result<(), SetupError> {
    match op {
        TreeOp::Remove(path) => tree::remove_tree(as_path(path)).doing(|| format!("remove {}", path.to_string_lossy())),
        TreeOp::Flatten { layers, into } => {
            let layers: Vec<PathBuf> = layers.iter().map(|layer| as_path(layer).to_owned()).collect();
            // Only a range of ids needs a namespace for this.
            tree::flatten(&layers, as_path(into), IdMap::Range)
                .doing(|| format!("merge layers into {}", into.to_string_lossy()))
        }
    }
}

/// Writes what is at `path` to `out` as a tar stream.
pub(crate) fn pack(path: &CString, out: &OwnedFd) -> Result<(), SetupError> {
    let doing = || format!("read {}", path.to_string_lossy());
    let mut out = BufWriter::with_capacity(1 << 17, File::from(out.try_clone().doing(doing)?));
    tree::pack(as_path(path), &mut out).and_then(|()| out.flush()).doing(doing)
}

fn as_path(text: &CString) -> &Path {
    Path::new(OsStr::from_bytes(text.to_bytes()))
}
