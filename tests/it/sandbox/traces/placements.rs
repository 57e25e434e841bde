//! `--cache auto` over a parent that ran again: what is found is what a fresh run makes, file by file,
//! and nothing else is found.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::json;

use super::{
    built,
    placed::{ROWS, Row},
};
use crate::support::{
    backends::{skip_optional, usable_program},
    project::{Ended, Project, ir_of},
};

/// Prints everything of the source's directory that a step can see, but not times. It is never found, and
/// never kept.
const VIEW: &str = "cat /proc/uptime > /dev/null; cd /workspace
    find . -path ./.hm -prune -o -printf '%p %y %m %U %G %l\\n' | sort
    find . -path ./.hm -prune -o -type f -printf '%p %n %s\\n' | sort
    find . -path ./.hm -prune -o -type f ! -name edits -print | sort | xargs head -c 100000 -v; true";

/// The variable with the number of chains to try, however long that takes.
const CASES: &str = "HM_PLACED_CASES";
const DEFAULT_CASES: u32 = 200;
const DEFAULT_TIME: Duration = Duration::from_secs(30);
/// Without the variable, at least so many results are found over other parents, however long that takes.
const FEWEST: usize = 10;

/// Several chains of steps in one pipeline. The step `s` of the chain `c` has the key `c-s`. Their
/// commands are files of the source, which they read, or commands.
fn chains(chains: &[Vec<String>]) -> Project {
    let project = Project::new();
    describe(&project, chains);
    project
}

fn describe(project: &Project, chains: &[Vec<String>]) {
    let (mut nodes, mut edges) = (Vec::new(), Vec::new());
    for (chain, cmds) in chains.iter().enumerate() {
        for (at, cmd) in cmds.iter().enumerate() {
            if at > 0 {
                edges.push(json!([nodes.len() - 1, nodes.len(), "builds_in"]));
            }
            let step = json!({ "key": format!("{chain}-{at}"), "cmd": cmd, "runner_args": { "network": "none" } });
            nodes.push(json!({ "step": step, "env": {} }));
        }
    }
    project.file(".hm/ci.json", &ir_of(&nodes, &edges));
}

fn chain(cmds: &[&str]) -> Project {
    chains(&[cmds.iter().map(|cmd| (*cmd).to_owned()).collect()])
}

/// Runs the pipeline. Returns what became of each step that was looked up: `found`, `ran` or why it was
/// not found.
fn run(project: &Project) -> BTreeMap<String, String> {
    let ended = Ended::of(&mut project.hm(&["run", "--cache", "auto", "--format", "json-full"])).expect(0);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    let mut steps = BTreeMap::new();
    for event in ended.events() {
        let status = match event["kind"].as_str() {
            Some("step_cache_miss") => event["message"].as_str().unwrap_or("ran"),
            Some("step_cache_hit") => "found",
            _ => continue,
        };
        steps.insert(event["key"].as_str().unwrap().to_owned(), status.to_owned());
    }
    steps
}

/// Does the same, and returns the steps of the only chain.
fn run_chain(project: &Project) -> Vec<String> {
    run(project).into_values().collect()
}

/// Returns what a step of the last run printed.
fn output(project: &Project, step: &str) -> String {
    Ended::of(&mut project.hm(&["logs", step])).expect(0).stdout
}

/// Runs everything, in a store of its own, and returns what these steps print.
fn fresh(project: &Project, steps: &[String]) -> Vec<String> {
    let store = project.dir.with_file_name("fresh");
    Ended::of(project.hm(&["run", "--cache", "off"]).env("HM_CACHE_DIR", &store)).expect(0);
    let output = |step| Ended::of(project.hm(&["logs", step]).env("HM_CACHE_DIR", &store)).expect(0).stdout;
    steps.iter().map(|step| output(step)).collect()
}

