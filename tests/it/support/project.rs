//! A project to run `hm` in, with its own store.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{backends::usable, programs::hm};

/// The time after which a test stops waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A source directory and a store. Both are removed on drop.
pub(crate) struct Project {
    _root: TempDir,
    pub(crate) dir: PathBuf,
    pub(crate) store: PathBuf,
}

impl Project {
    pub(crate) fn new() -> Self {
        let root = TempDir::new().unwrap();
        let real = root.path().canonicalize().unwrap();
        let (dir, store) = (real.join("src"), real.join("store"));
        fs::create_dir_all(dir.join(".hm")).unwrap();
        Self { _root: root, dir, store }
    }

    /// Creates a project with a pipeline `ci` of these steps.
    pub(crate) fn with_steps(steps: &[Step<'_>]) -> Self {
        let project = Self::new();
        project.file(".hm/ci.json", &ir(steps));
        project
    }

    pub(crate) fn file(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Returns the command `hm ARGS` in the source directory.
    pub(crate) fn hm(&self, args: &[&str]) -> Command {
        let mut command = Command::new(hm());
        command.args(args).current_dir(&self.dir).env("HM_CACHE_DIR", &self.store).stdin(Stdio::null());
        // The store is removed with the project, at any moment.
        command.env("HM_CACHE_GC", "off");
        // How full the machine's disk is decides nothing.
        command.env("HM_CACHE_MIN_FREE", "0");
        // Nothing is downloaded, except in the test of that.
        command.env("HM_DSL", "system");
        for variable in [
            "HM_PYTHON",
            "NO_COLOR",
            "CLICOLOR_FORCE",
            "FORCE_COLOR",
            "VIRTUAL_ENV",
            "GITHUB_ACTIONS",
            "GITLAB_CI",
            "BROWSER",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_SERVICE_NAME",
            "OTEL_RESOURCE_ATTRIBUTES",
            "OTEL_SDK_DISABLED",
            "OTEL_TRACES_EXPORTER",
            "TRACEPARENT",
            "TRACESTATE",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs `hm run --runner process ARGS` to its end. These tests cover `hm` itself; the sandbox has its own
    /// tests.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.hm(&["run", "--runner", "process"]).args(args))
    }

    /// Returns every file of the source directory with its modification time and content.
    pub(crate) fn listing(&self) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
        let mut listing = BTreeMap::new();
        walk(&self.dir, &mut |path| {
            let changed = fs::symlink_metadata(path).unwrap().modified().unwrap();
            listing.insert(path.to_owned(), (changed, fs::read(path).unwrap_or_default()));
        });
        listing
    }
}

/// Calls `visit` for everything in `dir`, at any depth.
pub(crate) fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        visit(&path);
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            walk(&path, visit);
        }
    }
}

/// A step: its key, its command, and the index of its `builds_in` parent.
pub(crate) type Step<'a> = (&'a str, &'a str, Option<usize>);

/// Returns the IR of a pipeline of `steps` on the host's system.
pub(crate) fn ir(steps: &[Step<'_>]) -> String {
    let nodes: Vec<Value> =
        steps.iter().map(|(key, cmd, _)| json!({ "step": { "key": key, "cmd": cmd }, "env": {} })).collect();
    let parents = steps.iter().enumerate().filter_map(|(at, step)| step.2.map(|parent| (parent, at)));
    let edges: Vec<Value> = parents.map(|(parent, child)| json!([parent, child, "builds_in"])).collect();
    ir_of(&nodes, &edges)
}

/// Returns the IR of a pipeline of nodes and edges on the host's system.
pub(crate) fn ir_of(nodes: &[Value], edges: &[Value]) -> String {
    json!({
        "version": "0",
        "default_image": "host",
        "graph": { "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges },
    })
    .to_string()
}

/// The exit code and the output of a finished `hm`.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(command: &mut Command) -> Self {
        command.output().unwrap().into()
    }

    /// Fails with the whole output of `hm` unless it ended with `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Returns the events of `--format json`.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Waits until `condition` holds. Fails if it does not within [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_for(condition), "gave up waiting: {what}");
}

/// Waits until `condition` holds. Returns false if it does not within [`PATIENCE`].
pub(crate) fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Creates a project whose step `test` ran on the sandbox and failed. Returns `None` if this machine has no
/// sandbox.
#[track_caller]
pub(crate) fn failed(command: &str) -> Option<Project> {
    let project = Project::with_steps(&[("build", "echo built > artifact", None), ("test", command, Some(0))]);
    project.file("source.txt", "from the source\n");
    let ended = Ended::of(&mut project.hm(&["run", "--format", "human"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return None;
    }
    let ended = ended.expect(1);
    let run = ended.stdout.lines().find_map(|line| line.rsplit_once(" · run ")).map_or("", |(_, run)| run);
    let next = format!("  logs hm logs {run}/test · shell hm shell {run}/test · again hm run ");
    assert!(ended.stdout.contains(&next), "{}", ended.stdout);
    Some(project)
}

/// Runs `hm shell ARGS` with `stdin` on its standard input.
pub(crate) fn shell(project: &Project, args: &[&str], stdin: &str) -> Ended {
    let mut hm = project.hm(&["shell"]);
    hm.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = hm.spawn().unwrap();
    let (mut input, text) = (child.stdin.take().unwrap(), stdin.to_owned());
    // Reads and writes at the same time, because no pipe holds it all. A command that reads nothing may have
    // exited by now.
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).is_ok());
    let ended = Ended::from(child.wait_with_output().unwrap());
    let _ = writer.join().unwrap();
    ended
}
