//! The lowest layer below every image: mount points, and files needed for name resolution, in case an image
//! lacks them.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::Path,
};

use super::at::mtime;

/// Directories and their modes.
const DIRS: [(&str, u32); 7] =
    [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("run", 0o755)];

/// Files. The host's file is shown over `resolv.conf`, and a file with the step's host name over `hosts`.
/// Programs detect a container by `.containerenv`.
const FILES: [(&str, &str); 3] = [
    ("etc/resolv.conf", ""),
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n"),
    (CONTAINER_MARK.0, CONTAINER_MARK.1),
];

/// Links. Programs that do not know `/proc/self/mountinfo` read the mounts from this file, and container
/// engines make it, too.
const LINKS: [(&str, &str); 1] = [("etc/mtab", "/proc/mounts")];

/// The file by which programs detect a container, and its content, as in other engines' containers.
pub const CONTAINER_MARK: (&str, &str) = ("run/.containerenv", "engine=\"hm\"\n");

/// Makes the layer in an empty directory. The result is always the same.
///
/// # Errors
/// Returns the first error.
pub fn make_base_layer(root: &Path) -> io::Result<()> {
    for (name, mode) in DIRS {
        let path = root.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    for (name, content) in FILES {
        let path = root.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    }
    for (name, target) in LINKS {
        symlink(target, root.join(name))?;
    }
    let names = LINKS.iter().chain(&FILES).map(|(name, _)| *name);
    for name in names.chain(DIRS.iter().map(|(name, _)| *name)).chain([""]) {
        rustix::fs::utimensat(rustix::fs::CWD, root.join(name), &mtime(0, 0), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
