//! Name resolution in a step.

use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::Bind;
use crate::tree;

const RESOLVER: &str = "etc/resolv.conf";

/// Returns a view of the host's resolver configuration over the step's own, if both have one: names must
/// resolve as they do on the host. `dirs` are layers, topmost first.
#[must_use]
pub fn resolver(dirs: &[PathBuf]) -> Option<Bind> {
    let own = tree::topmost(dirs, Path::new(RESOLVER)).is_some_and(|metadata| metadata.is_file());
    let target = Path::new("/").join(RESOLVER);
    let source = target.canonicalize().ok().filter(|_| own)?;
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
    Some(Bind { source: c_path(&source)?, target: c_path(&target)?, writable: false })
}