#[test]
fn a_step_is_found_over_a_parent_that_ran_again_and_left_the_same_in_what_it_reads() {
    let project = chain(&["cat a > other; echo same > out", "cat out > made", "cat made", VIEW]);
    project.file("a", "a");
    assert_eq!(run_chain(&project), ["ran", "ran", "ran", "ran"]);
    project.file("a", "edited");
    assert_eq!(run_chain(&project)[..3], ["/workspace/a changed", "found", "found"]);
    let view = output(&project, "0-3");
    assert!(view.contains("==> ./other <==\nedited") && view.contains("==> ./made <==\nsame"), "{view}");
    assert_eq!([view], *fresh(&project, &["0-3".into()]));
    assert_eq!(output(&project, "0-2"), "same\n");
    // From now on it is a result like any other.
    assert_eq!(run_chain(&project)[..3], ["found", "found", "found"]);
    // That of the first run is still there.
    project.file("a", "a");
    assert_eq!(run_chain(&project)[..3], ["found", "found", "found"]);
    let why = Ended::of(&mut project.hm(&["why", "0-1"])).expect(0).stdout;
    assert!(why.starts_with("0-1: cache hit, found by what it read: created by run "), "{why}");
}

/// Commands that leave each kind of entry in their layer.
const KINDS: [&str; 16] = [
    "echo 1 > made; mkdir -p new/deep; echo 2 > new/deep/file",
    "echo more >> f; truncate -s 1 g",
    "chmod 4711 f; chmod 700 d",
    "chown 7:8 f d || true",
    "echo replaced > f; echo x > x; mv x g",
    "rm f g; rm -r d",
    "rm -r d; mkdir d; echo own > d/own",
    "mkdir e; echo x > e/x; mv e d; mv d/b e",
    "ln f hard; ln -s f link; ln link d/again",
    "mv f d/moved; mv d/a a",
    "mkfifo -m 640 pipe; mkfifo d/pipe; chmod 400 pipe",
    "truncate -s 100000 sparse; cp -a d copy",
    "cp -p f kept; touch -r g d/a; cp -a d copied",
    "rm d/a; mkdir d/a; echo x > d/a/x",
    "true",
    "umask 077; mkdir -p d/p/q; echo 1 > d/p/q/r; chmod 400 d/p/q/r",
];

#[test]
fn whatever_a_step_leaves_is_the_same_over_another_parent() {
    // What differs between the parents is read by no step.
    let parent = "echo 1 > f; chmod 640 f; echo 22 > g; mkdir d; echo 3 > d/a; echo 4 > d/b; cat other > unread
        touch -d '2001-02-03 04:05:06.5' f g d/a d/b";
    // Equal commands would find the results of each other.
    let chain = |(at, cmd): (usize, &&str)| vec![format!("{parent} #{at}"), (*cmd).to_owned(), VIEW.to_owned()];
    let all: Vec<_> = KINDS.iter().enumerate().map(chain).collect();
    let project = chains(&all);
    project.file("other", "1");
    let statuses = run(&project);
    assert!(statuses.values().all(|status| status == "ran"), "{statuses:?}");
    project.file("other", "2");
    let statuses = run(&project);
    let views: Vec<String> = (0..KINDS.len()).map(|chain| format!("{chain}-2")).collect();
    for (chain, cmd) in KINDS.iter().enumerate() {
        assert_eq!(statuses[&format!("{chain}-0")], "/workspace/other changed");
        assert_eq!(statuses[&format!("{chain}-1")], "found", "{cmd}");
    }
    for (cmd, (view, fresh)) in KINDS.iter().zip(views.iter().zip(fresh(&project, &views))) {
        assert_eq!(output(&project, view), fresh, "{cmd}");
    }
}

#[test]
fn over_a_parent_that_differs_in_what_its_layer_depends_on_it_runs() {
    let all: Vec<_> = ROWS
        .iter()
        .enumerate()
        // Equal commands would have the same records.
        .map(|(at, row)| vec![format!("sh ./{at}.sh"), format!("{} #{at}", row.cmd), VIEW.into()])
        .collect();
    let project = chains(&all);
    let parents = |which: usize| {
        for (at, Row { parents, .. }) in ROWS.iter().enumerate() {
            project.file(&format!("{at}.sh"), parents[which]);
        }
    };
    parents(0);
    let statuses = run(&project);
    assert!(statuses.values().all(|status| status == "ran"), "{statuses:?}");
    parents(1);
    // One of the steps fails over the second parent.
    let ended = Ended::of(&mut project.hm(&["run", "--keep-going", "--cache", "auto", "--format", "json-full"]));
    let misses: BTreeMap<String, String> = ended
        .events()
        .iter()
        .filter(|event| matches!(event["kind"].as_str(), Some("step_cache_miss" | "step_cache_hit")))
        .map(|event| {
            let message = event["message"].as_str().unwrap_or("found or ran");
            (event["key"].as_str().unwrap().to_owned(), message.to_owned())
        })
        .collect();
    for (at, Row { cmd, because, .. }) in ROWS.iter().enumerate() {
        assert_eq!(misses.get(&format!("{at}-1")).map(String::as_str), Some(*because), "{cmd}");
    }
}

