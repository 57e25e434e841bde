//! The stat cache of a source directory: the status and hash of each file, so that unchanged files need not
//! be read again.
//!
//! There is one file per directory, in the store, named after the directory's path. It is only an
//! optimization: a damaged or doubtful cache is ignored, which only costs time. Git's rule applies: a file
//! that was modified at about the time when it was examined may have been modified again without a change of
//! its times, and so it is not trusted. Nothing is trusted if the clock went backwards.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    manifest::{EntryKind, Manifest, ManifestEntry, Time},
    sealed::{UnsealedFile, i64_of, u32_of, u64_of, unseal},
    times::SourceTimes,
    walk::{FileKind, FileStatus},
    weight::Weight,
};
use crate::store::{Paths, SourceId, Store, StoreError, error::IoContext, files::make_dir};

const HEADER: &[u8] = b"hm-exec stat cache 3\n";

/// File times come from a clock that the kernel advances in steps of up to 10 ms.
const CLOCK_STEP_NANOSECONDS: u32 = 50_000_000;

/// File systems without fractions of seconds advance in steps of up to two seconds.
const COARSE_STEP_SECONDS: i64 = 2;

/// The number of directories that are remembered.
const MAX_CACHES: usize = 64;

/// The last known state of one directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StatCache {
    /// The source that it was frozen as.
    pub(super) last: SourceId,
    /// The time when the walk began.
    pub(super) started: Time,
    /// The times in the manifest.
    pub(super) times: SourceTimes,
    pub(super) manifest: Arc<Manifest>,
    /// The stamp of each entry of the manifest.
    pub(super) stamps: Vec<Stamp>,
    /// The weight of the deltas in that source's stack. It comes last because it is known last.
    pub(super) weight: Weight,
}

/// The file of a cache up to the weight.
pub(super) struct EncodedCache(UnsealedFile);

/// The parts of a file's status that are not in the manifest, and that change when the file is written to or
/// replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    /// The file's own time, which need not be the one in the manifest.
    mtime: Time,
    ctime: Time,
}

impl Stamp {
    pub(super) fn of(status: &FileStatus) -> Self {
        Self { device: status.device, inode: status.inode, mtime: status.mtime, ctime: status.ctime }
    }
}

impl StatCache {
    /// Returns the path of a source directory's stat cache in the store at `store`.
    pub(super) fn path(store: &Path, source: &Path) -> PathBuf {
        let name = blake3::hash(source.as_os_str().as_encoded_bytes()).to_hex();
        Paths::new(store.into()).stat_caches().join(name.as_str())
    }

    /// Reads a cache. Returns `None` if there is none that can be trusted.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "failed to read a stat cache; reading all files");
                return None;
            }
        };
        let cache = unseal(HEADER, &bytes).and_then(Self::decode);
        if cache.is_none() {
            tracing::debug!(path = %path.display(), "a stat cache is damaged, or has another version");
        }
        cache
    }

    /// Encodes everything except the weight.
    pub(super) fn encode(&self) -> EncodedCache {
        let mut file = UnsealedFile::new(HEADER);
        let body = &mut file.bytes;
        body.reserve(256 + self.stamps.len() * 128);
        body.extend((self.last.as_str().len() as u64).to_le_bytes());
        body.extend_from_slice(self.last.as_str().as_bytes());
        body.extend(self.started.0.to_le_bytes());
        body.extend(self.started.1.to_le_bytes());
        body.push(u8::from(self.times == SourceTimes::Real));
        self.manifest.encode_body(body);
        for stamp in &self.stamps {
            body.extend_from_slice(&stamp.device.to_le_bytes());
            body.extend_from_slice(&stamp.inode.to_le_bytes());
            for (seconds, nanoseconds) in [stamp.mtime, stamp.ctime] {
                body.extend_from_slice(&seconds.to_le_bytes());
                body.extend_from_slice(&nanoseconds.to_le_bytes());
            }
        }
        EncodedCache(file)
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let last_bytes = usize::try_from(u64_of(bytes)?).ok()?;
        let (last, rest) = bytes.split_at_checked(last_bytes)?;
        let last = SourceId::parse(std::str::from_utf8(last).ok()?)?;
        *bytes = rest;
        let started = (i64_of(bytes)?, u32_of(bytes)?);
        let (times, rest) = bytes.split_first()?;
        let times = if *times == 0 { SourceTimes::Normal } else { SourceTimes::Real };
        *bytes = rest;
        let manifest = Manifest::decode_body(bytes)?;
        let mut stamps = Vec::with_capacity(manifest.len());
        for _ in 0..manifest.len() {
            stamps.push(Stamp {
                device: u64_of(bytes)?,
                inode: u64_of(bytes)?,
                mtime: (i64_of(bytes)?, u32_of(bytes)?),
                ctime: (i64_of(bytes)?, u32_of(bytes)?),
            });
        }
        let weight = Weight { entries: u64_of(bytes)?, bytes: u64_of(bytes)? };
        let manifest = Arc::new(manifest);
        bytes.is_empty().then_some(Self { last, started, times, manifest, stamps, weight })
    }

    /// Returns the entry at `index` if a file with this status must still have the hashed content.
    pub(super) fn trusted(&self, index: usize, status: &FileStatus) -> Option<ManifestEntry<'_>> {
        let entry = self.manifest.get(index)?;
        let same = match entry.kind {
            // The contents of a directory are separate entries.
            EntryKind::Directory => return (status.kind == FileKind::Directory).then_some(entry),
            EntryKind::File { size_bytes, .. } => status.kind == FileKind::File && status.size_bytes == size_bytes,
            EntryKind::Symlink { .. } => status.kind == FileKind::Symlink,
        };
        let same = same && entry.mode == status.mode;
        (same && self.stamps.get(index) == Some(&Stamp::of(status)) && self.is_settled(status)).then_some(entry)
    }

    /// Returns whether a change after this cache was recorded would have changed the status.
    fn is_settled(&self, status: &FileStatus) -> bool {
        let latest = status.mtime.max(status.ctime);
        let settled = if (status.mtime.1, status.ctime.1) == (0, 0) {
            (latest.0 + COARSE_STEP_SECONDS, 0)
        } else {
            let nanoseconds = latest.1 + CLOCK_STEP_NANOSECONDS;
            (latest.0 + i64::from(nanoseconds / 1_000_000_000), nanoseconds % 1_000_000_000)
        };
        settled < self.started
    }
}

