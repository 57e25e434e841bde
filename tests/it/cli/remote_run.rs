//! `hm run --runner cloud`: pipelines on BuildGrid with two workers, on buildbox-casd, and on engines that
//! behave as stock engines do, alone and mixed with the sandbox.

use std::{
    collections::BTreeMap,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    buildgrid::{BuildGrid, until},
    images::Image,
    ir::fixtures,
    processes::{is_asleep, is_running, marker},
    project::{Ended, Project},
    proxy::{Proxy, Rules},
    remote_engine::{TestEngine, step_program},
    stock_engine::{Function, Habits, StockEngine},
};

/// The report of a run for each step: the kinds of its events, how it ended, and its lines.
type Told = BTreeMap<String, (Vec<String>, Value, Vec<String>)>;

/// The name of a pipeline in the fixtures: that of a repository with three components.
const MONOREPO: &str = "monorepo-ci.json";

/// Returns the pipeline of a repository with three components. Each step runs `before` first, on the runner
/// that `runner` names.
fn pipeline(before: &str, runner: impl Fn(usize) -> Option<&'static str>) -> String {
    pipeline_of(MONOREPO, before, runner)
}

/// Returns a pipeline of the fixtures whose steps print what they see and write some files.
fn pipeline_of(name: &str, before: &str, runner: impl Fn(usize) -> Option<&'static str>) -> String {
    let (_, json) = fixtures().into_iter().find(|(file, _)| file == name).unwrap();
    let mut ir: Value = serde_json::from_str(&json).unwrap();
    for (at, node) in ir["graph"]["nodes"].as_array_mut().unwrap().iter_mut().enumerate() {
        let step = &mut node["step"];
        let key = step["key"].as_str().unwrap().to_owned();
        step["cmd"] = format!(
            "{before}; cat input; echo {key} >> /made; cat /made; mkdir -p out; echo {key} > out/{key}; chmod 750 out/{key}; \
             ln -sf {key} out/link; rm -f /data/new; find out /data | sort | while read f; do stat -c '%n %f %u %g' $f; done"
        )
        .into();
        if let Some(runner) = runner(at) {
            step["runner"] = runner.into();
        }
    }
    ir.to_string()
}

/// Returns the report of a finished run, without times and without messages about images.
#[track_caller]
fn told(ended: Ended) -> Told {
    let events = ended.expect(0).events();
    let mut keys = BTreeMap::new();
    let mut told = Told::new();
    for event in &events {
        let (Some(id), Some(kind)) = (event["step_id"].as_str(), event["kind"].as_str()) else { continue };
        if let Some(key) = event["key"].as_str() {
            keys.insert(id.to_owned(), key.to_owned());
        }
        let (kinds, end, lines) = told.entry(keys[id].clone()).or_default();
        match (kind, event["line"].as_str()) {
            // Messages about an image or about a step that runs again are not the step's output.
            ("step_log", Some(line)) if line.starts_with("unpack") || line.starts_with("hm: the engine") => {}
            ("step_log", Some(line)) => lines.push(line.to_owned()),
            _ => kinds.push(kind.to_owned()),
        }
        if kind == "step_end" {
            *end = event["status"].clone();
        }
    }
    told
}

#[test]
fn a_pipeline_on_two_workers_gives_the_same_results_as_in_the_sandbox() {
    if step_program().is_none() {
        return;
    }
    let Some(mut engine) = BuildGrid::start() else { return };
    let mut workers = [engine.worker("first"), engine.worker("second")];
    let project = Project::new();
    Image::shell().write_oci(&project.dir.with_file_name("image"), "it");
    let image = format!("debian:bookworm=oci:{}:it", project.dir.with_file_name("image").display());
    project.file("input", "from the source\n");
    let (remote, logs) = (engine.url(), engine.logstream_url());
    let run_at = |remote: &str, runner: &str, ir: &str| {
        project.file(".hm/ci.json", ir);
        let mut hm = project.hm(&["run", "--runner", runner, "--remote", remote, "--image", &image, "--no-cache"]);
        hm.args(["--format", "json", "--remote-logs", &logs]).stdout(Stdio::piped()).stderr(Stdio::piped());
        hm
    };
    let run = |runner: &str, ir: &str| run_at(&remote, runner, ir);
    let plain = pipeline("true", |_| None);
    let expected = told(Ended::of(&mut run("sandbox", &plain)));
    let is_whole = |(_, end, lines): &(_, Value, Vec<_>)| end == "passed" && lines.len() >= 6;
    assert!(expected.len() == 12 && expected.values().all(is_whole), "{expected:#?}");
    assert_eq!(told(Ended::of(&mut run("cloud", &plain))), expected);
    let mixed = pipeline("true", |at| (at % 2 == 1).then_some("sandbox"));
    assert_eq!(told(Ended::of(&mut run("cloud", &mixed))), expected);

    // Calls of the client and of a worker that fail.
    let proxy = Proxy::start(&remote, Rules { fail_every: Some(25), ..Rules::default() });
    let through = format!("grpc://{}", proxy.address());
    let third = engine.worker_at(&through, "third");
    assert_eq!(told(Ended::of(&mut run_at(&through, "cloud", &plain))), expected);
    assert!(proxy.failed() > 0);
    drop(third);

    // A worker is killed in the middle of a step: another worker runs the step.
    let slow_marker = marker();
    let slow = pipeline(&format!("sleep 2; : {slow_marker}"), |_| None);
    let hm = run("cloud", &slow).spawn().unwrap();
    assert!(until(|| is_running(&slow_marker)));
    workers[0].group.kill();
    assert_eq!(told(Ended::from(hm.wait_with_output().unwrap())), expected);
    workers[0] = engine.worker("first");

    // The engine restarts in the middle of the build.
    let hm = run("cloud", &slow).spawn().unwrap();
    assert!(until(|| is_running(&slow_marker)));
    engine.kill_server();
    engine.serve();
    assert_eq!(told(Ended::from(hm.wait_with_output().unwrap())), expected);

    // After an interrupt, the command on the worker ends.
    let marker = marker();
    let hm = run("cloud", &pipeline(&format!("sleep {marker}"), |_| None)).spawn().unwrap();
    assert!(until(|| is_asleep(&marker)));
    let interrupted = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&hm), rustix::process::Signal::INT).unwrap();
    assert!(until(|| !is_running(&marker)));
    eprintln!("cancelled on BuildGrid: the command was dead after {} ms", interrupted.elapsed().as_millis());
    Ended::from(hm.wait_with_output().unwrap()).expect(130);
}

