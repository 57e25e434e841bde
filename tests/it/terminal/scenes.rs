//! The scenes.

use std::{
    env, fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{check, open, play};
use crate::support::{
    programs,
    project::{Ended, Project, eventually, ir},
    python::python_with_harmont,
    terminal::Terminal,
};

/// A pipeline `ci` whose steps have a key, a label, a command and `runner_args`.
fn project(steps: &[(&str, &str, &str, Value)], edges: Value) -> Project {
    let project = Project::new();
    let node = |(key, label, cmd, args): &(&str, &str, &str, Value)| {
        let label = Some(label).filter(|label| !label.is_empty());
        json!({ "step": { "key": key, "label": label, "cmd": cmd, "runner_args": args }, "env": {} })
    };
    let nodes: Vec<_> = steps.iter().map(node).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    project
}

const UNIT: &str = "seq 1 40; echo 'test case_61 ... FAILED'; echo 'assertion failed: left == right' >&2; exit 101";

/// Checks what the last lines of a failing scene must have, and that the commands which they offer work when
/// they are pasted. `again` is the exit code of the run that is repeated.
#[track_caller]
pub(super) fn check_last_lines(project: &Project, screen: &[String], wanted: &[&str], again: i32) {
    let last = &screen[screen.len().saturating_sub(15)..];
    for text in wanted {
        assert!(last.iter().any(|line| line.contains(text)), "{text:?} is not among {last:#?}");
    }
    // On several lines, if the terminal is too narrow for one.
    let at = last.iter().rposition(|line| line.starts_with("  logs ")).unwrap();
    let offered = last[at..].iter().take_while(|line| line.starts_with("  "));
    let offered = offered.flat_map(|line| line.trim().split(" · ")).map(|part| part.split_once(' ').unwrap());
    let offered: Vec<_> = offered.collect();
    assert_eq!((offered[0].0, offered.last().unwrap().0), ("logs", "again"), "{last:#?}");
    for (what, command) in offered {
        let ended = paste(project, command);
        let code = if what == "again" { again } else { 0 };
        assert_eq!(ended.code, Some(code), "{command}: {}{}", ended.stdout, ended.stderr);
        if what == "logs" {
            let stderr = wanted.last().unwrap().trim_start_matches("stderr │ ");
            assert!(ended.stdout.contains(stderr), "{command}: {}", ended.stdout);
        }
    }
}

/// Runs a command line in a shell, in the project.
pub(super) fn paste(project: &Project, command: &str) -> Ended {
    let hm = project.hm(&[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(&project.dir).stdin(Stdio::null());
    for (name, value) in hm.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let programs = format!("{}:{}", programs::hm().parent().unwrap().display(), env::var("PATH").unwrap_or_default());
    Ended::of(shell.env("PATH", programs))
}

#[test]
fn passed_and_cached() {
    let cache = json!({ "policy": "forever", "key": "0123" });
    let build = json!({ "key": "build", "cmd": "echo built > out", "cache": cache });
    let test = json!({ "key": "test", "label": "Unit tests", "cmd": "grep -q built out" });
    let nodes = json!([{ "step": build, "env": {} }, { "step": test, "env": {} }]);
    let graph = json!({
        "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [[0, 1, "builds_in"]],
    });
    let project = Project::new();
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    if play("first run", &project, 0).is_some() {
        play("cached run", &project, 0);
        play("a plan", &project, 0);
    }
}

#[test]
fn one_failure() {
    let none = || json!({});
    let steps = [
        ("deps", "", "true", none()),
        ("unit", "Unit tests", UNIT, none()),
        ("e2e", "", "true", none()),
        ("slow", "", "true", none()),
    ];
    let project = project(&steps, json!([[0, 1, "builds_in"], [1, 2, "depends_on"], [2, 3, "depends_on"]]));
    let Some(screen) = play("one failure", &project, 1) else { return };
    let wanted = ["Unit tests (unit)", "exit 101", "$ seq 1 40;", "assertion failed: left == right"];
    check_last_lines(&project, &screen, &wanted, 1);
}

#[test]
fn three_failures() {
    let steps = ["lint", "types", "unit"].map(|key| (key, "", "seq 1 99; echo broken >&2; exit 3", json!({})));
    let project = project(&steps, json!([]));
    let Some(screen) = play("three failures", &project, 1) else { return };
    check_last_lines(&project, &screen, &["unit", "exit 3", "$ seq 1 99", "stderr │ broken"], 1);
}

#[test]
fn a_flaky_step() {
    let mark = "mkdir $MARK 2>/dev/null || exit 0; echo 'connection reset' >&2; exit 7";
    let project = project(&[("e2e", "End to end", mark, json!({ "retries": 2 }))], json!([]));
    let mark = format!("MARK={}", project.store.with_file_name("mark").display());
    let mut terminal = Terminal::open_with(&project, &["run", "--runner", "process", "-e", &mark], |hm| {
        hm.env("NO_COLOR", "1");
    });
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(0), "{screen:#?}");
    check("a flaky step", &screen);
}

#[test]
fn a_dumb_terminal_gets_plain_lines() {
    let project = Project::with_steps(&[("build", "echo built", None)]);
    let mut terminal = Terminal::open_with(&project, &["run", "--runner", "process"], |hm| {
        hm.env("TERM", "dumb");
    });
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(0), "{screen:#?}");
    assert!(screen.iter().any(|row| row == "build | built"), "{screen:#?}");
    assert_eq!(terminal.times("\x1b"), 0, "{screen:#?}");
}

#[test]
fn a_timeout() {
    let project = Project::with_steps(&[("wait", "echo waiting for the database >&2; sleep 600", None)]);
    let Some(screen) = play("a timeout", &project, 124) else { return };
    let wanted = ["TIMED OUT  wait", "exit 124", "$ echo waiting", "stderr │ waiting for the database"];
    check_last_lines(&project, &screen, &wanted, 124);
}

#[test]
fn out_of_memory() {
    let command = "echo linking >&2; exec tail /dev/zero";
    let project = project(&[("link", "Linker", command, json!({ "memory": "64m" }))], json!([]));
    let Some(screen) = play("out of memory", &project, 1) else { return };
    let wanted = ["OUT OF MEMORY  Linker (link)", "exit 137", "$ echo linking", "stderr │ linking"];
    check_last_lines(&project, &screen, &wanted, 1);
}

/// The first feedback of a pipeline that has to be rendered comes soon. A busy machine may take longer at
/// times.
#[test]
fn a_pipeline_in_python_has_feedback_within_a_tenth_of_a_second() {
    let Some(python) = python_with_harmont() else { return };
    let project = Project::new();
    project.file(
        ".hm/ci.py",
        "import harmont as hm\n\n@hm.pipeline('ci')\ndef ci():\n    return hm.sh('true', label='Nothing', image='host')\n",
    );
    let first_byte = || {
        let started = Instant::now();
        let mut terminal = Terminal::open_with(&project, &["run", "--runner", "process"], |hm| {
            hm.env("NO_COLOR", "1").env("HM_PYTHON", &python);
        });
        eventually("the first byte", || terminal.shown_bytes() > 0);
        let took = started.elapsed();
        terminal.expect("passed · 1 step");
        assert!(terminal.times("rendering the pipelines of .hm/") > 0, "{:#?}", terminal.screen());
        assert_eq!(terminal.end().0, Some(0));
        took
    };
    let mut took = Vec::new();
    let is_soon = (0..20).any(|_| {
        took.push(first_byte());
        took.last().unwrap() < &Duration::from_millis(100)
    });
    assert!(is_soon, "{took:?}");
}

#[test]
fn runs_and_their_logs() {
    let project = Project::with_steps(&[("build", "echo built", None), ("test", "echo wrong >&2; exit 3", Some(0))]);
    let run = |args: &[&str]| Ended::of(project.hm(&["run", "--runner", "process"]).args(args));
    run(&[]).expect(1);
    project.file(".hm/docs.json", &ir(&[("book", "echo written", None)]));
    run(&["docs"]).expect(0);
    play("runs", &project, 0);
    play("logs of a run", &project, 0);
}

/// Opens a terminal with a step that runs until its file `go` exists, and does not end when it is asked to.
fn stubborn() -> (Project, Terminal) {
    let project = Project::with_steps(&[("wait", "trap '' TERM; until [ -e $GO ]; do sleep 0.05; done", None)]);
    let go = format!("GO={}", project.store.with_file_name("go").display());
    let mut terminal = Terminal::open_with(&project, &["run", "--runner", "process", "-e", &go], |hm| {
        hm.env("NO_COLOR", "1");
    });
    terminal.expect_row("the step", |row| row.contains("wait "));
    (project, terminal)
}

/// Types Ctrl-C. The terminal of a test controls no session, so it echoes the key but sends no signal.
#[track_caller]
fn interrupt(terminal: &mut Terminal) {
    let before = terminal.times("^C");
    terminal.keys("\x03");
    eventually("the echo of the key", || terminal.times("^C") > before);
    terminal.signal(Signal::INT);
}

#[test]
fn an_interrupt_leaves_no_line_of_a_running_step() {
    let (project, mut terminal) = stubborn();
    interrupt(&mut terminal);
    terminal.expect("cancelling");
    fs::write(project.store.with_file_name("go"), "").unwrap();
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(130), "{screen:#?}");
    check("an interrupt", &screen);
}

