//! Engines that lose blobs, and streams that break: the blobs are uploaded again or the step runs again, and
//! its result is never wrong.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};

use crate::support::{
    buildgrid::BuildGrid,
    images::Image,
    live_run::{Waiting, printed},
    project::{Ended, Project, ir, walk},
    proxy::{Proxy, Rules},
    remote_engine::{TestEngine, step_program},
};

/// A size above every protocol message in these tests, and below the layer of an image.
const LARGE: u64 = 200 << 10;

/// The expected calls, by the ends of their paths, each with the minimum size in bytes of the blobs that are
/// removed before it.
type Losses = Arc<Mutex<VecDeque<(&'static str, Option<u64>)>>>;

/// An engine that loses blobs, and the calls before which it does.
struct Losing {
    proxy: Proxy,
    project: Project,
    arguments: Vec<String>,
    losses: Losses,
    executed: Arc<AtomicU64>,
}

impl Losing {
    /// Sets up an engine that keeps its blobs below `blobs`.
    fn new(url: &str, blobs: PathBuf, mut arguments: Vec<String>) -> Self {
        let (losses, executed) = (Losses::default(), Arc::<AtomicU64>::default());
        let (next, count) = (Arc::clone(&losses), Arc::clone(&executed));
        let before = move |path: &str| {
            count.fetch_add(u64::from(path.ends_with("/Execute")), Ordering::Relaxed);
            let mut next = next.lock().unwrap();
            if next.front().is_some_and(|(call, _)| path.ends_with(call))
                && let Some((_, Some(least))) = next.pop_front()
            {
                lose(&blobs, least);
            }
        };
        let proxy = Proxy::start(url, Rules { before: Some(Arc::new(before)), ..Rules::default() });
        let project = Project::new();
        Image::shell().write_oci(&project.dir.with_file_name("image"), "it");
        arguments.push(format!("--remote=grpc://{}", proxy.address()));
        // With a remote cache, the engine would not be asked to run a step whose result it has.
        arguments.push("--remote-cache=off".into());
        arguments.push(format!("--image=host=oci:{}:it", project.dir.with_file_name("image").display()));
        Self { proxy, project, arguments, losses, executed }
    }

    /// Runs a pipeline on the engine, in the store named `store`, while blobs disappear before these calls.
    fn run(&self, ir: &str, store: &str, losses: &[(&'static str, Option<u64>)]) -> Vec<Value> {
        *self.losses.lock().unwrap() = losses.iter().copied().collect();
        self.executed.store(0, Ordering::Relaxed);
        self.project.file(".hm/ci.json", ir);
        let mut hm = self.project.hm(&["run", "--runner", "cloud", "--format", "json-full"]);
        hm.args(&self.arguments).env("HM_CACHE_DIR", self.project.store.with_file_name(store));
        let events = Ended::of(&mut hm).expect(0).events();
        assert!(self.losses.lock().unwrap().is_empty(), "{:?}", self.losses);
        events
    }

    fn executed(&self) -> u64 {
        self.executed.load(Ordering::Relaxed)
    }
}

/// Removes all blobs of at least `least` bytes.
fn lose(blobs: &Path, least: u64) {
    let mut lost = 0;
    walk(blobs, &mut |path| {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_file() && metadata.len() >= least && path.components().any(|it| it.as_os_str() == "objects") {
            fs::remove_file(path).unwrap();
            lost += 1;
        }
    });
    assert!(lost > 0, "nothing is there to lose below {}", blobs.display());
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

/// Returns the lines of a step's last attempt, without messages that are not the step's output.
fn lines(events: &[Value], key: &str) -> Vec<String> {
    let is_start = |event: &&Value| event["kind"] == "step_queued" && event["key"] == key;
    let id = &events.iter().find(is_start).unwrap()["step_id"];
    let logs = of_kind(events, "step_log").into_iter().filter(|event| event["step_id"] == *id);
    let logs: Vec<_> = logs.map(|event| (event["attempt"].as_u64(), event["line"].as_str().unwrap())).collect();
    let last = logs.iter().map(|log| log.0).max().unwrap();
    let is_ours = |line: &str| line.starts_with("unpack") || line.starts_with("hm: the engine");
    let lines = logs.iter().filter(|log| log.0 == last && !is_ours(log.1));
    lines.map(|log| log.1.to_owned()).collect()
}

/// Returns a pipeline of two steps. The result of the first one may come from the engine's own cache.
fn chain() -> String {
    let steps = [("one", "echo first; echo one > /data/one", None), ("two", "cat /data/one; echo second", Some(0))];
    let mut ir: Value = serde_json::from_str(&ir(&steps)).unwrap();
    let key = format!("{0}{0}", uuid::Uuid::new_v4().simple());
    ir["graph"]["nodes"][0]["step"]["cache"] = json!({ "policy": "on_change", "paths": ["input"], "key": key });
    ir.to_string()
}

#[track_caller]
fn check(events: &[Value]) {
    assert_eq!(lines(events, "one"), ["first"]);
    assert_eq!(lines(events, "two"), ["one", "second"]);
}

fn losses_are_made_good(engine: &Losing) {
    let (chain, execute) = (chain(), "/Execute");
    // First, all blobs of the first Action are lost, then only the image's layer and the program. After that,
    // all blobs of the second Action are lost, with its parent's layer. The lost blobs are uploaded again,
    // and each step runs once.
    let losses = [(execute, Some(0)), (execute, Some(LARGE)), (execute, None), (execute, Some(0))];
    let events = engine.run(&chain, "first", &losses);
    check(&events);
    assert!(of_kind(&events, "step_retry").is_empty());
    assert_eq!(engine.executed(), 5);

    // A step's layer is lost before it is fetched: first that of a step that just ran, then that of a step
    // whose result is in the engine's own cache, as on another machine.
    let chain = self::chain();
    for store in ["second", "third"] {
        let events = engine.run(&chain, store, &[(execute, None), ("/Read", Some(0))]);
        check(&events);
        let again = of_kind(&events, "step_retry");
        assert!(again.len() == 1 && again[0]["message"].as_str().unwrap().contains("lacks blobs"), "{events:#?}");
    }
}

#[test]
fn blobs_that_buildgrid_loses_are_uploaded_or_made_again() {
    if step_program().is_none() {
        return;
    }
    let Some(engine) = BuildGrid::start() else { return };
    let _worker = engine.worker("first");
    let logs = format!("--remote-logs={}", engine.logstream_url());
    let losing = Losing::new(&engine.url(), engine.blobs(), vec![logs]);
    losses_are_made_good(&losing);
    a_stream_that_breaks_is_waited_for(&losing);
}

#[test]
fn blobs_that_an_engine_with_its_own_workers_loses_are_uploaded_or_made_again() {
    if step_program().is_none() {
        return;
    }
    let Some(engine) = TestEngine::start() else { return };
    let Some(blobs) = engine.dir() else { return };
    let platform = engine.arguments().into_iter().filter(|argument| argument.starts_with("--remote-platform"));
    losses_are_made_good(&Losing::new(&engine.options().url, blobs.to_owned(), platform.collect()));
}

/// Checks that a step whose connections break while it runs is executed once and has its output reported
/// once.
fn a_stream_that_breaks_is_waited_for(losing: &Losing) {
    let before = losing.executed();
    let arguments: Vec<&str> = losing.arguments.iter().map(String::as_str).collect();
    let mut run = Waiting::start(&losing.project, &arguments);
    run.shows(&["300", "first"]);
    losing.proxy.cut();
    let middle = run.middle();
    assert_eq!(run.go_on(middle), (printed(), vec!["first".into(), "last".into()]));
    assert_eq!(losing.executed() - before, 1);
}
