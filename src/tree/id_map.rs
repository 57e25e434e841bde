//! How owners in a layer's files are to be understood.

use serde::{Deserialize, Serialize};

/// How the user ids in a layer's files map to those that steps saw; part of the layer's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdMap {
    /// As they are: no user namespace.
    Root,
    /// A range of subordinate ids.
    Range,
    /// Root alone, which is the user; other owners are lost.
    Single,
}

impl IdMap {
    /// The attribute by which overlayfs marks opaque directories. Layers are not portable between the two.
    #[must_use]
    pub fn opaque_xattr(self) -> &'static str {
        match self {
            Self::Root => "trusted.overlay.opaque",
            Self::Range | Self::Single => "user.overlay.opaque",
        }
    }
}