#[test]
fn a_make_in_a_child_builds_nothing_and_order_is_as_after_a_run() {
    if !usable_program("make") {
        return;
    }
    let ask = "cat /proc/uptime > /dev/null; ";
    let project = chain(&[
        "cat other > unread; echo same > config",
        "sleep 1; make -s",
        &format!("{ask} make -q && make && test one -nt config && test two -nt one && test two -nt unread"),
        // What a later step writes is newer than all.
        &format!("{ask} echo x > new; for it in one two config unread; do test new -nt $it || exit 1; done"),
        // An input that a later step makes is newer than what was built from the one before.
        &format!("{ask} echo x > config; ! make -q"),
    ]);
    project.file("Makefile", "two: one\n\tcat one > two\n\none: config\n\tcat config > one; sleep 1\n");
    let run = |other: &str| {
        project.file("other", other);
        run_chain(&project)[..2].to_vec()
    };
    assert_eq!(run("1"), ["ran", "ran"]);
    for other in ["2", "3"] {
        assert_eq!(run(other), ["/workspace/other changed", "found"]);
        assert_eq!(run(other), ["found", "found"]);
    }
    assert_eq!(run("1"), ["found", "found"]);
    // After the parent made another input, it builds.
    let all = fs::read_to_string(project.dir.join(".hm/ci.json")).unwrap();
    project.file(".hm/ci.json", &all.replace("echo same > config", "echo changed > config"));
    assert_eq!(run("1"), ["ran", "/workspace/config changed"]);
}

/// Returns the directory of a toolchain with `cargo` that steps can be shown.
fn toolchain() -> Option<String> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let dir = String::from_utf8(sysroot.stdout).ok()?.trim().to_owned();
    let is_there = sysroot.status.success() && Path::new(&dir).join("bin/cargo").exists();
    is_there.then_some(dir)
}

#[test]
fn a_build_by_cargo_in_a_child_builds_nothing_also_after_a_clone() {
    let Some(toolchain) = toolchain() else { return skip_optional("cargo", "there is no toolchain to show to steps") };
    if !usable_program("cc") {
        return;
    }
    let cargo = format!("HOME=/tmp PATH={toolchain}/bin:$PATH cargo build --offline -v");
    let project = || {
        let project = chain(&[
            "cat other > unread; mkdir -p src; echo 'pub const N: u32 = 1;' > src/generated.rs",
            &cargo,
            &format!(
                "cat /proc/uptime > /dev/null; {cargo} 2>&1 | tee log; grep -q Fresh log && ! grep -q Compiling log"
            ),
        ]);
        project.file("Cargo.toml", "[package]\nname = \"x\"\nversion = \"0.1.0\"\nedition = \"2021\"\n");
        project.file("src/main.rs", "mod generated;\nfn main() { println!(\"{}\", generated::N); }\n");
        project.file(".git/config", "[remote \"origin\"]\n\turl = https://example.com/a/b.git\n");
        project.file(".git/HEAD", "ref: refs/heads/main\n");
        project
    };
    let (first, clone) = (project(), project());
    let hits = |project: &Project, other: &str| {
        project.file("other", other);
        let mut hm = project.hm(&["run", "--cache", "auto", "--format", "json-full", "--host-dir", &toolchain]);
        let ended = Ended::of(hm.env("HM_CACHE_DIR", &first.store)).expect(0);
        ended.events().iter().filter(|event| event["kind"] == "step_cache_hit").count()
    };
    assert_eq!(hits(&first, "1"), 0);
    assert_eq!(hits(&first, "2"), 1, "over another parent");
    assert_eq!(hits(&clone, "2"), 2);
    assert_eq!(hits(&clone, "3"), 1, "over another parent");
}

