//! What a look-up by traces would have done.

use std::sync::Arc;

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

/// What came of a step that was to run although it would be found by what it read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VerifiedStep {
    /// The step's key.
    pub step: Arc<str>,
    /// How many paths of the layers were compared: that of the step, and that of the result.
    #[serde(default)]
    pub compared: usize,
    /// How the step differs from the result, in words. `None` if it is the same, or was not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<String>,
    /// How many paths differ.
    #[serde(default)]
    pub differences: usize,
    /// The first of them, each with what differs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Why it was not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
}

impl VerifiedStep {
    /// Returns the verdict on a step that is the same as its result.
    pub(crate) fn same(step: Arc<str>, compared: usize) -> Self {
        Self { step, compared, difference: None, differences: 0, files: Vec::new(), not_compared: None }
    }

    /// Returns the verdict on a step that was not compared.
    pub(crate) fn not_compared(step: Arc<str>, why: impl Into<String>) -> Self {
        Self { not_compared: Some(why.into()), ..Self::same(step, 0) }
    }
}
