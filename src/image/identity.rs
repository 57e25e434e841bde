//! The identity of an image of this machine at the current time, for cache keys. Two identities are equal
//! only if nothing that a step could see of the image has changed.
//!
//! Files are examined by their metadata instead of being read, if that suffices. A walk takes about a
//! microsecond for each entry.

use std::{
    ffi::{CStr, CString},
    fs,
    io::{self, ErrorKind},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{FileType, Stat},
};

use crate::{
    store::{Base, StoreError},
    tree::{Descent, entries, join, open_dir, open_dir_at, stat_at},
};

/// The depth to which a system directory is examined.
const LEVELS: u8 = 2;

/// Directories that belong to the system besides `/etc`, and directories that are treated like a system of
/// their own.
const SYSTEM: [&str; 7] = ["usr", "usr/local", "opt", "bin", "sbin", "lib", "lib64"];

/// Directories where users install files by hand, outside of any package manager. There, files count too.
const BY_HAND: [&str; 3] = ["etc", "opt", "usr/local"];

/// Files that change now and then without a user's action, and that are copied into each step as they are.
const RESTLESS: [&str; 6] =
    ["etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/mtab", "etc/adjtime", "etc/ld.so.cache"];

/// The databases of package managers.
const PACKAGES: [&str; 5] = [
    "var/lib/dpkg/status",
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages",
    "lib/apk/db/installed",
    "var/lib/pacman/local",
];

/// Returns the current identity of `base`, as a text that begins with its kind. `host_dirs` are visible to
/// steps with the host image. Their paths count, their contents do not.
///
/// - `host`: the machine's id, the times of its package managers' databases, the times of its system
///   directories two levels deep, and the files that users installed there by hand.
/// - an image: its digest, which identifies it completely.
/// - `rootfs:DIR`: every entry of the tree, by name, mode, owner, size, times and inode.
///
/// Takes a few milliseconds for the host, and about a microsecond for each entry of a root filesystem.
/// Blocks.
///
/// # Errors
/// Returns an error if a root filesystem cannot be read.
pub fn image_identity(base: &Base, host_dirs: &[PathBuf]) -> Result<String, StoreError> {
    match base {
        Base::Host => {
            let machine = Path::new("/");
            let hash = host(machine, host_dirs).map_err(|error| StoreError::io("look through", machine, error))?;
            Ok(format!("host:{}", hash.to_hex()))
        }
        Base::Rootfs(dir) => {
            let hash = rootfs(dir).map_err(|error| StoreError::io("look through", dir, error))?;
            Ok(format!("rootfs:{}:{}", dir.display(), hash.to_hex()))
        }
        Base::Image(digest) => Ok(format!("image:{digest}")),
    }
}

fn host(machine: &Path, host_dirs: &[PathBuf]) -> io::Result<blake3::Hash> {
    let mut seen = Seen(blake3::Hasher::new());
    let top = open_dir(machine)?;
    seen.text(fs::read(machine.join("etc/machine-id")).unwrap_or_default().trim_ascii());
    for path in PACKAGES {
        if let Some(stat) = stat_at(&top, path).unwrap_or_default() {
            seen.stat(path.as_bytes(), &stat);
        }
    }
    // `/etc` takes half of the time, so two threads finish in half the time.
    let look = |paths: &[&str]| -> io::Result<blake3::Hash> {
        let mut seen = Seen(blake3::Hasher::new());
        for path in paths {
            let name = CString::new(*path)?;
            seen.system(top.as_fd(), &name, path.as_bytes(), is_one_of(&BY_HAND, path.as_bytes()), 0);
        }
        Ok(seen.0.finalize())
    };
    let (settings, system) = thread::scope(|scope| {
        let settings = scope.spawn(|| look(&["etc"]));
        let system = look(&SYSTEM);
        (settings.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))), system)
    });
    for part in [settings?, system?] {
        seen.0.update(part.as_bytes());
    }
    for dir in host_dirs {
        seen.text(dir.as_os_str().as_bytes());
    }
    Ok(seen.0.finalize())
}

fn rootfs(dir: &Path) -> io::Result<blake3::Hash> {
    let mut seen = Seen(blake3::Hasher::new());
    let top = open_dir(dir)?;
    seen.stat(b"", &rustix::fs::fstat(&top)?);
    let mut walk = Descent::new(top);
    // The names of directories to enter. `None` stands for returning to the parent.
    let mut work: Vec<Option<CString>> = Vec::new();
    seen.directory(&walk, &mut work)?;
    while let Some(next) = work.pop() {
        let Some(name) = next else {
            drop(walk.leave()?);
            continue;
        };
        match walk.enter(&name) {
            // A directory that may not be read counts as empty. Its own times represent it.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {}
            entered => {
                entered?;
                work.push(None);
                seen.directory(&walk, &mut work)?;
            }
        }
    }
    Ok(seen.0.finalize())
}

fn is_one_of(paths: &[&str], path: &[u8]) -> bool {
    paths.iter().any(|known| known.as_bytes() == path)
}

/// A hash of everything examined so far.
struct Seen(blake3::Hasher);

