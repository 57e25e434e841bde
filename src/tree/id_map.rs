//! The meaning of owners in a layer's files.

use serde::{Deserialize, Serialize};

/// The mapping of the user ids in a layer's files to the ids that steps saw; a part of the layer's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdMap {
    /// The ids are the same: there is no user namespace.
    Root,
    /// The ids are a range of subordinate ids.
    Range,
    /// Only root, which is the user; other owners are lost.
    Single,
}

impl IdMap {
    /// Returns the attribute by which overlayfs marks opaque directories. Layers are not portable between the
    /// two.
    #[must_use]
    pub fn opaque_xattr(self) -> &'static str {
        match self {
            Self::Root => "trusted.overlay.opaque",
            Self::Range | Self::Single => "user.overlay.opaque",
        }
    }
}
