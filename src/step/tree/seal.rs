//! The recorded state of a tree, to detect later changes.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, FileType, Stat},
    io::Errno,
};

use super::{
    at::{entries, join, open_below, open_dir, stat_at},
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
    let mut seal = Sealing::into_hash();
    seal.add(b"", &fs::fstat(&top)?);
    seal.subtree(top, b"")?;
    Ok(seal.finish(HashMap::new()))
}

/// Reads the same seal on up to `threads` threads. About a hundred bytes for each entry are kept in memory.
///
/// # Errors
/// As [`seal`].
pub fn seal_on_threads(root: &Path, threads: usize) -> io::Result<Seal> {
    let top = open_dir(root)?;
    let mut first = Sealing::into_memory();
    first.add(b"", &fs::fstat(&top)?);
    // What is hashed, in this order. The top is split into enough parts to keep all threads busy.
    let mut parts = vec![Part::Done(first), Part::Dir(Vec::new())];
    for _ in 0..SPLIT_LEVELS {
        let dirs = parts.iter().filter(|part| matches!(part, Part::Dir(_))).count();
        if dirs == 0 || dirs >= threads * PARTS_PER_THREAD {
            break;
        }
        let mut finer = Vec::with_capacity(parts.len() * 2);
        for part in parts {
            match part {
                Part::Dir(path) => split(&top, &path, &mut finer)?,
                done => finer.push(done),
            }
        }
        parts = finer;
    }
    let parts: Vec<Mutex<Part>> = parts.into_iter().map(Mutex::new).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Each part is locked by one thread alone.
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let Part::Dir(path) = &*part else { continue };
            match below(&top, path) {
                Ok(sealed) => *part = Part::Done(sealed),
                Err(error) => {
                    next.store(parts.len(), Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // If there can be no other thread, this one does it all.
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let (mut whole, mut linked) = (Sealing::into_hash(), HashMap::new());
    for part in parts {
        if let Part::Done(sealed) = part.into_inner().unwrap_or_else(PoisonError::into_inner) {
            whole.append(sealed, &mut linked);
        }
    }
    Ok(whole.finish(linked))
}

/// How many levels of directories are split into parts at most. Deeper ones are never opened by path.
const SPLIT_LEVELS: usize = 4;

/// The number of parts for each thread, so that none is left with a large one at the end.
const PARTS_PER_THREAD: usize = 16;

/// A part of a tree.
enum Part {
    Done(Sealing),
    /// The directory at this path, with everything below it.
    Dir(Vec<u8>),
}

/// Splits a directory into its own entries and the directories in it.
fn split(top: &OwnedFd, path: &[u8], to: &mut Vec<Part>) -> io::Result<()> {
    let mut own = Sealing::into_memory();
    own.begin(path);
    let mut dirs = Vec::new();
    match open_below(top.as_fd(), path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        dir => own.directory(dir?.as_fd(), &mut dirs)?,
    }
    to.push(Part::Done(own));
    // The order in which one thread would walk.
    to.extend(dirs.into_iter().rev().flatten().map(|name| Part::Dir(join(path, name.to_bytes()))));
    Ok(())
}

/// Seals a directory with everything below it.
fn below(top: &OwnedFd, path: &[u8]) -> io::Result<Sealing> {
    let mut seal = Sealing::into_memory();
    match open_below(top.as_fd(), path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => seal.begin(path),
        dir => seal.subtree(dir?, path)?,
    }
    Ok(seal)
}

/// Where the data of entries goes.
enum Sink {
    Hash(Box<blake3::Hasher>),
    Memory(Vec<u8>),
}

struct Sealing {
    sink: Sink,
    /// The data of one directory that is still to be hashed: to hash many small pieces would take longer than
    /// the hash itself.
    pending: Vec<u8>,
    /// The inodes with several names, and their bytes.
    linked: HashMap<(u64, u64), u64>,
    /// The bytes of all others.
    bytes: u64,
    entries: u64,
}

impl Sealing {
    fn to(sink: Sink) -> Self {
        Self { sink, pending: Vec::new(), linked: HashMap::new(), bytes: 0, entries: 0 }
    }

    fn into_hash() -> Self {
        Self::to(Sink::Hash(Box::default()))
    }

    fn into_memory() -> Self {
        Self::to(Sink::Memory(Vec::new()))
    }

    /// Adds a directory that is listed, and everything below it.
    fn subtree(&mut self, top: OwnedFd, path: &[u8]) -> io::Result<()> {
        let mut walk = Descent::new(top);
        // The names of directories to enter; `None` means to go up again.
        let mut work: Vec<Option<CString>> = Vec::new();
        self.begin(path);
        self.directory(walk.dir(), &mut work)?;
        while let Some(next) = work.pop() {
            let Some(name) = next else {
                drop(walk.leave()?);
                continue;
            };
            match walk.enter(&name) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.begin(&join(&join(path, walk.path()), name.to_bytes()));
                }
                entered => {
                    entered?;
                    self.begin(&join(path, walk.path()));
                    work.push(None);
                    self.directory(walk.dir(), &mut work)?;
                }
            }
        }
        Ok(())
    }

    /// Starts the entries of the directory at `path`.
    fn begin(&mut self, path: &[u8]) {
        self.flush();
        self.put_text(path);
    }

    fn flush(&mut self) {
        match &mut self.sink {
            Sink::Hash(hasher) => drop(hasher.update(&self.pending)),
            Sink::Memory(bytes) => bytes.extend_from_slice(&self.pending),
        }
        self.pending.clear();
    }

    /// Adds the content of a directory.
    fn directory(&mut self, dir: BorrowedFd<'_>, work: &mut Vec<Option<CString>>) -> io::Result<()> {
        let mut names = entries(dir)?;
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, _) in names {
            let Some(stat) = stat_at(dir, &name)? else { return Err(Errno::STALE.into()) };
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
        let bytes = stat.st_blocks.cast_unsigned() * 512;
        if is_dir || stat.st_nlink < 2 {
            self.bytes += bytes;
        } else {
            self.linked.insert((stat.st_dev, stat.st_ino), bytes);
        }
    }

    fn put_text(&mut self, text: &[u8]) {
        self.pending.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.pending.extend_from_slice(text);
    }

    /// Adds the next part. Its inodes with several names go to `linked`.
    fn append(&mut self, mut part: Self, linked: &mut HashMap<(u64, u64), u64>) {
        part.flush();
        if let (Sink::Hash(hasher), Sink::Memory(bytes)) = (&mut self.sink, &part.sink) {
            hasher.update(bytes);
        }
        self.bytes += part.bytes;
        self.entries += part.entries;
        linked.extend(part.linked);
    }

    /// Returns the seal, with what was found of inodes with several names elsewhere.
    fn finish(mut self, linked: HashMap<(u64, u64), u64>) -> Seal {
        self.flush();
        self.linked.extend(linked);
        let hash = match self.sink {
            Sink::Hash(hasher) => *hasher.finalize().as_bytes(),
            Sink::Memory(bytes) => *blake3::hash(&bytes).as_bytes(),
        };
        Seal { hash, bytes: self.bytes + self.linked.values().sum::<u64>(), entries: self.entries }
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
    fn threads_read_the_same_seal() {
        let top = tempfile::tempdir().unwrap();
        let same = |what: &str| {
            let one = seal(top.path()).unwrap();
            for threads in [1, 2, 5] {
                assert_eq!(seal_on_threads(top.path(), threads).unwrap(), one, "{what}, {threads} threads");
            }
        };
        same("an empty tree");
        for number in 0..300 {
            // Directories at all levels, some with names that differ only before or after a slash.
            let dir = match number % 4 {
                0 => format!("a{}/b/c/d/e/f{}", number % 7, number % 5),
                1 => format!("a{}", number % 7),
                2 => format!("a{}-/b{}", number % 7, number % 3),
                _ => format!("z/{}", "deep/".repeat(number % 50)),
            };
            let dir = top.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("file-{number}")), "x".repeat(number * 50)).unwrap();
            if number % 10 == 0 {
                let first = top.path().join("linked");
                if number == 0 {
                    fs::write(&first, vec![1; 9000]).unwrap()
                }
                fs::hard_link(first, dir.join(format!("link-{number}"))).unwrap();
            }
        }
        std::os::unix::fs::symlink("a1", top.path().join("to-a1")).unwrap();
        same("a tree of several levels");
        assert!(seal_on_threads(&top.path().join("missing"), 2).is_err());
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
