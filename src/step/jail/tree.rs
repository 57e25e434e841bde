//! File operations in the zygote's user namespace, for trees that the user's own ids can neither make nor
//! remove.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{BufWriter, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use super::{
    SetupError,
    error::ResultExt,
    overlay,
    spec::{Pack, Report, TreeOp},
    trace,
};
use crate::tree::{self, BlobFile, IdMap, PathPatterns};

/// Executes `op`, which may read or write `file`. All operations except mounting are done here only for a
/// range of ids.
pub(crate) fn run(op: &TreeOp, file: Option<OwnedFd>) -> Result<Report, SetupError> {
    match op {
        TreeOp::Remove(path) => {
            tree::remove_tree(as_path(path)).doing(|| format!("remove {}", path.to_string_lossy()))?;
            Ok(Report::Done)
        }
        TreeOp::Rename { from, to } => {
            std::fs::rename(as_path(from), as_path(to))
                .doing(|| format!("rename {} to {}", from.to_string_lossy(), to.to_string_lossy()))?;
            Ok(Report::Done)
        }
        TreeOp::Mount { screens, overlays, user_namespace, mount_api } => {
            screens.iter().try_for_each(overlay::screen)?;
            overlays.iter().try_for_each(|it| overlay::mount(it, *user_namespace, *mount_api))?;
            Ok(Report::Done)
        }
        TreeOp::Flatten { layers, into } => {
            let layers: Vec<PathBuf> = layers.iter().map(|layer| as_path(layer).to_owned()).collect();
            tree::flatten(&layers, as_path(into), IdMap::Range)
                .doing(|| format!("merge layers into {}", into.to_string_lossy()))?;
            Ok(Report::Done)
        }
        TreeOp::LayerTar { root } => {
            let doing = || format!("read the layer {}", root.to_string_lossy());
            let out = BufWriter::with_capacity(1 << 17, File::from(file.ok_or(Errno::BADF).doing(doing)?));
            tree::layer_tar(as_path(root), out, IdMap::Range).doing(doing)?;
            Ok(Report::Done)
        }
        TreeOp::Retime { layer, into, request } => {
            let retimed = tree::retime(as_path(layer), as_path(into), IdMap::Range, request)
                .doing(|| format!("copy the layer {}", layer.to_string_lossy()))?;
            Ok(Report::Retimed(retimed))
        }
        TreeOp::Unpack { offset, length, into, limits } => {
            let doing = || "read the layer to unpack".into();
            let file = File::from(file.ok_or(Errno::BADF).doing(doing)?);
            let blob = BlobFile { file, offset: *offset, length: *length }.into_reader().doing(doing)?;
            Ok(Report::Unpacked(tree::unpack(blob, as_path(into), IdMap::Range, *limits)))
        }
    }
}

/// Writes files to `out` as a tar stream.
pub(crate) fn pack(files: &Pack, out: &OwnedFd) -> Result<(), SetupError> {
    let doing = || match files {
        Pack::Path(path) | Pack::Plain(path) => format!("read {}", path.to_string_lossy()),
        Pack::Matching { .. } => "read the step's files".into(),
        Pack::Answers => "look at the paths of a trace".into(),
    };
    let mut out = BufWriter::with_capacity(1 << 17, File::from(out.try_clone().doing(doing)?));
    let packed = match files {
        Pack::Path(path) => tree::pack(as_path(path), &mut out),
        Pack::Plain(path) => tree::pack_plain(as_path(path), &mut out),
        Pack::Matching { patterns, limits } => {
            let patterns = PathPatterns::parse(patterns.iter().map(String::as_str));
            let patterns = patterns.map_err(|_| SetupError::new("read the step's files", Errno::INVAL))?;
            tree::pack_matching(Path::new("/"), &patterns, *limits, &mut out)
        }
        Pack::Answers => trace::answer(std::io::stdin().lock(), &mut out),
    };
    packed.and_then(|()| out.flush()).doing(doing)
}

fn as_path(text: &CString) -> &Path {
    Path::new(OsStr::from_bytes(text.to_bytes()))
}
