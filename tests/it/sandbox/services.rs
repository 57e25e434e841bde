//! Services beside a step: real databases, and services that fail.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    backends::usable_program,
    project::{Ended, Project, eventually},
};

/// Writes the pipeline `ci`: one step with these services.
fn pipeline(project: &Project, cmd: &str, services: &Value) {
    let args = json!({ "network": "private", "services": services });
    let step = json!({ "key": "step", "cmd": cmd, "runner_args": args });
    let graph = json!({
        "nodes": [{ "step": step, "env": {} }],
        "node_holes": [],
        "edge_property": "directed",
        "edges": [],
    });
    let ir = json!({ "version": "0", "default_image": "host", "graph": graph });
    project.file(".hm/ci.json", &ir.to_string());
}

fn run(project: &Project, cmd: &str, services: &Value) -> Ended {
    pipeline(project, cmd, services);
    Ended::of(&mut project.hm(&["run", "--format", "human"]))
}

fn has_line(ended: &Ended, line: &str) -> bool {
    ended.stdout.lines().any(|shown| shown.ends_with(line))
}

#[test]
fn a_step_uses_redis() {
    if !usable_program("redis-server") || !usable_program("redis-cli") {
        return;
    }
    let project = Project::new();
    let redis = |ready: Value| json!({ "image": "host", "cmd": "redis-server --save '' --port 6379", "ready": ready });
    for ready in [json!(6379), json!("redis-cli ping | grep PONG")] {
        let ended = run(&project, "redis-cli set a one; redis-cli get a", &json!({ "db": redis(ready) })).expect(0);
        assert!(has_line(&ended, "| OK") && has_line(&ended, "| one"), "{}", ended.stdout);
        assert!(ended.stdout.contains("| [db] ") && !ended.stdout.contains("hm: ready"), "{}", ended.stdout);
    }
    // Two runs at once have a network each.
    let slow = "redis-cli set a $$ > /dev/null; sleep 1; test $(redis-cli get a) = $$";
    pipeline(&project, slow, &json!({ "db": redis(json!(6379)) }));
    let runs = [(); 2].map(|()| project.hm(&["run"]).spawn().unwrap());
    for mut run in runs {
        assert!(run.wait().unwrap().success());
    }
}

#[test]
fn a_step_uses_postgresql() {
    let programs = "/usr/lib/postgresql";
    let version =
        fs::read_dir(programs).ok().and_then(|mut all| all.next()?.ok()).map(|entry| entry.path().join("bin"));
    let Some(bin) = version else { return };
    let project = Project::new();
    let bin = bin.display();
    // The server refuses to run as root, which a step is.
    let start = format!(
        "mkdir -p /tmp/pg && chmod 777 /tmp/pg && run() {{ if id -u postgres > /dev/null 2>&1 && chown postgres /tmp/pg \
         2> /dev/null; then setpriv --reuid=postgres --regid=postgres --clear-groups \"$@\"; else false; fi; }}; \
         run {bin}/initdb -D /tmp/pg/data -A trust -U postgres > /dev/null && \
         run {bin}/postgres -D /tmp/pg/data -k /tmp/pg"
    );
    let db = json!({ "image": "host", "cmd": start, "ready": format!("{bin}/pg_isready -h 127.0.0.1") });
    let ended = run(&project, "psql -h 127.0.0.1 -U postgres -Atc 'select 6 * 7'", &json!({ "db": db }));
    if ended.stdout.contains("before the step had ended") && !crate::support::users::is_root() {
        // With a single id there is no other user to run it as.
        return;
    }
    assert!(has_line(&ended.expect(0), "| 42"));
}

