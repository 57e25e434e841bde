//! `kill -9` of `hm` at random moments, over one shared store. Whatever was in progress (steps, caching, a
//! pull, a concurrent collection), the next run gives the right result, and nothing is left behind.
//!
//! `HM_KILL_ROUNDS` sets the number of rounds (default 20), `HM_KILL_SEED` the seed for the random moments.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hm_exec::store::Store;
use serde_json::json;

use crate::support::{
    backends::usable,
    images::{Image, Layer, has_busybox},
    project::{Ended, Project, eventually},
    registry::Registry,
};

const IMAGES: u64 = 2;
const VERSIONS: u64 = 3 * IMAGES;

/// A small random number generator (xorshift), so that a failure can be reproduced.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Returns the number in the input of a version of the project. Versions share inputs and differ in their
/// images.
fn input(version: u64) -> u64 {
    version / IMAGES
}

/// Returns the tag of the image that a version boots from.
fn tag(version: u64) -> u64 {
    version % IMAGES
}

/// Returns a pipeline in which every step prints what it was made from. The keys of the first two steps are
/// what a DSL would compute from the input: like a DSL, they leave the image out. The last two steps always
/// run.
fn pipeline(version: u64, host: &str) -> String {
    let step = |key: &str, cmd: &str, cached: bool| {
        let mut step = json!({ "key": key, "cmd": cmd });
        if cached {
            step["cache"] = json!({ "policy": "forever", "key": format!("{key}-{}", input(version)) });
        }
        json!({ "step": step, "env": {} })
    };
    json!({
        "version": "0",
        "default_image": format!("{host}/it:{}", tag(version)),
        "graph": {
            "nodes": [
                step("base", "echo $(cat /version) $(cat input) > base; echo made base from $(cat input)", true),
                step("left", "echo \"$(cat base) $(cat input)\" > left; rm -rf dir; mkdir dir; cp input dir/", true),
                step("right", "mv base moved; ln -s moved base", true),
                step("last", "echo base $(cat base) left $(cat left) dir $(cat dir/input) input $(cat input)", false),
                step("other", "echo other $(cat base) $(readlink base)", false),
            ],
            "node_holes": [],
            "edge_property": "directed",
            "edges": [[0, 1, "builds_in"], [0, 2, "builds_in"], [1, 3, "builds_in"], [2, 4, "builds_in"]],
        },
    })
    .to_string()
}

/// Returns how many processes of this machine have a mark in their environment.
fn marked(mark: &str) -> usize {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let has_it = |environ: Vec<u8>| environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
    pids.filter(|pid| fs::read(pid.path().join("environ")).is_ok_and(has_it)).count()
}

/// Fails if the store has something that its index lacks, or something that a dead process was making.
#[track_caller]
fn expect_nothing_left(project: &Project) {
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(project.store.join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    for dir in ["tmp", "locks"] {
        assert!(names(dir).is_empty(), "{dir}: {:?}", names(dir));
    }
    let index = rusqlite::Connection::open(project.store.join("index.db")).unwrap();
    let mut rows = index.prepare("SELECT id FROM layers").unwrap();
    let rows = rows.query_map([], |row| row.get(0)).unwrap();
    assert_eq!(names("layers"), rows.collect::<Result<BTreeSet<String>, _>>().unwrap());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(project.store.to_str().unwrap()), "{mounts}");
}

/// Starts a registry with the images that the versions boot from: a shell, and a file that tells the images
/// apart.
fn registry() -> Option<Registry> {
    if !has_busybox() {
        return None;
    }
    let registry = Registry::start(false)?;
    for tag in 0..IMAGES {
        let mut image = Image::shell();
        image.layers.push(Layer::new().file("version", 0o644, format!("i{tag}\n")).bytes());
        registry.push(&image, &format!("it:{tag}"), None);
    }
    Some(registry)
}

#[test]
fn after_a_kill_at_any_moment_the_next_run_is_right_and_nothing_remains() {
    let Some(registry) = registry() else { return };
    let project = Project::new();
    let seed = setting("HM_KILL_SEED", 0x5eed_1e55);
    let mut random = Random(seed.max(1));
    let mark = format!("HM_TEST_MARK={}", uuid::Uuid::new_v4());
    let edit = |version: u64| {
        project.file("input", &format!("v{}\n", input(version)));
        project.file(".hm/ci.json", &pipeline(version, &registry.host));
    };
    let run = || project.hm(&["run", "--runner", "sandbox", "--format", "human", "-e", &mark, "ci"]);
    let quietly = |mut hm: Command| hm.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let collect = |random: &mut Random| {
        let limit = ["1K", "100K", "4M"][usize::try_from(random.below(3)).unwrap()];
        quietly(project.hm(&["cache", "gc", "--max-size", limit, "--min-free", "0"]))
    };
    edit(0);
    let started = Instant::now();
    let first = Ended::of(&mut run());
    if !usable("runner sandbox", first.code != Some(3), &first.stderr) {
        return;
    }
    first.expect(0);
    let whole_run = u64::try_from(started.elapsed().as_micros()).unwrap();
    let (mut killed, mut hits) = (0, 0);
    for round in 0..setting("HM_KILL_ROUNDS", 20) {
        let version = random.below(VERSIONS);
        edit(version);
        // A run of cached steps alone is often too short to kill, so that some rounds rebuild everything.
        let mut hm = run();
        if random.below(4) == 0 {
            hm.arg("--no-cache");
        }
        let mut all = vec![quietly(hm)];
        if random.below(3) == 0 {
            all.push(collect(&mut random));
        }
        if random.below(4) == 0 {
            // The images are removed, too, and must be pulled again.
            all.push(quietly(project.hm(&["cache", "clean", "--all"])));
        }
        thread::sleep(Duration::from_micros(random.below(whole_run)));
        for hm in &mut all {
            if random.below(8) > 0 {
                killed += u32::from(hm.try_wait().unwrap().is_none());
                hm.kill().unwrap();
            }
            hm.wait().unwrap();
        }
        let context = format!("seed {seed}, round {round}, version {version}");
        eventually("the steps' processes to be gone", || marked(&mark) == 0);
        // The same version once more, or another one; sometimes beside a collection that is not killed.
        let version = if random.below(2) == 0 { version } else { random.below(VERSIONS) };
        edit(version);
        let collection = (random.below(3) == 0).then(|| collect(&mut random));
        let ended = Ended::of(&mut run());
        assert_eq!(ended.code, Some(0), "{context}: {ended:?}");
        let (image, input) = (format!("i{}", tag(version)), format!("v{}", input(version)));
        let says = |line: String| assert!(ended.stdout.contains(&line), "{context}: no `{line}` in\n{}", ended.stdout);
        says(format!("| base {image} {input} left {image} {input} {input} dir {input} input {input}\n"));
        says(format!("| other {image} {input} moved\n"));
        hits += ended.stdout.matches("cached").count();
        if let Some(mut collection) = collection {
            assert!(collection.wait().unwrap().success(), "{context}");
            // The collection may have taken a dead process for a live one. The next start removes the rest.
            drop(Store::open(&project.store).unwrap());
        }
        expect_nothing_left(&project);
    }
    assert!(killed > 0 && hits > 0, "killed {killed} times, {hits} hits");
}
