//! What a path of a cache policy matches in a frozen source, as a digest: names, types, modes, targets of
//! links, contents.
//!
//! Paths are globs as harmont has them, which are those of Python's `pathlib`: `*`, `?` and `[..]` within a
//! name, `**` for any directories, hidden names included. A directory counts with everything in it, a link
//! with its target and with what it leads to in the source. Everything is looked up in a manifest, so that a
//! pipe or a device is never opened. `.hm/` is no part of sources: paths that begin with it look at the
//! checkout.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
    sync::atomic::AtomicBool,
};

use super::{
    read::{Known, Reader},
    walk::Walk,
};
use crate::store::{
    SourceId, Store, StoreError,
    manifest::{Entry, Kind, Manifest},
    tree::join,
};

/// The directory of pipelines, which is no part of sources.
pub(super) const PIPELINES: &str = ".hm";

/// How many links are followed on the way to one file; the kernel has the same limit.
const MAX_LINKS: usize = 40;

impl Store {
    /// Returns the digest of what each of `patterns` matches in a frozen source of the directory `checkout`;
    /// `None` for one that matches nothing. Blocks.
    ///
    /// # Errors
    /// Returns an error if the source's manifest, or the checkout's `.hm/`, can't be read.
    pub(crate) fn watched(
        &self,
        source: &SourceId,
        checkout: &Path,
        patterns: BTreeSet<String>,
    ) -> Result<BTreeMap<String, Option<[u8; 32]>>, StoreError> {
        let (mut frozen, mut pipelines) = (None, None);
        let mut digests = BTreeMap::new();
        for pattern in patterns {
            let names = names_of(&pattern);
            let digest = match names.split_first() {
                Some((&PIPELINES, below)) => {
                    if pipelines.is_none() {
                        pipelines = Some(self.pipelines_manifest(checkout)?);
                    }
                    pipelines.as_ref().and_then(|manifest| digest(manifest, below))
                }
                _ => {
                    if frozen.is_none() {
                        frozen = Some(self.manifest(source)?);
                    }
                    frozen.as_ref().and_then(|manifest| digest(manifest, &names))
                }
            };
            digests.insert(pattern, digest);
        }
        Ok(digests)
    }

    /// Returns what is in `.hm/` of a checkout just now; nothing if it is no directory.
    fn pipelines_manifest(&self, checkout: &Path) -> Result<Manifest, StoreError> {
        let dir = checkout.join(PIPELINES);
        if !dir.symlink_metadata().is_ok_and(|dir| dir.is_dir()) {
            return Ok(Manifest::default());
        }
        let abandoned = AtomicBool::new(false);
        let dir = dir.canonicalize().map_err(|source| StoreError::Unreadable { path: dir.clone(), source })?;
        let tree = Walk { source: &dir, store: self.dir(), abandoned: &abandoned }.run()?;
        let (manifest, _) = Reader { source: &dir, abandoned: &abandoned }.read_unknown(&Known::of(&tree, None))?;
        Ok(manifest)
    }
}

/// Returns the names of a pattern, without those that mean nothing.
fn names_of(pattern: &str) -> Vec<&str> {
    let mut names: Vec<&str> = pattern.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    names.dedup_by(|a, b| a == b && *a == "**");
    names
}

/// Returns the digest of what a pattern's names match; `None` if that is nothing.
fn digest(manifest: &Manifest, names: &[&str]) -> Option<[u8; 32]> {
    let (seen, followed, records) = (HashSet::new(), HashSet::new(), BTreeMap::new());
    let mut search = Search { manifest, names, seen, followed, matched: false, records };
    // Without a root there is nothing: a directory that is not there.
    manifest.find(b"")?;
    search.run();
    search.matched.then(|| search.digest())
}

/// A search for what a pattern matches.
struct Search<'a> {
    manifest: &'a Manifest,
    names: &'a [&'a str],
    /// What was looked at already: a directory, and how many names of the pattern led there. Links may lead
    /// to one twice.
    seen: HashSet<(Vec<u8>, usize)>,
    /// Links that are matched, and whose targets count. One on the way counts by itself alone.
    followed: HashSet<Vec<u8>>,
    matched: bool,
    /// What counts, by its path: what is matched, and the links on the way.
    records: BTreeMap<Vec<u8>, Entry<'a>>,
}

impl<'a> Search<'a> {
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
                let below = self.children(&dir).into_iter().filter(Entry::is_dir);
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

