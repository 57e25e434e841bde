//! A runner that writes layers without a sandbox: the layer of each step names what it was made from.

use std::{
    collections::BTreeMap,
    fs,
    future::pending,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use hm_exec::{
    BuildEvent, BuildOutcome, BuildStatus, Engine, EngineBuilder, ExecutorInput, Plan, RunRequest, RunnerSet,
    SnapshotRef, StepResult, StepStatus,
    event::{CacheMissReason, StdStream},
    runner::{ArgsSchema, CacheIdentity, Probe, RunnerCapabilities, RunnerError, StepContext, StepRunner},
    store::{Base, CommitRequest, IdMap, Store},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

/// The settings of the runner, and what it remembers.
#[derive(Debug)]
pub(crate) struct State {
    /// The steps that ran, in order.
    pub(crate) ran: Vec<String>,
    pub(crate) probes: usize,
    /// The digest of images, in addition to their name.
    pub(crate) digest: String,
    pub(crate) mode: String,
    /// The mode that the runner reports after it starts work.
    pub(crate) mode_at_work: Option<String>,
    /// The exit codes of steps, attempt by attempt, by key.
    pub(crate) exits: BTreeMap<String, Vec<i32>>,
    pub(crate) layers: bool,
    pub(crate) usable: bool,
    pub(crate) probe_hangs: bool,
    pub(crate) identity_hangs: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) store: Arc<Store>,
    /// Notified to let steps whose key begins with `slow` continue.
    pub(crate) go: Arc<Notify>,
    /// Notified when one of these steps begins to wait.
    pub(crate) waits: Arc<Notify>,
}

/// The arguments that the runner accepts and ignores.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its shape is checked")]
struct Args {
    network: Option<String>,
    cpus: Option<u32>,
    /// An argument that does not change a step's result.
    speed: Option<u32>,
}

#[derive(Debug, Clone, RunnerSet)]
pub(crate) struct Runners {
    #[runner(default)]
    writer: Writer,
}

impl StepRunner for Writer {
    const NAME: &'static str = "writer";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        let key = input.step.key.to_string();
        let exit_code = {
            let mut state = self.state.lock().unwrap();
            state.ran.push(key.clone());
            let runs = state.ran.iter().filter(|ran| **ran == key).count();
            if let Some(mode) = state.mode_at_work.clone() {
                state.mode = mode;
            }
            let exits = state.exits.get(&key);
            exits.and_then(|exits| exits.get(runs - 1).or(exits.last())).copied().unwrap_or(0)
        };
        ctx.event_bus.output(input.step_id, StdStream::Stdout, format!("{key} ran\n").as_bytes()).await;
        if key.starts_with("slow") {
            self.waits.notify_one();
            tokio::select! {
                () = self.go.notified() => {}
                () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            }
        }
        let commits = exit_code == 0 && input.cache_lookup.commits();
        Ok(StepResult::exited(exit_code).with_snapshot(commits.then(|| self.commit(&input))))
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        self.store.snapshots().remove(&snapshots).unwrap();
    }

    async fn probe(&self) -> Probe {
        let (usable, hangs) = {
            let mut state = self.state.lock().unwrap();
            state.probes += 1;
            (state.usable, state.probe_hangs)
        };
        if hangs {
            pending::<()>().await;
        }
        match usable {
            true => Probe::usable(),
            false => Probe::unusable("it is broken", "mend it"),
        }
    }

    async fn cache_identity(&self, image: Option<&str>) -> Result<Option<CacheIdentity>, RunnerError> {
        if self.state.lock().unwrap().identity_hangs {
            pending::<()>().await;
        }
        let state = self.state.lock().unwrap();
        let image = image.map(|image| format!("{image}@{}", state.digest).into());
        Ok(Some(CacheIdentity { image, mode: state.mode.as_str().into() }))
    }

    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::of::<Args>().not_in_keys(&["speed"])
    }

    fn capabilities(&self) -> RunnerCapabilities {
        let mut capabilities = RunnerCapabilities::default();
        capabilities.secrets = true;
        capabilities.layers = self.state.lock().unwrap().layers;
        capabilities
    }
}

impl Writer {
    fn commit(&self, input: &ExecutorInput) -> SnapshotRef {
        let parent = input.parent_snapshot.as_ref().map(|snapshot| self.store.snapshots().get(snapshot).unwrap());
        let staging = self.store.stage().unwrap();
        fs::write(staging.upper().join(&*input.step.key), &*input.step.cmd).unwrap();
        let source = serde_json::from_value(json!("0123456789abcdef0123456789abcdef")).unwrap();
        let (base, id_map) = (Base::Host, IdMap::Single);
        let request = CommitRequest { parent: parent.as_deref(), base, source, delta: None, id_map };
        self.store.commit(staging, request).unwrap()
    }
}

