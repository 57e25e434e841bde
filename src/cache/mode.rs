//! Which results a run reuses.

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
