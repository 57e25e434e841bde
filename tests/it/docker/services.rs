//! Services in containers beside that of a step: how they are reached and fail, and what is left of them.

use bollard::{
    models::{ContainerConfig, ContainerCreateBody},
    query_parameters::{CommitContainerOptionsBuilder, RemoveContainerOptions},
};
use hm_exec::StepStatus::{CacheHit, FailedAllowed, Passed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    docker::{Bench, cached, left, nothing, pipeline, start, step},
    docker_daemon::{Daemon, IMAGE},
    project::{Project, eventually},
};

fn with_services(mut step: Value, services: Value) -> Value {
    step["step"]["runner_args"] = json!({ "services": services });
    step
}

#[tokio::test]
async fn two_steps_reach_services_of_their_own_by_name_on_one_port() {
    let Some(bench) = Bench::new() else { return };
    let serve = |name: &str, port: u32| {
        let cmd = format!("while :; do echo {name} | nc -l -p {port}; done");
        json!({ "image": IMAGE, "cmd": cmd, "ready": port })
    };
    // A server is away for a moment after each connection, and ends one that came too early without a word.
    let ask = |host: &str, port: u32| {
        format!(
            "until said=$(nc {host} {port} </dev/null 2>/dev/null) && test \"$said\"; do sleep 0.1; done; echo $said"
        )
    };
    let cmd = [ask("db", 5432), ask("127.0.0.1", 5432), ask("localhost", 6379), ask("cache", 6379)].join("; ");
    let steps = ["one", "two"].map(|name| {
        let services = json!({ "db": serve(name, 5432), "cache": serve("cached", 6379) });
        with_services(step(name, &cmd), services)
    });
    let built = bench.build(&pipeline(&steps, &[])).await;
    assert!(built.outcome.status.is_success(), "{:#?}", built.events);
    for name in ["one", "two"] {
        assert_eq!(built.lines(name), [name, name, "cached", "cached"]);
    }
    assert_eq!(bench.left().await, nothing());
}

#[tokio::test]
async fn a_service_runs_the_program_of_its_image_and_hears_nothing_else() {
    let Some(bench) = Bench::new() else { return };
    let client = bench.daemon.client();
    let body = ContainerCreateBody { image: Some(IMAGE.into()), cmd: Some(vec!["sh".into()]), ..Default::default() };
    let made = client.create_container(None, body).await.unwrap().id;
    let changes = "ENTRYPOINT [\"/bin/sh\", \"-c\"]\nCMD [\"echo $A it\\\\'s $(pwd); grep CapBnd /proc/self/status; \
                   for f in hosts resolv.conf hostname; do { echo 6.6.6.6 step >> /etc/$f; } 2> /dev/null || echo \
                   refused; done; touch /tmp/up; sleep 99\"]\nENV A=b\nWORKDIR /bin\nUSER 1000";
    let (repo, tag) = ("hm-exec-test/serves", "latest");
    let options =
        CommitContainerOptionsBuilder::default().container(&made).repo(repo).tag(tag).changes(changes).build();
    let image = client.commit_container(options, ContainerConfig::default()).await.unwrap().id;
    client.remove_container(&made, None::<RemoveContainerOptions>).await.unwrap();
    let service = json!({ "db": { "image": format!("{repo}:{tag}"), "ready": "test -e /tmp/up" } });
    let look = "grep CapBnd /proc/self/status; hm=$(test -e /tmp/up && echo shared); echo files $hm";
    let built = bench.build(&pipeline(&[with_services(step("a", look), service)], &[])).await;
    let lines = built.lines("a");
    assert!(lines.contains(&"[db] b it's /bin") && lines.contains(&"files"), "{lines:?}");
    // The step has the same files.
    assert_eq!(lines.iter().filter(|line| **line == "[db] refused").count(), 3, "{lines:?}");
    let raw = |prefix: &str| {
        let set = lines.iter().find_map(|line| line.strip_prefix(prefix)).unwrap().trim();
        u64::from_str_radix(set, 16).unwrap() >> 13 & 1
    };
    assert_eq!((raw("[db] CapBnd:"), raw("CapBnd:")), (0, 1), "{lines:?}");
    client.remove_image(&image, None::<bollard::query_parameters::RemoveImageOptions>, None).await.unwrap();
    // A daemon's archive is an image of the store's, too, and has no program.
    let shell = json!({ "db": { "image": bench.shared_image() } });
    let built = bench.build(&pipeline(&[with_services(step("a", "echo never"), shell)], &[])).await;
    let message = built.message("a");
    assert!(message.contains("service `db` needs a `cmd`: its image has none"), "{message}");
}

