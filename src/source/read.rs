//! Reading a source tree: hashes of files that the stat cache does not know, and copies that are verified
//! against them.

use std::{
    cmp::Ordering as Order,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use rustix::io::Errno;

use super::{
    freeze_progress::FreezeProgress,
    in_same_log,
    manifest::{self, EntryKind, Manifest, ManifestEntry},
    stat_cache::{Stamp, StatCache},
    threads,
    times::SourceTimes,
    walk::{FileKind, FileStatus, WalkedTree},
};
use crate::{
    store::{StoreError, error::IoContext},
    sync::Mutex,
    tree,
};

/// How often a file, and then the whole tree, is read again if something changed in the meantime.
pub(super) const ATTEMPTS: usize = 3;

const CHUNK_BYTES: usize = 128 << 10;

/// One attempt to read a tree.
#[derive(Debug)]
pub(super) struct SourceReader<'a> {
    /// The canonical path.
    pub(super) source: &'a Path,
    /// The times that the manifest gets.
    pub(super) times: SourceTimes,
    pub(super) abandoned: &'a AtomicBool,
    pub(super) progress: &'a FreezeProgress,
}

/// What is known about a walked tree without reading a file.
#[derive(Debug)]
pub(super) struct Known<'a> {
    tree: &'a WalkedTree,
    cache: Option<&'a StatCache>,
    /// For each path of the tree, the index of the entry that the cache confirms, or [`UNKNOWN`].
    entries: Vec<u32>,
}

const UNKNOWN: u32 = u32::MAX;

impl<'a> Known<'a> {
    /// Compares a tree with the cache. Both are in the same order.
    pub(super) fn of(tree: &'a WalkedTree, cache: Option<&'a StatCache>) -> Self {
        let mut next = 0;
        let mut find = |index| {
            let (cache, path) = (cache?, tree.path(index));
            while let Some(entry) = cache.manifest.get(next) {
                match manifest::order(entry.path, path) {
                    Order::Less => next += 1,
                    Order::Equal => {
                        let trusted = cache.trusted(next, tree.status(index)).is_some();
                        return u32::try_from(next).ok().filter(|_| trusted);
                    }
                    Order::Greater => break,
                }
            }
            None
        };
        let entries = (0..tree.len()).map(|index| find(index).unwrap_or(UNKNOWN)).collect();
        Self { tree, cache, entries }
    }

    /// Returns the entry of the cache that is known to be that of a path of the tree.
    fn entry(&self, index: usize) -> Option<ManifestEntry<'a>> {
        self.cache?.manifest.get(usize::try_from(self.entries[index]).ok()?)
    }

    /// Returns whether the tree is exactly what the cache contains.
    pub(super) fn is_everything(&self) -> bool {
        let cached = self.cache.map_or(0, |cache| cache.manifest.len());
        let is_same = |index| self.entry(index).is_some_and(|entry| entry.mode == self.tree.status(index).mode);
        cached == self.tree.len() && (0..cached).all(is_same)
    }
}

/// The content that determines whether a file or link is the same.
enum Content {
    Hash([u8; 32]),
    Target(Vec<u8>),
}

