//! Chains of steps: on docker alone, through the cache, and from runner to runner.

use hm_exec::{
    BuildStatus, StepStatus,
    StepStatus::{CacheHit, Passed},
};
use serde_json::{Value, json};

use crate::support::{
    docker::{Bench, Built, cached, chain, pipeline, step},
    output_order::FAILS_LATE,
    users::is_root,
};

fn statuses(built: &Built) -> Vec<StepStatus> {
    built.outcome.steps.iter().map(|step| step.status).collect()
}

#[track_caller]
fn passed(built: &Built) {
    assert_eq!(built.outcome.status, BuildStatus::Passed, "{:#?}", built.events);
}

#[tokio::test]
async fn a_chain_on_docker_alone_stays_at_the_daemon() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", "of the source\n");
    let mut ir = chain(&[
        step("a", "cat source; rm source; echo a > log; mkdir /opt; echo tool > /opt/tool; echo $OWN"),
        step("b", "test ! -e source; cat log /opt/tool; echo b >> log; echo \"[${OWN-unset}] [${IT-unset}]\""),
        step("c", "cat log; echo \"[${OWN-unset}] [${IT-unset}]\""),
    ]);
    ir["graph"]["nodes"][0]["env"]["OWN"] = "of a".into();
    ir["graph"]["nodes"][1]["env"]["IT"] = "of b".into();
    let built = bench.build(&ir).await;
    passed(&built);
    assert_eq!(built.lines("a"), ["of the source", "of a"]);
    assert_eq!(built.lines("b"), ["a", "tool", "[unset] [of b]"]);
    assert_eq!(built.lines("c"), ["a", "b", "[unset] [unset]"]);
    let snapshots = built.snapshots();
    assert!(snapshots.len() == 2 && snapshots.iter().all(|name| name.starts_with("docker:")), "{snapshots:?}");
    assert_eq!(bench.left().await, (vec![], vec![]));
}

/// The daemon copies each stream separately: the order between the streams is not known here, and not
/// promised.
#[tokio::test]
async fn no_line_of_two_streams_is_missing() {
    let Some(bench) = Bench::new() else { return };
    let keys = ["a", "b", "c", "d", "e"];
    let built = bench.build(&pipeline(&keys.map(|key| step(key, FAILS_LATE)), &[])).await;
    passed(&built);
    for key in keys {
        let (out, err): (Vec<_>, Vec<_>) = built.lines(key).into_iter().partition(|line| line.starts_with("line "));
        assert!(out.iter().map(|line| line[5..].parse::<i32>().unwrap()).eq(1..=30), "{out:?}");
        assert_eq!(err, ["BOOM", "and", "more"]);
    }
}

#[tokio::test]
async fn siblings_start_from_one_image() {
    let Some(bench) = Bench::new() else { return };
    let steps = [
        step("root", "echo root > f"),
        step("one", "echo one >> f; cat f"),
        step("two", "echo two >> f; cat f"),
        step("three", "cat f"),
    ];
    let edges = [json!([0, 1, "builds_in"]), json!([0, 2, "builds_in"]), json!([2, 3, "builds_in"])];
    let built = bench.build(&pipeline(&steps, &edges)).await;
    passed(&built);
    assert_eq!(built.lines("one"), ["root", "one"]);
    assert_eq!(built.lines("two"), ["root", "two"]);
    assert_eq!(built.lines("three"), ["root", "two"]);
    assert_eq!(bench.left().await, (vec![], vec![]));
}

#[tokio::test]
async fn cached_steps_are_found_by_the_next_run_and_their_children_start_from_the_store() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", "old\n");
    let ir = |last: &str| {
        chain(&[
            cached("base", "echo base > built; rm source; mkdir /opt; echo tool > /opt/tool"),
            cached("more", "echo more >> built"),
            step("last", last),
        ])
    };
    let cold = bench.build(&ir("cat built /opt/tool; test ! -e source")).await;
    passed(&cold);
    assert_eq!(statuses(&cold), [Passed; 3]);
    assert_eq!(cold.lines("last"), ["base", "more", "tool"]);
    assert_eq!(bench.left().await, (vec![], vec![]));
    // Edits of the source since the step win over the step's own changes to it.
    bench.file("source", "newer\n");
    let warm = bench.build(&ir("cat built /opt/tool source")).await;
    passed(&warm);
    assert_eq!(statuses(&warm), [CacheHit, CacheHit, Passed]);
    assert_eq!(warm.lines("last"), ["base", "more", "tool", "newer"]);
    assert_eq!(bench.left().await, (vec![], vec![]));
}

