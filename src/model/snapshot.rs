//! References to what runs and steps leave: source trees, snapshots and files for users.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The id of the run's source tree, resolved through [`StepContext::archives`](crate::runner::StepContext).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArchiveId(pub Uuid);

/// A reference to a filesystem snapshot.
///
/// Grammar: `hm1:<id>` for snapshots made of store layers, which every runner with the `layers` capability
/// can boot; `<runner>:<opaque>` for snapshots that only the runner that made them understands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotRef(pub Arc<str>);

impl SnapshotRef {
    /// Returns the part before the first `:`, or the whole text if there is none.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.0.split_once(':').map_or(&*self.0, |(scheme, _)| scheme)
    }
}

impl<T: Into<Arc<str>>> From<T> for SnapshotRef {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file that a step publishes for users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// The location of the file.
    pub key: String,
    /// The media type of the file.
    pub mime: String,
    /// The size of the file in bytes.
    pub size_bytes: u64,
}
