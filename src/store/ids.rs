//! Names of things in the store. They are hexadecimal, so that no external text becomes a path.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{IdMap, ImageDigest};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses an id. Returns `None` if the text is not an id.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                (matches!(text.len(), 32..=64) && text.bytes().all(hexadecimal)).then(|| Self(text.into()))
            }

            /// Returns the id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text).ok_or_else(|| format!("`{text}` is not an id"))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// The name of a frozen source, derived from its content.
    SourceId
}

id! {
    /// The name of a layer, which contains the changes of one step. It is random and stays with the layer.
    LayerId
}

impl LayerId {
    /// Names the layer that holds the difference between two sources. The length distinguishes it from a
    /// step's layer.
    pub(crate) fn of_delta(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }

    /// Returns whether the name is derived from the content, as those of deltas and of images' layers are,
    /// and not from the process that made the layer.
    pub(crate) fn is_of_content(&self) -> bool {
        self.0.len() == 64
    }

    /// Names a tree that came from elsewhere by a digest of its content. The length distinguishes it from a
    /// step's layer.
    pub(crate) fn of_tree(digest: &ImageDigest) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(b"tree from elsewhere ").update(digest.as_bytes());
        Self(hash.finalize().to_hex().to_string())
    }

    /// Names a layer of an image by the digest of its content and by how its owners are interpreted. The
    /// length distinguishes it from a step's layer.
    pub(crate) fn of_image(diff_id: &ImageDigest, id_map: IdMap) -> Self {
        let id_map = match id_map {
            IdMap::Root => b"root",
            IdMap::Range => b"sub ",
            IdMap::Single => b"one ",
        };
        let mut hash = blake3::Hasher::new();
        hash.update(b"layer of an image ").update(id_map).update(diff_id.as_bytes());
        Self(hash.finalize().to_hex().to_string())
    }
}

impl SourceId {
    pub(crate) fn of(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_no_path() {
        for text in ["", "..", "../../../../../../../../../../etc/passwd", "ABCDEF0123456789abcdef0123456789"] {
            assert_eq!(LayerId::parse(text), None, "{text}");
            assert!(serde_json::from_value::<SourceId>(text.into()).is_err());
        }
        assert!(LayerId::parse("0123456789abcdef0123456789abcdef").is_some());
    }
}
