//! File operations in the zygote's user namespace, for trees that the user's own ids can't remove.

use std::{
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt,
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

fn as_path(text: &CString) -> &Path {
    Path::new(OsStr::from_bytes(text.to_bytes()))
}