impl Seen {
    /// Adds the entries of a directory of a root filesystem to the digest.
    fn directory(&mut self, walk: &Descent, work: &mut Vec<Option<CString>>) -> io::Result<()> {
        let mut names = entries(walk.dir())?;
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, _) in names {
            let Some(stat) = stat_at(walk.dir(), &name)? else { continue };
            self.stat(&join(walk.path(), name.to_bytes()), &stat);
            for number in [stat.st_dev, stat.st_ino, stat.st_rdev] {
                self.0.update(&number.to_le_bytes());
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                work.push(Some(name));
            }
        }
        Ok(())
    }

    /// Examines a system directory, and its entries down to the second level. In a directory where users
    /// install files `by_hand`, the files count too.
    fn system(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], by_hand: bool, level: u8) {
        // What cannot be examined is not visible to steps either.
        let Ok(Some(stat)) = stat_at(parent, name) else { return };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_dir && !by_hand && level > 0 {
            return;
        }
        if is_dir && level < LEVELS && by_hand {
            // All of its entries are examined, so its time adds nothing except changes to restless files in
            // it.
            self.0.update(&stat.st_mode.to_le_bytes());
            self.text(path);
        } else {
            self.stat(path, &stat);
        }
        if !is_dir || level == LEVELS {
            return;
        }
        let Ok(dir) = open_dir_at(parent, name) else { return };
        let mut names = entries(&dir).unwrap_or_default();
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in names {
            let path = join(path, name.to_bytes());
            let by_hand = by_hand || is_one_of(&BY_HAND, &path);
            let may_be_dir = matches!(kind, FileType::Directory | FileType::Unknown);
            if (may_be_dir || by_hand) && !is_one_of(&RESTLESS, &path) {
                self.system(dir.as_fd(), &name, &path, by_hand, level + 1);
            }
        }
    }

    fn stat(&mut self, path: &[u8], stat: &Stat) {
        self.text(path);
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // The size of a directory depends on its history.
        let size = if is_dir { 0 } else { stat.st_size.cast_unsigned() };
        for number in [u64::from(stat.st_mode), u64::from(stat.st_uid), u64::from(stat.st_gid), size] {
            self.0.update(&number.to_le_bytes());
        }
        for number in [stat.st_mtime, stat.st_ctime] {
            self.0.update(&number.to_le_bytes());
        }
        for number in [stat.st_mtime_nsec, stat.st_ctime_nsec] {
            self.0.update(&number.to_le_bytes());
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.0.update(&(text.len() as u64).to_le_bytes()).update(text);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(top: &Path, path: &str, text: &str) {
        fs::create_dir_all(top.join(path).parent().unwrap()).unwrap();
        fs::write(top.join(path), text).unwrap();
    }

    #[test]
    fn the_host_changes_with_its_packages_and_with_what_people_install_by_hand() {
        let top = tempfile::tempdir().unwrap();
        let machine = top.path();
        for path in [
            "etc/machine-id",
            "etc/resolv.conf",
            "etc/app/config",
            "usr/bin/tool",
            "usr/lib/gcc/x/y",
            "usr/local/bin/mine",
            "var/lib/dpkg/status",
            "home/me/file",
        ] {
            put(machine, path, "1");
        }
        let mut last = host(machine, &[]).unwrap();
        assert_eq!(host(machine, &[]).unwrap(), last);
        let changes: [(&str, &dyn Fn()); 6] = [
            ("a package", &|| put(machine, "var/lib/dpkg/status", "22")),
            ("a new program", &|| put(machine, "usr/bin/other", "")),
            ("a library's new file", &|| put(machine, "usr/lib/gcc/new", "")),
            ("a script edited in place", &|| put(machine, "usr/local/bin/mine", "22")),
            ("a setting", &|| put(machine, "etc/app/config", "22")),
            ("another machine", &|| put(machine, "etc/machine-id", "22")),
        ];
        for (what, change) in changes {
            change();
            let now = host(machine, &[]).unwrap();
            assert_ne!(now, last, "{what}");
            last = now;
        }
        assert_ne!(host(machine, &["/srv".into()]).unwrap(), last, "a directory more");
        put(machine, "etc/resolv.conf", "another network");
        put(machine, "home/me/file", "22");
        assert_eq!(host(machine, &[]).unwrap(), last, "the network, and homes");
    }

    #[test]
    fn a_root_filesystem_changes_with_every_entry() {
        let top = tempfile::tempdir().unwrap();
        put(top.path(), "a/b/c/d/file", "1");
        put(top.path(), "other", "1");
        let base = Base::Rootfs(top.path().into());
        let mut last = image_identity(&base, &[]).unwrap();
        assert_eq!(image_identity(&base, &[]).unwrap(), last);
        let file = top.path().join("a/b/c/d/file");
        let changes: [(&str, &dyn Fn()); 4] = [
            ("its text", &|| fs::write(&file, "2").unwrap()),
            ("its mode", &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o711)).unwrap()),
            ("its name", &|| fs::rename(&file, top.path().join("a/b/c/d/renamed")).unwrap()),
            ("being there", &|| fs::remove_file(top.path().join("other")).unwrap()),
        ];
        for (what, change) in changes {
            change();
            let now = image_identity(&base, &[]).unwrap();
            assert_ne!(now, last, "{what}");
            last = now;
        }
        assert!(image_identity(&Base::Rootfs("/nowhere".into()), &[]).is_err());
    }
}