#[tokio::test]
async fn a_service_that_fails_fails_the_step() {
    let Some(bench) = Bench::new() else { return };
    let failing = |key: &str, cmd: &str, service: &str, ready: &str| {
        let limit = if key == "late" { 2 } else { 60 };
        let service = json!({ "image": IMAGE, "cmd": service, "ready": ready, "ready_timeout_seconds": limit });
        let args = json!({ "services": { "db": service }, "memory": "64m", "soft_fail": true, "outputs": ["none"] });
        json!({ "step": { "key": key, "cmd": cmd, "runner_args": args }, "env": {} })
    };
    let steps = [
        failing("dies", "echo never", "echo last words; exit 7", "false"),
        failing("later", "echo ran; sleep 100", "sleep 5; printf 'no newline'; exit 0", "true"),
        failing("late", "echo never", "echo waiting; sleep 100", "false"),
        failing("missing", "echo never", "exec /no/such/server", "false"),
        failing("greedy", "echo never", "echo hungry; exec tail /dev/zero", "false"),
    ];
    let built = bench.build(&pipeline(&steps, &[])).await;
    assert!(built.outcome.status.is_success(), "{:#?}", built.events);
    for (key, why, line) in [
        ("dies", "service `db` exited with 7 before the step had ended", "  last words"),
        ("later", "service `db` exited with 0 before the step had ended", "[db] no newline"),
        ("late", "service `db` was not ready within 2 s", "  waiting"),
        ("missing", "service `db` exited with 127 before the step had ended", ""),
        ("greedy", "service `db` exceeded the memory limit of its step before the step had ended", "  hungry"),
    ] {
        let step = built.outcome.steps.iter().find(|step| &*step.key == key).unwrap();
        let lines = built.lines(key);
        assert_eq!((step.status, step.exit_code), (FailedAllowed, Some(1)), "{key}: {lines:?}");
        assert!(built.message(key).starts_with(why), "{key}: {}", built.message(key));
        assert!(lines.contains(&format!("error: {why}; its last lines:").as_str()), "{key}: {lines:?}");
        assert!(lines.iter().any(|shown| shown.starts_with(line)) && !lines.contains(&"never"), "{key}: {lines:?}");
    }
    assert!(built.lines("later").contains(&"ran"));
    assert_eq!(bench.left().await, nothing());
}

#[tokio::test]
async fn a_service_boots_from_the_snapshot_of_a_step_of_either_runner() {
    let Some(bench) = Bench::new() else { return };
    bench.file("source", "of the source\n");
    let seed = "export NOT_IN_SERVICES=x; mkdir /seeded && echo seeded > /seeded/file";
    let mut elsewhere = step("sandbox", seed);
    elsewhere["step"]["runner"] = "sandbox".into();
    elsewhere["step"]["image"] = bench.shared_image().into();
    let cmd = "cat /seeded/file source; echo changed > /seeded/file; touch /up; sleep 99";
    let of = |step: &str| json!({ "step": step, "cmd": cmd, "ready": "test -e /up" });
    let services = json!({ "a": of("here"), "b": of("kept"), "c": of("sandbox") });
    let test = |key: &str| with_services(cached(key, "test -e /seeded || echo none"), services.clone());
    let edges: Vec<Value> = (0..3).flat_map(|seed| (3..5).map(move |test| json!([seed, test, "depends_on"]))).collect();
    let steps = [step("here", seed), cached("kept", seed), elsewhere, test("one"), test("two")];
    let built = bench.build(&pipeline(&steps, &edges)).await;
    assert!(built.outcome.status.is_success(), "{:#?}", built.events);
    for key in ["one", "two"] {
        let lines = built.lines(key);
        for name in ["a", "b", "c"] {
            let seeded = format!("[{name}] seeded");
            assert!(lines.contains(&&*seeded), "{key}: {lines:?}");
            assert!(lines.contains(&&*format!("[{name}] of the source")), "{key}: {lines:?}");
        }
        assert!(lines.contains(&"none"), "{lines:?}");
    }
    assert_eq!(bench.left().await, nothing());
    // What is found starts nothing.
    let steps = [steps[1].clone(), {
        let mut only = steps[3].clone();
        only["step"]["runner_args"]["services"] = json!({ "b": of("kept") });
        only
    }];
    let both = pipeline(&steps, &[json!([0, 1, "depends_on"])]);
    assert_eq!(bench.build(&both).await.outcome.steps[1].status, Passed);
    let again = bench.build(&both).await;
    assert_eq!(again.outcome.steps[1].status, CacheHit);
    assert!(again.lines("one").iter().all(|line| !line.starts_with("[b] ")));
}

#[test]
fn a_run_that_is_killed_or_cancelled_leaves_no_service() {
    let Some(daemon) = Daemon::get() else { return };
    let project = Project::new();
    let service = json!({ "db": { "image": IMAGE, "cmd": "sleep 1000", "ready": "true" } });
    let ir = pipeline(&[with_services(step("step", "echo up; sleep 1000"), service)], &[]);
    let mut hm = start(&project, &daemon, &ir);
    assert_eq!(left(&daemon, &project.store).0.len(), 3, "the step, its service, and their network");
    hm.kill().unwrap();
    hm.wait().unwrap();
    eventually("what it left to go", || left(&daemon, &project.store) == nothing());
    let mut hm = start(&project, &daemon, &ir);
    kill_process(Pid::from_child(&hm), Signal::INT).unwrap();
    assert_eq!(hm.wait().unwrap().code(), Some(130));
    assert_eq!(left(&daemon, &project.store), nothing());
}

#[tokio::test]
async fn services_that_cannot_be_are_refused_at_binding() {
    let Some(bench) = Bench::new() else { return };
    let engine = bench.engine().build().unwrap();
    let service = |more: Value| {
        let mut service = json!({ "image": IMAGE, "cmd": "true" });
        service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "db": service })
    };
    for (args, expected) in [
        (
            json!({ "network": "host", "services": service(json!({})) }),
            "services share the step's own network: leave `network` out",
        ),
        (json!({ "services": service(json!({ "secrets": ["TOKEN"] })) }), "this runner does not support secrets"),
        (json!({ "services": service(json!({ "image": "host" })) }), "images other than `host`"),
    ] {
        let mut only = step("a", "echo never");
        only["step"]["runner_args"] = args;
        let error = engine.bind(&bench.request(&pipeline(&[only], &[]))).map(drop).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
