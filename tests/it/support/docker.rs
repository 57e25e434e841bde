//! Pipelines on the sandbox and on docker, over one store.

use std::{
    path::Path,
    process::{Child, Command},
    sync::Arc,
};

use futures_util::StreamExt;
use hm_exec::{
    BuildEvent, BuildOutcome, Engine, EngineBuilder, Plan, RunRequest, RunnerSet,
    runner::{
        docker::{Docker, DockerRunner},
        sandbox::SandboxRunner,
    },
    store::Store,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    docker_daemon::{Daemon, IMAGE},
    images::Image,
    programs::hm,
    project::{Project, eventually},
};

#[derive(Debug, RunnerSet)]
pub(crate) struct Both {
    sandbox: SandboxRunner,
    #[runner(default)]
    docker: DockerRunner,
}

/// A daemon, a store, and a source.
pub(crate) struct Bench {
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<Store>,
}

/// The outcome and the events of a finished build.
pub(crate) struct Built {
    pub(crate) outcome: BuildOutcome,
    pub(crate) events: Vec<BuildEvent>,
}

impl Bench {
    /// Returns `None` if there is no daemon: the test is then skipped.
    pub(crate) fn new() -> Option<Self> {
        let daemon = Daemon::get()?;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Some(Self { daemon, dir, store })
    }

    /// Writes a file of the source.
    pub(crate) fn file(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("source").join(name), text).unwrap();
    }

    /// Returns an image that the sandbox boots, too.
    pub(crate) fn shared_image(&self) -> String {
        let archive = self.dir.path().join("image.tar");
        if !archive.exists() {
            Image::shell().write_docker(&archive, "shell:latest");
        }
        format!("docker-archive:{}", archive.display())
    }

    /// Returns an engine with its own runners.
    pub(crate) fn engine(&self) -> EngineBuilder<Both> {
        let sandbox = || SandboxRunner::builder().store(Arc::clone(&self.store)).helper(hm());
        let docker = Docker::builder().host(&self.daemon.host).local(sandbox()).build(Arc::clone(&self.store));
        let runners = Both { sandbox: sandbox().build(), docker };
        Engine::builder(runners).parallelism(4.try_into().unwrap()).cache(Arc::clone(&self.store))
    }

    pub(crate) fn request(&self, ir: &Value) -> RunRequest {
        RunRequest::new(Plan::parse(ir.to_string()).unwrap(), self.dir.path().join("source"))
    }

    /// Runs a pipeline on a new engine.
    pub(crate) async fn build(&self, ir: &Value) -> Built {
        self.build_on(self.engine(), ir).await
    }

    /// Runs a pipeline.
    pub(crate) async fn build_on<R: RunnerSet>(&self, engine: EngineBuilder<R>, ir: &Value) -> Built {
        self.run(engine, self.request(ir)).await
    }

    /// Runs what a request says.
    pub(crate) async fn run<R: RunnerSet>(&self, engine: EngineBuilder<R>, request: RunRequest) -> Built {
        let engine = engine.build().unwrap();
        let (events, control) = engine.start(request).await.unwrap().into_parts();
        let (events, outcome) = tokio::join!(events.collect(), control.wait());
        Built { outcome: outcome.unwrap(), events }
    }

    /// Returns the containers and the images that are left at the daemon.
    pub(crate) async fn left(&self) -> (Vec<String>, Vec<String>) {
        self.daemon.ours(self.store.dir()).await
    }
}

impl Built {
    /// Returns the lines that a step printed.
    pub(crate) fn lines(&self, key: &str) -> Vec<&str> {
        let id = self.outcome.steps.iter().find(|step| &*step.key == key).unwrap().step_id;
        let lines = self.events.iter().filter_map(|event| match event {
            BuildEvent::StepLog { step_id, line, .. } if *step_id == id => Some(line.as_str()),
            _ => None,
        });
        lines.collect()
    }

    /// Returns the message with which a step ended.
    pub(crate) fn message(&self, key: &str) -> &str {
        let id = self.outcome.steps.iter().find(|step| &*step.key == key).unwrap().step_id;
        let message = self.events.iter().find_map(|event| match event {
            BuildEvent::StepEnd { step_id, message, .. } if *step_id == id => message.as_deref(),
            _ => None,
        });
        message.unwrap_or_default()
    }

    /// Returns the snapshots of the steps.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let snapshots = self.events.iter().filter_map(|event| match event {
            BuildEvent::StepEnd { snapshot, .. } => snapshot.as_ref().map(ToString::to_string),
            _ => None,
        });
        snapshots.collect()
    }
}

/// Returns a step on docker.
pub(crate) fn step(key: &str, cmd: &str) -> Value {
    json!({ "step": { "key": key, "cmd": cmd }, "env": {} })
}

/// Returns a step on docker whose result is cached.
pub(crate) fn cached(key: &str, cmd: &str) -> Value {
    json!({ "step": { "key": key, "cmd": cmd, "cache": { "policy": "forever", "key": format!("key-{key}") } }, "env": {} })
}

/// Returns a pipeline of steps, each built in the one before.
pub(crate) fn chain(steps: &[Value]) -> Value {
    let edges: Vec<Value> = (1..steps.len()).map(|child| json!([child - 1, child, "builds_in"])).collect();
    pipeline(steps, &edges)
}

pub(crate) fn pipeline(steps: &[Value], edges: &[Value]) -> Value {
    json!({
        "version": "0",
        "default_image": IMAGE,
        "graph": { "nodes": steps, "node_holes": [], "edge_property": "directed", "edges": edges },
    })
}

/// The names of the containers and the ids of the images that are left at the daemon.
pub(crate) type Left = (Vec<String>, Vec<String>);

pub(crate) fn nothing() -> Left {
    (vec![], vec![])
}

/// Creates a project whose only step is on docker.
pub(crate) fn project(cmd: &str) -> Project {
    let project = Project::new();
    write(&project, cmd);
    project
}

/// Writes the project's pipeline anew.
pub(crate) fn write(project: &Project, cmd: &str) {
    let ir: Value = pipeline(&[step("step", cmd)], &[]);
    project.file(".hm/ci.json", &ir.to_string());
}

/// Returns `hm run` on the daemon.
pub(crate) fn run(project: &Project, daemon: &Daemon) -> Command {
    project.hm(&["run", "--runner", "docker", "--format", "human", "--docker-host", &daemon.host])
}

/// Starts a run of a pipeline, and waits for one of its steps to print `up`.
pub(crate) fn start(project: &Project, daemon: &Daemon, ir: &Value) -> Child {
    project.file(".hm/ci.json", &ir.to_string());
    let log = project.dir.with_file_name("log");
    let file = std::fs::File::create(&log).unwrap();
    let hm = run(project, daemon).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    eventually("a step to be up", || std::fs::read_to_string(&log).unwrap().contains("| up\n"));
    hm
}

/// Returns what processes of the store in `store` have at the daemon.
pub(crate) fn left(daemon: &Daemon, store: &Path) -> Left {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(daemon.ours(store))
}
