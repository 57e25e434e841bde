//! Layers of the remote cache that travel as chunks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use hm_exec::{
    BuildStatus,
    StepStatus::{CacheHit, Passed},
    remote::{Digest, reapi::ActionResult},
    remote_cache::RemoteCache,
    store::{Forget, GcRequest, Store},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    filesystem::Filesystem,
    images::Image,
    project::{Ended as EndedProgram, Project},
    proxy::{Proxy, Rules},
    stock_engine::{Function, Habits, StockEngine},
    team::{Team, can_run},
};

/// Writes about 4 MB: small files with everything that a layer can have, and a large one.
const MAKE: &str = "set -e; mkdir -p /out/dir; i=0; while [ $i -lt 60 ]; do seq $((i*5000)) $((i*5000+5000)) > /out/f$i; \
                    i=$((i+1)); done; seq 1000000 1250000 > /out/big; ln /out/f1 /out/dir/again; ln -s f2 /out/link; \
                    : > /out/empty; chmod 2750 /out/dir; seq 1 20000 > \
                    /out/a-long-name-a-long-name-a-long-name-a-long-name-a-long-name-a-long-name-a-long-name-a-long-name; \
                    mkfifo /out/pipe; rm /data/new";

/// Reads all of it.
const USE: &str = "cat /out/f* /out/big /out/a-* | md5sum; stat -c '%a %h' /out/dir /out/f1; \
                   test ! -s /out/empty; readlink /out/link; test -p /out/pipe; test ! -e /data/new";

/// Returns a step that is cached under a key with `version`, and an uncached step on it.
fn pipeline(team: &Team, version: &str, make: &str) -> Value {
    let key = format!("{} {version}", team.top.path().display());
    let cache = json!({ "policy": "forever", "key": key });
    json!({ "version": "0", "graph": { "nodes": [
        { "step": { "key": "make", "cmd": make, "image": team.image, "cache": cache }, "env": {} },
        { "step": { "key": "use", "cmd": USE, "image": team.image }, "env": {} },
    ], "node_holes": [], "edge_property": "directed", "edges": [[0, 1, "builds_in"]] } })
}

/// Returns the bytes that an engine has received and sent since `before`.
fn moved(engine: &StockEngine, before: (u64, u64)) -> (u64, u64) {
    let now = engine.traffic().bytes();
    (now.0 - before.0, now.1 - before.1)
}

/// Returns the temporary files of a store.
fn leftovers(store: &Path) -> Vec<PathBuf> {
    let files = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    files(store.join("tmp")).flat_map(files).collect()
}

/// Returns the blobs of an engine that nothing but a list of chunks names.
fn chunks(engine: &StockEngine) -> Vec<PathBuf> {
    let mut named: Vec<String> = Vec::new();
    for result in engine.results().values() {
        named.extend(result.output_files.iter().filter_map(|file| Some(file.digest.as_ref()?.hash.clone())));
        named.extend(result.output_directories.iter().filter_map(|it| Some(it.tree_digest.as_ref()?.hash.clone())));
    }
    let blobs = fs::read_dir(engine.dir().join("sha256")).unwrap().map(|blob| blob.unwrap().path());
    let is_chunk = |blob: &PathBuf| {
        let name = blob.file_name().unwrap().to_str().unwrap();
        fs::metadata(blob).unwrap().len() > 2_000 && !named.iter().any(|named| named == name)
    };
    blobs.filter(is_chunk).collect()
}

