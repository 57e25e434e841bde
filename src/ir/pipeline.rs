//! Decoding and validating. STUB: the `ir` builder owns this file and may split it.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::{Edge, Node};

/// A valid pipeline: unique non-empty keys, edges between nodes that exist, no cycle, at most one `builds_in` parent each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pipeline {
    /// Image of root steps that name none.
    pub default_image: Option<Arc<str>>,
    /// Wall-clock budget of the whole build, in seconds.
    pub timeout_seconds: Option<NonZeroU32>,
    /// The steps.
    pub nodes: Vec<Node>,
    /// Their dependencies.
    pub edges: Vec<Edge>,
}

impl Pipeline {
    /// Decodes and validates.
    ///
    /// # Errors
    /// Every mistake, with its place.
    pub fn decode(_json: &[u8]) -> Result<Self, InvalidPipeline> {
        todo!()
    }
}

/// Everything that is wrong with a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid pipeline")]
pub struct InvalidPipeline {
    problems: Vec<String>,
}
