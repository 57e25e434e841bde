//! The files of a saved cache. A blob is put in its place whole, and the list that names it afterwards.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{
    error::{Doing, SavedCacheError},
    list::{Blob, List, MAX_LIST_BYTES},
};
use crate::{
    hex::from_hex,
    image::PackedLayer,
    store::{
        ImageDigest,
        files::{make_dir, open_lock},
    },
};

const LIST: &str = "hm-cache.json";
const LOCK: &str = "lock";
const BLOBS: &str = "blobs";
const TMP: &str = "tmp";

/// A saved cache that this process reads, or writes.
#[derive(Debug)]
pub(super) struct CacheDir {
    path: PathBuf,
    /// Held until the end. `None` if the directory is read-only.
    _lock: Option<File>,
}

impl CacheDir {
    /// Opens a directory to write to, and creates it if it is missing. Waits until no other process uses it.
    ///
    /// # Errors
    /// Returns [`SavedCacheError::Foreign`] if it contains anything else.
    pub(super) fn create(path: &Path) -> Result<Self, SavedCacheError> {
        let foreign = |why: String| SavedCacheError::Foreign { path: path.into(), why };
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(foreign("it is not a directory".to_owned()));
        }
        make_dir(path).map_err(of_dir)?;
        for entry in fs::read_dir(path).doing("list", path)? {
            let entry = entry.doing("list", path)?;
            let name = entry.file_name();
            let (is_dir, kind) = (name == BLOBS || name == TMP, entry.file_type().doing("read", path)?);
            let is_ours = if is_dir { kind.is_dir() } else { (name == LIST || name == LOCK) && kind.is_file() };
            if !is_ours {
                return Err(foreign(format!("it contains `{}`", name.to_string_lossy())));
            }
        }
        let lock = open_lock(&path.join(LOCK)).map_err(of_dir)?;
        wait_for(&lock, path, true)?;
        let dir = Self { path: path.into(), _lock: Some(lock) };
        make_dir(&dir.path.join(BLOBS)).map_err(of_dir)?;
        // What a killed save was about to put in its place.
        let tmp = dir.tmp();
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SavedCacheError::io("empty", &tmp, error)),
            _ => make_dir(&tmp).map_err(of_dir),
        }?;
        Ok(dir)
    }

    /// Opens a directory to read. Returns `None` if there is none. Waits until no process writes to it.
    ///
    /// # Errors
    /// Returns [`SavedCacheError::Foreign`] if it is something else.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, SavedCacheError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SavedCacheError::io("read", path, error)),
            Ok(metadata) if !metadata.is_dir() => {
                return Err(SavedCacheError::Foreign { path: path.into(), why: "it is not a directory".into() });
            }
            Ok(_) => {}
        }
        let lock = match open_plain(&path.join(LOCK)) {
            Ok(lock) => Some(lock),
            // A copy need not have it, and nothing writes to a directory without it.
            Err(Errno::NOENT) => None,
            Err(error) => return Err(SavedCacheError::io("open", path.join(LOCK), error)),
        };
        if let Some(lock) = &lock {
            wait_for(lock, path, false)?;
        }
        Ok(Some(Self { path: path.into(), _lock: lock }))
    }

    /// Returns the directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the list. A directory without one that has nothing else is an empty cache.
    ///
    /// # Errors
    /// Returns [`SavedCacheError::Foreign`] if the list is missing, damaged or of another version.
    pub(super) fn list(&self) -> Result<List, SavedCacheError> {
        let path = self.path.join(LIST);
        let foreign = |why: String| SavedCacheError::Foreign { path: self.path.clone(), why };
        let file = match open_plain(&path) {
            Ok(file) => file,
            Err(Errno::NOENT) if self.is_new()? => return Ok(List::default()),
            Err(Errno::NOENT) => return Err(foreign(format!("it has no {LIST}"))),
            Err(error) => return Err(SavedCacheError::io("read", path, error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_LIST_BYTES + 1).read_to_end(&mut bytes).doing("read", &path)?;
        if bytes.len() as u64 > MAX_LIST_BYTES {
            return Err(foreign(format!("{LIST} is too large")));
        }
        List::decode(&bytes).map_err(|why| foreign(format!("{LIST}: {why}")))
    }

    /// Returns whether nothing has been saved here yet.
    fn is_new(&self) -> Result<bool, SavedCacheError> {
        for entry in fs::read_dir(&self.path).doing("list", &self.path)? {
            if ![BLOBS, TMP, LOCK].iter().any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Replaces the list, after everything that it names is on the disk.
    pub(super) fn put_list(&self, list: &List) -> Result<(), SavedCacheError> {
        let path = self.path.join(LIST);
        let bytes = list.encode().map_err(io::Error::other).doing("write", &path)?;
        let mut file = self.new_file()?;
        file.write_all(&bytes).doing("write", &path)?;
        let dir = File::open(&self.path).doing("open", &self.path)?;
        rustix::fs::syncfs(&dir).doing("sync the filesystem of", &self.path)?;
        file.persist(&path).map_err(|error| error.error).doing("write", &path)?;
        Ok(())
    }

    /// Returns the directory for files that are not in their places yet.
    pub(super) fn tmp(&self) -> PathBuf {
        self.path.join(TMP)
    }

    fn new_file(&self) -> Result<NamedTempFile, SavedCacheError> {
        NamedTempFile::new_in(self.tmp()).doing("write to", &self.tmp())
    }

    fn blob(&self, digest: &ImageDigest) -> PathBuf {
        self.path.join(BLOBS).join(digest.hex())
    }

    /// Returns whether a blob is in its place, by its size.
    pub(super) fn has(&self, blob: &Blob) -> bool {
        let metadata = fs::symlink_metadata(self.blob(&blob.digest));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.bytes)
    }

    /// Puts bytes in their place. Returns their name, and whether they were new.
    pub(super) fn put_bytes(&self, bytes: &[u8]) -> Result<(Blob, bool), SavedCacheError> {
        let blob = Blob { digest: ImageDigest::of(bytes), bytes: bytes.len() as u64 };
        if self.has(&blob) {
            return Ok((blob, false));
        }
        let (mut file, place) = (self.new_file()?, self.blob(&blob.digest));
        file.write_all(bytes).doing("write", &place)?;
        file.persist(&place).map_err(|error| error.error).doing("write", &place)?;
        Ok((blob, true))
    }

    /// Puts what a reader has in its place. Returns its name, and whether it was new.
    pub(super) fn put_stream(&self, from: impl Read, source: &Path) -> Result<(Blob, bool), SavedCacheError> {
        let mut file = self.new_file()?;
        let blob = match copy(from, &mut file) {
            Ok(blob) => blob,
            Err(CopyError::Read(error)) => return Err(SavedCacheError::io("read", source, error)),
            Err(CopyError::Write(error)) => return Err(SavedCacheError::io("write", file.path(), error)),
        };
        if self.has(&blob) {
            return Ok((blob, false));
        }
        let place = self.blob(&blob.digest);
        file.persist(&place).map_err(|error| error.error).doing("write", &place)?;
        Ok((blob, true))
    }

    /// Puts a layer that was packed in [`tmp`](Self::tmp) in its place. Returns its name.
    pub(super) fn put_layer(&self, packed: PackedLayer) -> Result<Blob, SavedCacheError> {
        let blob = Blob { digest: packed.digest(), bytes: packed.size_bytes() };
        let place = self.blob(&blob.digest);
        packed.persist(&place).doing("write", &place)?;
        Ok(blob)
    }

    /// Opens a blob, and compares it with its name. Its bytes are read once.
    pub(super) fn open_blob(&self, blob: &Blob) -> Result<File, SavedCacheError> {
        let mut file = self.open_unread(blob)?;
        let found = copy(&mut file, &mut io::sink()).map_err(|error| self.failed(blob, error))?;
        self.compare(blob, &found)?;
        io::Seek::rewind(&mut file).doing("read", &self.blob(&blob.digest))?;
        Ok(file)
    }

    /// Copies a blob, and compares what was copied with its name.
    pub(super) fn copy_blob(&self, blob: &Blob, to: &mut impl Write) -> Result<(), SavedCacheError> {
        let file = self.open_unread(blob)?;
        // At most as many bytes as there were when the file was opened.
        let found = copy(file.take(blob.bytes), to).map_err(|error| self.failed(blob, error))?;
        self.compare(blob, &found)
    }

    fn open_unread(&self, blob: &Blob) -> Result<File, SavedCacheError> {
        let path = self.blob(&blob.digest);
        let file = match open_plain(&path) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(SavedCacheError::Damaged { path, why: "it is missing" }),
            Err(Errno::LOOP | Errno::NXIO) => {
                return Err(SavedCacheError::Damaged { path, why: "it is not a regular file" });
            }
            Err(error) => return Err(SavedCacheError::io("open", path, error)),
        };
        let metadata = file.metadata().doing("read", &path)?;
        match metadata.is_file() {
            false => Err(SavedCacheError::Damaged { path, why: "it is not a regular file" }),
            true if metadata.len() != blob.bytes => Err(SavedCacheError::Damaged { path, why: "its size differs" }),
            true => Ok(file),
        }
    }

    fn compare(&self, blob: &Blob, found: &Blob) -> Result<(), SavedCacheError> {
        if found == blob {
            return Ok(());
        }
        let path = self.blob(&blob.digest);
        // Without it, the next save knows what is missing. A read-only directory is left as it is.
        if found.digest != blob.digest
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(%error, "failed to remove a damaged blob");
        }
        Err(SavedCacheError::Damaged { path, why: "its content differs" })
    }

    fn failed(&self, blob: &Blob, error: CopyError) -> SavedCacheError {
        match error {
            CopyError::Read(error) => SavedCacheError::io("read", self.blob(&blob.digest), error),
            CopyError::Write(error) => SavedCacheError::io("copy", self.blob(&blob.digest), error),
        }
    }

    /// Removes every blob that the list does not name. Returns the sum of their sizes, and that of the
    /// others.
    pub(super) fn sweep(&self, list: &List) -> Result<(u64, u64), SavedCacheError> {
        let named: HashSet<ImageDigest> =
            list.results.iter().flat_map(|result| result.blobs().map(|blob| blob.digest)).collect();
        let (blobs, mut removed, mut kept) = (self.path.join(BLOBS), 0_u64, 0_u64);
        for entry in fs::read_dir(&blobs).doing("list", &blobs)? {
            let entry = entry.doing("list", &blobs)?;
            let name = entry.file_name();
            // Nothing that has another name is ours.
            let Some(digest) = name.to_str().and_then(from_hex).map(ImageDigest::from_bytes) else { continue };
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            if named.contains(&digest) {
                kept += bytes;
                continue;
            }
            fs::remove_file(entry.path()).doing("remove", &entry.path())?;
            removed += bytes;
        }
        Ok((removed, kept))
    }
}

