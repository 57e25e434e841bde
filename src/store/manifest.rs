//! Manifests: what a frozen source consists of, and how two of them differ.
//!
//! The file is a line with the format's version, then the entries in [postcard](https://postcard.jamesmunns.com).

use std::{cmp::Ordering, fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{SourceId, StoreError, error::Doing};

const HEADER: &[u8] = b"hm-exec manifest 1\n";

/// Everything in a source tree, by path; a directory comes before what is in it. The root has the empty path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) entries: Vec<Entry>,
}

/// One file, directory or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Relative to the root of the tree; bytes, because names need not be UTF-8.
    pub(super) path: Vec<u8>,
    /// The permission bits.
    pub(super) mode: u32,
    /// When it was modified last: seconds and nanoseconds since 1970.
    pub(super) mtime: (i64, u32),
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Directory,
    File { size_bytes: u64, hash: [u8; 32] },
    Symlink { target: Vec<u8> },
}

/// How an entry of a newer manifest differs from an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// In the older one alone.
    Removed(&'a Entry),
    /// In the newer one alone, or of another kind there.
    Added(&'a Entry),
    /// In both, as the newer one has it.
    Changed(&'a Entry),
}

impl Entry {
    pub(super) fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// What decides whether two entries are the same. Directories change their time whenever something that is ignored
    /// comes or goes in them, so that does not count.
    fn identity(&self) -> (&[u8], u32, Option<(i64, u32)>, &Kind) {
        (&self.path, self.mode, (!self.is_dir()).then_some(self.mtime), &self.kind)
    }
}

impl Manifest {
    /// Puts entries in order.
    pub(super) fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable_by(|a, b| order(&a.path, &b.path));
        Self { entries }
    }

    /// Names the tree by everything that makes a difference to a step.
    pub(super) fn id(&self) -> Result<SourceId, postcard::Error> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(HEADER);
        let mut bytes = Vec::new();
        for entry in &self.entries {
            bytes.clear();
            bytes = postcard::to_extend(&entry.identity(), bytes)?;
            hasher.update(&bytes);
        }
        Ok(SourceId::of(hasher.finalize()))
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(self, HEADER.to_vec())
    }

    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        let bytes = fs::read(path).doing("read", path)?;
        let corrupt = |reason: String| StoreError::Corrupt { path: path.into(), reason };
        let body = bytes.strip_prefix(HEADER).ok_or_else(|| corrupt("it is of another version".into()))?;
        postcard::from_bytes(body).map_err(|error| corrupt(error.to_string()))
    }

    /// What to do to `self` to get `newer`, by path.
    pub(super) fn changes<'a>(&'a self, newer: &'a Self) -> Vec<Change<'a>> {
        let (mut old, mut new) = (self.entries.iter().peekable(), newer.entries.iter().peekable());
        let mut changes = Vec::new();
        loop {
            let side = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => order(&old.path, &new.path),
            };
            match side {
                Ordering::Less => changes.extend(old.next().map(Change::Removed)),
                Ordering::Greater => changes.extend(new.next().map(Change::Added)),
                Ordering::Equal => {
                    if let (Some(old), Some(new)) = (old.next(), new.next()) {
                        if old.is_dir() != new.is_dir() {
                            changes.push(Change::Added(new));
                        } else if old.identity() != new.identity() {
                            changes.push(Change::Changed(new));
                        }
                    }
                }
            }
        }
    }
}

/// Orders paths name by name, so that a directory's content follows it directly.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    let names = |path: &[u8]| !path.is_empty();
    match (names(a), names(b)) {
        (true, true) => a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/')),
        (a, b) => a.cmp(&b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: u8) -> Entry {
        let kind = Kind::File { size_bytes: 1, hash: [content; 32] };
        Entry { path: path.into(), mode: 0o644, mtime: (1, 2), kind }
    }

    fn dir(path: &str) -> Entry {
        Entry { path: path.into(), mode: 0o755, mtime: (1, 2), kind: Kind::Directory }
    }

    #[test]
    fn a_directory_comes_directly_before_its_content() {
        let manifest = Manifest::new(vec![file("a/b", 1), file("a-b", 1), dir("a"), dir("")]);
        let paths: Vec<_> = manifest.entries.iter().map(|entry| String::from_utf8_lossy(&entry.path)).collect();
        assert_eq!(paths, ["", "a", "a/b", "a-b"]);
    }

    #[test]
    fn changes_tell_kinds_apart_and_pass_over_the_times_of_directories() {
        let old =
            Manifest::new(vec![dir(""), dir("same"), file("same/f", 1), file("edited", 1), file("gone", 1), dir("d")]);
        let mut touched = dir("same");
        touched.mtime = (9, 9);
        let new =
            Manifest::new(vec![dir(""), touched, file("same/f", 1), file("edited", 2), file("new", 1), file("d", 1)]);
        assert_eq!(
            old.changes(&new),
            [
                Change::Added(&file("d", 1)),
                Change::Changed(&file("edited", 2)),
                Change::Removed(&file("gone", 1)),
                Change::Added(&file("new", 1)),
            ]
        );
        assert_ne!(old.id(), new.id());
    }

    #[test]
    fn a_manifest_is_read_back_as_it_was_written() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("manifest");
        let manifest = Manifest::new(vec![dir(""), file("f", 3)]);
        fs::write(&path, manifest.encode().unwrap()).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        fs::write(&path, "something else").unwrap();
        assert!(matches!(Manifest::read(&path), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn the_id_of_a_known_tree_never_changes() {
        let manifest = Manifest::new(vec![dir(""), dir("d"), file("d/f", 7)]);
        assert_eq!(manifest.id().unwrap().as_str(), "02bb3903b88dbaff72a7cbc3f10d48ff03476a955f92cdb53c8e886c7f8ec5c4");
    }
}