#[tokio::test]
async fn only_chunks_that_the_other_side_lacks_move() {
    for functions in [vec![Function::Sha256], vec![Function::Blake3]] {
        let Some((team, engine)) = Team::gather_here(Habits { functions, ..Habits::default() }) else { return };
        let (first, second) = (team.machine("first"), team.machine("second"));
        let ir = pipeline(&team, "1", MAKE);
        let start = engine.traffic().bytes();
        let made = first.run(&ir).await;
        if !can_run(&made) {
            return;
        }
        assert_eq!(made.statuses(), [Passed; 2], "{:?}", made.events);
        let (sent, _) = moved(&engine, start);
        assert!(engine.results().values().any(|result| !result.output_directories.is_empty()), "nothing was cut");
        let start = engine.traffic().bytes();
        let found = second.run(&ir).await;
        assert_eq!(found.statuses(), [CacheHit, Passed], "{:?}", found.events);
        assert_eq!(found.lines("use"), made.lines("use"));
        let (_, fetched) = moved(&engine, start);

        // The step runs again, and writes one file differently, all with other times.
        let edited = pipeline(&team, "2", &format!("{MAKE}; echo edited >> /out/f7"));
        let start = engine.traffic().bytes();
        let made = first.run(&edited).await;
        assert_eq!(made.statuses(), [Passed; 2]);
        let (sent_again, _) = moved(&engine, start);
        assert!(sent_again < sent / 4, "{sent_again} of {sent} bytes");
        let start = engine.traffic().bytes();
        let found = second.run(&edited).await;
        assert_eq!(found.statuses(), [CacheHit, Passed], "{:?}", found.events);
        assert_eq!(found.lines("use"), made.lines("use"));
        let (_, fetched_again) = moved(&engine, start);
        assert!(fetched_again < fetched / 4, "{fetched_again} of {fetched} bytes");
        // A machine that has no layer of it fetches everything.
        let fresh = team.machine("third").run(&edited).await;
        assert_eq!((fresh.statuses(), fresh.lines("use")), (vec![CacheHit, Passed], made.lines("use")));
        for machine in [&first, &second] {
            assert_eq!(leftovers(&machine.store()), Vec::<PathBuf>::new());
        }
    }
}

