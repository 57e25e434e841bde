//! A valid pipeline: the result of decoding.

use std::{num::NonZeroU32, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{Edge, InvalidPipeline, Node, raw, validate};

/// A valid pipeline: unique non-empty keys, edges between nodes that exist and at most one between two, no cycle, at most
/// one `builds_in` parent each, nothing that can't be passed to a program.
///
/// Serializes to v0 IR.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pipeline {
    /// Image of root steps that name none.
    pub default_image: Option<Arc<str>>,
    /// Wall-clock budget of the whole build, in seconds.
    pub timeout_seconds: Option<NonZeroU32>,
    /// The steps.
    pub nodes: Vec<Node>,
    /// Their dependencies. Where the IR says several times that a step needs another, it is here once, as `builds_in` if
    /// that was among them.
    pub edges: Vec<Edge>,
}

impl Pipeline {
    /// The version of the IR that is read and written.
    pub const VERSION: &'static str = "0";

    /// The most steps a pipeline may have.
    pub const MAX_STEPS: usize = 1_000_000;

    /// Decodes and validates v0 IR. Fields that it does not know are ignored, as the ecosystem's other readers do.
    ///
    /// Takes memory in proportion to the text, and no more stack for a long or deep one.
    ///
    /// # Errors
    /// Every mistake, with its place. A text that is no JSON, or has a value of the wrong type, can't be read on from
    /// there: that is reported alone.
    pub fn decode(json: &[u8]) -> Result<Self, InvalidPipeline> {
        validate::validate(raw::decode(json)?)
    }
}

impl Serialize for Pipeline {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Graph<'a> {
            nodes: &'a [Node],
            node_holes: [u32; 0],
            edge_property: &'static str,
            edges: &'a [Edge],
        }

        let mut pipeline = serializer.serialize_struct("Pipeline", 4)?;
        pipeline.serialize_field("version", Self::VERSION)?;
        match &self.default_image {
            Some(image) => pipeline.serialize_field("default_image", image)?,
            None => pipeline.skip_field("default_image")?,
        }
        match &self.timeout_seconds {
            Some(seconds) => pipeline.serialize_field("timeout_seconds", seconds)?,
            None => pipeline.skip_field("timeout_seconds")?,
        }
        let graph = Graph { nodes: &self.nodes, node_holes: [], edge_property: "directed", edges: &self.edges };
        pipeline.serialize_field("graph", &graph)?;
        pipeline.end()
    }
}
