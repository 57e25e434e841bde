//! The copy of the package `@harmont/hm` inside of this program, which has one with the feature
//! `bundled-dsl`.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tempfile::TempDir;

/// The files of the package, by name.
#[cfg(feature = "bundled-dsl")]
const FILES: &[(&str, &str)] = &[
    ("index.mjs", include_str!(concat!(env!("OUT_DIR"), "/index.mjs"))),
    ("toolchains.mjs", include_str!(concat!(env!("OUT_DIR"), "/toolchains.mjs"))),
];
#[cfg(not(feature = "bundled-dsl"))]
const FILES: &[(&str, &str)] = &[];

/// Writes the package to a directory that lives as long as the result. Returns `None` if this program has
/// no copy.
pub(super) fn unpack() -> io::Result<Option<TempDir>> {
    if cfg!(not(feature = "bundled-dsl")) {
        return Ok(None);
    }
    let dir = tempfile::Builder::new().prefix("hm-dsl-").tempdir()?;
    // A project of another user is rendered as that user.
    allow_reading(dir.path(), 0o755)?;
    for (name, text) in FILES {
        let path = dir.path().join(name);
        fs::write(&path, text)?;
        allow_reading(&path, 0o644)?;
    }
    Ok(Some(dir))
}

fn allow_reading(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}
