//! A pipeline that a program makes, before it is validated as decoded IR is.

use std::{sync::Arc, time::Duration};

use serde_json::Number;

use super::{
    CommandStep, Edge, Env, InvalidPipeline, Node, Pipeline, Problems,
    raw::{self, RawEdges, RawGraph, RawNodes, RawPipeline},
    validate::{self, Validated},
};

/// A pipeline whose values may be invalid.
pub(crate) struct Draft(RawPipeline);

impl Draft {
    /// Creates a draft without steps.
    pub(crate) fn new(default_image: Option<Arc<str>>, timeout: Option<Duration>) -> Self {
        let graph = RawGraph {
            nodes: RawNodes::default(),
            node_holes: Vec::new(),
            edge_property: "directed".to_owned(),
            edges: RawEdges::default(),
        };
        let version = Pipeline::VERSION.to_owned();
        Self(RawPipeline { version, default_image, timeout_seconds: timeout.map(seconds), graph })
    }

    /// Adds a step with this time limit.
    pub(crate) fn step(&mut self, mut step: CommandStep, timeout: Option<Duration>, env: Arc<Env>) {
        let RawNodes { nodes, wrong_timeouts } = &mut self.0.graph.nodes;
        step.timeout_seconds = timeout.map(seconds).and_then(|limit| {
            let valid = raw::timeout(&limit);
            if valid.is_none() {
                wrong_timeouts.push((nodes.len(), limit));
            }
            valid
        });
        nodes.push(Node { step: Arc::new(step), env });
    }

    /// Adds an edge between two steps, by their positions.
    pub(crate) fn edge(&mut self, edge: Edge) {
        self.0.graph.edges.edges.push(edge);
    }

    /// Checks everything, and reports it together with the problems so far.
    pub(crate) fn validate(self, problems: Problems) -> Result<Validated, InvalidPipeline> {
        validate::validate(self.0, problems)
    }
}

/// Returns a time limit as the IR has it. One that is no whole number of seconds stays visible as a mistake.
fn seconds(limit: Duration) -> Number {
    match limit.subsec_nanos() {
        0 => limit.as_secs().into(),
        _ => Number::from_f64(limit.as_secs_f64()).unwrap_or_else(|| 0.into()),
    }
}
