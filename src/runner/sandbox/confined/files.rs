//! The files of a confined program: read-only views of the machine in a root in memory.
//!
//! System files are allowed by name, not removed from a full view: programs, libraries, and the few files of
//! `/etc` that they require. So nothing needs to be masked, and no file can be overlooked.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{CString, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::{ConfinedError, c_path, failed};
use crate::jail::{Bind, MemoryEntry};

/// The limits of the root in memory, in bytes and in files.
pub(super) const MAX_BYTES: u64 = 64 << 20;
pub(super) const MAX_FILES: u64 = 16 << 10;

/// The error for a symlink loop.
const ELOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

/// The most symlinks on the way to a file; the kernel has the same limit.
const MAX_LINKS: usize = 40;

/// Programs and libraries, and what the C library and interpreters read when they start.
const SYSTEM: [&str; 36] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libx32",
    "/usr/libexec",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/share/git-core",
    "/usr/share/i18n",
    "/usr/share/locale",
    "/usr/share/nodejs",
    "/usr/share/python3",
    "/usr/share/terminfo",
    "/usr/share/zoneinfo",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld-musl-x86_64.path",
    "/etc/localtime",
    "/etc/os-release",
    "/etc/python3",
    // The system files of distributions that keep them elsewhere.
    "/gnu/store",
    "/nix/store",
    "/run/current-system/sw",
    "/home/linuxbrew/.linuxbrew",
];

/// The directories where a jail mounts filesystems of its own.
const OWN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The only two users.
const PASSWD: &str = "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// Entries, binds, and hidden files.
type Parts = (Vec<MemoryEntry>, Vec<Bind>, Vec<CString>);

/// The files of one root. Every path is absolute.
#[derive(Debug, Default)]
pub(super) struct Files {
    links: BTreeMap<PathBuf, PathBuf>,
    /// The real paths of the views, and whether each is a directory.
    views: BTreeMap<PathBuf, bool>,
    hidden: BTreeSet<PathBuf>,
}

impl Files {
    /// Returns the files that every program needs.
    pub(super) fn of_the_system() -> Result<Self, ConfinedError> {
        let mut files = Self::default();
        for path in SYSTEM {
            files.show(Path::new(path))?;
        }
        // Debian's `sitecustomize` is a link to a file here.
        for entry in fs::read_dir("/etc").into_iter().flatten().flatten() {
            if entry.file_name().as_bytes().starts_with(b"python3.") {
                files.show(&entry.path())?;
            }
        }
        Ok(files)
    }

    /// Exposes the file or directory at `path`, with the symlinks that lead there. A missing path is ignored.
    pub(super) fn show(&mut self, path: &Path) -> Result<(), ConfinedError> {
        let refused = |reason| Err(ConfinedError::Path { path: path.into(), reason });
        if !path.is_absolute() {
            return refused("its path is not absolute");
        }
        let mut rest: VecDeque<OsString> = parts(path).collect();
        let mut real = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&part);
            let metadata = match fs::symlink_metadata(&next) {
                Ok(metadata) => metadata,
                // A path that this user cannot reach is treated as missing.
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(failed("read a path that a confined program may see")(error)),
            };
            if !metadata.is_symlink() {
                real = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Ok(());
            }
            let target = match fs::read_link(&next) {
                Ok(target) => target,
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(failed("read a path that a confined program may see")(error)),
            };
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            parts(&target).rev().for_each(|part| rest.push_front(part));
            if !self.is_shown(&next) {
                self.links.insert(next, target);
            }
        }
        if real == Path::new("/") {
            return refused("it is the root directory");
        }
        if OWN.iter().any(|own| real.starts_with(own)) {
            return refused("a confined program has its own filesystem there");
        }
        if !self.is_shown(&real) {
            let is_dir = real.is_dir();
            self.views.insert(real, is_dir);
        }
        Ok(())
    }

    /// Makes the file at `path`, with symlinks resolved, appear empty if it is part of a view.
    pub(super) fn hide(&mut self, path: &Path) -> Result<(), ConfinedError> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if is_absent(&error) || error.raw_os_error() == Some(ELOOP) => return Ok(()),
            Err(error) => return Err(failed("read a path that a confined program may not see")(error)),
        };
        if real.is_file() && self.is_shown(&real) {
            self.hidden.insert(real);
        }
        Ok(())
    }

    /// Returns whether `path` is part of a view.
    fn is_shown(&self, path: &Path) -> bool {
        path.ancestors().any(|ancestor| self.views.contains_key(ancestor))
    }

    /// Returns the entries of the root in memory, the binds into it, and the files to hide.
    pub(super) fn into_parts(self) -> Result<Parts, ConfinedError> {
        // A link or file below a later view is left out, so that it does not conflict with the view's mount
        // point.
        let covered = |path: &Path| path.ancestors().skip(1).any(|ancestor| self.views.contains_key(ancestor));
        let mut dirs: BTreeSet<PathBuf> = ["/tmp", "/proc", "/dev", "/etc"].map(PathBuf::from).into();
        let mut others = Vec::new();
        for (path, target) in self.links.iter().filter(|(path, _)| !covered(path)) {
            dirs.extend(above(path));
            others.push(MemoryEntry::Link { path: relative(path)?, target: c_path(target)? });
        }
        for (path, is_dir) in self.views.iter().filter(|(path, _)| !covered(path)) {
            dirs.extend(above(path));
            if *is_dir {
                dirs.insert(path.clone());
            } else {
                others.push(MemoryEntry::File { path: relative(path)?, content: Vec::new() });
            }
        }
        for (path, content) in [("/etc/passwd", PASSWD), ("/etc/group", GROUP)] {
            if !self.is_shown(Path::new(path)) {
                others.push(MemoryEntry::File { path: relative(Path::new(path))?, content: content.into() });
            }
        }
        let dirs = dirs.iter().map(|path| {
            let mode = if path == Path::new("/tmp") { 0o1777 } else { 0o755 };
            Ok(MemoryEntry::Dir { path: relative(path)?, mode })
        });
        let entries = dirs.chain(others.into_iter().map(Ok)).collect::<Result<_, ConfinedError>>()?;
        let binds = self.views.keys().map(|path| {
            let path = c_path(path)?;
            Ok(Bind { source: path.clone(), target: path, writable: false })
        });
        let binds = binds.collect::<Result<_, ConfinedError>>()?;
        let hidden = self.hidden.iter().map(|path| c_path(path)).collect::<Result<_, _>>()?;
        Ok((entries, binds, hidden))
    }
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// Returns the names in a path, including `..`.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Returns the directories above `path`, except the root.
fn above(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.ancestors().skip(1).filter(|dir| dir.parent().is_some()).map(Path::to_path_buf)
}

