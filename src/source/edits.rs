//! Which paths of a source a step may see differently than in an earlier one.

use std::{collections::HashSet, sync::Arc};

use super::{
    manifest::{EntryKind, Manifest, ManifestChange, Times},
    touched::parent,
};
use crate::{
    store::{SourceId, Store, StoreError},
    sync::Mutex,
};

/// The most pairs of sources that are remembered.
const MAX_REMEMBERED: usize = 4;

/// What differs between two sources. Paths are relative to the root of the source.
#[derive(Debug, Default)]
pub(crate) struct SourceEdits {
    /// What was added or removed, or has another content, mode or type.
    entries: HashSet<Box<[u8]>>,
    /// The directories in which names were added or removed.
    dirs: HashSet<Box<[u8]>>,
    /// Whether a link differs: what links lead to has another time then.
    has_links: bool,
}

/// Comparisons of sources that were made.
#[derive(Debug, Default)]
pub(crate) struct ComparedSources(Mutex<Vec<Compared>>);

#[derive(Debug)]
struct Compared {
    old: SourceId,
    new: SourceId,
    edits: Arc<SourceEdits>,
}

impl ComparedSources {
    /// Returns what differs between two sources. Blocks while their manifests are compared: steps that are
    /// looked up at once need the same.
    ///
    /// # Errors
    /// Returns an error if a manifest cannot be read.
    pub(crate) fn between(
        &self,
        store: &Store,
        old: &SourceId,
        new: &SourceId,
    ) -> Result<Arc<SourceEdits>, StoreError> {
        let mut compared = self.0.lock();
        if let Some(known) = compared.iter().find(|known| known.old == *old && known.new == *new) {
            return Ok(Arc::clone(&known.edits));
        }
        let edits = Arc::new(SourceEdits::between(&Manifest::of(store, old)?, &Manifest::of(store, new)?));
        if compared.len() == MAX_REMEMBERED {
            compared.remove(0);
        }
        compared.push(Compared { old: old.clone(), new: new.clone(), edits: Arc::clone(&edits) });
        Ok(edits)
    }
}

impl SourceEdits {
    fn between(old: &Manifest, new: &Manifest) -> Self {
        let mut edits = Self::default();
        let is_link = |manifest: &Manifest, path: &[u8]| {
            manifest.find(path).is_some_and(|entry| matches!(entry.kind, EntryKind::Symlink { .. }))
        };
        for change in old.changes(new, Times::PassOver) {
            let path = change.entry().path;
            edits.has_links |= is_link(old, path) || is_link(new, path);
            if !matches!(change, ManifestChange::Changed(_)) && !path.is_empty() {
                edits.dirs.insert(parent(path).into());
            }
            edits.entries.insert(path.into());
        }
        edits
    }

    /// Returns whether a step may see something else at a path, besides other names in a directory.
    pub(crate) fn may_differ(&self, path: &[u8]) -> bool {
        let mut above = path;
        loop {
            if self.entries.contains(above) {
                return true;
            }
            if above.is_empty() {
                return self.has_links;
            }
            above = parent(above);
        }
    }

    /// Returns whether names were added to the directory at a path, or removed.
    pub(crate) fn lists_others(&self, path: &[u8]) -> bool {
        self.dirs.contains(path)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::manifest::tests::{dir, file, link, manifest},
        *,
    };

    #[test]
    fn what_is_at_or_below_an_edit_may_differ_and_its_directory_lists_others_if_names_changed() {
        let old =
            manifest(vec![dir(""), file("a", 1), dir("d"), file("d/b", 1), file("gone", 1), dir("e"), dir("e/f")]);
        let mut opened = dir("e");
        opened.mode = 0o777;
        let new = manifest(vec![dir(""), file("a", 2), dir("d"), file("d/b", 1), file("d/new", 1), opened, dir("e/f")]);
        let edits = SourceEdits::between(&old, &new);
        for path in ["a", "a/below", "gone", "d/new", "e", "e/f", "e/f/absent"] {
            assert!(edits.may_differ(path.as_bytes()), "{path}");
        }
        for path in ["", "d", "d/b", "absent", "ab"] {
            assert!(!edits.may_differ(path.as_bytes()), "{path}");
        }
        let listed = ["", "d"].map(|path| edits.lists_others(path.as_bytes()));
        let others = ["a", "e", "e/f"].map(|path| edits.lists_others(path.as_bytes()));
        assert_eq!((listed, others), ([true; 2], [false; 3]));
    }

    #[test]
    fn everything_may_differ_if_a_link_does() {
        let plain = vec![dir(""), file("a", 1), file("b", 1)];
        let with = |entry| manifest(plain.iter().copied().chain([entry]).collect());
        let none = manifest(plain.clone());
        for (old, new) in [
            (&none, &with(link("l", "a"))),
            (&with(link("l", "a")), &none),
            (&with(link("l", "a")), &with(link("l", "b"))),
            (&with(link("l", "a")), &with(file("l", 1))),
            (&with(dir("l")), &with(link("l", "a"))),
        ] {
            assert!(SourceEdits::between(old, new).may_differ(b"a"));
        }
        let edits = SourceEdits::between(&with(link("l", "a")), &with(link("l", "a")));
        assert!(!edits.may_differ(b"a"));
    }
}