    /// Goes on at an entry to which `at` names of the pattern led.
    fn reach(&mut self, entry: Entry<'a>, at: usize, todo: &mut Vec<(Vec<u8>, usize)>) {
        if at == self.names.len() {
            self.matched = true;
            self.include(entry.path);
        } else if let Some(dir) = self.resolve(entry)
            && self.manifest.find(&dir).is_some_and(|entry| entry.is_dir())
        {
            todo.push((dir, at));
        }
    }

    /// Counts an entry, everything in it, and what links in it lead to.
    fn include(&mut self, path: &[u8]) {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            let Some(start) = self.manifest.position(&path) else { continue };
            let mut index = start;
            while let Some(entry) = self.manifest.get(index).filter(|it| index == start || is_below(it.path, &path)) {
                self.records.insert(entry.path.to_vec(), entry);
                if matches!(entry.kind, Kind::Symlink { .. })
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

    /// Returns where an entry leads, links followed within the source. Each link on the way counts; `None` if
    /// there is no end, or it is outside.
    fn resolve(&mut self, entry: Entry<'a>) -> Option<Vec<u8>> {
        let Kind::Symlink { target } = entry.kind else { return Some(entry.path.to_vec()) };
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
                    if let Kind::Symlink { target } = next.kind {
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

    fn children(&self, dir: &[u8]) -> Vec<Entry<'a>> {
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

    /// Times are not part of it: each checkout has others.
    fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        for (path, Entry { mode, kind, .. }) in &self.records {
            part(path);
            part(&mode.to_le_bytes());
            match kind {
                Kind::Directory => part(b"d"),
                Kind::File { hash, .. } => [b"f", &hash[..]].into_iter().for_each(&mut part),
                Kind::Symlink { target } => [b"l", *target].into_iter().for_each(&mut part),
            }
        }
        *hasher.finalize().as_bytes()
    }
}

/// Returns a link's names, the last one first; `None` if it leads out of the source.
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

fn has_magic(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// Returns whether a name matches a pattern, as Python's `fnmatch` does.
fn matches(pattern: &[char], name: &[u8]) -> bool {
    let name: Vec<char> = String::from_utf8_lossy(name).chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last `*` does not match.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('?') => Some(p + 1),
            Some('[') => match class(pattern, p, name[n]) {
                Some((end, true)) => Some(end),
                Some((_, false)) => None,
                // Without its end it is a bracket.
                None => (name[n] == '[').then_some(p + 1),
            },
            Some(c) => (*c == name[n]).then_some(p + 1),
            None => None,
        };
        match (step, star) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Returns where the class at `start` ends, and whether it has `c`; `None` if it has no end.
fn class(pattern: &[char], start: usize, c: char) -> Option<(usize, bool)> {
    let is_negated = pattern.get(start + 1) == Some(&'!');
    let first = start + 1 + usize::from(is_negated);
    // A bracket right at the beginning is one of the class.
    let end = (first + 1..pattern.len()).find(|at| pattern[*at] == ']')?;
    let set = &pattern[first..end];
    let (mut at, mut has_it) = (0, false);
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == '-' {
            has_it |= (set[at]..=set[at + 2]).contains(&c);
            at += 3;
        } else {
            has_it |= set[at] == c;
            at += 1;
        }
    }
    Some((end + 1, has_it != is_negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_python() {
        let is_match = |pattern: &str, name: &str| matches(&pattern.chars().collect::<Vec<_>>(), name.as_bytes());
        for (pattern, name) in [
            ("*", ".hidden"),
            ("*.c", "a.c"),
            ("*a*a*", "banana"),
            ("?", "é"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]]", "]"),
            ("[!]]", "a"),
            ("[", "["),
            ("a[b", "a[b"),
            ("[a-]", "-"),
            ("**", "anything"),
            ("a\\*", "a\\b"),
            ("{a,b}", "{a,b}"),
            ("[^a]", "^"),
        ] {
            assert!(is_match(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.c", "a.cc"),
            ("?", ""),
            ("?", "ab"),
            ("[a-c]", "d"),
            ("[c-a]", "b"),
            ("[!a]", "a"),
            ("a", "A"),
            ("", "a"),
        ] {
            assert!(!is_match(pattern, name), "{pattern} {name}");
        }
        // No pattern takes more than the square of a name's length.
        assert!(!is_match(&"*a".repeat(60), &"a".repeat(59)));
    }
}
