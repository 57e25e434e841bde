//! Files of other steps: what a step sees of them, when it runs again, and what is refused.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::Path,
    process::Stdio,
    time::Duration,
};

use hm_exec::runner::{InputFiles, StepRunner};
use serde_json::{Value, json};

use crate::support::{
    filesystem::Filesystem,
    project::{Ended, Project},
    sandbox::{Ask, Bench},
};

/// A step of a pipeline.
struct Step {
    key: String,
    cmd: String,
    after: Vec<&'static str>,
    args: Value,
    is_cached: bool,
}

fn step(key: &str, cmd: &str) -> Step {
    Step { key: key.into(), cmd: cmd.into(), after: Vec::new(), args: json!({}), is_cached: false }
}

impl Step {
    fn cached(self) -> Self {
        Self { is_cached: true, ..self }
    }

    fn after(self, steps: &[&'static str]) -> Self {
        Self { after: steps.to_vec(), ..self }
    }

    fn inputs(mut self, inputs: &Value) -> Self {
        self.args["inputs"] = inputs.clone();
        self
    }

    fn args(mut self, args: &Value) -> Self {
        for (name, value) in args.as_object().unwrap() {
            self.args[name] = value.clone();
        }
        self
    }
}

/// Writes the pipeline `ci`.
fn pipeline(project: &Project, steps: &[Step]) {
    let node = |step: &Step| {
        let mut ir = json!({ "key": step.key, "cmd": step.cmd, "runner_args": step.args });
        if step.is_cached {
            ir["cache"] = json!({ "policy": "forever", "key": step.key });
        }
        json!({ "step": ir, "env": {} })
    };
    let at = |key: &str| steps.iter().position(|step| step.key == key).unwrap();
    let edges = steps.iter().enumerate().flat_map(|(child, step)| {
        step.after.iter().map(move |parent| match parent.strip_prefix("in ") {
            Some(parent) => json!([at(parent), child, "builds_in"]),
            None => json!([at(parent), child, "depends_on"]),
        })
    });
    let edges: Vec<_> = edges.collect();
    let graph = json!({ "nodes": steps.iter().map(node).collect::<Vec<_>>(), "node_holes": [],
        "edge_property": "directed", "edges": edges });
    let ir = json!({ "version": "0", "default_image": "host", "graph": graph });
    project.file(".hm/ci.json", &ir.to_string());
}

fn run(project: &Project, args: &[&str]) -> Ended {
    Ended::of(project.hm(&["run", "--format", "human"]).args(args))
}

/// Returns the steps that ran.
fn ran(ended: &Ended) -> BTreeSet<String> {
    let started = ended.stdout.lines().filter_map(|line| line.strip_prefix("=> ")?.split_once(" started"));
    started.map(|(key, _)| key.to_owned()).collect()
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

/// Returns the lines that a step printed.
fn printed<'a>(ended: &'a Ended, key: &str) -> Vec<&'a str> {
    let prefix = format!("{key} | ");
    ended.stdout.lines().filter_map(|line| line.strip_prefix(&*prefix)).collect()
}

/// Three shards, and a step that merges what they wrote.
fn shards(project: &Project, cmds: [&str; 3], join: &str) {
    let inputs = json!({
        "shard1:/workspace/cov": "/workspace/cov/1",
        "shard2:/workspace/cov": "/workspace/cov/2",
        "shard3:/workspace/cov": "/workspace/cov/3",
    });
    let mut steps: Vec<_> =
        ["shard1", "shard2", "shard3"].iter().zip(cmds).map(|(key, cmd)| step(key, cmd).cached()).collect();
    steps.push(step("join", join).cached().after(&["shard1", "shard2", "shard3"]).inputs(&inputs));
    pipeline(project, &steps);
}

