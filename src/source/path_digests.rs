//! Computes a digest of what a path of a cache policy matches in a frozen source: names, types, modes,
//! targets of symbolic links, contents.
//!
//! Paths are globs with harmont's syntax, which is that of Python's `pathlib`: `*`, `?` and `[..]` within a
//! name, `**` for any directories, including hidden names. A directory counts with everything in it. A
//! symbolic link counts with its target text and with the file that it leads to in the source. Everything is
//! looked up in a manifest, so a pipe or a device is never opened. `.hm/` is not part of sources: paths that
//! begin with it refer to the checkout.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    fnmatch::{has_magic, matches},
    freeze_progress::FreezeProgress,
    manifest::{EntryKind, Manifest, ManifestChange, ManifestEntry, Times},
    read::{Known, SourceReader},
    times::SourceTimes,
    walk::SourceWalk,
};
use crate::{
    store::{SourceId, Store, StoreError},
    tree::join,
};

/// The directory of pipelines, which is not part of sources.
pub(super) const PIPELINES: &str = ".hm";

/// The number of symbolic links that are followed on the way to one file. The kernel has the same limit.
const MAX_LINKS: usize = 40;

/// Returns the digest of what each of `patterns` matches in a frozen source of the directory `checkout`,
/// or `None` for a pattern that matches nothing. The manifest is read unless it is `frozen`. Blocks.
///
/// # Errors
/// Returns an error if the source's manifest, or the checkout's `.hm/`, cannot be read.
pub(crate) fn path_digests(
    store: &Store,
    source: &SourceId,
    mut frozen: Option<Arc<Manifest>>,
    checkout: &Path,
    patterns: BTreeSet<String>,
) -> Result<BTreeMap<String, Option<[u8; 32]>>, StoreError> {
    let mut pipelines = None;
    let mut digests = BTreeMap::new();
    for pattern in patterns {
        let names = names_of(&pattern);
        let digest = match names.split_first() {
            Some((&PIPELINES, below)) => {
                if pipelines.is_none() {
                    pipelines = Some(pipelines_manifest(store, checkout)?);
                }
                pipelines.as_ref().and_then(|manifest| digest(manifest, below))
            }
            _ => {
                if frozen.is_none() {
                    frozen = Some(Arc::new(Manifest::of(store, source)?));
                }
                frozen.as_ref().and_then(|manifest| digest(manifest, &names))
            }
        };
        digests.insert(pattern, digest);
    }
    Ok(digests)
}

/// Returns the current contents of a checkout's `.hm/`, or nothing if it is not a directory.
fn pipelines_manifest(store: &Store, checkout: &Path) -> Result<Manifest, StoreError> {
    let dir = checkout.join(PIPELINES);
    if !dir.symlink_metadata().is_ok_and(|dir| dir.is_dir()) {
        return Ok(Manifest::default());
    }
    let abandoned = AtomicBool::new(false);
    let dir = dir.canonicalize().map_err(|source| StoreError::Unreadable { path: dir.clone(), source })?;
    let tree = SourceWalk { source: &dir, store: store.dir(), hidden: None, abandoned: &abandoned }.run()?;
    let progress = FreezeProgress::default();
    let reader = SourceReader { source: &dir, times: SourceTimes::Normal, abandoned: &abandoned, progress: &progress };
    let (manifest, _) = reader.read_unknown(&Known::of(&tree, None))?;
    Ok(manifest)
}

/// Returns the paths of the files that differ between two sources. Blocks.
///
/// # Errors
/// Returns an error if a manifest is gone or cannot be read.
pub(crate) fn changed_files(store: &Store, (old, new): (&SourceId, &SourceId)) -> Result<Vec<Vec<u8>>, StoreError> {
    let (old, new) = (Manifest::of(store, old)?, Manifest::of(store, new)?);
    let mut files = Vec::new();
    for change in old.changes(&new, Times::PassOver) {
        let entry = match change {
            ManifestChange::Removed(entry) | ManifestChange::Added(entry) | ManifestChange::Changed(entry) => entry,
        };
        if !entry.is_dir() {
            files.push(entry.path.to_vec());
        }
    }
    Ok(files)
}