#[tokio::test]
async fn chunks_that_the_engine_lost_are_sent_again_though_the_last_result_had_them() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let first = team.machine("first");
    if !can_run(&first.run(&pipeline(&team, "1", MAKE)).await) {
        return;
    }
    let lost = chunks(&engine);
    assert!(lost.len() > 20, "{}", lost.len());
    lost.iter().for_each(|blob| fs::remove_file(blob).unwrap());
    let edited = pipeline(&team, "2", &format!("{MAKE}; echo edited >> /out/f7"));
    let made = first.run(&edited).await;
    assert_eq!(made.statuses(), [Passed; 2]);
    assert!(lost.iter().filter(|blob| blob.exists()).count() > 20, "they were not sent again");
    let found = team.machine("second").run(&edited).await;
    assert_eq!((found.statuses(), found.lines("use")), (vec![CacheHit, Passed], made.lines("use")));
    assert_eq!(leftovers(&first.store()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_engine_that_reads_no_batches_is_read_blob_by_blob() {
    let habits = Habits { reads_batches: false, ..Habits::default() };
    let Some((team, _engine)) = Team::gather_here(habits) else { return };
    let ir = pipeline(&team, "1", MAKE);
    let made = team.machine("first").run(&ir).await;
    if !can_run(&made) {
        return;
    }
    let found = team.machine("second").run(&ir).await;
    assert_eq!((found.statuses(), found.lines("use")), (vec![CacheHit, Passed], made.lines("use")));
}

#[tokio::test]
async fn the_old_version_is_asked_for_only_if_there_is_no_other() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let asked = Arc::<AtomicU32>::default();
    let count = Arc::clone(&asked);
    let before = move |path: &str| {
        if path.ends_with("GetActionResult") {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let proxy = Proxy::start(&engine.url(), Rules { before: Some(Arc::new(before)), ..Rules::default() });
    let mut through = team.engine.clone();
    through.url = format!("grpc://{}", proxy.address());
    let ir = pipeline(&team, "1", MAKE);
    if !can_run(&team.machine("first").run_at(through.clone(), &ir, |request| request).await) {
        return;
    }
    assert_eq!(asked.swap(0, Ordering::Relaxed), 2, "the step was unknown");
    let found = team.machine("second").run_at(through, &ir, |request| request).await;
    assert_eq!(found.statuses(), [CacheHit, Passed]);
    assert_eq!(asked.swap(0, Ordering::Relaxed), 1, "it was found");
}

/// Returns what a result at an engine says about a step.
fn entry_of(engine: &StockEngine, result: &ActionResult) -> Value {
    let file = result.output_files.iter().find(|file| file.path == "entry.json").unwrap();
    let bytes = fs::read(engine.dir().join("sha256").join(&file.digest.as_ref().unwrap().hash)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_list_that_was_not_read_is_passed_on_by_nobody() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let (first, second) = (team.machine("first"), team.machine("second"));
    let (one, mut two) = (pipeline(&team, "1", MAKE), pipeline(&team, "2", MAKE));
    if !can_run(&first.run(&one).await) {
        return;
    }
    assert_eq!(second.run(&one).await.statuses(), [CacheHit, Passed]);
    let (of_one, name) = {
        let results = engine.results();
        let (name, result) = results.iter().next().unwrap();
        (entry_of(&engine, result), name.clone())
    };
    first.run(&two).await;
    // The second result gets the layer that the second machine has, with the list of another one.
    let mut known: Vec<String> = Vec::new();
    {
        let mut results = engine.results();
        let (_, result) = results.iter_mut().find(|(other, _)| **other != name).unwrap();
        let mut poisoned = entry_of(&engine, result);
        let wrong = poisoned["layers"][0]["chunks"].clone();
        assert_ne!(wrong, of_one["layers"][0]["chunks"]);
        poisoned["layers"] = json!([{ "diff_id": of_one["layers"][0]["diff_id"], "chunks": wrong }]);
        let text = poisoned.to_string();
        let digest = Digest::of(text.as_bytes());
        fs::write(engine.dir().join("sha256").join(digest.hex()), text).unwrap();
        let file = result.output_files.iter_mut().find(|file| file.path == "entry.json").unwrap();
        file.digest = Some(digest.into());
        known.extend(results.keys().cloned());
    }
    // It needs no file, and shares a step on it.
    two["graph"]["nodes"][1]["step"]["cache"] = json!({ "policy": "forever", "key": "use" });
    assert_eq!(second.run(&two).await.statuses(), [CacheHit, Passed]);
    let results = engine.results();
    let shared: Vec<Value> =
        results.iter().filter(|(name, _)| !known.contains(name)).map(|(_, result)| entry_of(&engine, result)).collect();
    assert_eq!(shared.len(), 1, "{shared:?}");
    let layers = shared[0]["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["diff_id"] == of_one["layers"][0]["diff_id"]).unwrap();
    assert_eq!(layer["chunks"], of_one["layers"][0]["chunks"], "the layer's own list");
}

#[tokio::test]
async fn whole_layers_and_chunks_are_read_whatever_is_written() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let ir = pipeline(&team, "1", MAKE);
    let cache = |chunks| RemoteCache::new(team.engine.clone()).unwrap().chunks(chunks);
    let whole = team.machine("whole").run_through(cache(false), &ir, |request| request).await;
    if !can_run(&whole) {
        return;
    }
    assert!(engine.results().values().all(|result| result.output_directories.is_empty()));
    let found = team.machine("second").run(&ir).await;
    assert_eq!((found.statuses(), found.lines("use")), (vec![CacheHit, Passed], whole.lines("use")));
    let ir = pipeline(&team, "2", MAKE);
    assert_eq!(team.machine("second").run(&ir).await.statuses(), [Passed; 2]);
    let found = team.machine("whole").run_through(cache(false), &ir, |request| request).await;
    assert_eq!((found.statuses(), found.lines("use")), (vec![CacheHit, Passed], whole.lines("use")));
}

#[tokio::test]
async fn results_with_missing_or_damaged_chunks_are_misses_and_never_used() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let ir = pipeline(&team, "1", MAKE);
    let made = team.machine("first").run(&ir).await;
    if !can_run(&made) {
        return;
    }
    let blobs: Vec<PathBuf> =
        fs::read_dir(engine.dir().join("sha256")).unwrap().map(|blob| blob.unwrap().path()).collect();
    assert!(blobs.len() > 30, "{}", blobs.len());
    let lists: Vec<PathBuf> = engine
        .results()
        .values()
        .flat_map(|result| result.output_directories.clone())
        .map(|list| engine.dir().join("sha256").join(list.tree_digest.unwrap().hash))
        .collect();
    assert!(!lists.is_empty(), "nothing was cut");
    let mut misses = 0;
    // Every list, and every sixth of the others.
    for blob in blobs.iter().step_by(6).chain(&lists) {
        let bytes = fs::read(blob).unwrap();
        let flipped: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
        let bytes_after = [bytes.clone(), b"more".to_vec()].concat();
        for (how, put) in [("lost", None), ("changed", Some(flipped)), ("longer", Some(bytes_after))] {
            fs::remove_file(blob).unwrap();
            if let Some(other) = put {
                fs::write(blob, other).unwrap();
            }
            let machine = team.machine("other");
            // A miss must not replace what is examined.
            let cache = RemoteCache::new(team.engine.clone()).unwrap().write(false);
            let ended = machine.run_through(cache, &ir, |request| request).await;
            assert_eq!(ended.outcome.status, BuildStatus::Passed, "{how} {} {:?}", blob.display(), ended.events);
            assert_eq!(ended.lines("use"), made.lines("use"), "{how}");
            let is_miss = ended.statuses()[0] == Passed;
            assert!(is_miss || !lists.contains(blob), "a {how} list was used");
            misses += u32::from(is_miss);
            fs::remove_dir_all(&machine.dir).unwrap();
            fs::write(blob, &bytes).unwrap();
        }
    }
    assert!(misses > 20, "{misses}");
    let found = team.machine("last").run(&ir).await;
    assert_eq!(found.statuses(), [CacheHit, Passed]);
}

#[tokio::test]
async fn a_result_without_its_files_is_not_used_if_a_chunk_is_missing() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let mut ir = pipeline(&team, "1", MAKE);
    ir["graph"]["nodes"][1]["step"]["cache"] = json!({ "policy": "forever", "key": "use" });
    if !can_run(&team.machine("first").run(&ir).await) {
        return;
    }
    let second = team.machine("second");
    assert_eq!(second.run(&ir).await.statuses(), [CacheHit; 2]);
    assert_eq!(second.layers(), 0, "no file was needed");
    fs::remove_file(&chunks(&engine)[0]).unwrap();
    let third = team.machine("third").run(&ir).await;
    assert_eq!(third.outcome.status, BuildStatus::Passed);
    assert_eq!(third.statuses()[0], Passed, "it could not be completed later: {:?}", third.events);
}

#[tokio::test]
async fn a_chunk_that_is_lost_soon_after_it_was_seen_is_noticed() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let needs_files = pipeline(&team, "1", MAKE);
    let mut ir = needs_files.clone();
    ir["graph"]["nodes"][1]["step"]["cache"] = json!({ "policy": "forever", "key": "use" });
    if !can_run(&team.machine("first").run(&ir).await) {
        return;
    }
    let second = team.machine("second");
    let process = second.engine(RemoteCache::new(team.engine.clone()).unwrap().write(false));
    assert_eq!(second.run_on(&process, &ir, |request| request).await.statuses(), [CacheHit; 2]);
    fs::remove_file(&chunks(&engine)[0]).unwrap();
    let ended = second.run_on(&process, &needs_files, |request| request).await;
    assert_eq!(ended.statuses(), [Passed; 2], "the chunk cannot be fetched: {:?}", ended.events);
    let store = Store::open(&second.store()).unwrap();
    let mut forget = GcRequest::new(store.default_limits().unwrap());
    forget.forget = Forget::Cached;
    store.gc(&forget).unwrap().unwrap();
    // The engine had all chunks a moment ago, and is asked again.
    let ended = second.run_on(&process, &ir, |request| request).await;
    assert_eq!(ended.statuses()[0], Passed, "it could not be completed later: {:?}", ended.events);
}

#[tokio::test]
async fn a_layer_whose_list_is_damaged_travels_whole() {
    let Some((team, engine)) = Team::gather_here(Habits::default()) else { return };
    let first = team.machine("first");
    let mut ir = pipeline(&team, "1", MAKE);
    if !can_run(&first.run(&ir).await) {
        return;
    }
    let list = {
        let results = engine.results();
        let list = results.values().next().unwrap().output_directories[0].tree_digest.clone().unwrap();
        engine.dir().join("sha256").join(list.hash)
    };
    let mut bytes = fs::read(&list).unwrap();
    bytes[0] ^= 1;
    fs::remove_file(&list).unwrap();
    fs::write(&list, bytes).unwrap();
    // The engine says that it has the list, so it cannot be replaced. A step on the layer is shared.
    ir["graph"]["nodes"][1]["step"]["cache"] = json!({ "policy": "forever", "key": "use" });
    assert_eq!(first.run(&ir).await.statuses(), [CacheHit, Passed]);
    let entries: Vec<Value> = engine.results().values().map(|result| entry_of(&engine, result)).collect();
    let shared = entries.iter().find(|entry| entry["step"] == "use").expect("it was shared");
    let layers = shared["layers"].as_array().unwrap();
    assert!(!layers.is_empty() && layers.iter().all(|layer| layer.get("blob").is_some()), "{shared}");
}

#[tokio::test]
async fn a_full_disk_makes_a_result_a_miss_and_leaves_nothing() {
    let Some((team, _engine)) = Team::gather_here(Habits::default()) else { return };
    let Some(small) = Filesystem::tmpfs(24) else { return };
    let ir = pipeline(&team, "1", MAKE);
    let made = team.machine("first").run(&ir).await;
    if !can_run(&made) {
        return;
    }
    // With less and less space, first the chunks and the files do not fit at once, then not even what the
    // step writes.
    let machine = team.machine("second");
    let store = small.dir().join("store");
    std::os::unix::fs::symlink(&store, machine.dir.join("store")).unwrap();
    let mut seen = Vec::new();
    for filled in (0..160).step_by(2) {
        fs::create_dir(&store).unwrap();
        fs::write(small.dir().join("filler"), vec![0; filled << 17]).unwrap();
        let Ok(opened) = hm_exec::store::Store::open(&store) else { break };
        drop(opened);
        let ended = machine.run(&ir).await;
        let statuses = ended.statuses();
        if ended.outcome.status == BuildStatus::Passed {
            assert_eq!(ended.lines("use"), made.lines("use"), "{filled}");
            seen.push(statuses[0]);
        } else {
            assert_ne!(statuses[0], CacheHit, "{filled}: it was reported, and cannot be used");
        }
        let chunks = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(".hm-chunks-");
        let left: Vec<PathBuf> = leftovers(&store).into_iter().filter(chunks).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "{filled}");
        fs::remove_dir_all(&store).unwrap();
    }
    assert_eq!(seen.first(), Some(&CacheHit), "{seen:?}");
    assert!(seen.contains(&Passed), "the step can run where its result does not fit: {seen:?}");
}

