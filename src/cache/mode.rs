//! Which results a run reuses.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which results a run looks up, and which it keeps. Each mode reuses more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// None.
    Off,
    /// Those of steps with a declared policy, by key.
    #[default]
    Declared,
    /// Those of steps with a declared policy, by key, and those of the other steps by what they read, on
    /// runners that can record that.
    Auto,
}

/// Whether a run in mode [`Auto`](CacheMode::Auto) also runs steps that it finds by what they read, and
/// compares what they leave with their results.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Verify {
    /// No.
    #[default]
    Off,
    /// Yes. What such a step leaves is used and kept in place of its result.
    InPlace,
    /// These steps, by key; all, if the set is empty. Their results are used, nothing is kept, the run is not
    /// recorded, and steps that are not found do not run.
    Only(BTreeSet<String>),
}

impl CacheMode {
    /// Returns the name of the setting.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Declared => "declared",
            Self::Auto => "auto",
        }
    }
}
