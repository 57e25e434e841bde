//! Whole runs as users have them, each beside what they would use instead:
//!
//! - A pipeline of eight steps on an image of a registry, unchanged: from Python, also with the rendering
//!   found by what it read, and with steps that have no policy and are found by what they read, and from its
//!   IR, beside `docker build` of the same steps on the same image.
//! - A fresh clone of a project in C with one edited file: a run whose cached step left its objects, beside
//!   `make` in the clone.
//!
//! `cargo bench --bench pipeline`

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

#[path = "../tests/it/support/backends.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod backends;
mod common;
#[path = "../tests/it/support/docker_daemon.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod docker_daemon;
#[path = "../tests/it/support/images.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod images;
#[path = "common/large_image.rs"]
mod large_image;
#[path = "../tests/it/support/python.rs"]
mod python;
#[path = "../tests/it/support/registry.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod registry;

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread};
use docker_daemon::Daemon;
use registry::Registry;
use serde_json::json;

const STEPS: usize = 8;
/// The name of the image in the registry.
const NAME: &str = "base:1";

fn main() {
    let table = Table::new("pipeline");
    unchanged(&table, Effort::asked());
    fresh_clones(&table, Effort::asked());
}

fn unchanged(table: &Table, effort: Effort) {
    let (Some(python), Some(registry)) = (python::python_with_harmont(), Registry::start(false)) else {
        return table.alone(
            "unchanged pipeline",
            &Figure::ms(Duration::ZERO),
            "no harmont or no registry",
            "not measured",
        );
    };
    let (bytes, files) = effort.pick((188 << 20, 6_000), (1 << 20, 50));
    registry.push(&large_image::large(bytes, files), NAME, None);
    let image = format!("{}/{NAME}", registry.host);
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    fs::create_dir_all(source.join(".hm")).unwrap();
    fs::write(source.join("file"), "one file\n").unwrap();
    let command = |step: usize| format!("echo step {step} > made-{step}; echo made {step}");
    let mut text = "import harmont as hm\n\n\n@hm.pipeline(\"ci\")\ndef ci():\n".to_owned();
    let mut plain = "\n\n@hm.pipeline(\"plain\")\ndef plain():\n".to_owned();
    let mut dockerfile = format!("FROM {image}\nCOPY file /workspace/file\nWORKDIR /workspace\n");
    for step in 0..STEPS {
        let (from, base) = if step == 0 { ("hm", format!(", image=\"{image}\"")) } else { ("step", String::new()) };
        let command = command(step);
        writeln!(text, "    step = {from}.sh(\"{command}\", label=\"s{step}\", cache=hm.forever(){base})").unwrap();
        writeln!(plain, "    step = {from}.sh(\"{command} of $(cat file)\", label=\"p{step}\"{base})").unwrap();
        writeln!(dockerfile, "RUN {command}").unwrap();
    }
    let end = "    return (step,)\n";
    fs::write(source.join(".hm/ci.py"), text + end + &plain + end).unwrap();
    fs::write(source.join("Dockerfile"), dockerfile).unwrap();
    let hm = |args: &[&str]| {
        let mut hm = Command::new(env!("CARGO_BIN_EXE_hm"));
        hm.args(args).current_dir(&source).env("HM_CACHE_DIR", top.path().join("store")).env("HM_CACHE_GC", "off");
        hm.env("HM_PYTHON", &python).env("HM_DSL", "system").env("HOME", top.path());
        hm
    };
    let rendered = hm(&["render", "ci"]).output().unwrap();
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let ir = top.path().join("ci.json");
    fs::write(&ir, rendered.stdout).unwrap();
    let daemon = Daemon::get();
    let docker = |args: &[&str]| {
        let daemon = daemon.as_ref()?;
        Some(timed(Command::new("docker").args(["--host", &daemon.host]).args(args).env("DOCKER_BUILDKIT", "0")))
    };
    let tag = format!("hm-exec-bench-pipeline-{}", std::process::id());
    let build = ["build", "--quiet", "--network", "host", "--tag", &tag, source.to_str().unwrap()];
    let (mut dsl, mut found, mut plain, mut text, mut theirs) = (vec![], vec![], vec![], vec![], vec![]);
    let by_ir = ["run", "-f", ir.to_str().unwrap()];
    let first = [Some(timed(&mut hm(&["run", "ci"]))), docker(&build)];
    timed(&mut hm(&by_ir));
    // A rendering is kept only if its files are two seconds old.
    thread::sleep(Duration::from_secs(3));
    let by_trace = ["run", "--cache", "auto", "ci"];
    let without_policy = ["run", "--cache", "auto", "plain"];
    timed(&mut hm(&by_trace));
    timed(&mut hm(&without_policy));
    for _ in 0..effort.pick(15, 1) {
        dsl.push(timed(&mut hm(&["run", "ci"])));
        found.push(timed(&mut hm(&by_trace)));
        plain.push(timed(&mut hm(&without_policy)));
        text.push(timed(&mut hm(&by_ir)));
        theirs.extend(docker(&build));
    }
    docker(&["rmi", "--force", &tag]);
    let first = first.map(|first| Figure::ms(first.unwrap_or_default()));
    let rows = [
        ("in Python", &mut dsl),
        ("in Python, `--cache auto`", &mut found),
        ("in Python, without a policy, `--cache auto`", &mut plain),
        ("as IR", &mut text),
    ];
    for (how, times) in rows {
        let what = format!("unchanged pipeline of {STEPS} steps {how}, image of a registry");
        let (ours, besides) = (Figure::ms(median(times)), format!("{}; the first run: {}", spread(times), first[0]));
        match theirs.is_empty() {
            true => table.alone(what, &ours, "docker build: no daemon", besides),
            false => {
                let besides = format!("{besides}, theirs: {}", first[1]);
                table.against(what, &ours, &Figure::ms(median(&mut theirs)).of("docker build"), besides);
            }
        }
    }
}

