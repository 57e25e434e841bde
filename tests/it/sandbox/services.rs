//! Services beside a step: real databases, services that fail or flood, and what is left of them.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    backends::{skip_optional, usable, usable_program},
    database::programs,
    processes::marker,
    project::{Ended, Project, eventually},
    users::is_root,
};

/// Writes the pipeline `ci` of these steps, each with its key, its command and more fields.
fn pipeline(project: &Project, steps: &[(&str, &str, Value)], edges: &Value) {
    let nodes = steps.iter().map(|(key, cmd, more)| {
        let mut step = more.clone();
        step["key"] = (*key).into();
        step["cmd"] = (*cmd).into();
        json!({ "step": step, "env": {} })
    });
    let nodes: Vec<Value> = nodes.collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    let ir = json!({ "version": "0", "default_image": "host", "graph": graph });
    project.file(".hm/ci.json", &ir.to_string());
}

fn with_services(services: &Value) -> Value {
    json!({ "runner_args": { "services": services } })
}

fn ended(project: &Project) -> Ended {
    Ended::of(&mut project.hm(&["run", "--format", "human"]))
}

/// Runs one step with these services.
fn run(project: &Project, cmd: &str, services: &Value) -> Ended {
    pipeline(project, &[("step", cmd, with_services(services))], &json!([]));
    ended(project)
}

fn has_line(ended: &Ended, line: &str) -> bool {
    ended.stdout.lines().any(|shown| shown.ends_with(line))
}

fn redis(ready: &Value) -> Value {
    json!({ "db": { "image": "host", "cmd": "redis-server --save '' --port 6379", "ready": ready } })
}

fn has_redis() -> bool {
    usable_program("redis-server") && usable_program("redis-cli")
}

#[test]
fn a_step_uses_redis_by_its_name() {
    if !has_redis() {
        return;
    }
    let project = Project::new();
    let cmd = "redis-cli set a one; redis-cli -h db get a";
    for ready in [json!(6379), json!("redis-cli ping | grep PONG")] {
        let ended = run(&project, cmd, &redis(&ready)).expect(0);
        assert!(has_line(&ended, "| OK") && has_line(&ended, "| one"), "{}", ended.stdout);
        assert!(ended.stdout.contains("| [db] ") && !ended.stdout.contains("is ready\n"), "{}", ended.stdout);
    }
    // Two steps at once have one each, on the same port.
    let slow = "redis-cli set a $HM > /dev/null; sleep 1; test $(redis-cli get a) = $HM && echo mine";
    let step = |key| (key, slow.replace("$HM", key), with_services(&redis(&json!(6379))));
    let steps = [step("left"), step("right")];
    let steps: Vec<_> = steps.iter().map(|(key, cmd, more)| (*key, cmd.as_str(), more.clone())).collect();
    pipeline(&project, &steps, &json!([]));
    let ended = ended(&project).expect(0);
    assert!(has_line(&ended, "left | mine") && has_line(&ended, "right | mine"), "{}", ended.stdout);
}

#[test]
fn a_step_uses_postgresql() {
    let bin = programs();
    if !usable("PostgreSQL", bin.is_some(), "install the package postgresql") {
        return;
    }
    let bin = bin.unwrap();
    if !is_root() {
        return skip_optional("PostgreSQL", "it refuses to run as root, and a single id has no other user");
    }
    let project = Project::new();
    let bin = bin.display();
    let start = format!(
        "install -d -o postgres /tmp/pg && run() {{ setpriv --reuid=postgres --regid=postgres --clear-groups \"$@\"; }}; \
         run {bin}/initdb -D /tmp/pg/data -A trust -U postgres > /dev/null && \
         exec setpriv --reuid=postgres --regid=postgres --clear-groups {bin}/postgres -D /tmp/pg/data -k /tmp/pg"
    );
    let db = json!({ "db": { "image": "host", "cmd": start, "ready": format!("{bin}/pg_isready -h 127.0.0.1") } });
    let cmd = "psql -h db -U postgres -Atc 'select 6 * 7'";
    let step = |key| (key, cmd, with_services(&db));
    pipeline(&project, &[step("left"), step("right")], &json!([]));
    let ended = ended(&project).expect(0);
    assert!(has_line(&ended, "left | 42") && has_line(&ended, "right | 42"), "{}", ended.stdout);
}

