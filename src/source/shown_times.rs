//! Which time a step sees for each file of its source that differs from what an earlier step saw: the step's
//! parent, or the steps that filled its cache directories.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    manifest::{Manifest, ManifestChange, ManifestEntry, Time, Times},
    times::{FRESH, later_than},
    touched::Touched,
};

/// The times of what differs. Everything else has the time of the source's manifest, or the one that the
/// parent's layers give it.
#[derive(Debug, Default)]
pub(super) struct ShownTimes<'a> {
    /// What changed since the parent's source.
    pub(super) by_parent: BTreeSet<&'a [u8]>,
    /// What changed since a cache directory's source.
    pub(super) by_caches: BTreeSet<&'a [u8]>,
    /// What is as a cache directory saw it, with the latest time of those.
    pub(super) kept: BTreeMap<&'a [u8], Time>,
    /// Later than everything in the parent's layers.
    pub(super) after_parent: Time,
    /// Later than everything in the cache directories as well.
    pub(super) after_caches: Time,
}

impl<'a> ShownTimes<'a> {
    /// Compares a source with those that cache directories saw. The entries of `seen` have the times that
    /// were shown.
    pub(super) fn compare_caches(&mut self, seen: &'a [Manifest], newer: &'a Manifest) {
        for manifest in seen {
            let changes = manifest.changes(newer, Times::PassOver);
            let changed = changes.iter().filter(|change| !matches!(change, ManifestChange::Removed(_)));
            self.by_caches.extend(changed.map(|change| change.entry().path));
            let touched = Touched::by(&changes, newer);
            self.by_caches.extend(touched.dirs);
            self.by_caches.extend(touched.behind_links.into_keys());
            for shown in manifest.entries().filter(|entry| entry.mtime > FRESH) {
                let same = newer.find(shown.path).filter(|entry| entry.is_same(&shown, Times::PassOver));
                if let Some(entry) = same {
                    let time = self.kept.entry(entry.path).or_insert(shown.mtime);
                    *time = shown.mtime.max(*time);
                }
            }
        }
    }

    /// Chooses the times: later than `parent`, the latest time in the parent's layers, and than `caches`,
    /// that in the cache directories.
    pub(super) fn choose(&mut self, parent: Time, caches: Time, manifests: (&[&Manifest], &[Manifest])) {
        self.after_parent = later_than(parent, manifests.0.iter().copied());
        self.after_caches = later_than(parent.max(caches), manifests.0.iter().copied().chain(manifests.1));
    }

    /// Returns the time of a path, if it is another one than that of the source's manifest.
    pub(super) fn of(&self, path: &[u8]) -> Option<Time> {
        if self.by_caches.contains(path) {
            return Some(self.after_caches);
        }
        let by_parent = self.by_parent.contains(path).then_some(self.after_parent);
        by_parent.max(self.kept.get(path).copied())
    }

    /// Returns everything whose time the cache directories decide.
    pub(super) fn decided_by_caches(&self) -> impl Iterator<Item = &'a [u8]> {
        let all: BTreeSet<&'a [u8]> = self.by_caches.iter().chain(self.kept.keys()).copied().collect();
        all.into_iter()
    }

    /// Returns a manifest with the times that the step sees.
    pub(super) fn applied_to(&self, source: &Manifest) -> Manifest {
        let mut shown = Manifest::default();
        for entry in source.entries() {
            shown.push(ManifestEntry { mtime: self.of(entry.path).unwrap_or(entry.mtime), ..entry });
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::{super::manifest::EntryKind, *};

    fn manifest(files: &[(&'static str, u8, Time)]) -> Manifest {
        let mut manifest = Manifest::default();
        manifest.push(ManifestEntry { path: b"", mode: 0o755, mtime: FRESH, kind: EntryKind::Directory });
        for (path, content, mtime) in files {
            let hash = &[*content; 32];
            let kind = EntryKind::File { size_bytes: 1, hash };
            manifest.push(ManifestEntry { path: path.as_bytes(), mode: 0o644, mtime: *mtime, kind });
        }
        manifest
    }

    #[test]
    fn what_a_cache_saw_keeps_its_time_and_what_it_did_not_see_is_newer() {
        let newer = manifest(&[("added", 1, FRESH), ("edited", 2, FRESH), ("known", 1, FRESH), ("old", 1, FRESH)]);
        let early = (FRESH.0 + 50, 0);
        let seen = [
            manifest(&[("edited", 1, early), ("known", 1, early), ("old", 1, FRESH)]),
            manifest(&[("added", 1, FRESH), ("edited", 2, FRESH), ("known", 1, FRESH), ("old", 1, FRESH)]),
        ];
        let mut times = ShownTimes { by_parent: [&b"old"[..]].into(), ..ShownTimes::default() };
        times.compare_caches(&seen, &newer);
        times.choose((FRESH.0 + 10, 0), (FRESH.0 + 99, 5), (&[&newer], &seen));
        assert_eq!(times.of(b"edited"), Some((FRESH.0 + 100, 0)));
        assert_eq!(times.of(b"added"), Some((FRESH.0 + 100, 0)));
        assert_eq!(times.of(b""), Some((FRESH.0 + 100, 0)), "a name was added to it");
        assert_eq!(times.of(b"known"), Some(early));
        assert_eq!(times.of(b"old"), Some((FRESH.0 + 11, 0)));
        let shown = times.applied_to(&newer);
        // The next step with these caches sees the same times.
        let mut again = ShownTimes::default();
        again.compare_caches(std::slice::from_ref(&shown), &newer);
        assert!(again.by_caches.is_empty());
        assert_eq!(again.of(b"edited"), Some((FRESH.0 + 100, 0)));
        // Without an edit, the next time is later than all that were shown.
        again.choose((0, 0), (0, 0), (&[&newer], std::slice::from_ref(&shown)));
        assert_eq!(again.after_caches, (FRESH.0 + 101, 0));
    }
}
