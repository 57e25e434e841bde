//! Validates the raw IR: returns a valid pipeline, or the list of all errors.

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
    problem::{Endpoint, MAX_ARG_BYTES, ProblemKind, ProblemPlace, Problems},
    raw::{RawEdge, RawGraph, RawNode, RawPipeline},
};

/// Checks everything that can be checked in the IR itself.
pub(super) fn validate(raw: RawPipeline) -> Result<Pipeline, InvalidPipeline> {
    let RawPipeline { version, default_image, timeout_seconds, graph } = raw;
    let RawGraph { nodes, node_holes, edge_property, edges } = graph;
    let mut problems = Problems::default();

    if version != Pipeline::VERSION {
        problems.add(ProblemPlace::Pipeline, ProblemKind::UnknownVersion(version));
    }
    let timeout_seconds = check_timeout(timeout_seconds.as_ref(), &ProblemPlace::Pipeline, &mut problems);
    check_nul(default_image.as_deref(), "default_image", &ProblemPlace::Pipeline, &mut problems);
    if !node_holes.is_empty() {
        problems.add(ProblemPlace::Pipeline, ProblemKind::NodeHoles);
    }
    if edge_property != "directed" {
        problems.add(ProblemPlace::Pipeline, ProblemKind::Undirected(edge_property));
    }
    if nodes.len() > Pipeline::MAX_STEPS {
        problems.add(ProblemPlace::Pipeline, ProblemKind::TooManySteps { count: nodes.len() });
        problems.check()?;
    }

    let nodes = check_nodes(nodes, &mut problems);
    let edges = check_edges(edges, &nodes, &mut problems);
    check_lineage(&edges, &nodes, &mut problems);
    check_cycles(&edges, &nodes, &mut problems);
    problems.check()?;
    Ok(Pipeline { default_image, timeout_seconds, nodes, edges })
}

/// Checks that these variables can be passed to a program.
pub(crate) fn check_env(env: &Env, place: &ProblemPlace, problems: &mut Problems) {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            problems.add(place.clone(), ProblemKind::VariableName(name.clone()));
        }
        if value.contains('\0') {
            problems.add(place.clone(), ProblemKind::VariableValue(name.clone()));
        }
        let bytes = name.len() + 1 + value.len();
        if bytes > MAX_ARG_BYTES {
            problems.add(place.clone(), ProblemKind::VariableTooLong { name: name.clone(), bytes });
        }
    }
}

fn check_timeout(seconds: Option<&Number>, place: &ProblemPlace, problems: &mut Problems) -> Option<NonZeroU32> {
    let seconds = seconds?;
    let valid = seconds.as_u64().and_then(|seconds| u32::try_from(seconds).ok()).and_then(NonZeroU32::new);
    if valid.is_none() {
        problems.add(place.clone(), ProblemKind::Timeout(seconds.to_string()));
    }
    valid
}

fn check_nul(text: Option<&str>, field: &'static str, place: &ProblemPlace, problems: &mut Problems) {
    if text.is_some_and(|text| text.contains('\0')) {
        problems.add(place.clone(), ProblemKind::NulByte { field });
    }
}

