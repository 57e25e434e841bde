//! The meaning of owners in a layer's files.

use std::fmt;

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
    /// Returns the name: `root`, `range` or `single`. It is part of cache keys and of shared results.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Range => "range",
            Self::Single => "single",
        }
    }

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

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_map_has_one_name_as_text_and_in_json() {
        for id_map in [IdMap::Root, IdMap::Range, IdMap::Single] {
            assert_eq!(serde_json::to_value(id_map).unwrap(), id_map.to_string());
        }
    }
}
