//! Traces: what is recorded of what a step reads.

mod audit;
mod cost;
mod edits;
mod hidden;
mod holes;
mod hostile;
mod left_out;
mod lost;
mod network;
mod placed;
mod placements;
mod reuse;
mod shadow;
mod verify;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use hm_exec::{
    SnapshotRef,
    cache::{Kinds, Trace},
    runner::ShadowMode,
};

use crate::support::{
    backends::usable,
    sandbox::{Ask, Bench},
};

/// A step that was traced.
#[derive(Debug)]
struct Traced {
    code: i32,
    output: String,
    trace: Trace,
    snapshot: Option<SnapshotRef>,
}

impl Traced {
    /// Runs a step, traced. If it names no network, it gets none.
    async fn run(bench: &Bench, ask: Ask) -> Self {
        Self::run_in(bench, ask, None).await
    }

    /// Does the same in shadow mode, if there is one.
    async fn run_in(bench: &Bench, mut ask: Ask, shadow: Option<Arc<ShadowMode>>) -> Self {
        ask.args.get_or_insert_with(|| serde_json::json!({ "network": "none" }));
        let dir = tempfile::tempdir().unwrap();
        let mut run = bench.run();
        run.ctx.traces = Some(dir.path().join("traces").into());
        run.ctx.shadow = shadow;
        let result = bench.step(&mut run, ask).await.unwrap();
        let files: Vec<PathBuf> =
            fs::read_dir(dir.path().join("traces")).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let trace = Trace::decode(&fs::read(&files[0]).unwrap()).unwrap();
        let snapshot = result.committed_snapshot;
        Self { code: result.exit_code, output: run.output().await, trace, snapshot }
    }

    fn kinds(&self, path: &str) -> Kinds {
        self.trace.entries.get(path.as_bytes()).copied().unwrap_or_default()
    }

    fn reasons(&self) -> Vec<String> {
        self.trace.reasons.iter().map(ToString::to_string).collect()
    }

    /// Returns the entries of the source, for messages.
    fn source(&self) -> Vec<(String, Kinds)> {
        let entries = self.trace.entries.iter();
        let source = entries.filter(|(path, _)| path.starts_with(b"/workspace"));
        source.map(|(path, kinds)| (String::from_utf8_lossy(path).into_owned(), *kinds)).collect()
    }
}

/// Returns a program of the fixtures, built for this machine, or `None` if there is no compiler.
fn built(name: &str) -> Option<&'static Path> {
    static BUILT: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["holes", "edits", "hostile"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/traces/{name}.c"));
            let built =
                Command::new("cc").args(["-w", "-pthread", "-o"]).arg(dir.path().join(name)).arg(source).status();
            if !usable("cc", built.is_ok_and(|status| status.success()), "it builds no program") {
                return None;
            }
        }
        Some(dir)
    });
    let path = dir.as_ref()?.path().join(name);
    Some(Box::leak(path.into_boxed_path()))
}

#[tokio::test]
async fn files_listings_and_absent_paths_are_recorded() {
    let bench = Bench::new();
    fs::create_dir_all(bench.source().join("src")).unwrap();
    fs::write(bench.source().join("src/a.c"), "a").unwrap();
    fs::write(bench.source().join("b"), "b").unwrap();
    fs::write(bench.source().join("untouched"), "c").unwrap();
    let it = Traced::run(&bench, Ask::new("cat src/a.c; ls src; test -e missing; echo made > made; cat made")).await;
    assert_eq!(it.code, 0, "{}", it.output);
    let all = it.source();
    assert!(it.kinds("/workspace/src/a.c").contains(Kinds::CONTENT), "{all:?}");
    assert!(it.kinds("/workspace/src").contains(Kinds::LISTING), "{all:?}");
    assert!(it.kinds("/workspace/missing").contains(Kinds::ABSENT), "{all:?}");
    assert_eq!(it.kinds("/workspace/untouched"), Kinds::default(), "{all:?}");
    let made = it.kinds("/workspace/made");
    assert!(made.contains(Kinds::WRITTEN.and(Kinds::ABSENT)) && !made.contains(Kinds::CONTENT), "{all:?}");
    assert!(!it.kinds("/workspace").contains(Kinds::LISTING), "{all:?}");
    assert!(it.trace.entries.keys().any(|path| path.ends_with(b"/cat")), "the program itself");
    assert!(it.trace.variables.contains("PATH"), "{:?}", it.trace.variables);
    assert_eq!(it.reasons(), Vec::<String>::new());
}

