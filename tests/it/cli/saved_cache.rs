//! `hm cache save` and `hm cache restore`: results of one store in another one, by way of a directory that
//! may be damaged, full, hostile, or in use by several processes.
//!
//! Over 500 lines because each kind of damage has a case, and all share how results are made.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    filesystem::Filesystem,
    images::Image,
    project::{Ended, Project, ir, walk},
    registry::Registry,
    stock_engine::{Habits, StockEngine},
};

/// A project whose steps are cached, on an image of a registry.
struct Cached {
    registry: Registry,
    project: Project,
}

/// The steps: `b` and `c` build in `a`.
const STEPS: [&str; 3] = ["a", "b", "c"];

impl Cached {
    fn new() -> Option<Self> {
        let registry = Registry::start(false)?;
        registry.push(&Image::shell(), "it:1", None);
        let cached = Self { registry, project: Project::new() };
        cached.project.file("input", "from the source\n");
        cached.write("forever");
        let ended = cached.run("first");
        if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
            return None;
        }
        ended.expect(0);
        Some(cached)
    }

    /// Writes the pipeline. `key` is part of the keys of all steps.
    fn write(&self, key: &str) {
        self.write_to(&self.project, key);
    }

    fn write_to(&self, project: &Project, key: &str) {
        let steps = STEPS.map(|name| {
            let cmd = format!("echo {name} of {key}; cat input; mkdir -p out; echo {name} {key} > out/{name}; ls out");
            (name, cmd)
        });
        let steps: Vec<_> = steps.iter().map(|(name, cmd)| (*name, &**cmd, (*name != "a").then_some(0))).collect();
        let mut ir: Value = serde_json::from_str(&ir(&steps)).unwrap();
        ir["default_image"] = format!("{}/it:1", self.registry.host).into();
        for node in ir["graph"]["nodes"].as_array_mut().unwrap() {
            node["step"]["cache"] = json!({ "policy": "forever", "key": key });
        }
        project.file(".hm/ci.json", &ir.to_string());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.project.dir.with_file_name(name)
    }

    fn hm(&self, store: &str, args: &[&str]) -> Command {
        let mut hm = self.project.hm(args);
        hm.env("HM_CACHE_DIR", self.path(store));
        hm
    }

    fn run(&self, store: &str) -> Ended {
        Ended::of(&mut self.hm(store, &["run", "--format", "json"]))
    }

    /// Runs the pipeline. Returns the numbers of steps that started, and that were found.
    #[track_caller]
    fn counts(&self, store: &str) -> (usize, usize) {
        let events = self.run(store).expect(0).events();
        let count = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        (count("step_start"), count("step_cache_hit"))
    }

    /// Runs `hm cache VERB DIR`. Returns its report.
    #[track_caller]
    fn cache(&self, store: &str, args: &[&str]) -> Value {
        let ended = Ended::of(&mut self.hm(store, &[&["cache"], args, &["--format", "json"]].concat())).expect(0);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    #[track_caller]
    fn save(&self, store: &str, dir: &Path) -> Value {
        self.cache(store, &["save", dir.to_str().unwrap()])
    }

    #[track_caller]
    fn restore(&self, store: &str, dir: &Path) -> Value {
        self.cache(store, &["restore", dir.to_str().unwrap()])
    }
}

/// Returns the list of results in a saved cache.
fn list(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("hm-cache.json")).unwrap()).unwrap()
}

fn write_list(dir: &Path, list: &Value) {
    fs::write(dir.join("hm-cache.json"), list.to_string()).unwrap();
}