#[test]
fn times_that_a_step_took_from_files_follow_those_or_it_runs() {
    let same = "cat /proc/uptime > /dev/null; for it in copy moded; do ! test f -nt $it && ! test $it -nt f; done";
    let project = chains(&[
        vec![
            "cat other > x; echo 1 > f; echo 1 > moded; touch -r f moded".into(),
            "cp -p f copy; chmod 711 moded".into(),
            same.into(),
        ],
        // Seconds alone may come from any file.
        vec!["cat other > x; echo 1 > f".into(), "echo 2 > copy; touch -d @$(stat -c %Y f) copy".into()],
        vec!["cat other > x".into(), "touch -d 2100-01-01 ahead".into()],
        vec!["cat other > x".into(), "touch -d 1990-01-01 past".into()],
    ]);
    project.file("other", "1");
    run(&project);
    project.file("other", "2");
    let statuses = run(&project);
    let elsewhere = "its files have times that do not come from the clock";
    let expected = [("0-1", "found"), ("1-1", elsewhere), ("2-1", elsewhere), ("3-1", "found")];
    for (step, status) in expected {
        assert_eq!(statuses[step], status, "{step}");
    }
}

#[test]
fn a_step_that_compares_the_time_of_a_directory_runs_if_the_order_changed() {
    let first = "mkdir -p d; echo > f; set -- d f; test \"$(cat a)\" = a || set -- f d; \
                 touch -d @1000000000.5 $2; touch -d @1000000001.5 $1";
    let project = chain(&[first, "if test d -nt f; then echo newer; else echo older; fi > out", "cat out"]);
    for (content, order) in [("a", "newer\n"), ("edited", "older\n"), ("a", "newer\n")] {
        project.file("a", content);
        run_chain(&project);
        assert_eq!(output(&project, "0-2"), order, "{content}");
    }
}

#[test]
fn a_step_that_copies_links_as_such_runs_if_two_names_are_one_file_or_no_longer_are() {
    let first = "mkdir d; echo 1 > d/f; touch -d '2001-01-01 00:00:00.5' d/f; \
                 if test \"$(cat a)\" = linked; then ln d/f d/g; else cp -p d/f d/g; fi";
    for [before, after] in [["apart", "linked"], ["linked", "apart"]] {
        let project = chain(&[first, "cp -a d e; echo more >> e/f", "cat e/g"]);
        for content in [before, after, before] {
            project.file("a", content);
            run_chain(&project);
            let expected = if content == "linked" { "1\nmore\n" } else { "1\n" };
            assert_eq!(output(&project, "0-2"), expected, "{content} after {before}");
        }
    }
}

#[test]
fn what_was_removed_is_not_put_over_another_parent() {
    let project = chain(&["cat other > x", "echo 1 > made"]);
    project.file("other", "1");
    run(&project);
    project.file("other", "2");
    Ended::of(&mut project.hm(&["cache", "clean", "0-1"])).expect(0);
    assert_eq!(run_chain(&project), ["/workspace/other changed", "its result was removed"]);
    project.file("other", "3");
    assert_eq!(run_chain(&project), ["/workspace/other changed", "found"]);
    // The step that has the layer may go, the others stay.
    Ended::of(&mut project.hm(&["cache", "gc"])).expect(0);
    assert_eq!(run_chain(&project), ["found", "found"]);
}

