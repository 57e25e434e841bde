//! Cached steps on the sandbox: steps that run on top of a cache hit.

use std::fs;

use hm_exec::{
    Engine, Plan, RunRequest,
    StepStatus::{CacheHit, Passed},
    runner::sandbox::SandboxRunner,
    store::{Store, StoreHandle},
};
use serde_json::{Value, json};

use crate::support::{backends::usable, layer_writer::Ended, programs::hm};

#[derive(Debug, hm_exec::RunnerSet)]
struct Sandboxed {
    sandbox: SandboxRunner,
}

fn ir(child: &str) -> Value {
    let step = |key: &str, cmd: &str| json!({ "step": { "key": key, "cmd": cmd, "cache": { "policy": "forever", "key": key } }, "env": {} });
    let nodes = [step("base", "echo base > made; chmod 600 made; cat given"), step("child", child)];
    json!({ "version": "0", "graph": { "nodes": nodes, "node_holes": [], "edge_property": "directed",
            "edges": [[0, 1, "builds_in"]] } })
}

#[tokio::test]
async fn a_changed_child_builds_on_the_cached_snapshot_of_an_earlier_process() {
    let top = tempfile::tempdir().unwrap();
    let (dir, source) = (top.path().join("store"), top.path().join("source"));
    fs::create_dir(&source).unwrap();
    let run = async |child: &str| {
        // A new store each time, as in another process.
        let store = StoreHandle::from(Store::open(&dir).unwrap());
        let sandbox = SandboxRunner::builder().store(store.clone()).helper(hm()).build();
        let engine = Engine::builder(Sandboxed { sandbox }).cache(store).build().unwrap();
        let request = RunRequest::new(Plan::parse(ir(child).to_string()).unwrap(), &source);
        match engine.start(request).await {
            Ok(handle) => Some(Ended::of(handle).await),
            Err(error) => {
                assert!(!usable("the sandbox", false, &error.to_string()));
                None
            }
        }
    };
    fs::write(source.join("given"), "1").unwrap();
    let Some(cold) = run("cat made").await else { return };
    if cold.outcome.status == hm_exec::BuildStatus::Infrastructure {
        assert!(!usable("the sandbox", false, &format!("{:?}", cold.events)));
        return;
    }
    assert_eq!(cold.statuses(), [Passed, Passed], "{:?}", cold.events);
    assert_eq!(run("cat made").await.unwrap().statuses(), [CacheHit, CacheHit]);
    // The child sees the source of this run, edited since the parent ran.
    fs::write(source.join("given"), "2").unwrap();
    let changed = run("grep -q base made && test $(stat -c %a made) = 600 && grep -q 2 given").await.unwrap();
    assert_eq!(changed.statuses(), [CacheHit, Passed], "{:?}", changed.events);
}