#[test]
fn a_second_interrupt_leaves_the_summary() {
    let (_project, mut terminal) = stubborn();
    interrupt(&mut terminal);
    terminal.expect("cancelling");
    interrupt(&mut terminal);
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(130), "{screen:#?}");
    check("a second interrupt", &screen);
}

#[test]
fn after_a_stop_the_lines_are_drawn_below_those_of_the_shell() {
    let (project, mut terminal) = stubborn();
    terminal.signal(Signal::STOP);
    eventually("the stop", || terminal.is_stopped());
    terminal.keys("\x1a");
    terminal.expect("^Z");
    terminal.show("\r\n[1]+  Stopped    hm run\r\n$ fg\r\nhm run\r\n");
    terminal.signal(Signal::CONT);
    let has_total = |row: &str| row.starts_with("0/1 steps");
    let screen = terminal.expect_row("the total", has_total);
    let shell = screen.iter().position(|row| row == "hm run").expect("the shell's last line");
    assert_eq!(screen[shell - 2..shell], ["[1]+  Stopped    hm run", "$ fg"], "{screen:#?}");
    eventually("lines below those of the shell", || {
        let screen = terminal.screen();
        screen.len() == shell + 3 && screen[shell + 1].contains("wait ") && has_total(&screen[shell + 2])
    });
    fs::write(project.store.with_file_name("go"), "").unwrap();
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(0), "{screen:#?}");
    assert!(screen[shell + 1].starts_with("✓ wait passed"), "{screen:#?}");
}