/// A store, a runner that writes to it, and an engine on both.
pub(crate) struct Bench {
    pub(crate) writer: Writer,
    pub(crate) runs: PathBuf,
    _top: tempfile::TempDir,
}

/// The events and the outcome of a finished build.
pub(crate) struct Ended {
    pub(crate) events: Vec<BuildEvent>,
    pub(crate) outcome: BuildOutcome,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let state = State {
            ran: vec![],
            probes: 0,
            digest: "1".into(),
            mode: "plain".into(),
            mode_at_work: None,
            exits: BTreeMap::new(),
            layers: true,
            usable: true,
            probe_hangs: false,
            identity_hangs: false,
        };
        let runs = store.dir().join("runs");
        let writer = Writer { state: Arc::new(Mutex::new(state)), store, go: Arc::default(), waits: Arc::default() };
        Self { writer, runs, _top: top }
    }

    pub(crate) fn builder(&self) -> EngineBuilder<Runners> {
        Engine::builder(Runners { writer: self.writer.clone() })
            .cache(Arc::clone(&self.writer.store))
            .runs_dir(&self.runs)
            .parallelism(2.try_into().unwrap())
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.writer.state.lock().unwrap()
    }

    /// Returns the steps that ran since the last call.
    pub(crate) fn take_ran(&self) -> Vec<String> {
        std::mem::take(&mut self.state().ran)
    }

    pub(crate) async fn run(&self, ir: &Value) -> Ended {
        self.run_with(ir, |_| {}).await
    }

    pub(crate) async fn run_with(&self, ir: &Value, change: impl FnOnce(&mut RunRequest)) -> Ended {
        let mut request = request(ir);
        change(&mut request);
        let engine = self.builder().build().unwrap();
        Ended::of(engine.start(request).await.unwrap()).await
    }
}

impl Ended {
    pub(crate) async fn of(handle: hm_exec::BackendHandle) -> Self {
        let (mut stream, control) = handle.into_parts();
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event);
        }
        Self { events, outcome: control.wait().await.unwrap() }
    }

    pub(crate) fn statuses(&self) -> Vec<StepStatus> {
        self.outcome.steps.iter().map(|step| step.status).collect()
    }

    /// Returns the lines that a step printed.
    pub(crate) fn lines(&self, key: &str) -> Vec<&str> {
        let id = self.events.iter().find_map(|event| match event {
            BuildEvent::StepQueued { step_id, key: of, .. } if **of == *key => Some(*step_id),
            _ => None,
        });
        let lines = self.events.iter().filter_map(|event| match event {
            BuildEvent::StepLog { step_id, line, .. } if Some(*step_id) == id => Some(&**line),
            _ => None,
        });
        lines.collect()
    }

    pub(crate) fn passed(&self) -> bool {
        self.outcome.status == BuildStatus::Passed
    }

    /// Returns why steps missed, by key.
    pub(crate) fn misses(&self) -> BTreeMap<String, (CacheMissReason, String)> {
        let misses = self.events.iter().filter_map(|event| match event {
            BuildEvent::StepCacheMiss { key, reason, message, .. } => {
                Some((key.to_string(), (*reason, message.as_deref().unwrap_or_default().to_owned())))
            }
            _ => None,
        });
        misses.collect()
    }
}

pub(crate) fn request(ir: &Value) -> RunRequest {
    RunRequest::new(Plan::parse(ir.to_string()).unwrap(), "/nonexistent/source")
}

/// Returns a cached step.
pub(crate) fn cached(key: &str) -> Value {
    json!({ "key": key, "cmd": format!("make {key}"), "cache": { "policy": "forever", "key": format!("dsl-{key}") } })
}

/// Returns a step that is not cached.
pub(crate) fn plain(key: &str) -> Value {
    json!({ "key": key, "cmd": format!("make {key}") })
}

/// Returns a pipeline of these steps, each with an environment, and `builds_in` edges by index.
pub(crate) fn pipeline(steps: &[Value], edges: &[(usize, usize)]) -> Value {
    let nodes: Vec<Value> = steps.iter().map(|step| json!({ "step": step, "env": { "CI": "1" } })).collect();
    let edges: Vec<Value> = edges.iter().map(|(from, to)| json!([from, to, "builds_in"])).collect();
    json!({ "version": "0", "default_image": "debian",
            "graph": { "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges } })
}

/// Returns a pipeline of three cached steps: `b` is built in `a`, and `c` in `b`.
pub(crate) fn chain() -> Value {
    pipeline(&[cached("a"), cached("b"), cached("c")], &[(0, 1), (1, 2)])
}
