//! A valid pipeline: the result of decoding.

use std::{num::NonZeroU32, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{Edge, InvalidPipeline, Node, validate};

/// A valid pipeline. Keys are unique and not empty. Edges are between existing nodes, at most one between
/// two. There is no cycle, and at most one `builds_in` parent per step. All text can be passed to a program.
///
/// Serializes to v0 IR.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pipeline {
    /// The image of root steps that name none.
    pub default_image: Option<Arc<str>>,
    /// The time limit of the whole build, in seconds.
    pub timeout_seconds: Option<NonZeroU32>,
    /// The steps.
    pub nodes: Vec<Node>,
    /// Their dependencies. If the IR has several edges between two steps, there is one here, which is
    /// `builds_in` if one of them was.
    pub edges: Vec<Edge>,
}

impl Pipeline {
    /// The version of the IR that is read and written.
    pub const VERSION: &'static str = "0";

    /// The maximum number of steps in a pipeline.
    pub const MAX_STEPS: usize = 1_000_000;

    /// Decodes and validates v0 IR. Unknown fields are ignored, as in the ecosystem's other readers.
    ///
    /// Memory use is proportional to the text, and stack use does not depend on its length or depth.
    ///
    /// # Errors
    /// Returns every error, with its position. If the text is not JSON, or has a value of the wrong type, it
    /// cannot be read any further, so only that error is returned.
    pub fn decode(json: &[u8]) -> Result<Self, InvalidPipeline> {
        validate::decode(json).map(|validated| validated.pipeline)
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