#[tokio::test]
async fn a_step_ends_as_it_does_untraced() {
    let bench = Bench::new();
    for (cmd, code) in [("exit 7", 7), ("kill -9 $$", 137), ("nonexistent-program", 127), ("sleep 1000 & exit 3", 3)] {
        let it = Traced::run(&bench, Ask::new(cmd)).await;
        assert_eq!(it.code, code, "{cmd}: {}", it.output);
    }
}

#[tokio::test]
async fn interpreters_and_loaders_are_recorded() {
    let bench = Bench::new();
    fs::write(bench.source().join("inner"), "#!/bin/sh\necho inner\n").unwrap();
    fs::write(bench.source().join("outer"), "#!/workspace/inner\n").unwrap();
    for name in ["inner", "outer"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(bench.source().join(name), mode).unwrap();
    }
    let it = Traced::run(&bench, Ask::new("exec ./outer")).await;
    assert_eq!((it.code, it.output.as_str()), (0, "inner\n"));
    assert!(it.kinds("/workspace/inner").contains(Kinds::CONTENT), "{:?}", it.source());
    assert!(it.kinds("/workspace/outer").contains(Kinds::CONTENT), "{:?}", it.source());
    let names: Vec<_> = it.trace.entries.keys().map(|path| String::from_utf8_lossy(path)).collect();
    assert!(names.iter().any(|name| name.contains("/ld-") || name.contains("/ld.so")), "{names:?}");
}

#[tokio::test]
async fn other_files_of_the_kernel_are_a_reason() {
    let bench = Bench::new();
    let it = Traced::run(&bench, Ask::new("cat /proc/uptime > /dev/null; cat /proc/self/maps > /dev/null")).await;
    assert_eq!(it.reasons(), ["it read /proc/uptime"]);
}

#[tokio::test]
async fn a_secret_is_a_reason_by_its_name_and_its_value_is_nowhere() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    let mut secrets = hm_exec::runner::Secrets::new();
    // Programs print the value without the line end; a secret may have a slash in it.
    secrets.insert("TOKEN", "s3cr3t-value\n");
    secrets.insert("PATH", "half/s3cr3t");
    let mut run = bench.run_with(secrets);
    run.ctx.traces = Some(dir.path().into());
    let result = bench
        .step(
            &mut run,
            Ask::new("cat /run/secrets/TOKEN > /dev/null; test -e s3cr3t-value; mkdir -p half/s3cr3t; true")
                .args(serde_json::json!({ "network": "none" })),
        )
        .await;
    assert_eq!(result.unwrap().exit_code, 0);
    let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let trace = Trace::decode(&fs::read(file).unwrap()).unwrap();
    let reasons: Vec<String> = trace.reasons.iter().map(ToString::to_string).collect();
    assert_eq!(reasons, ["it read the secret TOKEN", "paths that contain a secret's value were left out"]);
    let paths: Vec<_> = trace.entries.keys().map(|path| String::from_utf8_lossy(path)).collect();
    assert!(!paths.iter().any(|path| path.contains("s3cr3t") || path.contains("half")), "{paths:?}");
}

#[tokio::test]
async fn what_a_parent_left_is_an_input_of_its_child() {
    let bench = Bench::new();
    let parent = Traced::run(&bench, Ask::new("mkdir out; echo 1 > out/made")).await;
    assert_eq!(parent.code, 0);
    let mut run = bench.run();
    let parent = bench.step(&mut run, Ask::new("mkdir out; echo 1 > out/made")).await.unwrap();
    let child = Traced::run(&bench, Ask::new("cat out/made").after(&parent)).await;
    assert!(child.kinds("/workspace/out/made").contains(Kinds::CONTENT), "{:?}", child.source());
}
