//! The disk usage of a tree.

use std::{collections::HashMap, ffi::CString, io, path::Path};

use rustix::fs::{self, AtFlags, FileType, Stat};

use super::{
    at::{entries, open_dir, stat_at},
    descent::Descent,
};

/// The identity of a file with any number of names: device and inode number.
pub type FileId = (u64, u64);

/// The disk usage of a tree, in bytes of allocated blocks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The size of directories, and of files with one name.
    pub own: u64,
    /// The sizes of files with several names, which may or may not all be in this tree. A removal of the tree
    /// frees them only with their last name.
    pub shared: HashMap<FileId, u64>,
    /// The part of `shared` whose names are all in this tree.
    pub enclosed: u64,
}

impl Extent {
    /// Returns the disk usage of the tree if its files had no names outside it.
    pub fn bytes(&self) -> u64 {
        self.own + self.shared.values().sum::<u64>()
    }

    fn add(&mut self, stat: &Stat, names: &mut HashMap<FileId, u64>) {
        let bytes = stat.st_blocks.cast_unsigned() * 512;
        if is_dir(stat) || stat.st_nlink < 2 {
            self.own += bytes;
        } else {
            let file = (stat.st_dev, stat.st_ino);
            self.shared.insert(file, bytes);
            let seen = names.entry(file).or_default();
            *seen += 1;
            // Counted at most once: further names were made meanwhile.
            if *seen == links(stat) {
                self.enclosed += bytes;
            }
        }
    }
}

/// Measures the tree or file at `path`. Takes about a microsecond per entry. Entries that disappear
/// meanwhile, and the content of directories that the caller may not list, are not counted.
///
/// # Errors
/// Returns the first error. If nothing is at `path`, the extent is empty.
pub fn measure(path: &Path) -> io::Result<Extent> {
    let (mut extent, mut names) = (Extent::default(), HashMap::new());
    let top = match fs::statat(fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(extent),
        stat => stat?,
    };
    extent.add(&top, &mut names);
    if !is_dir(&top) {
        return Ok(extent);
    }
    let root = match open_dir(path) {
        Err(error) if is_unreadable(&error) => return Ok(extent),
        root => root?,
    };
    let mut walk = Descent::new(root);
    // The names of directories to enter; `None` means to go up again.
    let mut work: Vec<Option<CString>> = vec![None];
    let mut entered = true;
    loop {
        if entered {
            for (name, _) in entries(walk.dir())? {
                let Some(stat) = stat_at(walk.dir(), &name)? else { continue };
                extent.add(&stat, &mut names);
                if is_dir(&stat) {
                    work.push(Some(name));
                }
            }
        }
        entered = match work.pop() {
            None => return Ok(extent),
            Some(None) => {
                drop(walk.leave()?);
                false
            }
            Some(Some(name)) => match walk.enter(&name) {
                Err(error) if is_unreadable(&error) => false,
                down => {
                    down?;
                    work.push(None);
                    true
                }
            },
        };
    }
}

#[expect(clippy::useless_conversion, reason = "its width differs by platform")]
fn links(stat: &Stat) -> u64 {
    u64::from(stat.st_nlink)
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Returns whether the entry disappeared meanwhile, or belongs to another user.
fn is_unreadable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_with_several_names_are_told_apart() {
        let top = tempfile::tempdir().unwrap();
        let (one, two) = (top.path().join("one"), top.path().join("two"));
        fs::create_dir_all(one.join("deep")).unwrap();
        fs::create_dir(&two).unwrap();
        fs::write(one.join("deep/alone"), vec![1; 100_000]).unwrap();
        fs::write(one.join("both"), vec![1; 200_000]).unwrap();
        fs::hard_link(one.join("both"), one.join("again")).unwrap();
        fs::hard_link(one.join("both"), two.join("both")).unwrap();
        let (one, two) = (measure(&one).unwrap(), measure(&two).unwrap());
        assert!((100_000..150_000).contains(&one.own), "{one:?}");
        assert_eq!((one.shared.len(), &one.shared), (1, &two.shared));
        assert!((200_000..300_000).contains(&two.bytes()), "{two:?}");
        assert_eq!((one.enclosed, two.enclosed), (0, 0));
        let both = measure(top.path()).unwrap();
        assert_eq!(both.own + both.enclosed, both.bytes());
    }

    #[test]
    fn a_file_is_measured_and_nothing_is_nothing() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(measure(&top.path().join("missing")).unwrap(), Extent::default());
        fs::write(top.path().join("file"), "x").unwrap();
        assert!(measure(&top.path().join("file")).unwrap().bytes() > 0);
    }
}