#[test]
fn a_machine_that_is_killed_while_chunks_move_is_no_harm() {
    let engine = StockEngine::start(Habits::default());
    let project = Project::new();
    let layout = project.dir.with_file_name("image");
    if !crate::support::images::has_busybox() {
        return;
    }
    Image::shell().write_oci(&layout, "it");
    let image = format!("debian:bookworm=oci:{}:it", layout.display());
    let step = |version: u32| {
        // Nothing of it is at the engine yet.
        let make = MAKE.replace("i*5000", &format!("i*5000+{version}0000000"));
        let cache = json!({ "policy": "forever", "key": format!("{version}") });
        let graph = json!({ "nodes": [
            { "step": { "key": "make", "cmd": make, "cache": cache }, "env": {} },
            { "step": { "key": "use", "cmd": USE }, "env": {} },
        ], "node_holes": [], "edge_property": "directed", "edges": [[0, 1, "builds_in"]] });
        json!({ "version": "0", "default_image": "debian:bookworm", "graph": graph }).to_string()
    };
    let run = |store: &str, url: &str| {
        let mut hm =
            project.hm(&["run", "--format", "json", "--image", &image, "--remote", url, "--remote-cache", "both"]);
        hm.env("HM_CACHE_DIR", project.store.with_file_name(store));
        hm
    };
    // Which call of which kind kills the machine.
    for (version, (call, number)) in
        [("BatchUpdateBlobs", 1), ("BatchUpdateBlobs", 4), ("BatchReadBlobs", 1), ("BatchReadBlobs", 4)]
            .into_iter()
            .enumerate()
    {
        project.file(".hm/ci.json", &step(u32::try_from(version).unwrap()));
        let (victim, calls) = (Arc::<Mutex<Option<u32>>>::default(), AtomicU32::new(0));
        let pid = Arc::clone(&victim);
        let before = move |path: &str| {
            if path.ends_with(call) && calls.fetch_add(1, Ordering::Relaxed) + 1 == number {
                let pid = pid.lock().unwrap().expect("the process was started");
                kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
            }
        };
        let proxy = Proxy::start(&engine.url(), Rules { before: Some(Arc::new(before)), ..Rules::default() });
        let through = format!("grpc://{}", proxy.address());
        let victim_store = format!("victim-{version}");
        if call == "BatchReadBlobs" {
            EndedProgram::of(&mut run(&format!("other-{version}"), &engine.url())).expect(0);
        }
        let mut child = run(&victim_store, &through).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        *victim.lock().unwrap() = Some(child.id());
        let status = child.wait().unwrap();
        assert!(!status.success(), "{call} {number}: it was killed");
        // The same machine goes on. It shares what it makes again, and another one finds that.
        let again = EndedProgram::of(&mut run(&victim_store, &engine.url())).expect(0);
        let hits = |events: &[Value]| events.iter().filter(|event| event["kind"] == "step_cache_hit").count();
        assert_eq!(hits(&again.events()), 1, "{call} {number}: {} {}", again.stderr, again.stdout);
        EndedProgram::of(run(&victim_store, &engine.url()).arg("--no-cache")).expect(0);
        let third = EndedProgram::of(&mut run(&format!("third-{version}"), &engine.url())).expect(0);
        assert_eq!(hits(&third.events()), 1, "{call} {number}: {}", third.stderr);
    }
}
