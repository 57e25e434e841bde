//! From the raw shape to a valid pipeline, or to the list of all that is wrong.

use std::{
    collections::{HashMap, hash_map::Entry},
    num::NonZeroU32,
    sync::Arc,
};

use serde_json::Number;

use super::{
    CommandStep, Edge, EdgeKind, Env, InvalidPipeline, Node, Pipeline,
    csr::Csr,
    cycles,
    problem::{Endpoint, Place, Problem, ProblemKind},
    raw::{RawEdge, RawGraph, RawNode, RawPipeline},
};

pub(super) fn validate(raw: RawPipeline) -> Result<Pipeline, InvalidPipeline> {
    let RawPipeline { version, default_image, timeout_seconds, graph } = raw;
    let RawGraph { nodes, node_holes, edge_property, edges } = graph;
    let mut problems = Problems::default();

    if version != Pipeline::VERSION {
        problems.add(Place::Pipeline, ProblemKind::UnknownVersion(version));
    }
    let timeout_seconds = problems.timeout(&Place::Pipeline, timeout_seconds.as_ref());
    problems.nul_byte(&Place::Pipeline, "default_image", default_image.as_deref());
    if !node_holes.is_empty() {
        problems.add(Place::Pipeline, ProblemKind::NodeHoles);
    }
    if edge_property != "directed" {
        problems.add(Place::Pipeline, ProblemKind::Undirected(edge_property));
    }
    if nodes.len() > Pipeline::MAX_STEPS {
        problems.add(Place::Pipeline, ProblemKind::TooManySteps { count: nodes.len() });
        InvalidPipeline::check(std::mem::take(&mut problems.0))?;
    }

    let nodes = problems.nodes(nodes);
    let edges = problems.edges(edges, &nodes);
    problems.lineage(&edges, &nodes);
    problems.cycles(&edges, &nodes);
    InvalidPipeline::check(problems.0)?;
    Ok(Pipeline { default_image, timeout_seconds, nodes, edges })
}