#[test]
fn a_pipeline_on_an_engine_with_its_own_workers_gives_the_same_results_as_in_the_sandbox() {
    if step_program().is_none() {
        return;
    }
    let Some(engine) = TestEngine::start() else { return };
    let project = Project::new();
    Image::shell().write_oci(&project.dir.with_file_name("image"), "it");
    let image = format!("debian:bookworm=oci:{}:it", project.dir.with_file_name("image").display());
    project.file("input", "from the source\n");
    let run = |runner: &str, ir: &str| {
        project.file(".hm/ci.json", ir);
        let mut hm = project.hm(&["run", "--runner", runner, "--image", &image, "--no-cache", "--format", "json"]);
        hm.args(engine.arguments());
        told(Ended::of(&mut hm))
    };
    let plain = pipeline("true", |_| None);
    let expected = run("sandbox", &plain);
    assert_eq!(expected.len(), 12);
    assert_eq!(run("cloud", &plain), expected);
    assert_eq!(run("cloud", &pipeline("true", |at| (at % 2 == 1).then_some("sandbox"))), expected);
}

/// The images that the fixtures name.
const IMAGES: [&str; 3] = ["host", "debian:bookworm", "ubuntu:24.04"];

/// Checks that the pipelines of the fixtures, with a time limit on every step, end as in the sandbox on an
/// engine that accepts no limit above 20 minutes, and on others.
#[test]
fn pipelines_with_limits_give_the_same_results_on_stock_engines_as_in_the_sandbox() {
    if step_program().is_none() {
        return;
    }
    let project = Project::new();
    Image::shell().write_oci(&project.dir.with_file_name("image"), "it");
    let layout = project.dir.with_file_name("image").display().to_string();
    project.file("input", "from the source\n");
    let run = |runner: &str, ir: &str, more: &[String]| {
        project.file(".hm/ci.json", ir);
        let mut hm = project.hm(&["run", "--runner", runner, "--no-cache", "--format", "json"]);
        hm.args(IMAGES.map(|image| format!("--image={image}=oci:{layout}:it")));
        told(Ended::of(hm.args(more)))
    };
    let engines = [
        Habits { max_timeout: Some(Duration::from_secs(1_200)), ..Habits::default() },
        Habits::nativelink(),
        Habits { slots: 1, functions: vec![Function::Blake3], ..Habits::buildbarn() },
        Habits { announces_default: false, ..Habits::buildbuddy() },
    ]
    .map(StockEngine::start);
    for (name, _) in &fixtures() {
        let limited = |runner: fn(usize) -> Option<&'static str>| {
            let mut ir: Value = serde_json::from_str(&pipeline_of(name, "true", runner)).unwrap();
            for (at, node) in ir["graph"]["nodes"].as_array_mut().unwrap().iter_mut().enumerate() {
                let step = node["step"].as_object_mut().unwrap();
                step.insert("timeout_seconds".into(), (60 + 600 * at).into());
                if runner(at).is_none() {
                    step.remove("runner");
                    step.remove("runner_args");
                }
            }
            ir.to_string()
        };
        let plain = limited(|_| None);
        let expected = run("sandbox", &plain, &[]);
        assert!(expected.len() >= 4 && expected.values().all(|(_, end, _)| end == "passed"), "{expected:#?}");
        for engine in &engines {
            let remote = [format!("--remote={}", engine.url()), "--remote-cache=off".into()];
            assert_eq!(run("cloud", &plain, &remote), expected, "{name}");
            if name == MONOREPO {
                let mixed = limited(|at| (at % 2 == 1).then_some("sandbox"));
                assert_eq!(run("cloud", &mixed, &remote), expected, "mixed");
            }
            engine.assert_inputs_are_intact();
        }
    }
}
