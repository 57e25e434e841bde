//! `hm run` on a second machine with an empty store: it finds the results of the first machine at the engine
//! and runs nothing.

use std::{fs, path::Path};

use serde_json::Value;

use crate::support::{
    buildgrid::BuildGrid,
    images::Image,
    project::{Ended, Project, ir},
    remote_engine::{TestEngine, step_program},
    stock_engine::{Function, Habits, StockEngine},
};

/// Returns the pipeline of a repository with three components. Every step is cached under a key that depends
/// on `name` and runs on the runner that `runner` names.
fn pipeline(name: &str, runner: impl Fn(usize) -> &'static str) -> String {
    let mut ir: Value = serde_json::from_str(include_str!("../../fixtures/ir/monorepo-ci.json")).unwrap();
    for (at, node) in ir["graph"]["nodes"].as_array_mut().unwrap().iter_mut().enumerate() {
        let step = &mut node["step"];
        let key = step["key"].as_str().unwrap().to_owned();
        step["cmd"] = format!("cat input; echo {key} >> /made; cat /made; mkdir -p out; echo {key} > out/{key}").into();
        step["cache"] = serde_json::json!({ "policy": "forever", "key": format!("{name} {key}") });
        step["runner"] = runner(at).into();
    }
    ir.to_string()
}

/// A function from the index of a step to its runner.
type Runner = fn(usize) -> &'static str;

/// The names of the pipelines, and the runner of each step in them.
const PIPELINES: [(&str, Runner); 2] =
    [("cloud", |_| "cloud"), ("mixed", |at| if at % 2 == 1 { "sandbox" } else { "cloud" })];

/// Returns how many events of a kind there are.
fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}

fn run(project: &Project, store: &str, image: &str, args: &[&str]) -> Ended {
    let mut hm = project.hm(&["run", "--format", "json", "--image", image]);
    Ended::of(hm.args(args).env("HM_CACHE_DIR", project.store.with_file_name(store)))
}