#[test]
fn a_join_merges_what_its_shards_wrote_and_runs_again_only_for_other_bytes() {
    let project = Project::new();
    let [one, two, three] = [1, 2, 3].map(|n| format!("mkdir cov; echo {n} > cov/data"));
    let join = "cat cov/*/data > merged; cat merged";
    shards(&project, [&one, &two, &three], join);
    let first = run(&project, &[]).expect(0);
    assert_eq!(ran(&first), set(&["shard1", "shard2", "shard3", "join"]));
    assert_eq!(printed(&first, "join"), ["1", "2", "3"]);
    assert_eq!(ran(&run(&project, &[]).expect(0)), set(&[]));

    // It runs again, later, and leaves the same bytes.
    shards(&project, [&one, "mkdir cov; echo $((1 + 1)) > cov/data; touch elsewhere", &three], join);
    assert_eq!(ran(&run(&project, &[]).expect(0)), set(&["shard2"]));

    shards(&project, [&one, "mkdir cov; echo 4 > cov/data", &three], join);
    let changed = run(&project, &[]).expect(0);
    assert_eq!(ran(&changed), set(&["shard2", "join"]));
    assert_eq!(printed(&changed, "join"), ["1", "4", "3"]);
    let why = Ended::of(&mut project.hm(&["why", "join"])).expect(0).stdout;
    assert!(why.contains("its input shard2:/workspace/cov changed") && !why.contains("shard1"), "{why}");
    assert!(why.contains("shard2: cache miss"), "{why}");

    // A mode is visible, too.
    shards(&project, [&one, "mkdir cov; echo 4 > cov/data; chmod 600 cov/data", &three], join);
    assert_eq!(ran(&run(&project, &[]).expect(0)), set(&["shard2", "join"]));

    // An edit of the source that they do not refer to makes none of them run.
    project.file("edited", "text");
    assert_eq!(ran(&run(&project, &[]).expect(0)), set(&[]));
    assert_eq!(ran(&run(&project, &["--refresh=join"]).expect(0)), set(&["join"]));
    assert_eq!(ran(&run(&project, &["--refresh=shard1"]).expect(0)), set(&["shard1"]));
}

#[test]
fn files_are_shown_read_only_and_without_times_and_owners_and_are_in_no_snapshot() {
    let project = Project::new();
    let make =
        "mkdir -p /opt/out/d; cd /opt/out; echo text > d/f; chmod 600 d/f; chmod 700 d; ln -s d/f link; ln d/f d/g;
        ln -s /etc/hostname /opt/away; ln -s out /opt/to-out; mkfifo fifo; truncate -s 3M sparse";
    let look = "cd /in; cat link d/g file; stat -c '%a %u %Y %h' d/f; stat -c '%a %Y' d; stat -c %s sparse; ls -A;
        { echo x > d/new; } 2>/dev/null || echo refused; chmod 777 d/f 2>/dev/null || echo refused; test -p fifo && echo fifo";
    let inputs = json!({ "make:/opt/to-out": "/in2", "make:/opt/out": "/in", "make:/opt/out/link": "/file" });
    let steps = [
        step("make", make),
        step("look", &look.replace(" file;", " /file;")).after(&["make"]).inputs(&inputs),
        step("child", "ls -A /in; cat /file; test ! -e /in2/link && echo none").after(&["in look"]),
        // It names them itself, through another step.
        step("last", "cat /mine/link").after(&["child"]).inputs(&json!({ "make:/opt/out/": "/mine" })),
    ];
    pipeline(&project, &steps);
    let ended = run(&project, &[]).expect(0);
    let expected = [
        "text",
        "text",
        "text",
        "600 0 946684800 2",
        "700 946684800",
        "3145728",
        "d",
        "fifo",
        "link",
        "sparse",
        "refused",
        "refused",
        "fifo",
    ];
    assert_eq!(printed(&ended, "look"), expected);
    assert_eq!(printed(&ended, "child"), ["none"]);
    assert_eq!(printed(&ended, "last"), ["text"]);
}