/// Returns the files of a saved cache, with their inodes and sizes.
fn files(dir: &Path) -> Vec<(PathBuf, u64, u64)> {
    let mut found = Vec::new();
    walk(dir, &mut |path| {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_file() && !path.ends_with("hm-cache.json") {
            found.push((path.to_owned(), metadata.ino(), metadata.len()));
        }
    });
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Returns the reasons why results were skipped.
fn reasons(report: &Value) -> Vec<String> {
    let skipped = report["skipped"].as_array().unwrap();
    skipped.iter().map(|skipped| skipped["reason"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn results_travel_to_another_store_with_their_files_and_logs() {
    let Some(mut cached) = Cached::new() else { return };
    let dir = cached.path("saved");
    let report = cached.save("first", &dir);
    assert_eq!((&report["results"], &report["new"], &report["dropped"]), (&json!(3), &json!(3), &json!(0)), "{report}");
    assert_eq!(dir.metadata().unwrap().mode() & 0o077, 0, "others may not read what steps wrote");
    // Nothing is written twice.
    let before = files(&dir);
    let report = cached.save("first", &dir);
    assert_eq!((&report["results"], &report["new"], &report["written_bytes"]), (&json!(3), &json!(0), &json!(0)));
    assert_eq!(files(&dir), before);

    let report = cached.restore("second", &dir);
    assert_eq!((&report["results"], &report["present"]), (&json!(3), &json!(0)), "{report}");
    let report = cached.restore("second", &dir);
    assert_eq!((&report["results"], &report["present"]), (&json!(0), &json!(3)), "{report}");
    let restored = cached.restore("third", &dir);
    assert_eq!(restored["results"], 3, "{restored}");
    // The tag is known, and so are all files: nothing is asked for.
    cached.registry.stop();
    assert_eq!(cached.counts("second"), (0, 3));
    let log = Ended::of(&mut cached.hm("second", &["logs", "b"])).expect(0);
    assert!(log.stdout.contains("b of forever\nfrom the source\na\nb\n"), "{}", log.stdout);
    // A step boots from a restored one.
    let ended = Ended::of(&mut cached.hm("second", &["run", "--refresh", "c"])).expect(0);
    assert!(ended.stderr.contains("c passed") || ended.stdout.contains("c passed"), "{ended:?}");
    let log = Ended::of(&mut cached.hm("second", &["logs", "c"])).expect(0);
    assert!(log.stdout.contains("a\nc\n"), "{}", log.stdout);

    // The image keeps its tag, also beside a result that is new.
    let next = cached.path("next");
    copy(&dir, &next);
    cached.save("second", &next);
    let listed = list(&next);
    let mut images = listed["images"].as_object().unwrap().values();
    assert!(images.all(|image| image["reference"].as_str().unwrap().ends_with("it:1")), "{listed}");

    // What was restored is saved again without packing it, and being restored is no use.
    let used = |dir: &Path| {
        let of = |result: &Value| (result["key"].to_string(), result["used_at"].clone());
        let mut used: Vec<_> = list(dir)["results"].as_array().unwrap().iter().map(of).collect();
        used.sort_by(|a, b| a.0.cmp(&b.0));
        used
    };
    let again = cached.path("again");
    copy(&dir, &again);
    let report = cached.save("third", &again);
    assert_eq!((&report["written_bytes"], &report["results"]), (&json!(0), &json!(3)), "{report}");
    assert_eq!(used(&again), used(&dir));
    // All of it comes from the store here.
    let fresh = cached.path("fresh");
    cached.save("third", &fresh);
    assert_eq!(used(&fresh), used(&dir));
}

#[test]
fn a_project_finds_its_own_results_alone_and_results_on_host_stay() {
    let Some(cached) = Cached::new() else { return };
    let dir = cached.path("saved");
    cached.save("first", &dir);
    let other = Project::new();
    other.file("input", "from the source\n");
    cached.write_to(&other, "forever");
    cached.restore("other", &dir);
    let mut hm = other.hm(&["run", "--format", "json"]);
    let events = Ended::of(hm.env("HM_CACHE_DIR", cached.path("other"))).expect(0).events();
    assert_eq!(events.iter().filter(|event| event["kind"] == "step_start").count(), 3);

    let mut host: Value = serde_json::from_str(&ir(&[("on-host", "true", None)])).unwrap();
    host["graph"]["nodes"][0]["step"]["cache"] = json!({ "policy": "forever", "key": "host" });
    cached.project.file(".hm/host.json", &host.to_string());
    Ended::of(&mut cached.hm("first", &["run", "host"])).expect(0);
    let report = cached.save("first", &dir);
    assert_eq!((&report["results"], &report["left_out"]["machine"]), (&json!(3), &json!(1)), "{report}");
}

#[test]
fn a_directory_keeps_what_others_saved_within_its_limits() {
    let Some(cached) = Cached::new() else { return };
    let dir = cached.path("saved");
    cached.save("first", &dir);
    // Another machine that restored nothing.
    cached.write("other");
    cached.run("second").expect(0);
    let report = cached.save("second", &dir);
    assert_eq!((&report["results"], &report["new"], &report["dropped"]), (&json!(6), &json!(3), &json!(0)), "{report}");
    let all = report["bytes"].as_u64().unwrap();
    // The last ones stay, and what only the others needed goes.
    let size = (all - 1).to_string();
    let report = cached.cache("second", &["save", dir.to_str().unwrap(), "--max-size", &size]);
    assert!(report["bytes"].as_u64().unwrap() < all, "{report}");
    assert!(report["left_out"]["size"].as_u64().unwrap() > 0, "{report}");
    let keys: Vec<_> = list(&dir)["results"].as_array().unwrap().iter().map(|it| it["key"].clone()).collect();
    let report = cached.restore("third", &dir);
    assert_eq!(report["results"].as_u64().unwrap(), keys.len() as u64, "{report}");
    cached.write("other");
    assert_eq!(cached.counts("third"), (0, 3), "those that were used last are there");
    let report = cached.cache("second", &["save", dir.to_str().unwrap(), "--max-size", "0"]);
    assert_eq!((&report["results"], &report["bytes"]), (&json!(0), &json!(0)), "{report}");
    assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 0);
    // Long ago.
    cached.save("second", &dir);
    let mut old = list(&dir);
    for result in old["results"].as_array_mut().unwrap() {
        result["used_at"] = json!(1_000_000_000_000_i64);
    }
    write_list(&dir, &old);
    let report = cached.save("fourth", &dir);
    assert_eq!((&report["results"], &report["dropped"]), (&json!(0), &json!(3)), "{report}");
}

/// What a restore says, and how a blob is damaged.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn damaged_blobs_are_skipped_and_their_steps_run() {
    let Some(cached) = Cached::new() else { return };
    let dir = cached.path("saved");
    cached.save("first", &dir);
    let blobs = files(&dir.join("blobs"));
    // Three layers, the manifest of the source, and three logs.
    assert_eq!(blobs.len(), 7, "{blobs:?}");
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let cut = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(1).unwrap();
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let link = |path: &Path| {
        fs::rename(path, path.with_extension("elsewhere")).unwrap();
        symlink(path.with_extension("elsewhere"), path).unwrap();
    };
    let pipe = |path: &Path| {
        fs::remove_file(path).unwrap();
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let damages: [Damage<'_>; 5] = [
        ("differs", &flip),
        ("size differs", &cut),
        ("missing", &remove),
        ("not a regular", &link),
        ("not a regular", &pipe),
    ];
    for (at, (path, ..)) in blobs.iter().enumerate() {
        let (why, damage) = damages[at % damages.len()];
        let (copied, store) = (cached.path(&format!("damaged-{at}")), format!("store-{at}"));
        copy(&dir, &copied);
        damage(&copied.join("blobs").join(path.file_name().unwrap()));
        let report = cached.restore(&store, &copied);
        let skipped: u64 = report["skipped"].as_array().unwrap().iter().map(|it| it["results"].as_u64().unwrap()).sum();
        assert!(skipped > 0 && skipped + report["results"].as_u64().unwrap() == 3, "{report}");
        // The first result that needs a damaged blob removes it.
        let is_why = |reason: &String| reason.contains(why) || reason.contains("missing");
        assert!(reasons(&report).iter().all(is_why), "{why}: {report}");
        let (started, found) = cached.counts(&store);
        assert_eq!(started + found, 3);
        assert!(started as u64 >= skipped, "{report}: {started} started");
        // The next save repairs it.
        cached.save(&store, &copied);
        let store = format!("repaired-{at}");
        let report = cached.restore(&store, &copied);
        assert_eq!(reasons(&report), [] as [&str; 0], "{report}");
        assert_eq!(cached.counts(&store), (0, 3));
    }
}

#[test]
fn a_list_that_lies_is_not_believed() {
    let Some(cached) = Cached::new() else { return };
    let dir = cached.path("saved");
    cached.save("first", &dir);
    let honest = list(&dir);
    let restore = |store: &str, list: &Value| {
        write_list(&dir, list);
        cached.restore(store, &dir)
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut list = honest.clone();
        list["results"].as_array_mut().unwrap().iter_mut().for_each(change);
        list
    };
    // The layers of another result, under a name that is not theirs.
    let other = &honest["results"][0]["layers"][0]["blob"];
    let list = changed(&|result| {
        for layer in result["layers"].as_array_mut().unwrap() {
            layer["diff_id"] = format!("sha256:{}", "0".repeat(64)).into();
            layer["blob"] = other.clone();
        }
    });
    let report = restore("diff-id", &list);
    assert_eq!(&report["results"], &json!(0), "{report}");
    assert!(reasons(&report).iter().all(|reason| reason.contains("corrupt")), "{report}");
    assert_eq!(cached.counts("diff-id"), (3, 0));
    // The manifest of no such source.
    let report = restore("source", &changed(&|result| result["source"] = "0".repeat(64).into()));
    assert_eq!(&report["results"], &json!(0), "{report}");
    // Ids that are paths.
    let report = restore("snapshot", &changed(&|result| result["snapshot"] = "../../../../etc".into()));
    assert_eq!(&report["results"], &json!(0), "{report}");
    // A key of its own for a snapshot that the store has from elsewhere.
    let list = changed(&|result| {
        result["key"] = "ab".repeat(32).into();
        result["layers"] = json!([]);
    });
    let report = restore("first", &list);
    assert_eq!(&report["results"], &json!(0), "{report}");
    assert_eq!(reasons(&report), ["the store has other snapshots with their ids"], "{report}");
    // Images that are no images of a registry, or are others.
    for (reference, why) in
        [("rootfs:/", "no name in a registry"), ("oci:/a/b", "no name"), ("127.0.0.1:1/a:b", "reach")]
    {
        let mut list = honest.clone();
        for image in list["images"].as_object_mut().unwrap().values_mut() {
            image["reference"] = reference.into();
        }
        let report = restore("image", &list);
        assert_eq!(&report["results"], &json!(0), "{report}");
        assert!(reasons(&report)[0].contains(why), "{report}");
    }
    let report = restore(
        "owners",
        &changed(&|result| {
            result["id_map"] = if result["id_map"] == "single" { "root" } else { "single" }.into();
        }),
    );
    assert!(reasons(&report)[0].contains("mapped in another way"), "{report}");
    assert_eq!(restore("honest", &honest)["results"], 3);
}

#[test]
fn what_is_no_saved_cache_is_refused_and_left_alone() {
    let cached = Project::new();
    let dir = cached.dir.with_file_name("mine");
    let hm = |args: &[&str]| Ended::of(&mut cached.hm(&[&["cache"], args].concat()));
    let name = dir.to_str().unwrap();
    let ended = hm(&["restore", name]).expect(0);
    assert!(ended.stderr.contains("nothing to restore"), "{ended:?}");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.txt"), "years of work").unwrap();
    for verb in ["save", "restore"] {
        let ended = hm(&[verb, name]).expect(2);
        assert!(ended.stderr.contains("is not a saved cache") && ended.stderr.contains("hint:"), "{ended:?}");
        let file = dir.join("thesis.txt");
        let ended = hm(&[verb, file.to_str().unwrap()]).expect(2);
        assert!(ended.stderr.contains("not a directory"), "{ended:?}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    // Blobs elsewhere: nothing there is removed.
    let (link, elsewhere) = (cached.dir.with_file_name("link"), cached.dir.with_file_name("elsewhere"));
    fs::create_dir(&link).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("0".repeat(64)), "mine").unwrap();
    symlink(&elsewhere, link.join("blobs")).unwrap();
    hm(&["save", link.to_str().unwrap()]).expect(2);
    assert!(elsewhere.join("0".repeat(64)).exists());
    // Lists that no hm can read. A save replaces them.
    let dir = cached.dir.with_file_name("lists");
    let name = dir.to_str().unwrap();
    hm(&["save", name]).expect(0);
    for (text, why) in
        [("{}", "missing field"), ("{\"version\":7}", "version 7"), ("", "EOF"), ("[[[[", "invalid type")]
    {
        fs::write(dir.join("hm-cache.json"), text).unwrap();
        let ended = hm(&["restore", name]).expect(2);
        assert!(ended.stderr.contains(why), "{ended:?}");
    }
    hm(&["save", name]).expect(0);
    hm(&["restore", name]).expect(0);
    let large = fs::File::create(dir.join("hm-cache.json")).unwrap();
    large.set_len(1 << 40).unwrap();
    let ended = hm(&["restore", name]).expect(2);
    assert!(ended.stderr.contains("too large"), "{ended:?}");
}

#[test]
fn a_killed_save_or_restore_leaves_what_is_whole() {
    let Some(cached) = Cached::new() else { return };
    let dir = cached.path("saved");
    let name = dir.to_str().unwrap();
    cached.write("second");
    cached.run("first").expect(0);
    let killed = |store: &str, verb: &str, after: Duration| {
        let mut hm = cached.hm(store, &["cache", verb, name]);
        let mut child = hm.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    };
    let mut wholes = 0;
    for round in 0..24 {
        killed("first", "save", Duration::from_millis(2 * round));
        let store = format!("round-{round}");
        killed(&store, "restore", Duration::from_millis(4 * round));
        let report = cached.restore(&store, &dir);
        assert_eq!(reasons(&report), [] as [&str; 0], "{report}");
        let there = report["results"].as_u64().unwrap() + report["present"].as_u64().unwrap();
        assert!([0, 6].contains(&there), "{report}");
        wholes += u64::from(there == 6);
        if there == 6 {
            assert_eq!(cached.counts(&store), (0, 3), "{report}");
            fs::remove_dir_all(&dir).unwrap();
        }
        assert!(Command::new("rm").arg("-rf").arg(cached.path(&store)).status().unwrap().success());
    }
    // Whatever the machine's speed, the last one is.
    let report = cached.save("first", &dir);
    assert_eq!(report["results"], 6);
    assert_eq!(fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
    assert_eq!(cached.restore("last", &dir)["results"], 6, "{wholes} of the others were whole");
}

#[test]
fn several_processes_take_turns_with_one_directory() {
    let Some(cached) = Cached::new() else { return };
    let dir = cached.path("saved");
    cached.write("second");
    cached.run("other").expect(0);
    let spawn = |store: &str, verb: &str| {
        let mut hm = cached.hm(store, &["cache", verb, dir.to_str().unwrap()]);
        hm.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let uses = [("first", "save"), ("other", "save"), ("new", "restore"), ("first", "save"), ("new", "restore")];
    for child in uses.map(|(store, verb)| spawn(store, verb)) {
        let ended = Ended::from(child.wait_with_output().unwrap()).expect(0);
        assert!(!ended.stderr.contains("skipping"), "{ended:?}");
    }
    let report = cached.restore("new", &dir);
    assert_eq!(report["results"].as_u64().unwrap() + report["present"].as_u64().unwrap(), 6, "{report}");
}

#[test]
fn a_full_disk_leaves_the_directory_as_it_was() {
    let Some(disk) = Filesystem::tmpfs(4) else { return };
    let Some(cached) = Cached::new() else { return };
    let dir = disk.dir().join("saved");
    cached.save("first", &dir);
    let before = files(&dir);
    // A layer that cannot be compressed.
    let mut ir: Value = serde_json::from_str(&ir(&[("large", "head -c 8388608 /dev/urandom > large", None)])).unwrap();
    ir["default_image"] = format!("{}/it:1", cached.registry.host).into();
    ir["graph"]["nodes"][0]["step"]["cache"] = json!({ "policy": "forever", "key": "large" });
    cached.project.file(".hm/large.json", &ir.to_string());
    Ended::of(&mut cached.hm("first", &["run", "large"])).expect(0);
    let ended = Ended::of(&mut cached.hm("first", &["cache", "save", dir.to_str().unwrap()])).expect(3);
    assert!(ended.stderr.contains("no space left for") && ended.stderr.contains("--max-size"), "{}", ended.stderr);
    assert_eq!(files(&dir), before);
    assert_eq!(cached.restore("second", &dir)["results"], 3);
    // The store's disk, on the way back.
    let large = cached.path("large");
    cached.save("first", &large);
    let mut hm = cached.hm("first", &["cache", "restore", large.to_str().unwrap()]);
    let ended = Ended::of(hm.env("HM_CACHE_DIR", disk.dir().join("store"))).expect(3);
    assert!(ended.stderr.contains("hm cache gc"), "{}", ended.stderr);
}

#[test]
fn results_of_a_scope_get_into_stores_of_that_scope_only() {
    let Some(cached) = Cached::new() else { return };
    let engine = StockEngine::start(Habits::default());
    let run = |store: &str, scope: &str| {
        let mut hm = cached.hm(store, &["run", "--remote", &engine.url(), "--remote-cache", "both"]);
        Ended::of(hm.env("HM_REMOTE_CACHE_SCOPE", scope))
    };
    run("pull-request", "pr-1").expect(0);
    let (own, trusted) = (cached.path("saved-own"), cached.path("saved-trusted"));
    cached.save("pull-request", &own);
    cached.save("first", &trusted);
    assert_eq!((&list(&own)["scope"], &list(&own)["version"]), (&json!("pr-1"), &json!(2)));
    // An older program reads those that everybody may use.
    assert_eq!((list(&trusted).get("scope"), &list(&trusted)["version"]), (None, &json!(1)));
    let refused = |store: &str, verb: &str, dir: &Path| {
        let before = files(dir);
        let ended = Ended::of(&mut cached.hm(store, &["cache", verb, dir.to_str().unwrap()])).expect(2);
        assert_eq!(files(dir), before);
        ended.stderr
    };
    let why = "has results of the scope `pr-1`, and the store has those of `trusted`";
    for verb in ["save", "restore"] {
        let stderr = refused("first", verb, &own);
        assert!(stderr.contains(why), "{verb}: {stderr}");
    }
    let stderr = refused("pull-request", "save", &trusted);
    assert!(stderr.contains("has results of the scope `trusted`, and the store has those of `pr-1`"), "{stderr}");
    // A store that has nothing becomes one of the scope, so no run of another one finds them there.
    cached.restore("new", &own);
    assert_eq!(cached.counts("new"), (0, 3));
    let stderr = run("new", "trusted").stderr;
    assert!(stderr.contains("has results of the scope `pr-1`, and this run's scope is `trusted`"), "{stderr}");
    run("new", "pr-1").expect(0);
    // What is trusted is restored anywhere.
    let restored = cached.restore("pull-request", &trusted);
    // The keys of `b` and `c` have the snapshot of `a`, which each store has of its own.
    assert_eq!((&restored["present"], &restored["results"]), (&json!(1), &json!(2)), "{restored}");
}
