//! The latest modification time in a tree.

use std::{ffi::CString, io, path::Path};

use rustix::fs::{self, FileType, Stat};

use super::{
    at::{entries, open_dir, stat_at},
    descent::Descent,
};

/// The latest modification time in a tree: seconds since the Unix epoch, and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The latest time that was found.
    pub mtime: (i64, u32),
    /// Whether every directory could be listed.
    pub is_complete: bool,
}

/// Finds the latest modification time of anything in a tree, including its root. Takes about a microsecond
/// per entry.
///
/// # Errors
/// Returns the first error. A directory that the caller may not list counts with its own time.
pub fn newest(root: &Path) -> io::Result<Newest> {
    let top = open_dir(root)?;
    let mut newest = Newest { mtime: mtime_of(&fs::fstat(&top)?), is_complete: true };
    let mut walk = Descent::new(top);
    // The names of directories to enter; `None` means to go up again.
    let mut work: Vec<Option<CString>> = Vec::new();
    newest.list(&walk, &mut work)?;
    while let Some(next) = work.pop() {
        match next {
            None => drop(walk.leave()?),
            Some(name) => match walk.enter(&name) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => newest.is_complete = false,
                entered => {
                    entered?;
                    work.push(None);
                    newest.list(&walk, &mut work)?;
                }
            },
        }
    }
    Ok(newest)
}

impl Newest {
    /// Looks at the content of the current directory.
    fn list(&mut self, walk: &Descent, work: &mut Vec<Option<CString>>) -> io::Result<()> {
        for (name, _) in entries(walk.dir())? {
            let Some(stat) = stat_at(walk.dir(), &name)? else { continue };
            self.mtime = self.mtime.max(mtime_of(&stat));
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                work.push(Some(name));
            }
        }
        Ok(())
    }
}

#[expect(clippy::unnecessary_cast, reason = "types differ between systems")]
fn mtime_of(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime as i64, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        time::{Duration, UNIX_EPOCH},
    };

    use super::*;

    #[test]
    fn the_latest_time_is_found_at_any_depth() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        std::fs::create_dir_all(path("a/b")).unwrap();
        std::fs::write(path("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", path("a/link")).unwrap();
        let later = UNIX_EPOCH + Duration::new(4_000_000_000, 7);
        let touch = |path: &Path, time| std::fs::File::open(path).unwrap().set_modified(time).unwrap();
        touch(&path("a/b/file"), later);
        assert_eq!(newest(top.path()).unwrap(), Newest { mtime: (4_000_000_000, 7), is_complete: true });
        touch(&path("a/b"), later + Duration::from_secs(1));
        assert_eq!(newest(top.path()).unwrap().mtime, (4_000_000_001, 7));
        assert!(newest(&path("missing")).is_err());
        if !rustix::process::geteuid().is_root() {
            std::fs::set_permissions(path("a/b"), std::fs::Permissions::from_mode(0o000)).unwrap();
            assert_eq!(newest(top.path()).unwrap(), Newest { mtime: (4_000_000_001, 7), is_complete: false });
            std::fs::set_permissions(path("a/b"), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}