/// Returns whether a path of a source is among those that a pattern of `on_change` matches: by its own name,
/// or because it lies in a directory that the pattern matches.
pub(crate) fn path_matches(pattern: &str, path: &[u8]) -> bool {
    fn below(names: &[&str], path: &[&[u8]]) -> bool {
        match names.split_first() {
            // A directory counts with its contents.
            None => true,
            Some((&"**", names)) => (0..=path.len()).any(|skipped| below(names, &path[skipped..])),
            Some((name, names)) => path.split_first().is_some_and(|(first, path)| {
                let pattern: Vec<char> = name.chars().collect();
                let fits = if has_magic(name) { matches(&pattern, first) } else { name.as_bytes() == *first };
                fits && below(names, path)
            }),
        }
    }
    let path: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    below(&names_of(pattern), &path)
}

/// Returns the names of a pattern, without those that have no effect.
fn names_of(pattern: &str) -> Vec<&str> {
    let mut names: Vec<&str> = pattern.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    names.dedup_by(|a, b| a == b && *a == "**");
    names
}

/// Returns the digest of what a pattern's names match, or `None` if they match nothing.
fn digest(manifest: &Manifest, names: &[&str]) -> Option<[u8; 32]> {
    let (seen, followed, records) = (HashSet::new(), HashSet::new(), BTreeMap::new());
    let mut search = PathSearch { manifest, names, seen, followed, matched: false, records };
    // Without a root the directory does not exist, and there is nothing to match.
    manifest.find(b"")?;
    search.run();
    search.matched.then(|| search.digest())
}

/// Returns everything that some symbolic links lead to within a source, with the links on the way, and with
/// what is in directories.
pub(super) fn behind_links<'a>(manifest: &'a Manifest, links: &[&[u8]]) -> Vec<ManifestEntry<'a>> {
    let (seen, followed, records) = (HashSet::new(), HashSet::new(), BTreeMap::new());
    let mut search = PathSearch { manifest, names: &[], seen, followed, matched: false, records };
    links.iter().for_each(|link| search.include(link));
    search.records.into_values().collect()
}

/// A search for what a pattern matches.
struct PathSearch<'a> {
    manifest: &'a Manifest,
    names: &'a [&'a str],
    /// The states visited so far: a directory, and the number of pattern names that led there. Links may lead
    /// to the same one twice.
    seen: HashSet<(Vec<u8>, usize)>,
    /// Links that are matched, and whose targets count. A link on the way counts only by itself.
    followed: HashSet<Vec<u8>>,
    matched: bool,
    /// The entries that count, by path: what is matched, and the links on the way.
    records: BTreeMap<Vec<u8>, ManifestEntry<'a>>,
}

impl<'a> PathSearch<'a> {
    fn run(&mut self) {
        let mut todo = vec![(Vec::new(), 0)];
        while let Some((dir, at)) = todo.pop() {
            if !self.seen.insert((dir.clone(), at)) {
                continue;
            }
            let Some(&name) = self.names.get(at) else {
                self.matched = true;
                self.include(&dir);
                continue;
            };
            if name == "**" {
                todo.push((dir.clone(), at + 1));
                let below = self.children(&dir).into_iter().filter(ManifestEntry::is_dir);
                todo.extend(below.map(|child| (child.path.to_vec(), at)));
            } else if has_magic(name) {
                let pattern: Vec<char> = name.chars().collect();
                for child in self.children(&dir) {
                    let start = if dir.is_empty() { 0 } else { dir.len() + 1 };
                    if matches(&pattern, &child.path[start..]) {
                        self.reach(child, at + 1, &mut todo);
                    }
                }
            } else if let Some(child) = self.manifest.find(&join(&dir, name.as_bytes())) {
                self.reach(child, at + 1, &mut todo);
            }
        }
    }

