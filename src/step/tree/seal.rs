//! The recorded state of a tree, to detect later changes.

use std::{collections::HashSet, ffi::CString, io, path::Path};

use rustix::{
    fs::{self, FileType, Stat},
    io::Errno,
};

use super::{
    at::{entries, join, open_dir, stat_at},
    descent::Descent,
};

/// A hash of the names, kinds, modes, sizes and times of everything in a tree, and its size.
///
/// Contents are not read. A seal detects changes by failing disks, users and clean-up jobs, and costs a walk
/// of the tree. It is no defence against an attacker who resets times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The hash.
    pub hash: [u8; 32],
    /// The allocated blocks in bytes. Hard links within the tree are counted once.
    pub bytes: u64,
    /// The number of entries, which is also the approximate time to read the seal again, in microseconds.
    pub entries: u64,
}

/// Reads the tree's seal. Takes about a microsecond per entry.
///
/// # Errors
/// Returns the first error. A directory that the caller may not list contributes only its own attributes to
/// the seal.
pub fn seal(root: &Path) -> io::Result<Seal> {
    let top = open_dir(root)?;
    let mut seal = Sealing::default();
    seal.add(b"", &fs::fstat(&top)?);
    let mut walk = Descent::new(top);
    // The names of directories to enter; `None` means to go up again.
    let mut work: Vec<Option<CString>> = Vec::new();
    seal.begin(b"");
    seal.directory(&walk, &mut work)?;
    while let Some(next) = work.pop() {
        let Some(name) = next else {
            drop(walk.leave()?);
            continue;
        };
        match walk.enter(&name) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                seal.begin(&join(walk.path(), name.to_bytes()));
            }
            entered => {
                entered?;
                seal.begin(walk.path());
                work.push(None);
                seal.directory(&walk, &mut work)?;
            }
        }
    }
    seal.begin(b"");
    Ok(Seal { hash: *seal.hasher.finalize().as_bytes(), bytes: seal.bytes, entries: seal.entries })
}

#[derive(Default)]
struct Sealing {
    hasher: blake3::Hasher,
    /// The data of one directory that is still to be hashed: to hash many small pieces would take longer than
    /// the hash itself.
    pending: Vec<u8>,
    /// The inodes with several names.
    linked: HashSet<(u64, u64)>,
    bytes: u64,
    entries: u64,
}

impl Sealing {
    /// Starts the entries of the directory at `path`.
    fn begin(&mut self, path: &[u8]) {
        self.hasher.update(&self.pending);
        self.pending.clear();
        self.put_text(path);
    }

    /// Adds the content of a directory.
    fn directory(&mut self, walk: &Descent, work: &mut Vec<Option<CString>>) -> io::Result<()> {
        let mut names = entries(walk.dir())?;
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, _) in names {
            let Some(stat) = stat_at(walk.dir(), &name)? else { return Err(Errno::STALE.into()) };
            self.add(name.to_bytes(), &stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                work.push(Some(name));
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &[u8], stat: &Stat) {
        self.entries += 1;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // The size of a directory depends on its history.
        let size = if is_dir { 0 } else { stat.st_size.cast_unsigned() };
        self.put_text(name);
        self.pending.extend_from_slice(&stat.st_mode.to_le_bytes());
        self.pending.extend_from_slice(&stat.st_uid.to_le_bytes());
        self.pending.extend_from_slice(&stat.st_gid.to_le_bytes());
        self.pending.extend_from_slice(&size.to_le_bytes());
        self.pending.extend_from_slice(&stat.st_mtime.to_le_bytes());
        self.pending.extend_from_slice(&stat.st_mtime_nsec.to_le_bytes());
        if is_dir || stat.st_nlink < 2 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.bytes += stat.st_blocks.cast_unsigned() * 512;
        }
    }

    fn put_text(&mut self, text: &[u8]) {
        self.pending.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.pending.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn whatever_happens_to_a_tree_breaks_its_seal() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        fs::create_dir_all(path("dir/empty")).unwrap();
        fs::write(path("dir/file"), "0123456789").unwrap();
        fs::hard_link(path("dir/file"), path("again")).unwrap();
        let whole = seal(top.path()).unwrap();
        assert_eq!(seal(top.path()).unwrap(), whole);
        let other = tempfile::tempdir().unwrap();
        fs::hard_link(path("dir/file"), other.path().join("elsewhere")).unwrap();
        assert_eq!(seal(top.path()).unwrap(), whole, "a link from elsewhere changes nothing");

        fs::File::options().write(true).open(path("dir/file")).unwrap().set_len(5).unwrap();
        let cut = seal(top.path()).unwrap();
        assert_ne!(cut.hash, whole.hash);
        fs::remove_dir(path("dir/empty")).unwrap();
        assert_ne!(seal(top.path()).unwrap().hash, cut.hash);
        assert!(seal(&path("missing")).is_err());
    }

    #[test]
    fn a_file_with_two_names_is_counted_once() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("a"), vec![1; 1 << 20]).unwrap();
        let one = seal(top.path()).unwrap().bytes;
        fs::hard_link(top.path().join("a"), top.path().join("b")).unwrap();
        assert!(one >= 1 << 20 && seal(top.path()).unwrap().bytes - one < 8192);
    }
}
