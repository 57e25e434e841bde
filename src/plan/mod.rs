//! The plan: a pipeline as an indexed graph, and what it becomes when it is bound to an engine's runners.
//!
//! In: IR JSON, then the runners' descriptors. Out: a [`BoundPlan`], whose steps carry a
//! [`RunnerIndex`](crate::runner::RunnerIndex) and checked arguments. Does not know how a step runs.

mod bind;
mod bound;
mod dag;

use std::sync::Arc;

pub use bind::bind;
pub use bound::{Base, BindOptions, BoundPlan, BoundStep, DEFAULT_IMAGE};
pub use dag::{Dag, Link, StepIndex};

use crate::ir::{InvalidPipeline, Pipeline};

/// A pipeline, decoded, valid, and indexed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plan {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pipeline: Pipeline,
    dag: Arc<Dag>,
    ir_json: String,
}

impl Plan {
    /// Decodes, validates and indexes IR JSON.
    ///
    /// # Errors
    /// Every mistake in it, with its place; see [`Pipeline::decode`].
    pub fn parse(ir_json: impl Into<String>) -> Result<Self, InvalidPipeline> {
        let ir_json = ir_json.into();
        let pipeline = Pipeline::decode(ir_json.as_bytes())?;
        let dag = Arc::new(Dag::new(pipeline.nodes.len(), &pipeline.edges).unwrap_or_default());
        debug_assert_eq!(dag.len(), pipeline.nodes.len(), "validation lets no cycle pass");
        Ok(Self { inner: Arc::new(Inner { pipeline, dag, ir_json }) })
    }

    /// The steps and what they say.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.inner.pipeline
    }

    /// How they depend on each other.
    #[must_use]
    pub fn dag(&self) -> &Dag {
        &self.inner.dag
    }

    /// The JSON it came from, byte for byte.
    #[must_use]
    pub fn ir_json(&self) -> &str {
        &self.inner.ir_json
    }
}