#[test]
fn logs_of_a_live_run_in_a_second_terminal() {
    let project = Project::with_steps(&[("build", "echo one; until [ -e $GO ]; do sleep 0.05; done; echo two", None)]);
    let go = project.store.with_file_name("go");
    let variable = format!("GO={}", go.display());
    let mut first = Terminal::open_with(&project, &["run", "--runner", "process", "-e", &variable], |_| {});
    first.expect_row("the step", |row| row.contains("build "));
    let mut second = open("logs of a live run", &project);
    second.expect_row("the first line", |row| row == "one");
    fs::write(go, "").unwrap();
    let (code, screen) = second.end();
    assert_eq!(code, Some(0), "{screen:#?}");
    check("logs of a live run", &screen);
    assert_eq!(first.end().0, Some(0));
}

#[test]
fn a_watched_run_runs_again_after_an_edit() {
    let project = Project::with_steps(&[("greet", "grep hello greeting.txt", None)]);
    project.file("greeting.txt", "hello\n");
    project.file(".ignore", "*.log\n");
    let mut terminal = open("two edits", &project);
    let runs = |terminal: &Terminal, count: usize| {
        let is_end = |row: &&String| row.starts_with("watching for edits");
        eventually(&format!("the end of run {count}"), || terminal.screen().iter().filter(is_end).count() == count);
    };
    runs(&terminal, 1);
    // What is ignored does not count.
    project.file("step.log", "x");
    project.file(".hm/out/report", "x");
    project.file("greeting.txt", "good day\n");
    runs(&terminal, 2);
    project.file("greeting.txt", "hello, world\n");
    runs(&terminal, 3);
    terminal.signal(Signal::INT);
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(130), "{screen:#?}");
    check("two edits", &screen);
}