#[test]
fn links_lead_to_nothing_of_the_machine() {
    let project = Project::new();
    let outside = project.store.with_file_name("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, project.dir.join("away")).unwrap();
    symlink("/in-root", project.dir.join("target")).unwrap();
    for link in [outside.join("secret").display().to_string(), "/proc/self/fd".into(), "/proc/1/root/etc".into()] {
        pipeline(
            &project,
            &[
                step("make", &format!("ln -s {link} /workspace/link")),
                step("join", "true").after(&["make"]).inputs(&json!({ "make:/workspace/link": "/in" })),
            ],
        );
        let ended = run(&project, &[]).expect(3);
        assert!(
            ended.stdout.contains("step `make` has no file or directory /workspace/link"),
            "{link}: {}",
            ended.stdout
        );
    }
    // The mount point is resolved in the step, too.
    let through = |target: &str, cmd: &str| {
        pipeline(
            &project,
            &[
                step("make", "mkdir out; echo made > out/f"),
                step("join", cmd).after(&["make"]).inputs(&json!({ "make:/workspace/out": target })),
            ],
        );
        run(&project, &[])
    };
    let ended = through("/workspace/away/in", "true");
    assert!(ended.code == Some(3) || ended.code == Some(0), "{}", ended.stdout);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing is made on the machine");
    let ended = through("/workspace/new/in", "cat /workspace/new/in/f").expect(0);
    assert_eq!(printed(&ended, "join"), ["made"]);
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let project = Project::new();
    for (path, is_cached) in [("/workspace/cov", false), ("/workspace/given/x", true), ("/workspace/fifo", true)] {
        let join = step("join", "echo ran").after(&["shard"]).inputs(&json!({ format!("shard:{path}"): "/in" }));
        pipeline(&project, &[step("shard", "echo > given; mkfifo fifo"), if is_cached { join.cached() } else { join }]);
        let ended = run(&project, &[]).expect(3);
        let expected = format!("step `shard` has no file or directory {path} (");
        assert!(ended.stdout.contains(&expected) && printed(&ended, "join").is_empty(), "{}", ended.stdout);
    }
}

#[test]
fn files_are_copied_once_for_all_attempts() {
    let project = Project::new();
    let args = json!({ "retries": 1 });
    // A new copy has a later time of its last change.
    let join = step("join", "stat -c %z /in/f; exit 1").after(&["shard"]).args(&args);
    let join = join.inputs(&json!({ "shard:/workspace/out": "/in" }));
    pipeline(&project, &[step("shard", "mkdir out; echo > out/f"), join]);
    let ended = run(&project, &[]).expect(1);
    let times = printed(&ended, "join");
    assert!(times.len() == 2 && times[0] == times[1], "{times:?}");
    assert_eq!(fs::read_dir(project.store.join("tmp")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn files_of_other_steps_are_no_outputs() {
    let project = Project::new();
    let join = step("join", "echo own > own; cat in/one in/two/g").cached().after(&["shard"]);
    let join = join.args(&json!({ "outputs": ["in/**", "own"] }));
    let inputs = json!({ "shard:/workspace/f": "/workspace/in/one", "shard:/workspace/d": "/workspace/in/two" });
    pipeline(&project, &[step("shard", "echo f > f; mkdir d; echo g > d/g").cached(), join.inputs(&inputs)]);
    for lines in [&["f", "g"][..], &[]] {
        let ended = run(&project, &[]).expect(0);
        assert_eq!(printed(&ended, "join"), lines);
        let outputs = fs::read_dir(project.dir.join(".hm/out/ci/join")).unwrap();
        let names: Vec<_> = outputs.map(|entry| entry.unwrap().file_name()).collect();
        // Their mount points are left in the step's filesystem.
        assert_eq!(names, ["own"]);
    }
}

#[test]
fn a_missing_file_is_no_failure_of_the_command() {
    let project = Project::new();
    let args = json!({ "retries": 2, "soft_fail": true });
    let join = step("join", "echo ran").after(&["shard"]).args(&args).inputs(&json!({ "shard:/workspace/out": "/in" }));
    pipeline(&project, &[step("shard", "true"), join]);
    let ended = run(&project, &[]).expect(3);
    assert!(ended.stdout.contains("step `shard` has no file or directory /workspace/out"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("allowed") && !ended.stdout.contains("retry"), "{}", ended.stdout);
}

#[test]
fn a_file_that_is_too_large_is_named_and_not_read() {
    let project = Project::new();
    for is_cached in [false, true] {
        let join = step("join", "echo ran").after(&["shard"]).inputs(&json!({ "shard:/workspace/cov": "/in" }));
        let shard = step("shard", "mkdir cov; truncate -s 8T cov/x || truncate -s 5G cov/x");
        pipeline(&project, &[shard, if is_cached { join.cached() } else { join }]);
        let ended = run(&project, &[]).expect(3);
        let expected = "/workspace/cov of step `shard`, which `inputs` names, is larger than 4 GiB";
        assert!(ended.stdout.contains(expected) && printed(&ended, "join").is_empty(), "{}", ended.stdout);
    }
}

#[test]
fn many_readers_do_not_take_the_threads_that_their_visits_need() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(12).enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::new();
        let mut run = bench.run();
        let ask = Ask::new("for n in $(seq 40); do echo $n > f$n; done");
        let made = bench.step(&mut run, ask).await.unwrap().committed_snapshot.unwrap();
        let files = |n: usize| InputFiles::new(("made", made.clone()), format!("/workspace/f{n}"), "/in");
        let all: Vec<_> = (1..=40).map(files).collect();
        let reads = all.iter().map(|files| bench.runner.input_digest(&run.ctx.archives, files));
        let read = tokio::time::timeout(Duration::from_secs(120), futures_util::future::try_join_all(reads)).await;
        let digests = read.expect("no reader waits for another one's thread").unwrap();
        let digests: BTreeSet<_> = digests.into_iter().collect();
        assert_eq!(digests.len(), 40);
    });
}

#[test]
fn a_cached_shard_serves_a_join_that_is_not_cached() {
    let project = Project::new();
    let steps = |text: &str| {
        pipeline(
            &project,
            &[
                step("shard", "mkdir out; cat given > out/f").cached(),
                step("join", &format!("cat /in/f; echo {text}"))
                    .after(&["shard"])
                    .inputs(&json!({ "shard:/workspace/out": "/in" })),
            ],
        );
        run(&project, &[]).expect(0)
    };
    project.file("given", "one\n");
    assert_eq!(printed(&steps("a"), "join"), ["one", "a"]);
    project.file("given", "two\n");
    let again = steps("b");
    assert_eq!((ran(&again), printed(&again, "join")), (set(&["join"]), vec!["one", "b"]));
    // A result that lost files is made again, although only a step that joins needs it.
    let layers = fs::read_dir(project.store.join("layers")).unwrap().map(|layer| layer.unwrap().path().join("root"));
    for file in layers.map(|layer| layer.join("workspace/out/f")).filter(|file| file.exists()) {
        fs::remove_file(file).unwrap();
    }
    let made_again = steps("c");
    assert_eq!((ran(&made_again), printed(&made_again, "join")), (set(&["shard", "join"]), vec!["two", "c"]));
}

#[test]
fn an_allowed_failure_leaves_no_files_and_excuses_the_join() {
    let project = Project::new();
    pipeline(
        &project,
        &[
            step("shard", "mkdir out; exit 3").args(&json!({ "soft_fail": true })),
            step("between", "echo between").after(&["shard"]),
            step("join", "echo joined").after(&["between"]).inputs(&json!({ "shard:/workspace/out": "/in" })),
            step("below", "echo below").after(&["join"]),
        ],
    );
    let ended = run(&project, &[]).expect(0);
    assert_eq!(ran(&ended), set(&["shard", "between"]));
    assert!(ended.stdout.contains("=> join skipped") && ended.stdout.contains("=> below skipped"), "{}", ended.stdout);
}

#[test]
fn tables_give_inputs_and_the_plan_shows_them() {
    let project = Project::new();
    pipeline(&project, &[step("shard", "echo made > /out"), step("join", "cat /in").after(&["shard"])]);
    project.file(".hm/hm.toml", "[step.\"jo*\"]\ninputs = { \"shard:/out\" = \"/in\" }\n");
    assert_eq!(printed(&run(&project, &[]).expect(0), "join"), ["made"]);
    let plan = Ended::of(&mut project.hm(&["plan"])).expect(0).stdout;
    assert!(plan.contains("\n  /in: /out of step shard\n"), "{plan}");
    let plan = Ended::of(&mut project.hm(&["plan", "--format", "json"])).expect(0).stdout;
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["steps"][1]["inputs"], json!([{ "step": "shard", "path": "/out", "target": "/in" }]));
    project.file(".hm/hm.toml", "[step.\"jo*\"]\ninputs = { \"shart:/out\" = \"/in\" }\n");
    let wrong = run(&project, &[]).expect(2).stderr;
    assert!(
        wrong.contains("no step with the key `shart`, did you mean `shard`?") && wrong.contains("hm.toml:"),
        "{wrong}"
    );
}

/// Returns how many paths in `dir` end with `name`. Directories that this user may not read, as the overlay's
/// own, are left out.
fn count(dir: &Path, name: &str) -> usize {
    let is_directory = dir.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let Some(entries) = is_directory.then(|| fs::read_dir(dir).ok()).flatten() else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| usize::from(path.ends_with(name)) + count(&path, name)).sum()
}

