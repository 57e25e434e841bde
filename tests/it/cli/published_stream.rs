//! `--format json` against the published readers: every line decodes, and is rendered with the right meaning.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use hm_plugin_protocol::BuildEvent as Theirs;
use hm_render::{HumanRenderer, OutputRenderer, ProgressRenderer};
use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    project::{Ended, Project},
};

/// A destination that outlives a renderer.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Decodes all lines, and returns what the two published renderers show.
#[track_caller]
fn rendered(stdout: &str) -> (String, String) {
    let (lines, bars) = (Shared::default(), Shared::default());
    let (mut human, mut progress) =
        (HumanRenderer::new(lines.clone(), false), ProgressRenderer::new(bars.clone(), false));
    for line in stdout.lines() {
        let event: Theirs = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        human.on_event(&event);
        progress.on_event(&event);
    }
    (lines.text(), bars.text())
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

/// Creates a project with a step for every kind of end.
fn mixed() -> Project {
    let step = |key: &str, cmd: &str, more: Value| {
        let mut step = json!({ "key": key, "cmd": cmd });
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "step": step, "env": {} })
    };
    let nodes = [
        step("base", "echo base", json!({ "cache": { "policy": "forever", "key": "0123abcd" } })),
        step("pass", "echo passed", json!({})),
        step("fail", "echo oops >&2; exit 7", json!({})),
        step("skip", "echo never", json!({})),
        step("slow", "sleep 100", json!({ "timeout_seconds": 1 })),
        step("side", "echo side", json!({})),
    ];
    let edges = json!([[0, 1, "builds_in"], [0, 2, "builds_in"], [2, 3, "builds_in"], [1, 5, "builds_in"]]);
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    let project = Project::new();
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    project
}

#[test]
fn the_published_crates_decode_and_render_every_line_of_a_mixed_build() {
    let project = mixed();
    let run = |format: &str, args: &[&str]| {
        Ended::of(project.hm(&["run", "--runner", "sandbox", "--keep-going", "--format", format]).args(args))
    };
    let first = run("json", &[]);
    if !usable("the sandbox", first.code != Some(3), &first.stderr) {
        return;
    }
    let first = first.expect(1);
    let events = first.events();
    let ids: Vec<&Value> = of_kind(&events, "step_queued").iter().map(|event| &event["step_id"]).collect();
    let started = of_kind(&events, "step_start").into_iter().find(|event| event["step_id"] == *ids[0]).unwrap();
    assert_eq!(started["cache_miss"]["reason"], "absent");

    let second = run("json", &[]).expect(1);
    let (lines, bars) = rendered(&second.stdout);
    let events = second.events();
    // Positions in chains: a chain ends at the fork below `base`.
    let positions: Vec<u64> =
        of_kind(&events, "step_queued").iter().map(|event| event["chain_idx"].as_u64().unwrap()).collect();
    assert_eq!(positions, [0, 0, 0, 1, 0, 1]);
    assert_eq!(events[0]["plan"]["chain_count"], 4);
    let ids: Vec<&Value> = of_kind(&events, "step_queued").iter().map(|event| &event["step_id"]).collect();
    assert_eq!(of_kind(&events, "step_cache_hit")[0]["key"], "0123abcd");
    let end = |at: usize| of_kind(&events, "step_end").into_iter().find(|event| event["step_id"] == *ids[at]);
    for (at, code) in [(0, 0), (1, 0), (2, 7), (4, 124), (5, 0)] {
        let end = end(at).unwrap();
        assert_eq!(end["exit_code"], code, "{end}");
        assert_eq!(end["snapshot"].is_string(), code == 0, "{end}");
    }
    assert!(end(3).is_none(), "a skipped step has no end");
    let not_run = &events.last().unwrap()["not_run"];
    assert_eq!(
        (&not_run[0]["key"], &not_run[0]["status"], not_run.as_array().unwrap().len()),
        (&json!("skip"), &json!("skipped"), 1)
    );
    let failed: Vec<_> =
        of_kind(&events, "chain_failed").iter().map(|event| event["message"].as_str().unwrap()).collect();
    assert_eq!(failed.len(), 2);
    for message in ["step 'fail' exited with code 7", "step 'slow' timed out after 1s"] {
        assert!(failed.contains(&message), "{failed:?}");
    }
    assert!(
        lines.contains("[base] cache hit (") && lines.contains("[fail] end exit=7 ") && !lines.contains("[skip]"),
        "{lines}"
    );
    assert!(lines.contains("at step 'fail' (exit=7): step 'fail' exited with code 7\n"), "{lines}");
    assert!(bars.contains("--- exit 7") || bars.contains("failed (exit 7)"), "{bars}");
    assert!(
        bars.contains("failed (exit 124)") && !bars.contains("exit -1") && !bars.contains("echo never failed"),
        "{bars}"
    );

    // A build that is stopped: one step runs, and others never do.
    let stopped = run("json", &["--timeout", "400ms", "-j", "1", "--no-cache"]).expect(124);
    let (_, bars) = rendered(&stopped.stdout);
    assert!(!bars.contains("exit -1"), "{bars}");

    // Everything else is in the full stream.
    let full = run("json-full", &["--no-cache"]).expect(1).events();
    assert!(of_kind(&full, "step_end").iter().any(|event| event["status"] == "skipped" && event["exit_code"] == -1));
    assert!(full.iter().zip(0..).all(|(event, seq): (&Value, u64)| event["seq"] == seq));
}