#[test]
fn an_edit_stops_the_run_that_it_outdates() {
    let project = Project::with_steps(&[("wait", "until grep -q go file; do sleep 0.05; done", None)]);
    project.file("file", "stop\n");
    let mut terminal = Terminal::open_with(&project, &["run", "--watch", "--runner", "process"], |hm| {
        hm.env("NO_COLOR", "1");
    });
    terminal.expect_row("the step", |row| row.contains("wait "));
    // In a new directory, which was not watched before.
    project.file("new/dir/file", "x");
    terminal.expect_row("the edit", |row| row == "new and 2 others changed: stopping this run");
    terminal.expect_row("the second run", |row| row == "new and 2 others changed");
    assert_eq!(terminal.times("interrupt again"), 0, "{:#?}", terminal.screen());
    terminal.expect_row("the step", |row| row.contains("0/1 steps"));
    project.file("new/dir/file", "y");
    terminal.expect_row("the third run", |row| row == "new/dir/file changed");
    let journals = || {
        let runs = fs::read_dir(project.store.join("runs")).unwrap();
        runs.filter(|run| run.as_ref().unwrap().path().join("journal").exists()).count()
    };
    eventually("the third run's journal", || journals() == 3);
    // The pipeline counts, too.
    project.file(".hm/ci.json", &ir(&[("done", "cat new/dir/file", None)]));
    terminal.expect_row("the fourth run", |row| row == ".hm/ci.json changed");
    terminal.expect_row("its end", |row| row.starts_with("watching for edits"));
    terminal.signal(Signal::TERM);
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(130), "{screen:#?}");
    let runs = Ended::of(&mut project.hm(&["runs", "--format", "json"])).expect(0).stdout;
    let runs: Value = serde_json::from_str(&runs).unwrap();
    let results: Vec<_> = runs.as_array().unwrap().iter().map(|run| run["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["passed", "cancelled", "cancelled", "cancelled"]);
}

#[test]
fn an_interrupt_of_a_watched_run_ends_both() {
    let (project, terminal) = watched();
    let mut terminal = terminal;
    interrupt(&mut terminal);
    // The terminal of a test has not sent the signal to the run.
    let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", terminal.hm.id())).unwrap();
    let child = rustix::process::Pid::from_raw(child.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    rustix::process::kill_process(child, Signal::INT).unwrap();
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(130), "{screen:#?}");
    assert!(screen.last().unwrap().starts_with("── cancelled: 1 cancelled"), "{screen:#?}");
    drop(project);
    let stdin = Ended::of(&mut Project::new().hm(&["run", "--watch", "-f", "-"])).expect(2);
    assert!(stdin.stderr.contains("hint: pass `-f FILE`"), "{}", stdin.stderr);
}

/// Opens a terminal with a watched run whose step does not end.
fn watched() -> (Project, Terminal) {
    let project = Project::with_steps(&[("wait", "sleep 600", None)]);
    let mut terminal = Terminal::open_with(&project, &["run", "--watch", "--runner", "process"], |hm| {
        hm.env("NO_COLOR", "1");
    });
    terminal.expect_row("the step", |row| row.contains("wait "));
    (project, terminal)
}
