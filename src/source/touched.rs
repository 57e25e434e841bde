//! What steps must see as modified although it did not change itself: directories with other names in them,
//! and what changed symbolic links lead to.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    manifest::{EntryKind, Manifest, ManifestChange, ManifestEntry},
    path_digests::behind_links,
};

/// The entries of a newer source that count as modified.
#[derive(Debug, Default)]
pub(super) struct Touched<'a> {
    /// Directories in which names were added or removed, and those that changed links lead to.
    pub(super) dirs: BTreeSet<&'a [u8]>,
    /// Files and links that changed links lead to.
    pub(super) behind_links: BTreeMap<&'a [u8], ManifestEntry<'a>>,
}

impl<'a> Touched<'a> {
    /// Finds what is touched by `changes`, which lead to `newer`.
    pub(super) fn by(changes: &[ManifestChange<'a>], newer: &'a Manifest) -> Self {
        let (mut touched, mut links) = (Self::default(), Vec::new());
        for change in changes {
            let entry = change.entry();
            if !matches!(change, ManifestChange::Changed(_)) && !entry.path.is_empty() {
                touched.dirs.extend(newer.find(parent(entry.path)).filter(ManifestEntry::is_dir).map(|dir| dir.path));
            }
            if !matches!(change, ManifestChange::Removed(_)) && matches!(entry.kind, EntryKind::Symlink { .. }) {
                links.push(entry.path);
            }
        }
        for entry in behind_links(newer, &links) {
            if entry.is_dir() {
                touched.dirs.insert(entry.path);
            } else {
                touched.behind_links.insert(entry.path, entry);
            }
        }
        touched
    }
}

impl<'a> ManifestChange<'a> {
    /// Returns the entry that changed: the newer one, if there is one.
    pub(super) fn entry(&self) -> &ManifestEntry<'a> {
        match self {
            Self::Removed(entry) | Self::Added(entry) | Self::Changed(entry) => entry,
        }
    }
}

/// Returns the parent directory of a path. The parent of the root is the root.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |end| &path[..end])
}