impl SourceReader<'_> {
    /// Determines the manifest of a walked tree, reading what is not known yet.
    ///
    /// # Errors
    /// Returns [`StoreError::Unreadable`] or [`StoreError::SourceChanged`] with the file.
    pub(super) fn read_unknown(&self, known: &Known<'_>) -> Result<(Manifest, Vec<Stamp>), StoreError> {
        let tree = known.tree;
        let is_unknown =
            |index: &usize| known.entry(*index).is_none() && tree.status(*index).kind != FileKind::Directory;
        let unknown: Vec<usize> = (0..tree.len()).filter(is_unknown).collect();
        self.progress.begin_reading(unknown.len());
        let mut read = in_parallel(&unknown, |index, buffer| {
            let read = self.read(tree.path(*index), tree.status(*index).kind, buffer)?;
            self.progress.file_read();
            Ok((*index, read))
        })?;
        read.sort_unstable_by_key(|(index, _)| *index);
        let mut read = read.into_iter().peekable();
        let (mut manifest, mut stamps) = (Manifest::default(), Vec::with_capacity(tree.len()));
        for index in 0..tree.len() {
            let (path, walked) = (tree.path(index), tree.status(index));
            let mut push = |status: &FileStatus, kind| {
                let mtime = self.times.of(status.mtime);
                manifest.push(ManifestEntry { path, mode: status.mode, mtime, kind });
                stamps.push(Stamp::of(status));
            };
            if walked.kind == FileKind::Directory {
                push(walked, EntryKind::Directory);
            } else if let Some(entry) = known.entry(index) {
                push(walked, entry.kind);
            } else if let Some((_, Some((status, content)))) = read.next_if(|(read, _)| *read == index) {
                let kind = match &content {
                    Content::Hash(hash) => EntryKind::File { size_bytes: status.size_bytes, hash },
                    Content::Target(target) => EntryKind::Symlink { target },
                };
                push(&status, kind);
            }
        }
        Ok((manifest, stamps))
    }

    /// Returns the content of a file or link, and its status at the time. Returns `None` if it is gone by
    /// now.
    fn read(
        &self,
        path: &[u8],
        kind: FileKind,
        buffer: &mut [u8],
    ) -> Result<Option<(FileStatus, Content)>, StoreError> {
        self.check()?;
        let path = &self.source.join(OsStr::from_bytes(path));
        match kind {
            FileKind::Symlink => self.read_link(path),
            _ => self.read_file(path, buffer),
        }
    }

    fn read_link(&self, path: &Path) -> Result<Option<(FileStatus, Content)>, StoreError> {
        let unreadable = |source| StoreError::Unreadable { path: path.into(), source };
        let target = match fs::read_link(path) {
            Ok(target) => target.into_os_string().into_vec(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(changed(path)),
            Err(error) => return Err(unreadable(error)),
        };
        // The status is read after the target: if the link had been replaced in between, the length of the
        // target or the time would differ.
        let stat = tree::stat_at(rustix::fs::CWD, path).map_err(unreadable)?;
        let status = stat.as_ref().and_then(FileStatus::of).filter(|it| it.kind == FileKind::Symlink);
        let again = fs::read_link(path).map(|again| again.into_os_string().into_vec());
        match status {
            Some(status) if again.is_ok_and(|again| again == target) => Ok(Some((status, Content::Target(target)))),
            _ => Err(changed(path)),
        }
    }

    /// Hashes a file, provided that no process writes to it in the meantime.
    fn read_file(&self, path: &Path, buffer: &mut [u8]) -> Result<Option<(FileStatus, Content)>, StoreError> {
        let unreadable = |source: io::Error| StoreError::Unreadable { path: path.into(), source };
        for _ in 0..ATTEMPTS {
            let Some(mut file) = open(path)? else { return Ok(None) };
            let before = status(&file, path)?;
            let mut hasher = blake3::Hasher::new();
            let hash = |bytes: &[u8]| {
                hasher.update(bytes);
                self.check()
            };
            let whole = read_whole(&mut file, before.size_bytes, buffer, unreadable, hash)?;
            let after = status(&file, path)?;
            if whole && before == after {
                return Ok(Some((after, Content::Hash(*hasher.finalize().as_bytes()))));
            }
        }
        Err(changed(path))
    }

    /// Copies one file, and verifies that it is the one in the manifest.
    ///
    /// # Errors
    /// Returns [`StoreError::SourceChanged`] if it is a different file by now.
    pub(super) fn copy(&self, entry: &ManifestEntry<'_>, target: &Path, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.check()?;
        let path = self.source.join(entry.as_path());
        let EntryKind::File { size_bytes, hash } = entry.kind else { return Ok(()) };
        let Some(mut source) = open(&path)? else { return Err(changed(&path)) };
        let mut copy = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target)
            .doing("make", target)?;
        let mut hasher = blake3::Hasher::new();
        let shared = size_bytes >= CHUNK_BYTES as u64 && tree::reflink(&source, &copy);
        let whole = if shared {
            // The copy is read back, because it is what counts.
            let unreadable = |error| StoreError::io("read", target, error);
            read_whole(&mut copy, size_bytes, buffer, unreadable, |bytes| {
                hasher.update(bytes);
                self.check()
            })?
        } else {
            let unreadable = |source| StoreError::Unreadable { path: path.clone(), source };
            let is_sparse = source.metadata().is_ok_and(|metadata| metadata.blocks() * 512 < size_bytes);
            let mut length = 0;
            let whole = read_whole(&mut source, size_bytes, buffer, unreadable, |bytes| {
                hasher.update(bytes);
                // Keeps holes as holes.
                if !is_sparse || bytes.iter().any(|byte| *byte != 0) {
                    copy.write_all_at(bytes, length).doing("write", target)?;
                }
                length += bytes.len() as u64;
                self.check()
            })?;
            if is_sparse {
                copy.set_len(length).doing("write", target)?;
            }
            whole
        };
        if !whole || hasher.finalize().as_bytes() != hash {
            return Err(changed(&path));
        }
        copy.set_permissions(fs::Permissions::from_mode(entry.mode)).doing("set the mode of", target)?;
        rustix::fs::futimens(&copy, &tree::mtime(entry.mtime.0, entry.mtime.1.into())).doing("set the time of", target)
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.abandoned.load(Ordering::Relaxed) { Err(StoreError::Abandoned) } else { Ok(()) }
    }
}

