//! The plan: a pipeline as an indexed graph, which is then bound to an engine's runners.
//!
//! The input is IR JSON, then the runners' descriptors. The output is a [`BoundPlan`], whose steps carry a
//! [`RunnerIndex`](crate::runner::RunnerIndex) and checked arguments. This module does not know how a step
//! runs.

mod bind;
mod bind_args;
mod bound;
mod dag;
mod step_services;
mod step_tables;

use std::sync::Arc;

pub use crate::model::{OutcomeRules, SoftFail, StepIndex};
pub use bind::bind;
pub use bind_args::engine_args_schema;
pub use bound::{Base, BindOptions, BoundPlan, BoundStep, DEFAULT_IMAGE, SnapshotUse};
pub use dag::{Dag, Link};
pub use step_tables::{FromTable, InvalidGlob, LeftOutArg, StepTable, TableArg, table_args};

use crate::ir::{self, InvalidPipeline, Pipeline, Validated};

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
    /// Returns every mistake, with its place; see [`Pipeline::decode`].
    pub fn parse(ir_json: impl Into<String>) -> Result<Self, InvalidPipeline> {
        let ir_json = ir_json.into();
        let Validated { pipeline, adjacency, order } = ir::decode(ir_json.as_bytes())?;
        let dag = Arc::new(Dag::of(adjacency, order));
        Ok(Self { inner: Arc::new(Inner { pipeline, dag, ir_json }) })
    }

    /// Returns a plan without steps.
    pub(crate) fn empty() -> Self {
        let pipeline = Pipeline { default_image: None, timeout_seconds: None, nodes: Vec::new(), edges: Vec::new() };
        Self { inner: Arc::new(Inner { pipeline, dag: Arc::default(), ir_json: String::new() }) }
    }

    /// Drops the JSON, unless the plan has clones.
    pub(crate) fn forget_text(&mut self) {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.ir_json = String::new();
        }
    }

    /// Returns the pipeline with its steps.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.inner.pipeline
    }

    /// Returns the graph of dependencies.
    #[must_use]
    pub fn dag(&self) -> &Dag {
        &self.inner.dag
    }

    /// Returns the original JSON, byte for byte.
    #[must_use]
    pub fn ir_json(&self) -> &str {
        &self.inner.ir_json
    }
}
