//! Validates the raw IR: returns a valid pipeline, or the list of all errors.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    sync::Arc,
};

use serde_json::Number;

use super::{
    Edge, EdgeKind, Env, InvalidPipeline, Node, Pipeline,
    adjacency::{self, Adjacency, Link, lineage},
    csr::Csr,
    cycles,
    problem::{Endpoint, MAX_ARG_BYTES, ProblemKind, ProblemPlace, Problems},
    raw::{self, RawEdge, RawEdges, RawGraph, RawNodes, RawPipeline},
};
use crate::model::StepIndex;

/// A valid pipeline, and what its validation found out about its graph.
#[derive(Debug)]
pub(crate) struct Validated {
    pub(crate) pipeline: Pipeline,
    pub(crate) adjacency: Adjacency,
    /// The steps in [topological order](Adjacency::order).
    pub(crate) order: Vec<StepIndex>,
}

/// Decodes and validates v0 IR, as [`Pipeline::decode`] does.
pub(crate) fn decode(json: &[u8]) -> Result<Validated, InvalidPipeline> {
    validate(raw::decode(json)?, Problems::default())
}

/// Checks everything that can be checked in the IR itself. `problems` are those that were found before.
pub(super) fn validate(raw: RawPipeline, mut problems: Problems) -> Result<Validated, InvalidPipeline> {
    let RawPipeline { version, default_image, timeout_seconds, graph } = raw;
    let RawGraph { nodes, node_holes, edge_property, edges } = graph;

    if version != Pipeline::VERSION {
        problems.add(ProblemPlace::Pipeline, ProblemKind::UnknownVersion(version));
    }
    let timeout_seconds = check_timeout(timeout_seconds, &mut problems);
    check_nul(default_image.as_deref(), "default_image", || ProblemPlace::Pipeline, &mut problems);
    if !node_holes.is_empty() {
        problems.add(ProblemPlace::Pipeline, ProblemKind::NodeHoles);
    }
    if edge_property != "directed" {
        problems.add(ProblemPlace::Pipeline, ProblemKind::Undirected(edge_property));
    }
    for (count, max, kind) in [
        (nodes.nodes.len(), Pipeline::MAX_STEPS, ProblemKind::TooManySteps { count: nodes.nodes.len() }),
        (edges.edges.len(), MAX_EDGES, ProblemKind::TooManyEdges { count: edges.edges.len() }),
    ] {
        if count > max {
            problems.add(ProblemPlace::Pipeline, kind);
            problems.check()?;
        }
    }

    let nodes = check_nodes(nodes, &mut problems);
    let mut edges = check_edges(edges, &nodes, &mut problems);
    let mut parents = adjacency::parents(nodes.len(), &edges);
    if have_duplicates(&parents) {
        edges = without_duplicates(edges);
        parents = adjacency::parents(nodes.len(), &edges);
    }
    check_lineage(&parents, &nodes, &mut problems);
    let adjacency = Adjacency { parents, children: adjacency::children(nodes.len(), &edges) };
    let order = adjacency.order().unwrap_or_else(|| {
        report_cycles(&edges, &nodes, &mut problems);
        Vec::new()
    });
    problems.check()?;
    Ok(Validated { pipeline: Pipeline { default_image, timeout_seconds, nodes, edges }, adjacency, order })
}

/// The maximum number of edges that can be indexed.
const MAX_EDGES: usize = u32::MAX as usize;

/// Checks that these variables can be passed to a program.
pub(crate) fn check_env(env: &Env, place: impl Fn() -> ProblemPlace, problems: &mut Problems) {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            problems.add(place(), ProblemKind::VariableName(name.clone()));
        }
        if value.contains('\0') {
            problems.add(place(), ProblemKind::VariableValue(name.clone()));
        }
        let bytes = name.len() + 1 + value.len();
        if bytes > MAX_ARG_BYTES {
            problems.add(place(), ProblemKind::VariableTooLong { name: name.clone(), bytes });
        }
    }
}

/// Checks the time limit of the pipeline.
fn check_timeout(seconds: Option<Number>, problems: &mut Problems) -> Option<NonZeroU32> {
    let seconds = seconds?;
    let valid = raw::timeout(&seconds);
    if valid.is_none() {
        problems.add(ProblemPlace::Pipeline, ProblemKind::Timeout(seconds.to_string()));
    }
    valid
}

fn check_nul(text: Option<&str>, field: &'static str, place: impl Fn() -> ProblemPlace, problems: &mut Problems) {
    if text.is_some_and(|text| text.contains('\0')) {
        problems.add(place(), ProblemKind::NulByte { field });
    }
}

