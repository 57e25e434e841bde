//! Operations on layers whose files belong to subordinate ids. They run in the user namespace in which those
//! ids are mapped.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::zygote::Zygote;
use crate::{
    jail::{Report, TreeOp},
    store::{BlobFile, IdMap, TreeOps},
    tree::{Retimed, Retiming, UnpackError, UnpackLimits, Unpacked},
};

/// Tree operations that the zygote performs.
#[derive(Debug)]
pub(super) struct ZygoteTreeOps {
    zygote: Arc<Zygote>,
}

impl ZygoteTreeOps {
    pub(super) fn new(zygote: Arc<Zygote>) -> Self {
        Self { zygote }
    }
}

impl TreeOps for ZygoteTreeOps {
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.zygote.tree_op(&TreeOp::Remove(c_path(path)?), None).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.zygote.tree_op(&TreeOp::Rename { from: c_path(from)?, to: c_path(to)? }, None).map(drop)
    }

    fn flatten(&self, layers: &[PathBuf], into: &Path, _: IdMap) -> io::Result<()> {
        let layers = layers.iter().map(|layer| c_path(layer)).collect::<io::Result<_>>()?;
        self.zygote.tree_op(&TreeOp::Flatten { layers, into: c_path(into)? }, None).map(drop)
    }

    fn layer_tar(&self, root: &Path, out: File, _: IdMap) -> io::Result<()> {
        self.zygote.tree_op(&TreeOp::LayerTar { root: c_path(root)? }, Some(out.as_fd())).map(drop)
    }

    fn retime(&self, layer: &Path, into: &Path, _: IdMap, request: &Retiming) -> io::Result<Retimed> {
        let op = TreeOp::Retime { layer: c_path(layer)?, into: c_path(into)?, request: request.clone() };
        match self.zygote.tree_op(&op, None)? {
            Report::Retimed(retimed) => Ok(retimed),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn unpack(&self, blob: BlobFile, into: &Path, _: IdMap, limits: UnpackLimits) -> Result<Unpacked, UnpackError> {
        let unpack = || {
            let op = TreeOp::Unpack { offset: blob.offset, length: blob.length, into: c_path(into)?, limits };
            self.zygote.tree_op(&op, Some(blob.file.as_fd()))
        };
        let failed = |error: io::Error| UnpackError::io("have the sandbox's helper unpack a layer", &error);
        match unpack().map_err(failed)? {
            Report::Unpacked(unpacked) => unpacked,
            _ => Err(failed(io::ErrorKind::InvalidData.into())),
        }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