fn layers(project: &Project, store: &str) -> usize {
    let dir = project.store.with_file_name(store).join("layers");
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn write_image(project: &Project) -> String {
    let layout = project.dir.with_file_name("image");
    Image::shell().write_oci(&layout, "it");
    format!("debian:bookworm=oci:{}:it", Path::display(&layout))
}

#[test]
fn a_second_machine_reuses_the_results_that_a_first_one_made_on_an_engine() {
    if step_program().is_none() {
        return;
    }
    let Some(engine) = BuildGrid::start() else { return };
    let workers = [engine.worker("first"), engine.worker("second")];
    // No worker is left for the second machine that could run a step.
    results_are_reused(&engine.url(), || drop(workers));
}

#[test]
fn a_second_machine_reuses_the_results_that_a_first_one_made_on_a_stock_engine() {
    if step_program().is_none() {
        return;
    }
    for habits in [Habits::nativelink(), Habits { functions: vec![Function::Blake3], ..Habits::buildbarn() }] {
        let engine = StockEngine::start(habits);
        let mut executed = 0;
        results_are_reused(&engine.url(), || executed = engine.executed());
        // All steps of one pipeline, and every other one of the second.
        assert_eq!((executed, engine.executed()), (18, 18));
    }
}

/// Runs pipelines on one machine, and after `between` on another one.
fn results_are_reused(remote: &str, between: impl FnOnce()) {
    let project = Project::new();
    let image = write_image(&project);
    project.file("input", "from the source\n");
    for (name, runner) in PIPELINES {
        project.file(".hm/ci.json", &pipeline(name, runner));
        let args = ["--remote", remote, "--remote-cache", "both"];
        // Results of the engine's own runner are shared without an option.
        let args = if name == "cloud" { &args[..2] } else { &args[..] };
        let cold = run(&project, &format!("{name}-first"), &image, args).expect(0).events();
        assert_eq!((count(&cold, "step_start"), count(&cold, "step_cache_hit")), (12, 0), "{name}");
    }
    between();
    for (name, runner) in PIPELINES {
        project.file(".hm/ci.json", &pipeline(name, runner));
        let args = ["--remote", remote, "--remote-cache", "read"];
        let store = format!("{name}-second");
        let warm = run(&project, &store, &image, &args).expect(0).events();
        assert_eq!((count(&warm, "step_start"), count(&warm, "step_cache_hit")), (0, 12), "{name}");
        assert_eq!(layers(&project, &store), 0, "{name}: nobody needed a file");
        // The log of the step was shared, too.
        let step = warm.iter().find_map(|event| event["key"].as_str()).unwrap();
        let mut hm = project.hm(&["logs", step]);
        let log = Ended::of(hm.env("HM_CACHE_DIR", project.store.with_file_name(&store))).expect(0);
        assert!(log.stdout.contains("from the source\n"), "{}", log.stdout);
    }
}

#[test]
fn a_damaged_remote_cache_is_reported_and_an_unreachable_one_is_a_warning() {
    let Some(engine) = TestEngine::start() else { return };
    let project = Project::new();
    let image = write_image(&project);
    let step = |cmd: &str| {
        let mut ir: Value = serde_json::from_str(&ir(&[("step", cmd, None)])).unwrap();
        ir["graph"]["nodes"][0]["step"]["image"] = "debian:bookworm".into();
        ir["graph"]["nodes"][0]["step"]["cache"] = serde_json::json!({ "policy": "forever", "key": project.dir });
        project.file(".hm/ci.json", &ir.to_string());
    };
    step("echo made");
    let url = &engine.options().url;
    let cold = run(&project, "first", &image, &["--remote", url, "--remote-cache", "write"]).expect(0).events();
    assert_eq!(count(&cold, "step_start"), 1);
    // These runs do not ask to read the cache, and steps that ran on this machine are not shared by default.
    for args in [
        &["--remote", url, "--remote-cache", "write"][..],
        &["--remote", url],
        &["--remote", url, "--remote-cache", "off"],
    ] {
        let store = format!("apart-{}-{}", args.len(), args.last().unwrap().len());
        let again = run(&project, &store, &image, args).expect(0).events();
        assert_eq!(count(&again, "step_start"), 1, "{args:?}");
    }
    let warm = run(&project, "second", &image, &["--remote", url, "--remote-cache", "read"]).expect(0).events();
    assert_eq!(count(&warm, "step_cache_hit"), 1);
    let away = run(&project, "third", &image, &["--remote", "grpc://127.0.0.1:1", "--remote-cache", "both"]).expect(0);
    assert!(away.stderr.contains("continuing without the remote cache"), "{}", away.stderr);
    assert_eq!(count(&away.events(), "step_start"), 1);
    let nowhere = run(&project, "third", &image, &["--remote-cache", "both"]).expect(2);
    assert!(nowhere.stderr.contains("--remote URL"), "{}", nowhere.stderr);
    let wrong = run(&project, "third", &image, &["--remote", "engine:80", "--remote-cache", "both"]).expect(2);
    assert!(wrong.stderr.contains("grpc://HOST:PORT"), "{}", wrong.stderr);
}

#[test]
fn results_of_another_machine_have_their_outputs_here() {
    let engine = StockEngine::start(Habits::nativelink());
    let project = Project::new();
    let image = write_image(&project);
    let step = |key: &str| {
        let cache = serde_json::json!({ "policy": "forever", "key": key });
        let args = serde_json::json!({ "outputs": ["*.txt"] });
        let cmd = format!("echo {key} > {key}.txt");
        serde_json::json!({ "step": { "key": key, "cmd": cmd, "cache": cache, "runner_args": args }, "env": {} })
    };
    let graph = serde_json::json!({
        "nodes": [step("base"), step("child")], "node_holes": [], "edge_property": "directed",
        "edges": [[0, 1, "builds_in"]],
    });
    let ir = serde_json::json!({ "version": "0", "default_image": "debian:bookworm", "graph": graph });
    project.file(".hm/ci.json", &ir.to_string());
    let (url, out) = (engine.url(), project.dir.join(".hm/out/ci"));
    for store in ["first", "second"] {
        // What the first machine left does not count for the second.
        let _ = fs::remove_dir_all(&out);
        let args = ["--runner", "sandbox", "--remote", &url, "--remote-cache", "both"];
        let ended = run(&project, store, &image, &args).expect(0);
        let hits = if store == "first" { 0 } else { 2 };
        assert_eq!(count(&ended.events(), "step_cache_hit"), hits, "{}", ended.stdout);
        for (name, text) in [("base/base.txt", "base\n"), ("child/base.txt", "base\n"), ("child/child.txt", "child\n")]
        {
            let found = fs::read_to_string(out.join(name)).ok();
            assert_eq!(found.as_deref(), Some(text), "{store} {name}: {}", ended.stderr);
        }
    }
}
