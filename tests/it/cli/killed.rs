//! SIGKILL of `hm`, and the state that the next start finds.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use hm_exec::{
    source::{self, SourceTimes},
    store::{Base, Cached, CommitRequest, IdMap, KeepAs, LayerId, Store},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    backends::{skip_optional, usable},
    project::{Ended, Project, eventually},
};

fn key(n: u8) -> [u8; 32] {
    [n; 32]
}

/// Caches a step that writes its number, and a few files.
fn cache(project: &Project, store: &std::sync::Arc<Store>, n: u8) {
    let source = source::freeze(store, &project.dir, SourceTimes::Normal, &std::sync::atomic::AtomicBool::new(false))
        .unwrap()
        .id;
    let staging = store.stage().unwrap();
    for file in 0..20 {
        fs::write(staging.upper().join(format!("file-{file}")), vec![n; 5000]).unwrap();
    }
    let request = CommitRequest { parent: None, base: Base::Host, source, delta: None, id_map: IdMap::Single };
    let snapshot = store.commit(staging, request).unwrap();
    let step = format!("step-{n}");
    store
        .keep(&snapshot, KeepAs::Cached { key: &key(n), run: Uuid::nil(), pipeline: "ci", step: &step, created_at: 0 })
        .unwrap();
}

/// Returns how many steps are cached. Fails if a cached snapshot lacks a file that its step wrote.
fn check(store: &Store) -> usize {
    let found = (0..=u8::MAX).filter(|n| match store.steps().cached(&key(*n)).unwrap() {
        Cached::Found { snapshot, .. } => {
            let layer = store.layers().dir(&store.snapshots().get(&snapshot).unwrap().layers[0]);
            let whole = |file| fs::read(layer.join(format!("file-{file}"))).unwrap() == vec![*n; 5000];
            assert!((0..20).all(whole));
            true
        }
        Cached::Absent => false,
        damaged => panic!("{damaged:?}"),
    });
    found.count()
}

/// Returns the names on disk that have no row in the index, and the rows that have nothing on disk.
fn unindexed(store: &Path) -> Vec<String> {
    let index = Connection::open(store.join("index.db")).unwrap();
    let mut select = index.prepare("SELECT id FROM layers").unwrap();
    let rows: Vec<String> = select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let names: Vec<String> = names(&store.join("layers"));
    let odd = names.iter().filter(|name| !rows.contains(name)).chain(rows.iter().filter(|row| !names.contains(row)));
    assert!(names.iter().all(|name| LayerId::parse(name).is_some()));
    odd.cloned().collect()
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_store_opens_and_is_consistent_after_a_killed_collection() {
    let project = Project::with_steps(&[]);
    let mut next = 0;
    for round in 0..20_u64 {
        let store = Store::open(&project.store).unwrap();
        for _ in 0..10 {
            cache(&project, &store, next);
            next = next.wrapping_add(1);
        }
        let before = check(&store);
        drop(store);
        let mut gc = project.hm(&["cache", "gc", "--max-size", "1M", "--min-free", "0"]);
        let mut gc = gc.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Over the rounds, the delay reaches every point between start and end.
        std::thread::sleep(Duration::from_millis(round * 2));
        gc.kill().unwrap();
        gc.wait().unwrap();
        drop(Store::open(&project.store).unwrap());
        assert_eq!(unindexed(&project.store), Vec::<String>::new());
        assert_eq!((names(&project.store.join("tmp")).len(), names(&project.store.join("locks")).len()), (0, 0));
        let store = Store::open(&project.store).unwrap();
        assert!(check(&store) <= before);
    }
    let report = Ended::of(&mut project.hm(&["cache", "clean", "--format", "json"])).expect(0).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["waiting_layers"], 0);
    // The layer of the source may stay if no collection removed it.
    assert!(names(&project.store.join("layers")).len() <= 1);
    assert_eq!(unindexed(&project.store), Vec::<String>::new());
}

/// Starts a step with limits that runs in the sandbox until `hm` is killed. Returns `None` if this machine
/// has no sandbox.
fn run_limited(project: &Project) -> Option<Child> {
    let step = json!({
        "key": "step", "cmd": "echo up; sleep 4242", "runner_args": { "memory": "64m", "pids": 50 }
    });
    let graph =
        json!({ "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [] });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    let log = File::create(project.dir.with_file_name("log")).unwrap();
    let mut hm = project.hm(&["run", "--runner", "sandbox", "--format", "human"]);
    let mut hm = hm.stdout(log).stderr(Stdio::piped()).spawn().unwrap();
    let mut ended = false;
    eventually("the step to be up", || {
        ended = hm.try_wait().unwrap().is_some();
        ended || fs::read_to_string(project.dir.with_file_name("log")).unwrap().contains("| up\n")
    });
    if ended {
        let ended = Ended::from(hm.wait_with_output().unwrap());
        assert!(!usable("runner sandbox", ended.code != Some(3), &ended.stderr), "{ended:?}");
        return None;
    }
    Some(hm)
}

/// Returns the number of control groups that a process made.
fn groups(pid: u32) -> usize {
    let name = format!("hm-{pid}-*");
    let found = std::process::Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &name]).output();
    found.map_or(0, |found| String::from_utf8_lossy(&found.stdout).lines().count())
}

#[test]
fn a_killed_run_leaves_no_mount_and_the_next_collection_removes_its_control_groups() {
    let project = Project::new();
    let Some(mut hm) = run_limited(&project) else { return };
    let pid = hm.id();
    let made = groups(pid);
    hm.kill().unwrap();
    hm.wait().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(project.store.to_str().unwrap()), "{mounts}");
    if made == 0 {
        skip_optional("control groups", "none can be made");
        return;
    }
    let mut reaped = 0;
    eventually("the groups to be gone", || {
        let report = Ended::of(&mut project.hm(&["cache", "gc", "--format", "json"])).expect(0).stdout;
        let report: Value = serde_json::from_str(&report).unwrap();
        reaped += report["reaped"]["control groups"].as_u64().unwrap_or_default();
        groups(pid) == 0
    });
    assert!(reaped > 0);
}
