//! The plan: a pipeline as an indexed graph, which is then bound to an engine's runners.
//!
//! The input is IR JSON, or steps that a program makes, then the runners' descriptors. The output is a
//! [`BoundPlan`], whose steps carry a [`RunnerIndex`](crate::runner::RunnerIndex) and checked arguments.
//! This module does not know how a step runs.

mod bind;
mod bind_args;
mod bound;
mod builder;
mod dag;
mod inputs;
mod nearest;
mod step_services;
mod step_tables;

use std::sync::Arc;

pub use crate::model::{OutcomeRules, SoftFail, StepIndex};
pub use bind::bind;
pub use bind_args::engine_args_schema;
pub use bound::{Base, BindOptions, BoundPlan, BoundService, BoundStep, DEFAULT_IMAGE, ServiceSource, SnapshotUse};
pub use builder::{PlanBuilder, Step};
pub use dag::{Dag, Link};
pub use inputs::PlannedInput;
pub use step_tables::{FromTable, InvalidGlob, LeftOutArg, StepTable, TableArg, table_args};

use crate::ir::{self, Draft, InvalidPipeline, Pipeline, ProblemKind, ProblemPlace, Problems, Validated};

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
    /// Returns a builder, for programs that make plans themselves.
    ///
    /// ```
    /// use hm_exec::{Plan, plan::Step};
    ///
    /// let plan = Plan::builder()
    ///     .env("CI", "1")
    ///     .step(Step::new("make", "make all").image("host"))
    ///     .step(Step::new("test", "make test").builds_in("make"))
    ///     .build()?;
    /// assert_eq!(plan.dag().len(), 2);
    /// # Ok::<_, hm_exec::ir::InvalidPipeline>(())
    /// ```
    pub fn builder() -> PlanBuilder {
        PlanBuilder::default()
    }

    /// Decodes, validates and indexes IR JSON.
    ///
    /// # Errors
    /// Returns every mistake, with its place; see [`Pipeline::decode`].
    pub fn parse(ir_json: impl Into<String>) -> Result<Self, InvalidPipeline> {
        let ir_json = ir_json.into();
        let validated = ir::decode(ir_json.as_bytes())?;
        Ok(Self::of(validated, ir_json))
    }

    /// Validates and indexes what a program made, with the problems so far.
    fn of_draft(draft: Draft, problems: Problems) -> Result<Self, InvalidPipeline> {
        let validated = draft.validate(problems)?;
        let ir_json = serde_json::to_string(&validated.pipeline)
            .map_err(|error| InvalidPipeline::of(ProblemPlace::Pipeline, ProblemKind::Json(error.to_string())))?;
        Ok(Self::of(validated, ir_json))
    }

    fn of(Validated { pipeline, adjacency, order }: Validated, ir_json: String) -> Self {
        let dag = Arc::new(Dag::of(adjacency, order));
        Self { inner: Arc::new(Inner { pipeline, dag, ir_json }) }
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

    /// Returns the original JSON, byte for byte. A plan from a [builder](Self::builder) has equivalent JSON.
    #[must_use]
    pub fn ir_json(&self) -> &str {
        &self.inner.ir_json
    }
}