fn check_nodes(raw: RawNodes, problems: &mut Problems) -> Vec<Node> {
    let RawNodes { nodes, wrong_timeouts } = raw;
    let duplicates = duplicate_keys(&nodes);
    let mut wrong_timeouts = wrong_timeouts.into_iter().peekable();
    for (node, Node { step, env }) in nodes.iter().enumerate() {
        let place = || ProblemPlace::Step { node, key: Arc::clone(&step.key) };
        if step.key.is_empty() {
            problems.add(place(), ProblemKind::EmptyKey);
        } else if let Some(&first) = duplicates.get(&node) {
            problems.add(place(), ProblemKind::DuplicateKey { first, node });
        }
        check_nul(Some(&step.key), "key", place, problems);
        check_nul(Some(&step.cmd), "cmd", place, problems);
        if step.cmd.len() > MAX_ARG_BYTES {
            problems.add(place(), ProblemKind::CommandTooLong { bytes: step.cmd.len() });
        }
        check_nul(step.image.as_deref(), "image", place, problems);
        if let Some((_, wrong)) = wrong_timeouts.next_if(|(wrong, _)| *wrong == node) {
            problems.add(place(), ProblemKind::Timeout(wrong.to_string()));
        }
        check_env(env, place, problems);
        // The DSL merges the step's own variables into the node's, but IR written by hand may not.
        if let Some(own) = &step.env
            && own.iter().any(|(name, value)| env.get(name) != Some(value))
        {
            check_env(own, place, problems);
        }
    }
    nodes
}

/// Returns, for each node whose key an earlier node has, the first such node.
fn duplicate_keys(nodes: &[Node]) -> BTreeMap<usize, usize> {
    // Equal keys have equal hashes, and a sorted list of hashes takes a fraction of the time and memory of a
    // table of keys. The hashes have a random seed, so only a duplicate makes the table necessary.
    let hasher = RandomState::new();
    let mut hashes: Vec<u64> = nodes.iter().map(|node| hasher.hash_one(&*node.step.key)).collect();
    hashes.sort_unstable();
    if hashes.windows(2).all(|pair| pair[0] != pair[1]) {
        return BTreeMap::new();
    }
    let mut first: HashMap<&str, usize> = HashMap::with_capacity(nodes.len());
    let all = nodes.iter().enumerate();
    all.filter_map(|(at, node)| {
        let first = *first.entry(&node.step.key).or_insert(at);
        (first < at).then_some((at, first))
    })
    .collect()
}

/// Returns the edges that are valid by themselves.
fn check_edges(raw: RawEdges, nodes: &[Node], problems: &mut Problems) -> Vec<Edge> {
    let RawEdges { edges, odd } = raw;
    let is_valid = |edge: &Edge| edge.0 != edge.1 && (edge.0.max(edge.1) as usize) < nodes.len();
    if odd.is_empty() && edges.iter().all(is_valid) {
        return edges;
    }
    let mut valid = Vec::with_capacity(edges.len());
    let count = edges.len() + odd.len();
    let (mut edges, mut odd) = (edges.into_iter(), odd.into_iter().peekable());
    for edge in 0..count {
        let raw = match odd.next_if(|(at, _)| *at == edge) {
            Some((_, raw)) => raw,
            None => edges.next().map(|Edge(from, to, kind)| RawEdge(from.into(), to.into(), Ok(kind))),
        };
        let Some(RawEdge(from, to, kind)) = raw else {
            problems.add(ProblemPlace::Pipeline, ProblemKind::NullEdge(edge));
            continue;
        };
        let place = || ProblemPlace::Edge { edge, from: endpoint(from, nodes), to: endpoint(to, nodes) };
        let kind = kind.map_err(|unknown| problems.add(place(), ProblemKind::UnknownEdgeKind(unknown)));
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
        if let (Some(from), Some(to), Ok(kind)) = (from, to, kind) {
            valid.push(Edge(from, to, kind));
        }
    }
    valid
}

/// Returns whether there are several edges between any two steps.
fn have_duplicates(parents: &Csr<Link>) -> bool {
    let mut seen_by = vec![u32::MAX; parents.rows()];
    (0..parents.rows()).any(|step| {
        let is_seen = |parent: &Link| std::mem::replace(&mut seen_by[parent.step.get()], step as u32) == step as u32;
        parents.row(step).iter().any(is_seen)
    })
}

/// Keeps the first edge between any two steps. It is `builds_in` if any of them was.
fn without_duplicates(edges: Vec<Edge>) -> Vec<Edge> {
    let mut kept: Vec<Edge> = Vec::with_capacity(edges.len());
    let mut by_ends: HashMap<(u32, u32), usize> = HashMap::with_capacity(edges.len());
    for Edge(from, to, kind) in edges {
        let first = *by_ends.entry((from, to)).or_insert(kept.len());
        match kept.get_mut(first) {
            None => kept.push(Edge(from, to, kind)),
            Some(first) if kind == EdgeKind::BuildsIn => first.2 = kind,
            Some(_) => {}
        }
    }
    kept
}

fn check_lineage(parents: &Csr<Link>, nodes: &[Node], problems: &mut Problems) {
    for (node, Node { step, .. }) in nodes.iter().enumerate() {
        if lineage(parents.row(node)).nth(1).is_some() {
            let place = ProblemPlace::Step { node, key: Arc::clone(&step.key) };
            let parents = lineage(parents.row(node)).map(|parent| Arc::clone(&nodes[parent.get()].step.key));
            problems.add(place, ProblemKind::ManyLineageParents(parents.collect()));
        }
    }
}

fn report_cycles(edges: &[Edge], nodes: &[Node], problems: &mut Problems) {
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