#[test]
fn runs_that_are_killed_or_at_once_leave_results_that_are_right() {
    let many = "i=0; while [ $i -lt 400 ]; do echo $i > out.$i; i=$((i+1)); done";
    let project = chain(&["cat other > x; echo same > in", &format!("cat in > made; {many}"), VIEW]);
    project.file("other", "first");
    run(&project);
    let start = || {
        let mut hm = project.hm(&["run", "--cache", "auto"]);
        hm.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for round in 0..8_u64 {
        project.file("other", &format!("round {round}"));
        let mut killed = start();
        std::thread::sleep(Duration::from_millis(60 * round));
        killed.kill().unwrap();
        killed.wait().unwrap();
        for mut ended in [start(), start()] {
            assert!(ended.wait().unwrap().success(), "{round}");
        }
        assert_eq!(run_chain(&project)[..2], ["found", "found"], "{round}");
        assert_eq!([output(&project, "0-2")], *fresh(&project, &["0-2".into()]), "{round}");
    }
    let checked = Ended::of(&mut project.hm(&["cache", "gc"])).expect(0);
    assert!(!checked.stderr.contains("warning"), "{}", checked.stderr);
    assert_eq!(run_chain(&project)[..2], ["found", "found"]);
    // Nothing of the killed ones is left.
    let left = |name: &str| fs::read_dir(project.store.join(name)).unwrap().count();
    assert_eq!((left("tmp"), left("locks")), (0, 0));
}

/// A chain: what its steps do in `w`.
type Program = Vec<Vec<String>>;

fn operation() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(&["a", "b", "c", "d", "d/a", "d/b", "e", "e/f", "e/f/a", "n"][..]);
    let one = ("[rslpkwaxduectgfvo]", name()).prop_map(|(op, name)| format!("{op}:{name}"));
    let two = ("[mhy]", name(), name()).prop_map(|(op, from, to)| format!("{op}:{from}:{to}"));
    prop_oneof![6 => one, 3 => two]
}

fn program() -> impl Strategy<Value = Program> {
    prop::collection::vec(prop::collection::vec(operation(), 1..6), 2..5)
}

/// What the first step of a chain makes, before it does what is in the source.
const FILL: &str = "mkdir -p w/d w/e/f; echo 0 > w/a; echo 1 > w/d/a; echo 2 > w/e/f/a; ln -s d/a w/b; ln -s e w/c";

#[test]
fn generated_chains_are_found_only_if_a_fresh_run_leaves_the_same() {
    let Some(edits) = built("edits") else { return };
    let wanted: Option<u32> = std::env::var(CASES).ok().map(|cases| cases.parse().unwrap());
    let until = wanted.is_none().then(|| Instant::now() + DEFAULT_TIME);
    let cases = wanted.unwrap_or(DEFAULT_CASES);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20, ..Config::default() };
    let mut runner = match wanted {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    // Several chains in one run, each with other things that its parent does the second time.
    let one = (program(), prop::collection::vec(operation(), 1..3));
    let strategy = prop::collection::vec(one, 4..8);
    let found = std::cell::Cell::new(0);
    let result = runner.run(&strategy, |all| {
        if until.is_some_and(|until| Instant::now() > until) && found.get() >= FEWEST {
            return Ok(());
        }
        let cmds: Vec<Vec<String>> = all
            .iter()
            .enumerate()
            .map(|(at, (steps, _))| {
                let first = format!("{FILL}; . ./first.{at}");
                let program = |(step, operations): (usize, &Vec<String>)| {
                    format!("(cd w && /workspace/edits {}) > log.{step} 2>&1; true", operations.join(" "))
                };
                let programs = steps.iter().enumerate().map(program);
                std::iter::once(first).chain(programs).chain([VIEW.to_owned()]).collect()
            })
            .collect();
        let project = chains(&cmds);
        fs::copy(edits, project.dir.join("edits")).unwrap();
        let second = |does: bool| {
            for (at, (_, operations)) in all.iter().enumerate() {
                let text = format!("(cd w; /workspace/edits {} > /dev/null 2>&1; true)", operations.join(" "));
                project.file(&format!("first.{at}"), if does { &text } else { "true" });
            }
        };
        let mut views = Vec::new();
        for (at, cmds) in cmds.iter().enumerate() {
            views.push(format!("{at}-{}", cmds.len() - 1));
        }
        second(false);
        run(&project);
        second(true);
        let statuses = run(&project);
        let hits = statuses.iter().filter(|(step, status)| !step.ends_with("-0") && *status == "found").count();
        found.set(found.get() + hits);
        for (view, fresh) in views.iter().zip(fresh(&project, &views)) {
            prop_assert_eq!(output(&project, view), fresh, "{}: {:?} {:?}", view, all, statuses);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    println!("{} steps were found over other parents", found.get());
    assert!(found.get() >= FEWEST, "{} steps were found", found.get());
}