fn check_nodes(raw: Vec<RawNode>, problems: &mut Problems) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::with_capacity(raw.len());
    let mut by_key: HashMap<Arc<str>, usize> = HashMap::with_capacity(raw.len());
    for (node, RawNode { step, env }) in raw.into_iter().enumerate() {
        let place = ProblemPlace::Step { node, key: Arc::clone(&step.key) };
        if step.key.is_empty() {
            problems.add(place.clone(), ProblemKind::EmptyKey);
        } else {
            match by_key.entry(Arc::clone(&step.key)) {
                Entry::Vacant(entry) => _ = entry.insert(node),
                Entry::Occupied(entry) => {
                    problems.add(place.clone(), ProblemKind::DuplicateKey { first: *entry.get(), node });
                }
            }
        }
        check_nul(Some(&step.key), "key", &place, problems);
        check_nul(Some(&step.cmd), "cmd", &place, problems);
        if step.cmd.len() > MAX_ARG_BYTES {
            problems.add(place.clone(), ProblemKind::CommandTooLong { bytes: step.cmd.len() });
        }
        check_nul(step.image.as_deref(), "image", &place, problems);
        let timeout_seconds = check_timeout(step.timeout_seconds.as_ref(), &place, problems);
        check_env(&env, &place, problems);
        // The DSL merges the step's own variables into the node's, but IR written by hand may not.
        if let Some(own) = &step.env
            && own.iter().any(|(name, value)| env.get(name) != Some(value))
        {
            check_env(own, &place, problems);
        }
        // The DSL gives most steps the same environment, so neighbouring nodes share it.
        let env = match nodes.last() {
            Some(previous) if *previous.env == env => Arc::clone(&previous.env),
            _ => Arc::new(env),
        };
        let step = CommandStep {
            key: step.key,
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

/// Returns the edges that are valid by themselves, at most one between any two steps.
fn check_edges(raw: Vec<Option<RawEdge>>, nodes: &[Node], problems: &mut Problems) -> Vec<Edge> {
    let mut edges: Vec<Edge> = Vec::with_capacity(raw.len());
    let mut by_ends: HashMap<(u32, u32), usize> = HashMap::with_capacity(raw.len());
    for (edge, raw) in raw.into_iter().enumerate() {
        let Some(RawEdge(from, to, kind)) = raw else {
            problems.add(ProblemPlace::Pipeline, ProblemKind::NullEdge(edge));
            continue;
        };
        let place = || ProblemPlace::Edge { edge, from: endpoint(from, nodes), to: endpoint(to, nodes) };
        let known_kind = match kind.as_str() {
            "builds_in" => Some(EdgeKind::BuildsIn),
            "depends_on" => Some(EdgeKind::DependsOn),
            _ => None,
        };
        if known_kind.is_none() {
            problems.add(place(), ProblemKind::UnknownEdgeKind(kind));
        }
        if from == to {
            problems.add(place(), ProblemKind::SelfEdge);
            continue;
        }
        let [from, to] = [from, to].map(|end| {
            let node = node_at(end, nodes);
            if node.is_none() {
                problems.add(place(), ProblemKind::MissingNode { missing: end, count: nodes.len() });
            }
            node
        });
        let (Some(from), Some(to), Some(kind)) = (from, to, known_kind) else { continue };
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

fn check_lineage(edges: &[Edge], nodes: &[Node], problems: &mut Problems) {
    let lineage = edges.iter().filter(|edge| edge.2 == EdgeKind::BuildsIn);
    let parents = Csr::new(nodes.len(), lineage.map(|edge| (edge.1 as usize, edge.0)));
    for (node, Node { step, .. }) in nodes.iter().enumerate() {
        if let parents @ [_, _, ..] = parents.row(node) {
            let place = ProblemPlace::Step { node, key: Arc::clone(&step.key) };
            problems.add(place, ProblemKind::ManyLineageParents(keys(parents, nodes)));
        }
    }
}

fn check_cycles(edges: &[Edge], nodes: &[Node], problems: &mut Problems) {
    let children = Csr::new(nodes.len(), edges.iter().map(|edge| (edge.0 as usize, edge.1)));
    for cycle in cycles::find(&children) {
        problems.add(ProblemPlace::Pipeline, ProblemKind::Cycle(keys(&cycle, nodes)));
    }
}

fn keys(steps: &[u32], nodes: &[Node]) -> Vec<Arc<str>> {
    steps.iter().map(|&step| Arc::clone(&nodes[step as usize].step.key)).collect()
}

fn node_at(node: u64, nodes: &[Node]) -> Option<u32> {
    u32::try_from(node).ok().filter(|&node| (node as usize) < nodes.len())
}

fn endpoint(node: u64, nodes: &[Node]) -> Endpoint {
    let key = node_at(node, nodes).map(|node| Arc::clone(&nodes[node as usize].step.key));
    Endpoint { node, key }
}
