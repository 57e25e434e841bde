//! Machines that share results through an engine.

use std::{
    any::Any,
    fs,
    path::{Path, PathBuf},
};

use hm_exec::{
    BuildStatus, Engine, Plan, RunRequest,
    cache::ProjectId,
    remote::EndpointOptions,
    remote_cache::RemoteCache,
    runner::sandbox::SandboxRunner,
    store::{Store, StoreHandle},
};
use serde_json::{Value, json};

use super::{
    backends::usable,
    images::{Image, has_busybox},
    layer_writer::Ended,
    programs::hm,
    remote_engine::TestEngine,
    stock_engine::{Habits, StockEngine},
};

/// The runner of every machine.
#[derive(Debug, hm_exec::RunnerSet)]
pub(crate) struct Sandboxed {
    sandbox: SandboxRunner,
}

/// A team: an engine, and an image that all machines have.
pub(crate) struct Team {
    /// The engine's address.
    pub(crate) engine: EndpointOptions,
    /// The directory of the engine's data, if it is known.
    pub(crate) engine_dir: Option<PathBuf>,
    pub(crate) image: String,
    pub(crate) top: tempfile::TempDir,
    _running: Box<dyn Any>,
}

/// One machine of a team, with its own checkout and store.
pub(crate) struct Machine<'a> {
    team: &'a Team,
    pub(crate) dir: PathBuf,
}

impl Team {
    /// Returns a team of machines that have the image, on an engine for tests.
    pub(crate) fn gather() -> Option<Self> {
        let engine = TestEngine::start().filter(|_| has_busybox())?;
        let dir = engine.dir().map(|dir| dir.join("cas"));
        Some(Self::on(engine.options(), dir, Box::new(engine)))
    }

    /// Returns a team on an engine of this process, and the engine.
    pub(crate) fn gather_here(habits: Habits) -> Option<(Self, std::rc::Rc<StockEngine>)> {
        if !has_busybox() {
            return None;
        }
        let engine = std::rc::Rc::new(StockEngine::start(habits));
        let team = Self::on(engine.options(), Some(engine.dir()), Box::new(std::rc::Rc::clone(&engine)));
        Some((team, engine))
    }

    fn on(engine: EndpointOptions, engine_dir: Option<PathBuf>, running: Box<dyn Any>) -> Self {
        let top = tempfile::tempdir().unwrap();
        let layout = top.path().join("image");
        Image::shell().write_oci(&layout, "it");
        Self { engine, engine_dir, image: format!("oci:{}:it", layout.display()), top, _running: running }
    }

    pub(crate) fn machine(&self, name: &str) -> Machine<'_> {
        let dir = self.top.path().join(name);
        fs::create_dir_all(dir.join("source")).unwrap();
        fs::write(dir.join("source/lock"), "as committed\n").unwrap();
        Machine { team: self, dir }
    }

    /// Returns a chain of three steps that write to the image's files, the source's and their own, with
    /// `last` as its end. The keys are unique to this test run, because an engine may outlive a test.
    pub(crate) fn chain(&self, last: &str, policy: &str) -> Value {
        let run = self.top.path().display();
        let step = |key: &str, cmd: &str| {
            let cache = json!({ "policy": policy, "key": format!("{run} {key}"), "duration_seconds": 3600 });
            json!({ "step": { "key": key, "cmd": cmd, "image": self.image, "cache": cache }, "env": {} })
        };
        let first = "echo resolved > lock; rm /data/new; mkdir -p /out/dir; echo 1 > /out/dir/a; chmod 2750 /out/dir; echo said";
        let second = "ln /out/dir/a /out/b; ln -s b /out/c; rm -r /data; mkdir /data; echo 2 > /data/two";
        let nodes = [step("one", first), step("two", second), step("three", last)];
        json!({ "version": "0", "graph": { "nodes": nodes, "node_holes": [], "edge_property": "directed",
                "edges": [[0, 1, "builds_in"], [1, 2, "builds_in"]] } })
    }
}

impl Machine<'_> {
    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub(crate) async fn run(&self, ir: &Value) -> Ended {
        self.run_with(ir, |request| request).await
    }

    pub(crate) async fn run_with(&self, ir: &Value, change: impl FnOnce(RunRequest) -> RunRequest) -> Ended {
        self.run_at(self.team.engine.clone(), ir, change).await
    }

    /// Runs a pipeline as another process of this machine would.
    pub(crate) async fn run_at(
        &self,
        remote: EndpointOptions,
        ir: &Value,
        change: impl FnOnce(RunRequest) -> RunRequest,
    ) -> Ended {
        self.run_through(RemoteCache::new(remote).unwrap(), ir, change).await
    }

    /// Runs a pipeline with a cache of its own.
    pub(crate) async fn run_through(
        &self,
        remote: RemoteCache,
        ir: &Value,
        change: impl FnOnce(RunRequest) -> RunRequest,
    ) -> Ended {
        self.run_on(&self.engine(remote), ir, change).await
    }

    /// Returns an engine of this machine with a cache of its own, for several runs of one process.
    pub(crate) fn engine(&self, remote: RemoteCache) -> Engine<Sandboxed> {
        let store = StoreHandle::from(Store::open(&self.store()).unwrap());
        let sandbox = SandboxRunner::builder().store(store.clone()).helper(hm()).build();
        let remote = remote.local_steps(true).helper(hm());
        Engine::builder(Sandboxed { sandbox }).cache(store).remote_cache(remote).build().unwrap()
    }

    /// Runs a pipeline on an engine of this machine.
    pub(crate) async fn run_on(
        &self,
        engine: &Engine<Sandboxed>,
        ir: &Value,
        change: impl FnOnce(RunRequest) -> RunRequest,
    ) -> Ended {
        let mut request = RunRequest::new(Plan::parse(ir.to_string()).unwrap(), self.dir.join("source"));
        request.project = Some(ProjectId::named("team"));
        Ended::of(engine.start(change(request)).await.unwrap()).await
    }

    /// Returns the number of layers in the store.
    pub(crate) fn layers(&self) -> usize {
        count(&self.store().join("layers"))
    }
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, |entries| entries.count())
}

/// Returns whether steps can run on this machine at all. CI requires it.
pub(crate) fn can_run(ended: &Ended) -> bool {
    let can = ended.outcome.status != BuildStatus::Infrastructure;
    usable("the sandbox", can, &format!("{:?}", ended.events))
}
