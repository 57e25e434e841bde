//! Random builds on the paused clock: what must hold of each, whatever its steps do.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use hm_exec::{BuildEvent, BuildOutcome, BuildStatus, StepStatus::Passed};
use proptest::{collection::vec, prelude::*};

use crate::{
    pipelines::{Graph, graphs},
    scripted::{Act, Memory, PASS, Scripted, Seen, json_lines, request, statuses},
};

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..3_i32, 0..50_u64).prop_map(|(code, after_ms)| Act::Exit { code: (code - 1).max(0), after_ms }),
        4 => Just(PASS),
        2 => Just(Act::Print(b"some\noutput")),
        1 => Just(Act::Break),
        1 => Just(Act::BreakForGood),
        1 => Just(Act::Swell),
        1 => Just(Act::OwnLimit),
    ]
}

#[derive(Debug, Clone)]
struct Scenario {
    graph: Graph,
    scripts: Vec<Vec<Act>>,
    parallelism: usize,
    keep_going: bool,
    cancel_after_ms: Option<u64>,
    timeout_ms: Option<u64>,
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let options = (
        1..5_usize,
        any::<bool>(),
        proptest::option::weighted(0.3, 0..200_u64),
        proptest::option::weighted(0.3, 0..200_u64),
    );
    (graphs(0..=30), options).prop_flat_map(|(graph, (parallelism, keep_going, cancel_after_ms, timeout_ms))| {
        vec(vec(acts(), 1..4), graph.len).prop_map(move |scripts| Scenario {
            graph: graph.clone(),
            scripts,
            parallelism,
            keep_going,
            cancel_after_ms,
            timeout_ms,
        })
    })
}

fn play(scenario: &Scenario) -> (Vec<BuildEvent>, BuildOutcome, Memory) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut runner = Scripted::new([]);
        runner.script =
            scenario.scripts.iter().enumerate().map(|(step, acts)| (format!("s{step}"), acts.clone())).collect();
        let mut request = request(&scenario.graph);
        request.options.keep_going = scenario.keep_going;
        request.options.timeout = scenario.timeout_ms.map(Duration::from_millis);
        let engine = runner.engine().parallelism(NonZeroUsize::new(scenario.parallelism).unwrap()).build().unwrap();
        let (mut events, control) = engine.start(request).await.unwrap().into_parts();
        let cancelling = async {
            if let Some(ms) = scenario.cancel_after_ms {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                control.cancel();
            }
        };
        let mut seen = Vec::new();
        let reading = async {
            while let Some(event) = events.next().await {
                seen.push(event);
            }
        };
        tokio::join!(reading, cancelling);
        let outcome = control.wait().await.unwrap();
        let memory = std::mem::take(&mut *runner.memory.lock().unwrap());
        (seen, outcome, memory)
    })
}

fn check(scenario: &Scenario) {
    let (events, outcome, memory) = play(scenario);
    let ids: BTreeMap<_, _> = outcome.steps.iter().enumerate().map(|(step, summary)| (summary.step_id, step)).collect();
    assert_eq!(ids.len(), scenario.graph.len);

    let mut ended = BTreeMap::new();
    let mut started = vec![0; scenario.graph.len];
    for (at, event) in events.iter().enumerate() {
        match event {
            BuildEvent::StepStart { step_id, attempt, .. } => {
                let step = ids[step_id];
                started[step] += 1;
                assert_eq!(*attempt, started[step]);
                for parent in scenario.graph.parents(step) {
                    assert_eq!(ended.get(&parent), Some(&Passed), "s{step} started before s{parent} passed");
                }
            }
            BuildEvent::StepLog { step_id, .. } | BuildEvent::StepRetry { step_id, .. } => {
                assert!(started[ids[step_id]] > 0 && !ended.contains_key(&ids[step_id]));
            }
            BuildEvent::StepEnd { step_id, status, .. } => {
                assert_eq!(ended.insert(ids[step_id], *status), None, "ended twice");
            }
            BuildEvent::BuildEnd { status, .. } => {
                assert_eq!((at + 1, *status), (events.len(), outcome.status));
            }
            _ => {}
        }
    }
    assert!(matches!(events.last(), Some(BuildEvent::BuildEnd { .. })));
    assert_eq!(ended.values().copied().collect::<Vec<_>>(), statuses(&outcome));
    assert_eq!(started, outcome.steps.iter().map(|step| step.attempts).collect::<Vec<_>>());
    assert_eq!(outcome.status == BuildStatus::Passed, statuses(&outcome).iter().all(|status| *status == Passed));

    assert!(memory.most_running <= scenario.parallelism);
    assert_eq!((memory.running, memory.dropped), (0, vec![]));
    let mut made: Vec<String> = Vec::new();
    for Seen { key, parent, .. } in &memory.seen {
        let step = key[1..].parse::<usize>().unwrap();
        let lineage = scenario.graph.edges.iter().find(|edge| edge.1 == step && edge.2);
        assert_eq!(*parent, lineage.map(|(parent, ..)| format!("scripted:s{parent}")));
    }
    for &(parent, _, builds_in) in &scenario.graph.edges {
        if builds_in && ended[&parent] == Passed {
            made.push(format!("scripted:s{parent}"));
        }
    }
    made.sort();
    made.dedup();
    let mut reaped = memory.reaped;
    reaped.sort();
    assert_eq!(reaped, made, "each snapshot is handed back once");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_build_keeps_the_rules(scenario in scenarios()) {
        check(&scenario);
    }

    #[test]
    fn the_same_random_build_twice_gives_the_same_bytes(scenario in scenarios()) {
        prop_assert_eq!(json_lines(&play(&scenario).0), json_lines(&play(&scenario).0));
    }
}