impl EncodedCache {
    /// Writes the cache, and removes those of the directories that were frozen longest ago.
    pub(super) fn save(self, weight: Weight, store: &Store, path: &Path) -> Result<(), StoreError> {
        let dir = store.paths().stat_caches();
        make_dir(&dir)?;
        store.instance().replace_file(path, &self.finish(weight))?;
        let mut known = Vec::new();
        for entry in fs::read_dir(&dir).doing("list", &dir)? {
            let entry = entry.doing("list", &dir)?;
            // Another process may have removed the file.
            known.extend(entry.metadata().and_then(|it| it.modified()).map(|time| (time, entry.path())));
        }
        known.sort_unstable();
        let excess = known.len().saturating_sub(MAX_CACHES);
        for (_, path) in &known[..excess] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish(mut self, weight: Weight) -> Vec<u8> {
        self.0.bytes.extend(weight.entries.to_le_bytes());
        self.0.bytes.extend(weight.bytes.to_le_bytes());
        self.0.seal()
    }
}

/// Returns the current time in the format of file times.
pub(super) fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()),
        // Before all files, so nothing is trusted.
        Err(_) => (i64::MIN, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ctime: Time) -> FileStatus {
        let kind = FileKind::File;
        FileStatus { kind, mode: 0o644, size_bytes: 3, mtime: (100, 5), ctime, device: 1, inode: 2 }
    }

    fn cache(started: Time, seen: &FileStatus) -> StatCache {
        let mut manifest = Manifest::default();
        let kind = EntryKind::File { size_bytes: seen.size_bytes, hash: &[7; 32] };
        manifest.push(ManifestEntry { path: b"f", mode: seen.mode, mtime: seen.mtime, kind });
        let (last, stamps) = (SourceId::parse(&"0".repeat(64)).unwrap(), vec![Stamp::of(seen)]);
        let (times, manifest) = (SourceTimes::Normal, Arc::new(manifest));
        StatCache { last, started, times, manifest, stamps, weight: Weight { entries: 1, bytes: 2 } }
    }

    #[test]
    fn a_file_is_trusted_only_if_a_later_write_would_show() {
        let seen = status((200, 0));
        let trusted = |started| cache(started, &seen).trusted(0, &seen).is_some();
        assert!(trusted((201, 0)));
        assert!(!trusted((200, 0)) && !trusted((200, 20_000_000)) && !trusted((150, 0)));
        let almost = status((200, 999_999_999));
        assert!(cache((201, 1_000_000), &almost).trusted(0, &almost).is_none());
        // The times have no fractions of seconds: perhaps the filesystem does not store them.
        let whole = FileStatus { mtime: (100, 0), ..status((200, 0)) };
        assert!(cache((202, 0), &whole).trusted(0, &whole).is_none());
        assert!(cache((202, 1), &whole).trusted(0, &whole).is_some());
        // A time in the future is meaningless.
        let future = FileStatus { mtime: (900, 5), ..seen };
        assert!(cache((500, 0), &future).trusted(0, &future).is_none());
    }

    #[test]
    fn whatever_differs_is_not_trusted() {
        let seen = status((200, 1));
        let cache = cache((300, 0), &seen);
        assert!(cache.trusted(0, &seen).is_some());
        for other in [
            FileStatus { kind: FileKind::Symlink, ..seen },
            FileStatus { kind: FileKind::Directory, ..seen },
            FileStatus { mode: 0o600, ..seen },
            FileStatus { size_bytes: 4, ..seen },
            FileStatus { mtime: (100, 6), ..seen },
            FileStatus { ctime: (200, 2), ..seen },
            FileStatus { device: 9, ..seen },
            FileStatus { inode: 9, ..seen },
        ] {
            assert!(cache.trusted(0, &other).is_none(), "{other:?}");
        }
        assert!(cache.trusted(1, &seen).is_none());
    }

    #[test]
    fn a_damaged_cache_is_none() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("cache");
        assert_eq!(StatCache::load(&path), None);
        let cache = cache((300, 0), &status((200, 1)));
        let bytes = cache.encode().finish(cache.weight);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(StatCache::load(&path), Some(cache));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(StatCache::load(&path), None, "a flipped bit at {at}");
            fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(StatCache::load(&path), None, "cut at {at}");
        }
    }
}