#[test]
fn a_run_that_is_killed_leaves_no_copy() {
    let project = Project::new();
    pipeline(
        &project,
        &[
            step("shard", "mkdir out; truncate -s 1M out/f"),
            step("join", "echo ready; sleep 4242").after(&["shard"]).inputs(&json!({ "shard:/workspace/out": "/in" })),
        ],
    );
    let mut child = project.hm(&["run", "--format", "human"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("| ready") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the run has ended");
    }
    let copies = count(&project.store.join("tmp"), "files/f");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(copies, 1, "the kill leaves a copy");
    Ended::of(&mut project.hm(&["cache", "gc"])).expect(0);
    let left = fs::read_dir(project.store.join("tmp")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_full_disk_is_reported_as_such() {
    let Some(disk) = Filesystem::tmpfs(24) else { return };
    let project = Project::new();
    let store = disk.dir().join("store");
    pipeline(
        &project,
        &[
            step("shard", "mkdir out; head -c 14M /dev/urandom > out/f"),
            step("join", "true").after(&["shard"]).inputs(&json!({ "shard:/workspace/out": "/in" })),
        ],
    );
    let ended = Ended::of(project.hm(&["run", "--format", "human"]).env("HM_CACHE_DIR", &store)).expect(3);
    let said = ended.stdout.clone() + &ended.stderr;
    assert!(said.contains("o space left on"), "{said}");
    assert!(said.contains("join"), "the shard itself had room: {said}");
}