/// The files that each step leaves, and that the next one must find.
#[tokio::test]
async fn a_chain_moves_between_the_sandbox_and_docker_and_back() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", "of the source\n");
    bench.file("script", "#!/bin/sh\necho it runs\n");
    let owners = if is_root() { "yes" } else { "" };
    // The image does not have these tools by name.
    let tools =
        ["chmod", "chown", "mkfifo", "rmdir"].map(|tool| format!("{tool}() {{ /bin/busybox {tool} \"$@\"; }}; "));
    let sh = |text: &str| format!("set -e; {}{text}", tools.concat());
    let mut steps = [
        step(
            "first",
            &sh("mkdir -p d/e /opt; echo tool > /opt/tool; echo x > d/gone; echo y > d/kept; ln d/kept d/hard; \
                 ln -s kept d/soft; : > d/e/one; mkfifo d/pipe; test -z \"$OWNERS\" || chown 7:8 d/kept; \
                 chmod 4711 d/kept; chmod 2750 d; touch -t 200109090146.40 d/e/one; rm script"),
        ),
        step(
            "second",
            &sh(
                "cat /opt/tool d/soft source; test ! -e script; test -p d/pipe; stat -c '%a %h' d/hard; stat -c %a d; \
                 test -z \"$OWNERS\" || stat -c '%u:%g' d/hard; stat -c %Y d/e/one; rm d/gone /opt/tool; mv d/e moved; \
                 rm -r d/pipe; mkdir z; : > z/old; echo z > zz; ln zz zzz; test -z \"$OWNERS\" || chown 9:10 zz",
            ),
        ),
        step(
            "third",
            &sh("test ! -e /opt/tool; test ! -e d/gone; test ! -e d/e; test ! -e d/pipe; stat -c '%Y' moved/one; \
                 stat -c '%a %h' d/hard zzz; test -z \"$OWNERS\" || stat -c '%u:%g' d/kept zzz; \
                 rm -r z moved; mkdir z; : > z/new; echo third >> zz"),
        ),
        step(
            "fourth",
            &sh(
                "ls z; cat zz zzz; test ! -e moved; chmod 600 source; rm -r d; mkdir d; : > d/again; rm z/new; rmdir z; \
                 echo a file > z",
            ),
        ),
        step("fifth", &sh("cat z; ls d; stat -c %a source; ls; cat source")),
    ];
    for (at, step) in steps.iter_mut().enumerate() {
        step["step"]["runner"] = if at % 2 == 0 { "sandbox".into() } else { "docker".into() };
        step["env"]["OWNERS"] = owners.into();
    }
    steps[0]["step"]["image"] = bench.shared_image().into();
    let built = bench.build(&chain(&steps)).await;
    passed(&built);
    let owned = |lines: &[&'static str], owners: &[&'static str], rest: &[&'static str]| -> Vec<&'static str> {
        let owners = if is_root() { owners } else { &[] };
        [lines, owners, rest].concat()
    };
    let second = owned(&["tool", "y", "of the source", "4711 2", "2750"], &["7:8"], &["1000000000"]);
    assert_eq!(built.lines("second"), second);
    assert_eq!(built.lines("third"), owned(&["1000000000", "4711 2", "644 2"], &["7:8", "9:10"], &[]));
    // As between two steps of the sandbox: a child that writes to one name of a hard-linked file gets a copy.
    assert_eq!(built.lines("fourth"), ["new", "z", "third", "z"]);
    assert_eq!(built.lines("fifth"), ["a file", "again", "600", "d", "source", "z", "zz", "zzz", "of the source"]);
    let snapshots = built.snapshots();
    assert!(snapshots.len() == 4 && snapshots.iter().all(|name| name.starts_with("hm1:")), "{snapshots:?}");
    assert_eq!(bench.left().await, (vec![], vec![]));
}

#[tokio::test]
async fn a_chain_that_starts_on_an_image_of_the_daemon_continues_in_the_sandbox() {
    let Some(bench) = Bench::new() else { return };
    let mut steps: Vec<Value> =
        (0..4).map(|at| step(&format!("s{at}"), "cat log; echo step >> log; ls /bin/sh")).collect();
    steps[0] = step("s0", "echo first > log; ls /bin/sh");
    // Two steps on docker, so that the sandbox gets two layers at once.
    steps[2]["step"]["runner"] = "sandbox".into();
    let built = bench.build(&chain(&steps)).await;
    passed(&built);
    assert_eq!(built.lines("s2"), ["first", "step", "/bin/sh"]);
    assert_eq!(built.lines("s3"), ["first", "step", "step", "/bin/sh"]);
    let snapshots = built.snapshots();
    let schemes: Vec<_> = snapshots.iter().map(|name| name.split(':').next().unwrap()).collect();
    assert_eq!(schemes, ["docker", "hm1", "hm1"]);
}

#[tokio::test]
async fn a_step_in_the_sandbox_gets_files_of_a_step_on_docker() {
    let Some(bench) = Bench::new() else { return };
    let ir = |shard: Value| {
        let mut join = cached("join", "cat /in/f; stat -c %a /in/f");
        let more = json!({ "runner": "sandbox", "image": "host", "runner_args": { "inputs": { "shard:/workspace/out": "/in" } } });
        more.as_object().unwrap().iter().for_each(|(name, value)| join["step"][name] = value.clone());
        pipeline(&[shard, join], &[json!([0, 1, "depends_on"])])
    };
    let make = "mkdir out; umask 077; echo made > out/f";
    let cold = bench.build(&ir(step("shard", make))).await;
    passed(&cold);
    assert_eq!((statuses(&cold), cold.lines("join")), (vec![Passed; 2], vec!["made", "600"]));
    // It runs again in another container, and leaves the same bytes.
    assert_eq!(statuses(&bench.build(&ir(step("shard", make))).await), [Passed, CacheHit]);
    assert_eq!(statuses(&bench.build(&ir(cached("shard", make))).await), [Passed, CacheHit]);
    assert_eq!(statuses(&bench.build(&ir(cached("shard", make))).await), [CacheHit; 2]);
    assert_eq!(bench.left().await, (vec![], vec![]));
}
