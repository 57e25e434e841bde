//! What moves, and how long it takes, over the commits of a real project: whole layers beside chunks.
//!
//! `HM_MEASURE_COMMITS` is a directory with one source tree for each commit, in the order of their names.
//! `HM_MEASURE_IMAGE` is an image that has what `HM_MEASURE_BUILD` needs, a command that builds a tree.
//! With `HM_MEASURE_LINK=MEGABITS,MILLISECONDS`, the same is also measured over a link of that bandwidth and
//! round trip.

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use hm_exec::{
    StepStatus::{CacheHit, Passed},
    remote::EndpointOptions,
    remote_cache::RemoteCache,
};
use serde_json::{Value, json};

use crate::support::{
    link::{Link, Speed},
    stock_engine::{Habits, StockEngine},
    team::{Machine, Team},
};

/// A way of sharing.
struct Way {
    name: &'static str,
    engine: Rc<StockEngine>,
    link: Option<Link>,
    chunks: bool,
}

/// What one way of sharing cost.
#[derive(Default)]
struct Cost {
    sent: u64,
    fetched_kept: u64,
    fetched_cold: u64,
    sharing: Taken,
    kept: Taken,
    cold: Taken,
}

/// How long something took, and for how long this process computed meanwhile, the engine included.
#[derive(Default)]
struct Taken {
    time: Duration,
    processor: Duration,
}

struct Clock(Instant, Duration);

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), processor_time())
    }
}

impl Taken {
    fn add(&mut self, Clock(start, before): &Clock) {
        self.time += start.elapsed();
        self.processor += processor_time() - *before;
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} s (computing {:.1} s)", self.time.as_secs_f64(), self.processor.as_secs_f64())
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap()
}

fn speed() -> Option<Speed> {
    let text = std::env::var("HM_MEASURE_LINK").ok().filter(|text| !text.is_empty())?;
    let (megabits, millis) = text.split_once(',').expect("MEGABITS,MILLISECONDS");
    let round_trip = Duration::from_millis(millis.parse().unwrap());
    Some(Speed { megabits: megabits.parse().unwrap(), round_trip })
}

fn replace_source(machine: &Machine<'_>, tree: &Path) {
    let source = machine.dir.join("source");
    fs::remove_dir_all(&source).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(tree).arg(&source).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
#[ignore = "takes many minutes, and needs a project and an image: see the head of this file"]
async fn twenty_commits_of_a_real_project() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (image, build) = (variable("HM_MEASURE_IMAGE"), variable("HM_MEASURE_BUILD"));
    let mut commits: Vec<PathBuf> =
        fs::read_dir(variable("HM_MEASURE_COMMITS")).unwrap().map(|entry| entry.unwrap().path()).collect();
    commits.sort();
    // As most engines: with smaller batches, calls are all that is measured.
    let habits = || Habits { batch_bytes: 2 << 20, ..Habits::default() };
    let Some((mut team, chunked)) = Team::gather_here(habits()) else { return };
    let mut ways = vec![
        Way { name: "whole layers", engine: Rc::new(StockEngine::start(habits())), link: None, chunks: false },
        Way { name: "chunks", engine: chunked, link: None, chunks: true },
    ];
    if let Some(speed) = speed() {
        for (name, chunks) in [("whole layers, over the link", false), ("chunks, over the link", true)] {
            let engine = Rc::new(StockEngine::start(habits()));
            ways.push(Way { name, link: Some(Link::to(&engine.url(), speed)), engine, chunks });
        }
    }
    team.image = image;
    // What is cached on a result takes it along when it is shared.
    let pipeline = |above: Option<String>| -> Value {
        let cache = json!({ "policy": "on_change", "paths": ["**"], "key": "build" });
        let (build_step, image) = (build.clone(), team.image.clone());
        json!({ "version": "0", "graph": { "nodes": [
            { "step": { "key": "build", "cmd": build_step, "image": image, "cache": cache }, "env": {} },
            { "step": { "key": "test", "cmd": "find . -type f | wc -l", "image": image,
                        "cache": above.map(|key| json!({ "policy": "forever", "key": key })) }, "env": {} },
        ], "node_holes": [], "edge_property": "directed", "edges": [[0, 1, "builds_in"]] } })
    };
    let away = || EndpointOptions::new("grpc://127.0.0.1:1");
    let builder = team.machine("builder");
    let mut costs: Vec<Cost> = ways.iter().map(|_| Cost::default()).collect();
    // A machine that has the image, and nothing else.
    let empty = json!({ "version": "0", "graph": { "nodes": [
        { "step": { "key": "build", "cmd": "true", "image": team.image }, "env": {} },
    ], "node_holes": [], "edge_property": "directed", "edges": [] } });
    for (number, commit) in commits.iter().enumerate() {
        replace_source(&builder, commit);
        let ir = pipeline(None);
        assert_eq!(builder.run_at(away(), &ir, |request| request).await.statuses(), [Passed; 2]);
        for (Way { name: way, engine, link, chunks }, cost) in ways.iter().zip(&mut costs) {
            let url = link.as_ref().map_or_else(|| engine.url(), Link::url);
            let cache = || RemoteCache::new(EndpointOptions::new(&url)).unwrap().chunks(*chunks);
            let (start, before) = (Clock::start(), engine.traffic().bytes());
            let above = pipeline(Some(format!("{way} {number}")));
            assert_eq!(builder.run_through(cache(), &above, |request| request).await.statuses(), [CacheHit, Passed]);
            cost.sharing.add(&start);
            cost.sent += engine.traffic().bytes().0 - before.0;
            let cold_name = format!("{way} cold {number}");
            for name in [format!("{way} kept"), cold_name.clone()] {
                let machine = team.machine(&name);
                if !machine.store().exists() {
                    assert_eq!(machine.run_at(away(), &empty, |request| request).await.statuses(), [Passed]);
                }
                replace_source(&machine, commit);
                let (start, before) = (Clock::start(), engine.traffic().bytes());
                let ended = machine.run_through(cache().write(false), &ir, |request| request).await;
                assert_eq!(ended.statuses(), [CacheHit, Passed], "{name}: {:?}", ended.events);
                let bytes = engine.traffic().bytes().1 - before.1;
                if name == cold_name {
                    cost.cold.add(&start);
                    cost.fetched_cold += bytes;
                    fs::remove_dir_all(&machine.dir).unwrap();
                } else {
                    cost.kept.add(&start);
                    cost.fetched_kept += bytes;
                }
            }
        }
        let mib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1 << 20));
        println!("after {} commits (MiB):", number + 1);
        for (Way { name: way, .. }, cost) in ways.iter().zip(&costs) {
            println!(
                "  {way}: sent {} in {}; fetched {} in {}, with an empty store {} in {}",
                mib(cost.sent),
                cost.sharing,
                mib(cost.fetched_kept),
                cost.kept,
                mib(cost.fetched_cold),
                cost.cold,
            );
        }
    }
}
