//! What an image of this machine stands for just now, for cache keys: equal only where nothing that a step could see of it
//! has changed.
//!
//! Nothing is read that could be looked at instead: a walk takes about a microsecond for each entry.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use super::{Base, StoreError};

/// Directories that are the system, and what is looked at as if it were a system of its own. Two levels are looked at.
const SYSTEM: [&str; 8] = ["usr", "usr/local", "opt", "bin", "sbin", "lib", "lib64", "etc"];

/// Where people put files by hand, past any package manager: there, files count, too.
const BY_HAND: [&str; 3] = ["etc", "opt", "usr/local"];

/// Rewritten now and then without anybody's doing, and copied into each step as they are.
const RESTLESS: [&str; 6] =
    ["etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/mtab", "etc/adjtime", "etc/ld.so.cache"];

/// What package managers say is installed.
const PACKAGES: [&str; 5] = [
    "var/lib/dpkg/status",
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages",
    "lib/apk/db/installed",
    "var/lib/pacman/local",
];

/// What `base` stands for just now, as a text that begins with its kind. `host_dirs` are shown with the host image; their
/// paths count, what is in them does not.
///
/// - `host`: the machine's id, the databases of its package managers, the times of its system directories two levels deep,
///   and the files that people put there by hand.
/// - an image: its digest, which is what it is.
/// - `rootfs:DIR`: every entry of the tree, by name, mode, owner, size, times and inode.
///
/// Takes some milliseconds for the host, and about a microsecond for each entry of a root filesystem. Blocks.
///
/// # Errors
/// Where a root filesystem can't be read.
pub fn image_identity(base: &Base, host_dirs: &[PathBuf]) -> Result<String, StoreError> {
    match base {
        Base::Host => Ok(format!("host:{}", host(Path::new("/"), host_dirs).to_hex())),
        Base::Rootfs(dir) => {
            let hash = rootfs(dir).map_err(|error| StoreError::io("look through", dir, error))?;
            Ok(format!("rootfs:{}:{}", dir.display(), hash.to_hex()))
        }
        Base::Image(digest) => Ok(format!("image:{digest}")),
    }
}

fn host(machine: &Path, host_dirs: &[PathBuf]) -> blake3::Hash {
    let mut seen = Seen(blake3::Hasher::new());
    seen.text(fs::read(machine.join("etc/machine-id")).unwrap_or_default().trim_ascii());
    for path in PACKAGES.map(|name| machine.join(name)) {
        if let Ok(metadata) = fs::symlink_metadata(&path) {
            seen.entry(path.as_os_str().as_bytes(), &metadata);
            // None where it is a directory: its time says enough.
            seen.text(&fs::read(&path).unwrap_or_default());
        }
    }
    for name in SYSTEM {
        seen.system(machine, Path::new(name), 0);
    }
    for dir in host_dirs {
        seen.text(dir.as_os_str().as_bytes());
    }
    seen.0.finalize()
}

fn rootfs(dir: &Path) -> io::Result<blake3::Hash> {
    let mut seen = Seen(blake3::Hasher::new());
    seen.entry(b"", &fs::symlink_metadata(dir)?);
    let mut dirs = vec![PathBuf::new()];
    while let Some(path) = dirs.pop() {
        for (name, is_dir) in list(&dir.join(&path))? {
            let path = path.join(name);
            match fs::symlink_metadata(dir.join(&path)) {
                Ok(metadata) => {
                    seen.entry(path.as_os_str().as_bytes(), &metadata);
                    seen.0.update(&metadata.dev().to_le_bytes()).update(&metadata.ino().to_le_bytes());
                    seen.0.update(&metadata.rdev().to_le_bytes());
                    if is_dir {
                        dirs.push(path);
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(seen.0.finalize())
}

/// What was looked at so far.
struct Seen(blake3::Hasher);

impl Seen {
    /// Looks at a system directory, and at what is in it down to the second level.
    fn system(&mut self, machine: &Path, path: &Path, level: u8) {
        let files_count = BY_HAND.iter().any(|dir| path.starts_with(dir));
        let Ok(metadata) = fs::symlink_metadata(machine.join(path)) else { return };
        if metadata.is_dir() && level < 2 && files_count {
            // Its entries are all looked at, so that its time tells nothing, but for what is restless in it.
            self.0.update(&metadata.mode().to_le_bytes());
            self.text(path.as_os_str().as_bytes());
        } else {
            self.entry(path.as_os_str().as_bytes(), &metadata);
        }
        if !metadata.is_dir() || level == 2 {
            return;
        }
        // What may not be listed is not shown to steps either.
        for (name, is_dir) in list(&machine.join(path)).unwrap_or_default() {
            let path = path.join(name);
            let by_hand = BY_HAND.iter().any(|dir| path.starts_with(dir) || Path::new(dir) == path);
            if (is_dir || by_hand) && !RESTLESS.iter().any(|restless| Path::new(restless) == path) {
                self.system(machine, &path, level + 1);
            }
        }
    }

    fn entry(&mut self, path: &[u8], metadata: &fs::Metadata) {
        self.text(path);
        let kind = metadata.file_type();
        // How large a directory is depends on its history.
        let size = if kind.is_dir() { 0 } else { metadata.size() };
        for number in [u64::from(metadata.mode()), u64::from(metadata.uid()), u64::from(metadata.gid()), size] {
            self.0.update(&number.to_le_bytes());
        }
        if kind.is_char_device() || kind.is_block_device() {
            self.0.update(&metadata.rdev().to_le_bytes());
        }
        for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
            self.0.update(&number.to_le_bytes());
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.0.update(&(text.len() as u64).to_le_bytes()).update(text);
    }
}

/// The names in a directory, sorted, and whether each is a directory. One that may not be read is empty: its own times
/// stand for it.
fn list(dir: &Path) -> io::Result<Vec<(std::ffi::OsString, bool)>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        found.push((entry.file_name(), entry.file_type()?.is_dir()));
    }
    found.sort_unstable();
    Ok(found)
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
        let mut last = host(machine, &[]);
        assert_eq!(host(machine, &[]), last);
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
            let now = host(machine, &[]);
            assert_ne!(now, last, "{what}");
            last = now;
        }
        assert_ne!(host(machine, &["/srv".into()]), last, "a directory more");
        put(machine, "etc/resolv.conf", "another network");
        put(machine, "home/me/file", "22");
        assert_eq!(host(machine, &[]), last, "the network, and homes");
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
