//! The size of the deltas in a source's stack, compared with that of the tree.

use super::manifest::{EntryKind, Manifest, ManifestChange};

/// Deltas up to this size never outweigh their base.
const LIGHT: Weight = Weight { entries: 1000, bytes: 16 << 20 };

/// A number of entries, and the bytes of their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Weight {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

impl Weight {
    /// Returns the weight of a layer made of these changes.
    pub(super) fn of(changes: &[ManifestChange<'_>]) -> Self {
        let bytes = changes.iter().map(|change| match change {
            ManifestChange::Removed(_) => 0,
            ManifestChange::Added(entry) | ManifestChange::Changed(entry) => match entry.kind {
                EntryKind::File { size_bytes, .. } => size_bytes,
                _ => 0,
            },
        });
        Self { entries: changes.len() as u64, bytes: bytes.sum() }
    }

    /// Returns whether the weight is more than a quarter of a tree.
    pub(super) fn outweighs(self, tree: &Manifest) -> bool {
        let bytes: u64 = tree
            .entries()
            .map(|entry| if let EntryKind::File { size_bytes, .. } = entry.kind { size_bytes } else { 0 })
            .sum();
        self.outnumbers(tree) || self.bytes > LIGHT.bytes.max(bytes / 4)
    }

    /// Returns whether there are more entries than a quarter of a tree's.
    pub(super) fn outnumbers(self, tree: &Manifest) -> bool {
        self.entries > LIGHT.entries.max(tree.len() as u64 / 4)
    }
}

impl std::ops::Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { entries: self.entries + other.entries, bytes: self.bytes + other.bytes }
    }
}