#[test]
fn a_service_that_fails_fails_the_step() {
    let project = Project::new();
    let service = |cmd: &str, ready: Value| json!({ "db": { "image": "host", "cmd": cmd, "ready": ready } });
    let dies = run(&project, "sleep 100", &service("echo last words; exit 7", json!("false"))).expect(1);
    assert!(
        has_line(&dies, "error: service `db` exited with 7 before the step had ended; its last lines:"),
        "{dies:?}"
    );
    assert!(has_line(&dies, "|   last words"), "{}", dies.stdout);
    let begun = Instant::now();
    let later = run(&project, "sleep 100", &service("sleep 1; printf 'no newline'; exit 0", json!("true"))).expect(1);
    assert!(
        has_line(&later, "error: service `db` exited with 0 before the step had ended; its last lines:"),
        "{later:?}"
    );
    assert!(has_line(&later, "| [db] no newline"), "{}", later.stdout);
    assert!(begun.elapsed() < Duration::from_secs(60));
    let never = run(&project, "echo never", &service("echo waiting; sleep 1000", json!(5432))).expect(1);
    assert!(has_line(&never, "error: service `db` was not ready within 30 s; its last lines:"), "{never:?}");
    assert!(!has_line(&never, "| never") && has_line(&never, "|   waiting"), "{}", never.stdout);
}

#[test]
fn a_service_ends_with_its_step_and_may_print_without_end() {
    let project = Project::new();
    let cmd = "trap 'echo ended; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let ended = run(&project, "echo ran", &json!({ "db": { "image": "host", "cmd": cmd, "ready": "true" } })).expect(0);
    let at = |line: &str| ended.stdout.lines().position(|shown| shown.ends_with(line));
    assert!(at("| [db] up") < at("| ran") && at("| ran") < at("| [db] ended"), "{}", ended.stdout);
    let flood = json!({ "db": { "image": "host", "cmd": "while :; do echo flood; done" } });
    run(&project, "sleep 1; echo ran", &flood).expect(0);
    // A service sees the source, and its writes are its own.
    project.file("schema", "from the source\n");
    let reads = json!({ "db": { "image": "host", "cmd": "cat /workspace/schema; touch /workspace/new; sleep 99", "ready": "test -e /workspace/new" } });
    let ended = run(&project, "ls", &reads).expect(0);
    assert!(has_line(&ended, "| [db] from the source") && !has_line(&ended, "| new"), "{}", ended.stdout);
}

#[test]
fn a_killed_run_leaves_no_service() {
    let project = Project::new();
    let cmd = format!("exec sleep 1234.{}", std::process::id());
    pipeline(&project, "sleep 1000", &json!({ "db": { "image": "host", "cmd": cmd, "ready": "true" } }));
    let is_there = || {
        let ps = Command::new("ps").args(["-eo", "args"]).output().unwrap();
        String::from_utf8_lossy(&ps.stdout).contains(&format!("sleep 1234.{}", std::process::id()))
    };
    let mut child = project.hm(&["run"]).spawn().unwrap();
    eventually("the service runs", is_there);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the service is gone", || !is_there());
}

#[test]
fn names_of_services_are_those_of_the_configuration() {
    let project = Project::new();
    project.file(
        ".hm/hm.toml",
        "[service.db]\nimage = 'host'\ncmd = 'echo $A; sleep 99'\nenv = { A = 'b' }\nready = 'true'\n",
    );
    let ended = run(&project, "echo ran", &json!(["db"])).expect(0);
    assert!(has_line(&ended, "| [db] b") && has_line(&ended, "| ran"), "{}", ended.stdout);
    let unknown = run(&project, "true", &json!(["dbb"])).expect(2);
    assert!(unknown.stderr.contains("no service named `dbb`, did you mean `db`?"), "{}", unknown.stderr);
    project.file(".hm/hm.toml", "[service.db]\nimage = 'host'\n");
    let no_command = run(&project, "true", &json!(["db"])).expect(2);
    assert!(no_command.stderr.contains("service `db` needs a `cmd`"), "{}", no_command.stderr);
    project.file(".hm/hm.toml", "[service.db]\nimage = 'host'\ncommand = 'x'\n");
    let wrong = run(&project, "true", &json!(["db"])).expect(2);
    assert!(wrong.stderr.contains("line 3: unknown argument `command` of services"), "{}", wrong.stderr);
    project.file(".hm/hm.toml", "[service.db]\nimage = 'rootfs:/'\ncmd = 'true'\n");
    let outside = run(&project, "true", &json!(["db"])).expect(2);
    assert!(outside.stderr.contains("[service] db.image = \"rootfs:/\""), "{}", outside.stderr);
}