/// Waits for the lock, alone or with others.
fn wait_for(lock: &File, dir: &Path, alone: bool) -> Result<(), SavedCacheError> {
    let (at_once, wait) = match alone {
        true => (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive),
        false => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
    };
    match rustix::fs::flock(lock, at_once) {
        Err(Errno::WOULDBLOCK) => {
            tracing::warn!("waiting for another process that uses {}", dir.display());
            rustix::io::retry_on_intr(|| rustix::fs::flock(lock, wait)).doing("lock", dir)
        }
        locked => locked.doing("lock", dir),
    }
}

/// Opens a file to read. Links are not followed, and pipes are not waited for.
fn open_plain(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Which side of a copy failed.
#[derive(Debug)]
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies everything. Returns the name of what was copied.
fn copy(mut from: impl Read, to: &mut impl Write) -> Result<Blob, CopyError> {
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 17]);
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(CopyError::Read)?,
        };
        if read == 0 {
            to.flush().map_err(CopyError::Write)?;
            return Ok(Blob { digest: ImageDigest::from_bytes(hash.finalize().into()), bytes });
        }
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read]).map_err(CopyError::Write)?;
        bytes += read as u64;
    }
}

/// Converts an error of the store's functions on a file that is not in the store.
fn of_dir(error: crate::store::StoreError) -> SavedCacheError {
    use crate::store::StoreError;
    match error {
        StoreError::Full { path, source } => SavedCacheError::Full { path, source },
        StoreError::Io { doing, path, source } => SavedCacheError::Io { doing, path, source },
        other => SavedCacheError::Store(other),
    }
}