#[test]
fn a_service_that_fails_fails_the_step() {
    let project = Project::new();
    let service = |cmd: &str, ready: Value| json!({ "db": { "image": "host", "cmd": cmd, "ready": ready, "ready_timeout_seconds": 2 } });
    let begun = Instant::now();
    let dies = run(&project, "sleep 100", &service("echo last words; exit 7", json!("false"))).expect(1);
    let message = "service `db` exited with 7 before the step had ended";
    assert!(has_line(&dies, &format!("error: {message}; its last lines:")), "{dies:?}");
    assert!(has_line(&dies, "|   last words") && dies.stdout.matches(message).count() > 1, "{dies:?}");
    let later = run(&project, "sleep 100", &service("sleep 1; printf 'no newline'; exit 0", json!("true"))).expect(1);
    let message = "error: service `db` exited with 0 before the step had ended; its last lines:";
    assert!(has_line(&later, message) && has_line(&later, "| [db] no newline"), "{later:?}");
    let never = run(&project, "echo never", &service("echo waiting; sleep 1000", json!(5432))).expect(1);
    assert!(has_line(&never, "error: service `db` was not ready within 2 s; its last lines:"), "{never:?}");
    assert!(!has_line(&never, "| never") && has_line(&never, "|   waiting"), "{}", never.stdout);
    assert!(never.stdout.contains("raise `ready_timeout_seconds`"), "{}", never.stdout);
    let missing = run(&project, "echo never", &service("exec /no/such/server", json!("false"))).expect(1);
    assert!(missing.stdout.contains("service `db` exited with 127"), "{}", missing.stdout);
    // It is a failure of the step as any other.
    let args =
        json!({ "runner_args": { "services": service("exit 3", json!("false")), "soft_fail": true, "retries": 1 } });
    pipeline(&project, &[("step", "true", args)], &json!([]));
    let allowed = ended(&project).expect(0);
    assert!(allowed.stdout.contains("retry 1 of 1") && allowed.stdout.contains("failed (allowed)"), "{allowed:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "no sleep was waited for");
}

#[test]
fn a_service_ends_with_its_step_and_its_files_are_its_own() {
    let project = Project::new();
    let cmd = "trap 'echo ended; exit 0' TERM; echo up; touch /tmp/up; while :; do sleep 0.1; done";
    let service = json!({ "db": { "image": "host", "cmd": cmd, "ready": "test -e /tmp/up" } });
    let ended = run(&project, "echo ran", &service).expect(0);
    let at = |line: &str| ended.stdout.lines().position(|shown| shown.ends_with(line)).unwrap();
    assert!(at("| [db] up") < at("| ran") && at("| ran") < at("| [db] ended"), "{}", ended.stdout);
    // What it prints then does not take the place of the step's own last lines.
    let cmd = "trap 'for n in 1 2 3 4 5 6 7 8 9; do echo down $n >&2; done; exit 0' TERM; touch /tmp/up; \
               while :; do sleep 0.1; done";
    let chatty = json!({ "db": { "image": "host", "cmd": cmd, "ready": "test -e /tmp/up" } });
    let failed = run(&project, "echo the reason; exit 3", &chatty).expect(1);
    let (log, summary) = failed.stdout.rsplit_once("FAILED").unwrap();
    assert!(log.contains("[db] down 9"), "{log}");
    assert!(summary.contains("the reason") && !summary.contains("down"), "{summary}");
    // One that ignores TERM is killed.
    let stubborn = json!({ "db": { "image": "host", "cmd": "trap '' TERM; while :; do sleep 1; done" } });
    run(&project, "echo ran", &stubborn).expect(0);
    project.file("schema", "from the source\n");
    let cmd = "cat schema; touch /workspace/new /tmp/new; sleep 99";
    let reads = json!({ "db": { "image": "host", "cmd": cmd, "ready": "test -e /tmp/new" } });
    let ended = run(&project, "ls; ls /tmp", &reads).expect(0);
    assert!(has_line(&ended, "| [db] from the source") && !has_line(&ended, "| new"), "{}", ended.stdout);
}

#[test]
fn a_flood_neither_fills_the_log_nor_holds_up_the_step() {
    let project = Project::new();
    let flood = json!({ "db": { "image": "host", "cmd": "exec yes it floods", "ready": "true" } });
    let begun = Instant::now();
    let ended = run(&project, "sleep 1; echo ran", &flood).expect(0);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let flooded = ended.stdout.lines().filter(|line| line.ends_with("| [db] it floods")).count();
    assert!((8 << 20) / 20 < flooded && flooded < (9 << 20) / 10, "{flooded} lines");
    assert!(has_line(&ended, "[db] (more than 8 MiB: the rest of its output is not recorded)"), "no note");
    assert!(has_line(&ended, "| ran"), "no end");
}

#[test]
fn secrets_are_masked_and_lines_are_whole() {
    let project = Project::new();
    // The step prints one half, then the service prints, then the step prints the other.
    let service = "printf hun; sleep 0.3; echo ter2hunter2; cat /run/secrets/TOKEN; echo; \
                   while ! test -e /workspace/never; do echo tick; sleep 0.1; done";
    let services = json!({ "db": { "image": "host", "cmd": service, "ready": "true", "secrets": ["TOKEN"] } });
    let step = "printf 'a hun'; sleep 1; echo ter2 b; ls /run/secrets";
    pipeline(&project, &[("step", step, with_services(&services))], &json!([]));
    let mut hm = project.hm(&["run", "--format", "human", "--secret", "TOKEN"]);
    let ended = Ended::of(hm.env("TOKEN", "hunter2")).expect(0);
    assert!(!ended.stdout.contains("hun") && !ended.stdout.contains("ter2"), "{}", ended.stdout);
    assert!(has_line(&ended, "| [db] ******") && has_line(&ended, "| [db] ***"), "{}", ended.stdout);
    assert!(has_line(&ended, "| [db] tick") && has_line(&ended, "*** b"), "{}", ended.stdout);
    let unknown = json!({ "db": { "image": "host", "cmd": "sleep 9", "secrets": ["NONE"] } });
    let ended = run(&project, "true", &unknown).expect(3);
    assert!(ended.stdout.contains("service `db` needs the secret `NONE`"), "{ended:?}");
}

#[test]
fn a_killed_run_leaves_no_service() {
    let project = Project::new();
    let marker = marker();
    let service = json!({ "db": { "image": "host", "cmd": format!("exec sleep {marker}"), "ready": "true" } });
    pipeline(&project, &[("step", "sleep 1000", with_services(&service))], &json!([]));
    let is_there = || {
        let ps = Command::new("ps").args(["-eo", "args"]).output().unwrap();
        String::from_utf8_lossy(&ps.stdout).lines().any(|line| *line == format!("sleep {marker}"))
    };
    let start = || project.hm(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = start();
    eventually("the service runs", is_there);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the service is gone", || !is_there());
    // A cancelled run ends it before it ends itself.
    let mut child = start();
    eventually("the service runs again", is_there);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!is_there());
}

#[test]
fn a_service_boots_from_the_snapshot_of_a_step() {
    let project = Project::new();
    let cache = |key: &str| json!({ "cache": { "policy": "forever", "key": key } });
    let test = |cmd: &str| {
        let service = json!({ "step": "seeded", "cmd": cmd, "ready": "test -e /tmp/up" });
        let mut more = with_services(&json!({ "db": service }));
        more["cache"] = json!({ "policy": "forever", "key": "test" });
        more
    };
    let serve = "cat /data/file; echo changed > /data/file; touch /tmp/up; sleep 99";
    let seed = "mkdir /data && echo one > /data/file";
    let edge = json!([[0, 1, "depends_on"]]);
    let write = |seed: &str, edges: &Value| {
        pipeline(
            &project,
            &[("seeded", seed, cache("seed")), ("test", "ls /data 2> /dev/null || echo none", test(serve))],
            edges,
        );
    };
    write(seed, &edge);
    let first = ended(&project).expect(0);
    assert!(has_line(&first, "| [db] one") && has_line(&first, "test | none"), "{}", first.stdout);
    // A step that is found starts no service.
    let second = ended(&project).expect(0);
    assert!(second.stdout.contains("2 cached") && !second.stdout.contains("[db]"), "{}", second.stdout);
    // What the service boots from is part of the key.
    write("mkdir /data && echo two > /data/file", &edge);
    let third = ended(&project).expect(0);
    assert!(has_line(&third, "| [db] two"), "{}", third.stdout);
    // The seed is found, and its result is used, and has not changed.
    let cmd = format!("{serve} 1");
    let steps = [
        ("seeded", "mkdir /data && echo two > /data/file", cache("seed")),
        ("test", "ls /data 2> /dev/null || echo none", test(&cmd)),
    ];
    pipeline(&project, &steps, &edge);
    let fourth = ended(&project).expect(0);
    assert!(has_line(&fourth, "| [db] two") && fourth.stdout.contains("1 cached"), "{}", fourth.stdout);
    write(seed, &json!([]));
    let late = ended(&project).expect(2);
    assert!(
        late.stderr.contains("service `db` boots from step `seeded`, which this step does not wait for"),
        "{late:?}"
    );
    pipeline(&project, &[("seed", seed, cache("seed")), ("test", "ls", test(serve))], &edge);
    let unknown = ended(&project).expect(2);
    assert!(unknown.stderr.contains("which the pipeline does not have, did you mean `seed`?"), "{unknown:?}");
    // A failure of the seed that is allowed leaves nothing to boot from.
    let allowed = json!({ "runner_args": { "soft_fail": true } });
    pipeline(&project, &[("seeded", "exit 1", allowed), ("test", "ls", test(serve))], &edge);
    let failed = ended(&project).expect(3);
    assert!(failed.stdout.contains("boots from step `seeded`, which has no snapshot"), "{failed:?}");
}

#[test]
fn names_of_services_are_those_of_the_configuration() {
    let project = Project::new();
    let db = "[service.db]\nimage = 'host'\ncmd = 'echo $A; touch /tmp/up; sleep 99'\nenv = { A = 'b' }\n\
              ready = 'test -e /tmp/up'\n";
    project.file(".hm/hm.toml", db);
    let shown = run(&project, "echo ran", &json!(["db"])).expect(0);
    assert!(has_line(&shown, "| [db] b") && has_line(&shown, "| ran"), "{}", shown.stdout);
    let unknown = run(&project, "true", &json!(["dbb"])).expect(2);
    assert!(unknown.stderr.contains("no service named `dbb`, did you mean `db`?"), "{}", unknown.stderr);
    project.file(".hm/hm.toml", &format!("[step.'s*']\nservices = ['db']\n\n{db}"));
    pipeline(&project, &[("step", "echo ran", json!({})), ("other", "echo ran", json!({}))], &json!([]));
    let shown = ended(&project).expect(0);
    assert!(has_line(&shown, "step | [db] b") && !has_line(&shown, "other | [db] b"), "{}", shown.stdout);
    for (text, expected) in [
        ("[service.db]\nimage = 'host'\n", "line 1: [service.db] a service on image `host` needs a `cmd`"),
        ("[service.db]\nimage = 'host'\ncommand = 'x'\n", "line 3: unknown key `command` of services"),
        ("[service.db]\nimage = 'rootfs:/'\ncmd = 'true'\n", "[service] db.image = \"rootfs:/\""),
    ] {
        project.file(".hm/hm.toml", text);
        let refused = run(&project, "true", &json!(["db"])).expect(2);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
    // Without consent, `hm plan` shows the pipeline all the same.
    Ended::of(&mut project.hm(&["plan"])).expect(0);
    project.file(".hm/hm.toml", db);
    let list = run(&project, "true", &json!({ "a": { "image": "host", "cmd": "true" }, "b": ["redis:7"] })).expect(2);
    assert!(list.stderr.contains("runner_args.services.b must be an object"), "{}", list.stderr);
    // Where a step has no network of its own, there is none to share.
    for (args, expected) in [
        (json!({ "network": "none", "services": ["db"] }), "services share the step's own network"),
        (json!({ "services": ["db"] }), "this runner has no services"),
    ] {
        let runner = if args["network"].is_null() { "process" } else { "sandbox" };
        pipeline(&project, &[("step", "true", json!({ "runner_args": args }))], &json!([]));
        let refused = Ended::of(&mut project.hm(&["run", "--runner", runner])).expect(2);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}

#[test]
fn a_service_does_not_listen_to_what_the_step_sends() {
    if !usable_program("python3") {
        return;
    }
    let project = Project::new();
    let open = "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)' 2> /dev/null \
                && echo open || echo refused";
    let service = json!({ "db": { "image": "host", "cmd": format!("{open}; touch /tmp/up; sleep 99"), "ready": "test -e /tmp/up" } });
    let ended = run(&project, open, &service).expect(0);
    assert!(has_line(&ended, "step | [db] refused") && has_line(&ended, "step | open"), "{}", ended.stdout);
}

#[test]
fn a_service_above_the_memory_limit_of_its_step_fails_the_step() {
    if !usable_program("python3") {
        return;
    }
    let project = Project::new();
    let greedy = "exec python3 -c 'import time; x = b\"x\" * (400 << 20); time.sleep(100)'";
    let args = json!({ "memory": "100m", "services": { "db": { "image": "host", "cmd": greedy } } });
    pipeline(&project, &[("step", "sleep 100", json!({ "runner_args": args }))], &json!([]));
    let ended = ended(&project).expect(1);
    // Whether the control group that it shares with the step ends it, or else its own pid 1.
    let why = "service `db` exceeded the memory limit of its step before the step had ended";
    assert!(ended.stdout.contains(&format!("{why}: raise `memory` in the step's `runner_args`")), "{ended:?}");
    assert!(has_line(&ended, &format!("step | error: {why}; it printed nothing")), "{ended:?}");
}