/// Whether a program can be given a variable of this name.
pub(crate) fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, place: Place, kind: ProblemKind) {
        self.0.push(Problem::new(place, kind));
    }

    fn timeout(&mut self, place: &Place, seconds: Option<&Number>) -> Option<NonZeroU32> {
        let seconds = seconds?;
        let valid = seconds.as_u64().and_then(|seconds| u32::try_from(seconds).ok()).and_then(NonZeroU32::new);
        if valid.is_none() {
            self.add(place.clone(), ProblemKind::Timeout(seconds.to_string()));
        }
        valid
    }

    fn nul_byte(&mut self, place: &Place, field: &'static str, text: Option<&str>) {
        if text.is_some_and(|text| text.contains('\0')) {
            self.add(place.clone(), ProblemKind::NulByte { field });
        }
    }

    fn variables(&mut self, place: &Place, env: &Env) {
        for (name, value) in env {
            if !is_variable_name(name) {
                self.add(place.clone(), ProblemKind::VariableName(name.clone()));
            }
            self.nul_byte(place, "env", Some(value));
        }
    }

    fn nodes(&mut self, raw: Vec<RawNode>) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::with_capacity(raw.len());
        let mut by_key: HashMap<Arc<str>, usize> = HashMap::with_capacity(raw.len());
        for (node, RawNode { step, env }) in raw.into_iter().enumerate() {
            let key = step.key;
            let place = Place::Step { node, key: Arc::clone(&key) };
            if key.is_empty() {
                self.add(place.clone(), ProblemKind::EmptyKey);
            } else {
                match by_key.entry(Arc::clone(&key)) {
                    Entry::Vacant(entry) => _ = entry.insert(node),
                    Entry::Occupied(entry) => {
                        self.add(place.clone(), ProblemKind::DuplicateKey { first: *entry.get(), node });
                    }
                }
            }
            self.nul_byte(&place, "key", Some(&key));
            self.nul_byte(&place, "cmd", Some(&step.cmd));
            self.nul_byte(&place, "image", step.image.as_deref());
            let timeout_seconds = self.timeout(&place, step.timeout_seconds.as_ref());
            // The step's own variables are part of the node's, unless the IR was written by hand.
            if let Some(own) = step.env.as_ref().filter(|own| own.keys().any(|name| !env.contains_key(name))) {
                self.variables(&place, own);
            }
            // The DSL gives most steps the same environment: they share one.
            let env = match nodes.last() {
                Some(previous) if *previous.env == env => Arc::clone(&previous.env),
                _ => {
                    self.variables(&place, &env);
                    Arc::new(env)
                }
            };
            let step = CommandStep {
                key,
                label: step.label,
                cmd: step.cmd,
                image: step.image,
                env: step.env,
                timeout_seconds,
                cache: step.cache,
                runner: step.runner,
                runner_args: step.runner_args,
            };
            nodes.push(Node { step: Arc::new(step), env });
        }
        nodes
    }

    /// Keeps the edges that are right by themselves, one between each two steps.
    fn edges(&mut self, raw: Vec<Option<RawEdge>>, nodes: &[Node]) -> Vec<Edge> {
        let mut edges: Vec<Edge> = Vec::with_capacity(raw.len());
        let mut by_ends: HashMap<(u32, u32), usize> = HashMap::with_capacity(raw.len());
        for (at, raw) in raw.into_iter().enumerate() {
            let Some(RawEdge(from, to, kind)) = raw else {
                self.add(Place::Pipeline, ProblemKind::NullEdge(at));
                continue;
            };
            let before = self.0.len();
            let (from_at, to_at) = (node_at(from, nodes), node_at(to, nodes));
            let place = Place::Edge { edge: at, from: endpoint(from, nodes), to: endpoint(to, nodes) };
            let known_kind = match kind.as_str() {
                "builds_in" => Some(EdgeKind::BuildsIn),
                "depends_on" => Some(EdgeKind::DependsOn),
                _ => None,
            };
            if from_at.is_none() {
                self.add(place.clone(), ProblemKind::MissingNode { missing: from, count: nodes.len() });
            }
            if to_at.is_none() && from != to {
                self.add(place.clone(), ProblemKind::MissingNode { missing: to, count: nodes.len() });
            }
            if from == to && from_at.is_some() {
                self.add(place.clone(), ProblemKind::SelfEdge);
            }
            if known_kind.is_none() {
                self.add(place, ProblemKind::UnknownEdgeKind(kind));
            }
            let (Some(from), Some(to), Some(kind)) = (from_at, to_at, known_kind) else { continue };
            if self.0.len() > before {
                continue;
            }
            match by_ends.entry((from, to)) {
                Entry::Vacant(entry) => {
                    entry.insert(edges.len());
                    edges.push(Edge(from, to, kind));
                }
                Entry::Occupied(entry) if kind == EdgeKind::BuildsIn => edges[*entry.get()].2 = kind,
                Entry::Occupied(_) => {}
            }
        }
        edges
    }

    fn lineage(&mut self, edges: &[Edge], nodes: &[Node]) {
        let lineage = edges.iter().filter(|edge| edge.2 == EdgeKind::BuildsIn);
        let parents = Csr::new(nodes.len(), lineage.map(|edge| (edge.1 as usize, edge.0)));
        for (node, Node { step, .. }) in nodes.iter().enumerate() {
            if let parents @ [_, _, ..] = parents.row(node) {
                let keys = parents.iter().map(|&parent| Arc::clone(&nodes[parent as usize].step.key)).collect();
                let place = Place::Step { node, key: Arc::clone(&step.key) };
                self.add(place, ProblemKind::ManyLineageParents(keys));
            }
        }
    }

    fn cycles(&mut self, edges: &[Edge], nodes: &[Node]) {
        let children = Csr::new(nodes.len(), edges.iter().map(|edge| (edge.0 as usize, edge.1)));
        for cycle in cycles::find(&children) {
            let keys = cycle.iter().map(|&node| Arc::clone(&nodes[node as usize].step.key)).collect();
            self.add(Place::Pipeline, ProblemKind::Cycle(keys));
        }
    }
}

fn node_at(node: u64, nodes: &[Node]) -> Option<u32> {
    u32::try_from(node).ok().filter(|&node| (node as usize) < nodes.len())
}

fn endpoint(node: u64, nodes: &[Node]) -> Endpoint {
    let key = node_at(node, nodes).map(|node| Arc::clone(&nodes[node as usize].step.key));
    Endpoint { node, key }
}
