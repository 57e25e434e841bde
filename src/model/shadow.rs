//! What a look-up by traces would have done.

use serde::{Deserialize, Serialize};

/// What came of the look-up of one attempt by what the step reads, in shadow mode: nothing was reused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShadowVerdict {
    /// Whether an earlier result would have been taken.
    pub found: bool,
    /// Why not, if there were earlier ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miss: Option<String>,
    /// How what the step did differs from the result that would have been taken. `None` if it is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<String>,
    /// Why what the step read cannot be used later. Empty if it can, or if the step did not pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}
