//! Invariants of arbitrary bytes given to the decoder, with the published reader as the reference. The
//! property tests and the fuzz target share them.

use std::collections::BTreeMap;

use hm_exec::{
    Plan,
    ir::{Edge, EdgeKind, InvalidPipeline, Node, Pipeline, ProblemKind},
    plan::{Base, BindOptions, bind},
    runner::{ArgsSchema, ImageSupport, RunnerDescriptor},
};
use hm_pipeline_ir::{EdgeKind as TheirKind, PipelineGraph, Transition};

/// Checks one input:
/// - nothing panics;
/// - if our decoder accepts it, the published reader accepts it too, and reads the same graph from it and
///   from the JSON that we write;
/// - if the published reader accepts it and ours does not, we refuse it for its meaning (a cycle, a taken
///   key, ...): once the published writer has rewritten it, its shape is no longer an error. Our decoder is
///   stricter about shape where serde is lenient (a record as an array, a kind as an object), which no writer
///   uses.
pub(crate) fn check(json: &[u8]) {
    let theirs = serde_json::from_slice::<PipelineGraph>(json);
    match (Pipeline::decode(json), theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_same_graph(&ours, &theirs);
            let written = serde_json::to_vec(&ours).unwrap();
            assert_eq!(Pipeline::decode(&written).unwrap(), ours);
            assert_same_graph(&ours, &serde_json::from_slice(&written).unwrap());
            let written_by_them = serde_json::to_vec(&theirs).unwrap();
            assert_same_graph(&Pipeline::decode(&written_by_them).unwrap(), &theirs);
            if let Ok(text) = std::str::from_utf8(json) {
                check_plan(&Plan::parse(text).unwrap());
            }
        }
        (Ok(_), Err(error)) => panic!("the published reader refuses what we accept: {error}"),
        (Err(invalid), theirs) => {
            check_report(&invalid);
            let written = theirs.map(|theirs| serde_json::to_vec(&theirs).unwrap());
            if let Some(Err(invalid)) = written.ok().map(|written| Pipeline::decode(&written)) {
                assert!(!invalid.problems().iter().any(|it| matches!(it.kind(), ProblemKind::Json(_))), "{invalid}");
            }
        }
    }
}

fn assert_same_graph(ours: &Pipeline, theirs: &PipelineGraph) {
    assert_eq!(ours.default_image.as_deref(), theirs.default_image());
    assert_eq!(ours.timeout_seconds, theirs.timeout_seconds());
    let graph = theirs.dag().graph();
    assert_eq!(ours.nodes.len(), graph.node_count());
    ours.nodes.iter().zip(graph.raw_nodes()).for_each(|(ours, theirs)| assert_same_node(ours, &theirs.weight));

    // We merge duplicate edges between two steps; `builds_in` implies `depends_on`.
    let mut their_edges = BTreeMap::new();
    for edge in graph.raw_edges() {
        let ends = (edge.source().index() as u32, edge.target().index() as u32);
        let builds_in = their_edges.entry(ends).or_insert(false);
        *builds_in |= edge.weight == TheirKind::BuildsIn;
    }
    let our_edges: BTreeMap<_, _> =
        ours.edges.iter().map(|&Edge(from, to, kind)| ((from, to), kind == EdgeKind::BuildsIn)).collect();
    assert_eq!(our_edges.len(), ours.edges.len());
    assert_eq!(our_edges, their_edges);
}

fn assert_same_node(ours: &Node, theirs: &Transition) {
    let (step, their_step) = (&ours.step, &theirs.step);
    assert_eq!(*ours.env, theirs.env);
    assert_eq!((&*step.key, &*step.cmd), (&*their_step.key, &*their_step.cmd));
    assert_eq!(step.label.as_deref(), their_step.label.as_deref());
    assert_eq!(step.image.as_deref(), their_step.image.as_deref());
    assert_eq!(step.env.as_deref(), their_step.env.as_ref());
    assert_eq!(step.timeout_seconds, their_step.timeout_seconds);
    assert_eq!(step.runner.as_deref(), their_step.runner.as_deref());
    assert_eq!(step.runner_args, their_step.runner_args);
    // The published reader drops a policy's parameters.
    let cache = step.cache.as_ref().map(|cache| (&*cache.policy, cache.key.as_deref()));
    assert_eq!(cache, their_step.cache.as_ref().map(|cache| (&*cache.policy, cache.key.as_deref())));
}

fn check_report(invalid: &InvalidPipeline) {
    assert!(!invalid.problems().is_empty());
    let text = invalid.to_string();
    let lines = 1 + invalid.problems().len() + usize::from(invalid.omitted() > 0);
    assert_eq!(text.lines().count(), lines, "{text}");
    assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "{text:?}");
}

fn check_plan(plan: &Plan) {
    let dag = plan.dag();
    let mut place = vec![usize::MAX; dag.len()];
    dag.order().iter().enumerate().for_each(|(at, step)| place[step.get()] = at);
    for step in dag.steps() {
        assert!(dag.parents(step).iter().all(|parent| place[parent.step.get()] < place[step.get()]));
        assert!(dag.chain(step) < dag.chain_count());
    }
    let env = [("HM".to_owned(), "1".to_owned())].into();
    for options in [BindOptions::default(), BindOptions { env, runner: Some("process".into()), ..Default::default() }] {
        match bind(plan, runners(), &options) {
            Ok(bound) => {
                assert_eq!(bound.steps.len(), dag.len());
                assert!(dag.steps().all(|step| match bound.base(step) {
                    Base::Image(image) => bound.step(step).step.image.as_deref() == Some(image),
                    Base::Snapshot(parent) => bound.step(parent).has_lineage_children,
                }));
            }
            Err(invalid) => check_report(&invalid),
        }
    }
}

/// Returns a set of runners with different requirements.
fn runners() -> Vec<RunnerDescriptor> {
    let descriptor = |name: &str, images, layers, args| {
        let mut runner = RunnerDescriptor::new(name);
        (runner.capabilities.images, runner.capabilities.layers) = (images, layers);
        runner.args = args;
        runner.is_default = name == "docker";
        runner
    };
    vec![
        descriptor("docker", ImageSupport::Any, true, ArgsSchema::of::<BTreeMap<String, u32>>()),
        descriptor("sandbox", ImageSupport::Local, true, ArgsSchema::none()),
        descriptor("process", ImageSupport::HostOnly, false, ArgsSchema::none()),
    ]
}
