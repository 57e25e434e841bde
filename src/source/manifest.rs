//! Manifests: the contents of a frozen source, and the differences between two of them.
//!
//! A manifest is flat, both in memory and in the file, because a tree may have a hundred thousand entries:
//! one buffer contains all names, and one array contains the rest. Numbers in the file are little-endian:
//!
//! ```text
//! header     a line with the format's version
//! checksum   u32, CRC-32 of what follows
//! counts     u64 entries, u64 bytes of names
//! entries    u32 mode with the type, u32 length of the path, i64 + u32 time of modification,
//!            u64 size of the file or length of the link's target, [u8; 32] hash (of files alone)
//! names      each path, followed by the link's target
//! ```

use std::{cmp::Ordering, ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path};

use super::sealed::{UnsealedFile, i64_of, take, u32_of, u64_of, unseal};
use crate::store::{SourceId, StoreError, error::IoContext};

const HEADER: &[u8] = b"hm-exec manifest 2\n";

/// The prefix that is hashed into the ids of sources. Changing it gives every source another id.
const ID_DOMAIN: &[u8] = b"hm-exec source 1\n";

const TYPE_BITS: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Everything in a source tree, by path. A directory comes before its contents. The root has the empty path.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Manifest {
    names: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Record {
    /// The start of the path in the names.
    start: usize,
    path_bytes: u32,
    mode: u32,
    mtime: Time,
    kind: RecordKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RecordKind {
    Directory,
    File { size_bytes: u64, hash: [u8; 32] },
    Symlink { target_bytes: u32 },
}

/// Seconds and nanoseconds since 1970.
pub(crate) type Time = (i64, u32);

/// One file, directory or symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ManifestEntry<'a> {
    /// Relative to the root of the tree. A byte string, because names need not be UTF-8.
    pub(crate) path: &'a [u8],
    /// The permission bits.
    pub(crate) mode: u32,
    /// The time of the last modification.
    pub(crate) mtime: Time,
    pub(crate) kind: EntryKind<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind<'a> {
    Directory,
    File { size_bytes: u64, hash: &'a [u8; 32] },
    Symlink { target: &'a [u8] },
}

/// The difference between an entry of a newer manifest and an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ManifestChange<'a> {
    /// Present only in the older one.
    Removed(ManifestEntry<'a>),
    /// Present only in the newer one, or of another kind there.
    Added(ManifestEntry<'a>),
    /// Present in both, with the newer one's attributes.
    Changed(ManifestEntry<'a>),
}

/// Which modification times count as differences. Those of directories change whenever an ignored file is
/// created or removed, and those of files change with each checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    Count,
    OfFiles,
    PassOver,
}

impl<'a> ManifestEntry<'a> {
    pub(super) fn is_dir(&self) -> bool {
        self.kind == EntryKind::Directory
    }

    pub(super) fn as_path(&self) -> &'a Path {
        Path::new(OsStr::from_bytes(self.path))
    }

    /// Returns whether two entries are the same for a step.
    pub(super) fn is_same(&self, other: &Self, times: Times) -> bool {
        let time_counts = match times {
            Times::Count => true,
            Times::OfFiles => !self.is_dir(),
            Times::PassOver => false,
        };
        (self.path, self.mode, &self.kind) == (other.path, other.mode, &other.kind)
            && (!time_counts || self.mtime == other.mtime)
    }
}

impl Manifest {
    /// Adds an entry, which must come after all previous ones.
    pub(super) fn push(&mut self, entry: ManifestEntry<'_>) {
        let start = self.names.len();
        self.names.extend_from_slice(entry.path);
        let kind = match entry.kind {
            EntryKind::Directory => RecordKind::Directory,
            EntryKind::File { size_bytes, hash } => RecordKind::File { size_bytes, hash: *hash },
            EntryKind::Symlink { target } => {
                self.names.extend_from_slice(target);
                RecordKind::Symlink { target_bytes: length(target) }
            }
        };
        self.records.push(Record { start, path_bytes: length(entry.path), mode: entry.mode, mtime: entry.mtime, kind });
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<ManifestEntry<'_>> {
        self.records.get(index).map(|record| self.entry(record))
    }

    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = ManifestEntry<'_>> {
        self.records.iter().map(|record| self.entry(record))
    }

    /// Returns the entry at a path.
    pub(super) fn find(&self, path: &[u8]) -> Option<ManifestEntry<'_>> {
        self.get(self.position(path)?)
    }

    /// Returns the index of the entry at a path.
    pub(super) fn position(&self, path: &[u8]) -> Option<usize> {
        self.records.binary_search_by(|record| order(self.path(record), path)).ok()
    }

    /// Returns the index of the first entry after the contents of the directory at `index`.
    pub(super) fn end_of(&self, index: usize) -> usize {
        let (Some(dir), next) = (self.get(index), index + 1) else { return index };
        let is_below = |record: &Record| {
            let rest = self.path(record).strip_prefix(dir.path);
            rest.is_some_and(|rest| dir.path.is_empty() || rest.starts_with(b"/"))
        };
        next + self.records[next..].partition_point(is_below)
    }

    fn path(&self, record: &Record) -> &[u8] {
        &self.names[record.start..record.start + record.path_bytes as usize]
    }

    fn entry<'a>(&'a self, record: &'a Record) -> ManifestEntry<'a> {
        let end = record.start + record.path_bytes as usize;
        let kind = match &record.kind {
            RecordKind::Directory => EntryKind::Directory,
            RecordKind::File { size_bytes, hash } => EntryKind::File { size_bytes: *size_bytes, hash },
            RecordKind::Symlink { target_bytes } => {
                EntryKind::Symlink { target: &self.names[end..end + *target_bytes as usize] }
            }
        };
        ManifestEntry { path: self.path(record), mode: record.mode, mtime: record.mtime, kind }
    }

    /// Returns the name of the tree, derived from everything that makes a difference to a step.
    pub(super) fn id(&self) -> SourceId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(ID_DOMAIN);
        let mut bytes = Vec::with_capacity(1 << 17);
        for entry in self.entries() {
            if bytes.len() >= 1 << 16 {
                hasher.update(&bytes);
                bytes.clear();
            }
            bytes.extend(length(entry.path).to_le_bytes());
            bytes.extend_from_slice(entry.path);
            bytes.extend((entry.mode | type_bits(&entry.kind)).to_le_bytes());
            match entry.kind {
                EntryKind::Directory => continue,
                EntryKind::File { size_bytes, hash } => {
                    bytes.extend(size_bytes.to_le_bytes());
                    bytes.extend(hash);
                }
                EntryKind::Symlink { target } => {
                    bytes.extend(length(target).to_le_bytes());
                    bytes.extend_from_slice(target);
                }
            }
            bytes.extend(entry.mtime.0.to_le_bytes());
            bytes.extend(entry.mtime.1.to_le_bytes());
        }
        hasher.update(&bytes);
        SourceId::of(hasher.finalize())
    }

    /// Returns whether the paths are those that a walk finds: below the root, each once, in order.
    pub(super) fn is_well_formed(&self) -> bool {
        let is_plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        let plain = |(at, entry): (usize, ManifestEntry<'_>)| match entry.path {
            b"" => at == 0 && entry.is_dir(),
            path => path.split(|byte| *byte == b'/').all(is_plain),
        };
        self.entries().enumerate().all(plain)
            && self.entries().zip(self.entries().skip(1)).all(|(a, b)| order(a.path, b.path) == Ordering::Less)
    }

    /// Encodes the whole file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut file = UnsealedFile::new(HEADER);
        self.encode_body(&mut file.bytes);
        file.seal()
    }

    pub(super) fn encode_body(&self, to: &mut Vec<u8>) {
        to.reserve(16 + self.records.len() * 60 + self.names.len());
        to.extend((self.records.len() as u64).to_le_bytes());
        to.extend((self.names.len() as u64).to_le_bytes());
        for entry in self.entries() {
            let extent = match entry.kind {
                EntryKind::Directory => 0,
                EntryKind::File { size_bytes, .. } => size_bytes,
                EntryKind::Symlink { target } => target.len() as u64,
            };
            to.extend_from_slice(&(entry.mode | type_bits(&entry.kind)).to_le_bytes());
            to.extend_from_slice(&length(entry.path).to_le_bytes());
            to.extend_from_slice(&entry.mtime.0.to_le_bytes());
            to.extend_from_slice(&entry.mtime.1.to_le_bytes());
            to.extend_from_slice(&extent.to_le_bytes());
            if let EntryKind::File { hash, .. } = entry.kind {
                to.extend_from_slice(hash);
            }
        }
        to.extend_from_slice(&self.names);
    }

    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        Self::decode(&fs::read(path).doing("read", path)?, path)
    }

    /// Decodes the output of [`Manifest::encode`]. `path` is the path of the file, for errors.
    pub(super) fn decode(bytes: &[u8], path: &Path) -> Result<Self, StoreError> {
        let corrupt = |reason: &str| StoreError::Corrupt { path: path.into(), reason: reason.into() };
        let mut body = unseal(HEADER, bytes).ok_or_else(|| corrupt("it is damaged, or has another version"))?;
        Self::decode_body(&mut body).ok_or_else(|| corrupt("it is truncated"))
    }

    /// Decodes the output of [`Manifest::encode_body`], and advances `bytes` past it.
    pub(super) fn decode_body(bytes: &mut &[u8]) -> Option<Self> {
        let (count, names_bytes) = (usize::try_from(u64_of(bytes)?).ok()?, usize::try_from(u64_of(bytes)?).ok()?);
        // Limited by the number of bytes, because the count may be wrong.
        let mut records = Vec::with_capacity(count.min(bytes.len() / 28));
        let mut start = 0_usize;
        for _ in 0..count {
            let (mode, path_bytes) = (u32_of(bytes)?, u32_of(bytes)?);
            let mtime = (i64_of(bytes)?, u32_of(bytes)?);
            let extent = u64_of(bytes)?;
            let mut end = start.checked_add(path_bytes as usize)?;
            let kind = match mode & TYPE_BITS {
                DIRECTORY => RecordKind::Directory,
                FILE => RecordKind::File { size_bytes: extent, hash: take(bytes)? },
                SYMLINK => {
                    let target_bytes = u32::try_from(extent).ok()?;
                    end = end.checked_add(target_bytes as usize)?;
                    RecordKind::Symlink { target_bytes }
                }
                _ => return None,
            };
            records.push(Record { start, path_bytes, mode: mode & !TYPE_BITS, mtime, kind });
            start = end;
        }
        let (names, rest) = bytes.split_at_checked(names_bytes)?;
        *bytes = rest;
        (start == names.len()).then(|| Self { names: names.to_vec(), records })
    }

    /// Returns the changes that turn `self` into `newer`, by path.
    pub(super) fn changes<'a>(&'a self, newer: &'a Self, times: Times) -> Vec<ManifestChange<'a>> {
        let (mut old, mut new) = (self.entries().peekable(), newer.entries().peekable());
        let mut changes = Vec::new();
        loop {
            let side = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => order(old.path, new.path),
            };
            match side {
                Ordering::Less => changes.extend(old.next().map(ManifestChange::Removed)),
                Ordering::Greater => changes.extend(new.next().map(ManifestChange::Added)),
                Ordering::Equal => {
                    if let (Some(old), Some(new)) = (old.next(), new.next()) {
                        if old.is_dir() != new.is_dir() {
                            changes.push(ManifestChange::Added(new));
                        } else if !old.is_same(&new, times) {
                            changes.push(ManifestChange::Changed(new));
                        }
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

/// Orders paths name by name, so that a directory's contents follow it directly.
pub(super) fn order(a: &[u8], b: &[u8]) -> Ordering {
    // Two trees have most paths in common, and this compares many bytes at once.
    if a == b {
        return Ordering::Equal;
    }
    match a.iter().zip(b).find(|(a, b)| a != b) {
        None => a.len().cmp(&b.len()),
        Some((b'/', _)) => Ordering::Less,
        Some((_, b'/')) => Ordering::Greater,
        Some((a, b)) => a.cmp(b),
    }
}

fn type_bits(kind: &EntryKind<'_>) -> u32 {
    match kind {
        EntryKind::Directory => DIRECTORY,
        EntryKind::File { .. } => FILE,
        EntryKind::Symlink { .. } => SYMLINK,
    }
}

/// Returns the length of a path. The kernel accepts at most 4096 bytes.
fn length(path: &[u8]) -> u32 {
    u32::try_from(path.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::source) fn file(path: &str, content: u8) -> ManifestEntry<'_> {
        const HASHES: [[u8; 32]; 8] = [[0; 32], [1; 32], [2; 32], [3; 32], [4; 32], [5; 32], [6; 32], [7; 32]];
        let kind = EntryKind::File { size_bytes: 1, hash: &HASHES[usize::from(content)] };
        ManifestEntry { path: path.as_bytes(), mode: 0o644, mtime: (1, 2), kind }
    }

    pub(in crate::source) fn dir(path: &str) -> ManifestEntry<'_> {
        ManifestEntry { path: path.as_bytes(), mode: 0o755, mtime: (1, 2), kind: EntryKind::Directory }
    }

    pub(in crate::source) fn link<'a>(path: &'a str, target: &'a str) -> ManifestEntry<'a> {
        ManifestEntry {
            path: path.as_bytes(),
            mode: 0o777,
            mtime: (-1, 2),
            kind: EntryKind::Symlink { target: target.as_bytes() },
        }
    }

    pub(in crate::source) fn manifest(mut entries: Vec<ManifestEntry<'_>>) -> Manifest {
        entries.sort_by(|a, b| order(a.path, b.path));
        let mut manifest = Manifest::default();
        entries.into_iter().for_each(|entry| manifest.push(entry));
        manifest
    }

    #[test]
    fn a_directory_comes_directly_before_its_content() {
        let manifest = manifest(vec![file("a/b", 1), file("a-b", 1), file("a.b", 1), dir("a"), dir(""), file("a/", 1)]);
        let paths: Vec<_> = manifest.entries().map(|entry| String::from_utf8_lossy(entry.path)).collect();
        assert_eq!(paths, ["", "a", "a/", "a/b", "a-b", "a.b"]);
    }

    #[test]
    fn changes_tell_kinds_apart_and_pass_over_the_times_of_directories() {
        let old = manifest(vec![
            dir(""),
            dir("same"),
            file("same/f", 1),
            file("edited", 1),
            file("gone", 1),
            dir("d"),
            link("l", "a"),
        ]);
        let mut touched = dir("same");
        touched.mtime = (9, 9);
        let new = manifest(vec![
            dir(""),
            touched,
            file("same/f", 1),
            file("edited", 2),
            file("new", 1),
            file("d", 1),
            link("l", "b"),
        ]);
        let mut expected = vec![
            ManifestChange::Added(file("d", 1)),
            ManifestChange::Changed(file("edited", 2)),
            ManifestChange::Removed(file("gone", 1)),
            ManifestChange::Changed(link("l", "b")),
            ManifestChange::Added(file("new", 1)),
        ];
        assert_eq!(old.changes(&new, Times::OfFiles), expected);
        expected.push(ManifestChange::Changed(touched));
        assert_eq!(old.changes(&new, Times::Count), expected);
        assert_ne!(old.id(), new.id());
        assert_eq!(manifest(vec![dir("same")]).id(), manifest(vec![touched]).id());
    }

    #[test]
    fn what_is_pushed_is_found_by_its_path() {
        let manifest = manifest(vec![dir(""), dir("a"), link("a/l", "to"), file("a-b", 3)]);
        assert_eq!(manifest.find(b"a/l"), Some(link("a/l", "to")));
        assert_eq!(manifest.find(b""), Some(dir("")));
        assert_eq!((manifest.find(b"a/"), manifest.len()), (None, 4));
    }

    #[test]
    fn a_manifest_is_read_back_as_it_was_written_and_damage_is_told() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("manifest");
        let manifest = manifest(vec![dir(""), file("f", 3), link("l", "somewhere")]);
        let bytes = manifest.encode();
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, &damaged).unwrap();
            assert!(matches!(Manifest::read(&path), Err(StoreError::Corrupt { .. })), "a flipped bit at {at}");
            fs::write(&path, &bytes[..at]).unwrap();
            assert!(matches!(Manifest::read(&path), Err(StoreError::Corrupt { .. })), "cut at {at}");
        }
        let mut file = UnsealedFile::new(HEADER);
        file.bytes.extend([0xff; 40]);
        fs::write(&path, file.seal()).unwrap();
        assert!(matches!(Manifest::read(&path), Err(StoreError::Corrupt { .. })), "counts beyond everything");
    }

    #[test]
    fn the_id_of_a_known_tree_never_changes() {
        let manifest = manifest(vec![dir(""), dir("d"), file("d/f", 7), link("l", "d/f")]);
        assert_eq!(manifest.id().as_str(), "3628658698cfac80e60b28fb87dac1dc2058280c9f763b321a335e8e4badd2a8");
    }
}