fn relative(path: &Path) -> Result<CString, ConfinedError> {
    c_path(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn parts_of(files: Files) -> (BTreeMap<String, &'static str>, Vec<String>) {
        let (entries, binds, _) = files.into_parts().unwrap();
        let text = |path: &CString| path.to_str().unwrap().to_owned();
        let entries = entries.iter().map(|entry| match entry {
            MemoryEntry::Dir { path, .. } => (text(path), "dir"),
            MemoryEntry::Link { path, .. } => (text(path), "link"),
            MemoryEntry::File { path, .. } => (text(path), "file"),
        });
        (entries.collect(), binds.iter().map(|bind| text(&bind.target)).collect())
    }

    #[test]
    fn links_on_the_way_are_made_and_their_ends_are_bound() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("real/bin")).unwrap();
        fs::write(top.join("real/bin/tool"), "").unwrap();
        symlink("real", top.join("alias")).unwrap();
        symlink("../alias/bin", top.join("real/elsewhere")).unwrap();
        symlink(top.join("alias/elsewhere/tool"), top.join("tool")).unwrap();
        let mut files = Files::default();
        files.show(&top.join("tool")).unwrap();
        files.show(&top.join("not/there")).unwrap();
        let (entries, binds) = parts_of(files);
        let within = |name: &str| top.join(name).to_str().unwrap().trim_start_matches('/').to_owned();
        assert_eq!(binds, [format!("/{}", within("real/bin/tool"))]);
        for link in ["tool", "alias", "real/elsewhere"] {
            assert_eq!(entries[&within(link)], "link");
        }
        assert_eq!(entries[&within("real/bin")], "dir");
        assert_eq!(entries[&within("real/bin/tool")], "file");
    }

    #[test]
    fn a_view_covers_what_was_made_for_an_earlier_one() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("a/b")).unwrap();
        symlink("b", top.join("a/link")).unwrap();
        let mut files = Files::default();
        for path in ["a/link", "a", "a/b"] {
            files.show(&top.join(path)).unwrap();
        }
        let (entries, binds) = parts_of(files);
        let name = top.join("a").to_str().unwrap().to_owned();
        assert_eq!(binds, [name.clone(), format!("{name}/b")]);
        assert!(!entries.contains_key(&format!("{}/link", name.trim_start_matches('/'))));
        assert!(!entries.contains_key(&format!("{}/b", name.trim_start_matches('/'))));
    }

    #[test]
    fn what_a_jail_has_itself_and_the_whole_machine_are_refused() {
        for path in ["/", "/proc/self", "/usr/..", "relative"] {
            let shown = Files::default().show(Path::new(path));
            assert!(matches!(shown, Err(ConfinedError::Path { .. })), "{path}: {shown:?}");
        }
    }

    #[test]
    fn only_files_of_what_is_shown_are_hidden() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        fs::create_dir(top.join("shown")).unwrap();
        for name in ["shown/config", "other"] {
            fs::write(top.join(name), "secret").unwrap();
        }
        let mut files = Files::default();
        files.show(&top.join("shown")).unwrap();
        fs::write(top.join("shown/real"), "secret").unwrap();
        symlink("real", top.join("shown/link")).unwrap();
        symlink("loop", top.join("shown/loop")).unwrap();
        symlink("../other", top.join("shown/out")).unwrap();
        for name in ["shown/config", "shown/absent", "shown", "other", "shown/link", "shown/loop", "shown/out"] {
            files.hide(&top.join(name)).unwrap();
        }
        let hidden: Vec<_> = files.hidden.iter().collect();
        assert_eq!(hidden, [&top.join("shown/config"), &top.join("shown/real")]);
    }
}