/// Passes on the content of a file that should be `size_bytes` long, and returns whether it is. Reading stops
/// if the file is longer, because it may keep growing for as long as it is read.
fn read_whole(
    file: &mut impl Read,
    size_bytes: u64,
    buffer: &mut [u8],
    unreadable: impl Fn(io::Error) -> StoreError,
    mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<bool, StoreError> {
    let mut read_bytes = 0;
    loop {
        let length = file.read(buffer).map_err(&unreadable)?;
        read_bytes += length as u64;
        if length == 0 || read_bytes > size_bytes {
            return Ok(read_bytes == size_bytes);
        }
        each(&buffer[..length])?;
    }
}

/// Calls `work` for every item on several threads, each with a buffer. The results are in no particular
/// order.
pub(super) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T, &mut [u8]) -> Result<R, StoreError> + Sync,
) -> Result<Vec<R>, StoreError> {
    /// So few items are processed faster than a thread is started.
    const FEW: usize = 16;
    /// Neighbours are usually in one directory, and two threads that create files in one wait for each other.
    const NEIGHBOURS: usize = 32;

    let neighbours = (items.len() / threads() / 4).clamp(1, NEIGHBOURS);
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Ok(Vec::new()));
    let run = || {
        let (mut buffer, mut done) = (vec![0; CHUNK_BYTES], Vec::new());
        loop {
            let start = next.fetch_add(neighbours, Ordering::Relaxed).min(items.len());
            let end = items.len().min(start + neighbours);
            if start == end {
                break;
            }
            for item in &items[start..end] {
                match work(item, &mut buffer) {
                    Ok(result) => done.push(result),
                    Err(error) => {
                        next.store(items.len(), Ordering::Relaxed);
                        let mut all = all.lock();
                        if all.is_ok() {
                            *all = Err(error);
                        }
                        return;
                    }
                }
            }
        }
        if let Ok(all) = &mut *all.lock() {
            all.append(&mut done);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads().min(items.len().div_ceil(FEW)) {
            scope.spawn(in_same_log(run));
        }
        run();
    });
    all.into_inner()
}

fn changed(path: &Path) -> StoreError {
    StoreError::SourceChanged { path: path.into() }
}

/// Opens a file for reading, without blocking if it has become a pipe. Returns `None` if it is gone.
fn open(path: &Path) -> Result<Option<File>, StoreError> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The file or a directory above it was replaced by something else.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::LOOP | Errno::NOTDIR | Errno::NXIO)) => {
            Err(changed(path))
        }
        Err(source) => Err(StoreError::Unreadable { path: path.into(), source }),
    }
}

/// Returns the status of an open file, which must be a regular file.
fn status(file: &File, path: &Path) -> Result<FileStatus, StoreError> {
    let unreadable = |error: Errno| StoreError::Unreadable { path: path.into(), source: error.into() };
    let status = FileStatus::of(&rustix::fs::fstat(file).map_err(unreadable)?);
    status.filter(|it| it.kind == FileKind::File).ok_or_else(|| changed(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_is_not_read_to_its_end() {
        let mut buffer = [0; 16];
        let mut read = |file: &mut dyn Read, size_bytes| {
            let mut seen = Vec::new();
            let each = |bytes: &[u8]| {
                seen.extend_from_slice(bytes);
                Ok(())
            };
            let unreadable = |source| StoreError::Unreadable { path: "f".into(), source };
            let whole = read_whole(&mut { file }, size_bytes, &mut buffer, unreadable, each).unwrap();
            (whole, seen.len())
        };
        assert_eq!(read(&mut &[7; 40][..], 40), (true, 40));
        assert_eq!(read(&mut &[][..], 0), (true, 0));
        assert_eq!(read(&mut &[7; 40][..], 41), (false, 40));
        assert_eq!(read(&mut &[7; 40][..], 39), (false, 32));
        assert_eq!(read(&mut io::repeat(7), 40), (false, 32));
    }
}