    /// Continues at an entry that was reached by `at` names of the pattern.
    fn reach(&mut self, entry: ManifestEntry<'a>, at: usize, todo: &mut Vec<(Vec<u8>, usize)>) {
        if at == self.names.len() {
            self.matched = true;
            self.include(entry.path);
        } else if let Some(dir) = self.resolve(entry)
            && self.manifest.find(&dir).is_some_and(|entry| entry.is_dir())
        {
            todo.push((dir, at));
        }
    }

    /// Counts an entry, everything in it, and the targets of links in it.
    fn include(&mut self, path: &[u8]) {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            let Some(start) = self.manifest.position(&path) else { continue };
            let mut index = start;
            while let Some(entry) = self.manifest.get(index).filter(|it| index == start || is_below(it.path, &path)) {
                self.records.insert(entry.path.to_vec(), entry);
                if matches!(entry.kind, EntryKind::Symlink { .. })
                    && self.followed.insert(entry.path.to_vec())
                    && let Some(target) = self.resolve(entry)
                    && !self.records.contains_key(&target)
                {
                    todo.push(target);
                }
                index += 1;
            }
        }
    }

    /// Returns the path that an entry leads to, following links within the source. Each link on the way
    /// counts. Returns `None` if the chain does not end, or leads outside.
    fn resolve(&mut self, entry: ManifestEntry<'a>) -> Option<Vec<u8>> {
        let EntryKind::Symlink { target } = entry.kind else { return Some(entry.path.to_vec()) };
        let parent = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/').map_or(0, |end| end);
        self.records.insert(entry.path.to_vec(), entry);
        let mut at = entry.path[..parent(entry.path)].to_vec();
        let mut links = 1;
        let mut rest = split_reversed(target)?;
        while let Some(name) = rest.pop() {
            match name {
                b"" | b"." => {}
                b".." if at.is_empty() => return None,
                b".." => at.truncate(parent(&at)),
                name => {
                    let next = self.manifest.find(&join(&at, name))?;
                    if let EntryKind::Symlink { target } = next.kind {
                        links += 1;
                        if links > MAX_LINKS {
                            return None;
                        }
                        self.records.insert(next.path.to_vec(), next);
                        rest.extend(split_reversed(target)?);
                    } else {
                        at = next.path.to_vec();
                    }
                }
            }
        }
        Some(at)
    }

    fn children(&self, dir: &[u8]) -> Vec<ManifestEntry<'a>> {
        let manifest: &'a Manifest = self.manifest;
        let Some(start) = manifest.position(dir) else { return Vec::new() };
        let mut found = Vec::new();
        let mut index = start + 1;
        while let Some(entry) = manifest.get(index).filter(|entry| is_below(entry.path, dir)) {
            index = if entry.is_dir() { manifest.end_of(index) } else { index + 1 };
            found.push(entry);
        }
        found
    }

    /// Times are not part of the digest, because they differ between checkouts.
    fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        for (path, ManifestEntry { mode, kind, .. }) in &self.records {
            part(path);
            part(&mode.to_le_bytes());
            match kind {
                EntryKind::Directory => part(b"d"),
                EntryKind::File { hash, .. } => [b"f", &hash[..]].into_iter().for_each(&mut part),
                EntryKind::Symlink { target } => [b"l", *target].into_iter().for_each(&mut part),
            }
        }
        *hasher.finalize().as_bytes()
    }
}

/// Returns the names of a link's target, the last one first, or `None` if it leads out of the source.
fn split_reversed(target: &[u8]) -> Option<Vec<&[u8]>> {
    (!target.starts_with(b"/")).then(|| target.split(|byte| *byte == b'/').rev().collect())
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    match path.strip_prefix(dir) {
        Some(rest) if dir.is_empty() => !rest.is_empty(),
        Some(rest) => rest.starts_with(b"/"),
        None => false,
    }
}