fn fresh_clones(table: &Table, effort: Effort) {
    let files = effort.pick(61, 3);
    let has_tools = ["make", "cc"].into_iter().all(|tool| {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    });
    if !has_tools {
        return table.alone("fresh clone", &Figure::ms(Duration::ZERO), "no make or no cc", "not measured");
    }
    let top = tempfile::tempdir().unwrap();
    let ir = top.path().join("ci.json");
    fs::write(&ir, c_pipeline()).unwrap();
    let hm = |source: &Path| {
        let mut hm = Command::new(env!("CARGO_BIN_EXE_hm"));
        hm.args(["run", "--format", "human", "-f"]).arg(&ir).arg("-d").arg(source);
        hm.env("HM_CACHE_DIR", top.path().join("store")).env("HM_CACHE_GC", "off");
        hm
    };
    let clone = |name: &str, edit: Option<usize>| {
        let dir = top.path().join(name);
        write_project(&dir, files, edit);
        dir
    };
    // The run that fills the cache compiles everything.
    let (first, output) = run(&mut hm(&clone("first", None)));
    assert_eq!(compiled(&output), files);
    let (mut times, mut theirs, mut count) = ([vec![], vec![]], vec![], [0, 0]);
    for round in 0..effort.pick(5, 1) {
        for (at, edit) in [None, Some(round % files)].into_iter().enumerate() {
            let dir = clone(&format!("clone-{round}-{at}"), edit);
            let (took, output) = run(&mut hm(&dir));
            times[at].push(took);
            count[at] = compiled(&output);
            if edit.is_some() {
                let (took, output) = run(Command::new("make").current_dir(&dir));
                theirs.push(took);
                assert_eq!(compiled(&output), files);
            }
        }
    }
    let theirs = Figure::ms(median(&mut theirs)).of("`make` in the clone");
    for ((what, times), count) in ["unchanged", "one file edited"].into_iter().zip(&mut times).zip(count) {
        let besides = format!("{count} of {files} files compiled; the first run: {}", Figure::ms(first));
        table.against(format!("fresh clone, {what}"), &Figure::ms(median(times)), &theirs, besides);
    }
}

/// Returns a cached step that builds, and a step that builds on top of it.
fn c_pipeline() -> String {
    let cache = json!({ "policy": "on_change", "paths": ["Makefile"], "env_keys": [], "key": "00" });
    let nodes = json!([
        { "step": { "key": "base", "cmd": "make", "image": "host", "cache": cache }, "env": {} },
        { "step": { "key": "build", "cmd": "make" }, "env": {} },
    ]);
    let graph =
        json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [[0, 1, "builds_in"]] });
    json!({ "version": "0", "graph": graph }).to_string()
}

/// Writes a clone of the project: files with the time of now, one of which may be edited.
fn write_project(dir: &Path, files: usize, edit: Option<usize>) {
    fs::create_dir_all(dir.join(".git")).unwrap();
    fs::write(dir.join(".git/config"), "[remote \"origin\"]\n\turl = https://example.org/tool.git\n").unwrap();
    let objects: Vec<String> = (0..files).map(|file| format!("file-{file}.o")).collect();
    let all = objects.join(" ");
    let makefile = format!("all: {all}\n%.o: %.c\n\t@echo compiled $<\n\t@cc -O1 -c -o $@ $<\n");
    fs::write(dir.join("Makefile"), makefile).unwrap();
    for file in 0..files {
        let mut text = String::new();
        for function in 0..60 {
            let body = "for (int i = 0; i < n; i++) { s += i * n; if (s % 7 == 3) s ^= n; }";
            writeln!(text, "int f{file}_{function}(int n) {{ int s = {function}; {body} return s; }}").unwrap();
        }
        if edit == Some(file) {
            writeln!(text, "int edited_{file} = {file};").unwrap();
        }
        fs::write(dir.join(format!("file-{file}.c")), text).unwrap();
    }
}

fn compiled(output: &str) -> usize {
    output.lines().filter(|line| line.contains("compiled file-")).count()
}

fn run(command: &mut Command) -> (Duration, String) {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let took = started.elapsed();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    (took, said)
}

fn timed(command: &mut Command) -> Duration {
    run(command).0
}
