//! Work on layers whose files belong to subordinate ids: done in the user namespace where those ids are the user's.

use std::{
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{jail::TreeOp, zygote::Zygote};
use crate::store::{IdMap, TreeOps};

/// Tree operations by the zygote.
#[derive(Debug)]
pub(super) struct NamespaceOps {
    zygote: Arc<Zygote>,
}

impl NamespaceOps {
    pub(super) fn new(zygote: Arc<Zygote>) -> Self {
        Self { zygote }
    }
}

impl TreeOps for NamespaceOps {
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.zygote.tree_op(&TreeOp::Remove(c_path(path)?))
    }

    fn flatten(&self, layers: &[PathBuf], into: &Path, _: IdMap) -> io::Result<()> {
        let layers = layers.iter().map(|layer| c_path(layer)).collect::<io::Result<_>>()?;
        self.zygote.tree_op(&TreeOp::Flatten { layers, into: c_path(into)? })
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
