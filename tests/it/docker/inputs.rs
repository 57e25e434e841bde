//! Files of other steps in containers.

use hm_exec::StepStatus::{CacheHit, Passed};
use serde_json::{Value, json};

use crate::support::docker::{Bench, cached, nothing, pipeline, step};

fn with_args(mut step: Value, args: Value) -> Value {
    step["step"]["runner_args"] = args;
    step
}

#[tokio::test]
async fn a_join_gets_files_of_steps_on_either_runner_and_runs_again_only_for_other_bytes() {
    let Some(bench) = Bench::new() else { return };
    let mut elsewhere = cached("sandbox", "mkdir -p out; echo sandbox > out/data");
    elsewhere["step"]["runner"] = "sandbox".into();
    elsewhere["step"]["image"] = bench.shared_image().into();
    let make = "mkdir -p -m 700 out/sub; echo docker > out/data; chmod 640 out/data; ln out/data out/sub/same; \
                ln -s data out/link; chmod 750 out";
    let look = "cat in/*/data; cat one; cat in/docker/link in/docker/sub/same; stat -c %a.%u.%Y in/docker in/docker/sub \
                in/docker/data one; for f in in/docker/new one; do { echo x > $f; } 2> /dev/null || echo refused; done";
    let inputs = json!({ "inputs": {
        "docker:/workspace/out": "/workspace/in/docker",
        "sandbox:/workspace/out": "/workspace/in/sandbox",
        "docker:/workspace/out/link": "/workspace/one",
    } });
    let build = |make: &str| {
        let steps = [
            cached("docker", make),
            elsewhere.clone(),
            with_args(cached("join", look), inputs.clone()),
            step("child", "test ! -e in/docker/data && test ! -s one && echo none"),
        ];
        pipeline(&steps, &[json!([0, 2, "depends_on"]), json!([1, 2, "depends_on"]), json!([2, 3, "builds_in"])])
    };
    let status = |built: &crate::support::docker::Built| built.outcome.steps[2].status;
    let first = bench.build(&build(make)).await;
    assert!(first.outcome.status.is_success(), "{:#?}", first.events);
    let expected = [
        "docker",
        "sandbox",
        "docker",
        "docker",
        "docker",
        "750.0.946684800",
        "700.0.946684800",
        "640.0.946684800",
        "640.0.946684800",
        "refused",
        "refused",
    ];
    assert_eq!((status(&first), first.lines("join")), (Passed, expected.to_vec()));
    assert_eq!(first.lines("child"), ["none"]);
    assert_eq!(bench.left().await, nothing());
    // It runs again, and leaves the same bytes.
    assert_eq!(status(&bench.build(&build(&format!("{make}; touch elsewhere"))).await), CacheHit);
    let other = bench.build(&build(&make.replace("echo docker", "echo other"))).await;
    assert_eq!((status(&other), other.lines("join")[0]), (Passed, "other"));
}

#[tokio::test]
async fn a_missing_path_is_named_and_files_are_copied_once_for_all_attempts() {
    let Some(bench) = Bench::new() else { return };
    let of = |path: &str| json!({ format!("made:{path}"): "/in" });
    let steps = [
        step("made", "mkdir /out; echo made > /out/f"),
        with_args(
            step("again", "stat -c %z /in/f; exit 1"),
            json!({ "inputs": of("/out"), "retries": 1, "soft_fail": true }),
        ),
        with_args(step("none", "echo never"), json!({ "inputs": of("/none") })),
    ];
    let edges = [json!([0, 1, "depends_on"]), json!([0, 2, "depends_on"])];
    let mut request = bench.request(&pipeline(&steps, &edges));
    request.options.keep_going = true;
    let built = bench.run(bench.engine(), request).await;
    let lines = built.lines("again");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], lines[1], "a new copy would have a later time of its last change");
    let message = built.message("none");
    assert!(message.contains("step `made` has no file or directory /none") && built.lines("none").is_empty());
    assert_eq!(bench.left().await, nothing());
}
