//! Where output appears: pure JSON, completeness under floods, readers that stop or leave, secrets,
//! terminals.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use hm_exec::{BuildEvent, event::MAX_LINE_BYTES};

use crate::support::{
    backends::usable,
    project::{Ended, Project, eventually, ir, walk},
};

const LINES: usize = 200_000;

#[test]
fn json_is_the_event_stream_and_nothing_else() {
    let project = Project::with_steps(&[("noisy", "echo out; echo err >&2; printf 'no newline'", None)]);
    let ended = project.run(&["--format", "json"]).expect(0);
    let events = ended.events();
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["seq"], at, "{event}");
    }
    assert_eq!(events[0]["kind"], "build_start");
    assert_eq!(events.last().unwrap()["kind"], "build_end");
    assert_eq!(events.last().unwrap()["exit_code"], 0);
    let mut lines: Vec<_> = events.iter().filter_map(|event| event["line"].as_str()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "no newline", "out"]);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_flood_of_lines_arrives_complete_and_in_order() {
    let project = Project::with_steps(&[("flood", &format!("seq 1 {LINES}"), None)]);
    let ended = project.run(&["--format", "json"]).expect(0);
    let events = ended.events();
    let lines = events.iter().filter(|event| event["kind"] == "step_log").map(|event| event["line"].as_str().unwrap());
    let mut count = 0;
    for (at, line) in lines.enumerate() {
        assert_eq!(line, (at + 1).to_string());
        count += 1;
    }
    assert_eq!(count, LINES);
}

#[test]
fn hostile_output_is_valid_json_and_no_byte_is_lost() {
    let mut hostile: Vec<u8> = (0..=255).collect();
    hostile.extend(b"\n\n\r\n\"quoted\" \\ \x1b[31mred\x1b[0m\xe2\x80\xa8\xf0\x9f\xa6\x80 \xf0\x9f\xa6\n");
    hostile.extend("\"\t".repeat(MAX_LINE_BYTES).bytes());
    hostile.extend(b"\nno newline\xff");
    let project = Project::with_steps(&[("hostile", "cat hostile", None)]);
    fs::write(project.dir.join("hostile"), &hostile).unwrap();
    let ended = project.run(&["--format", "json"]).expect(0);
    let mut text = String::new();
    for json in ended.stdout.lines() {
        let event: BuildEvent = serde_json::from_str(json).unwrap();
        assert_eq!(json, serde_json::to_string(&event).unwrap());
        if let BuildEvent::StepLog { line, partial, .. } = event {
            text.push_str(&line);
            text.push_str(if partial { "" } else { "\n" });
        }
    }
    let expected = String::from_utf8_lossy(&hostile).replace("\r\n", "\n") + "\n";
    assert!(text == expected, "{:.1000?}", text);
}

#[test]
fn the_build_continues_while_its_output_is_not_read() {
    let project = Project::new();
    let done = project.dir.join("done");
    let command = format!("seq 1 {LINES}; touch {}", done.display());
    project.file(".hm/ci.json", &ir(&[("flood", &command, None)]));
    let mut child =
        project.hm(&["run", "--runner", "process", "--format", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("the step to end, with a full pipe", || done.exists());
    // A late reader has missed nothing.
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains(r#""kind":"step_log""#)).count(), LINES);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_exits_does_not_change_the_exit_code() {
    let project = Project::with_steps(&[("flood", &format!("seq 1 {LINES}; exit 3"), None)]);
    let mut command = project.hm(&["run", "--runner", "process"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap()).expect(1);
    assert_eq!(ended.stderr, "");
    assert_eq!(first, "=> flood started (process, image host)\n");
}

#[test]
fn a_full_disk_under_stdout_is_reported() {
    let project = Project::with_steps(&[("a", "echo hello", None)]);
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else { return };
    let mut command = project.hm(&["run", "--runner", "process", "--format", "json"]);
    let ended = Ended::of(command.stdout(full).stderr(Stdio::piped())).expect(3);
    assert!(ended.stderr.contains("its output could not be written"), "{}", ended.stderr);
}

#[test]
fn a_secret_appears_nowhere() {
    const SECRET: &str = "s3cr3t-Zx81-value";
    // The secret as a whole, and in two writes.
    let command =
        "cat /run/secrets/TOKEN; echo; head -c 7 /run/secrets/TOKEN; sleep 0.1; tail -c +8 /run/secrets/TOKEN; echo";
    let project = Project::with_steps(&[("leak", command, None)]);
    for (runner, format) in [("sandbox", "human"), ("sandbox", "json")] {
        let mut hm = project.hm(&["run", "--runner", runner, "--secret", "TOKEN", "--format", format]);
        let ended = Ended::of(hm.env("TOKEN", SECRET));
        if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
            return;
        }
        let ended = ended.expect(0);
        assert!(ended.stdout.contains("***"), "{}", ended.stdout);
        assert!(!ended.stdout.contains(SECRET) && !ended.stderr.contains(SECRET), "{}", ended.stdout);
    }
    let mut files = 0;
    walk(&project.store, &mut |path| {
        if let Ok(bytes) = std::fs::read(path) {
            files += 1;
            assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "in {}", path.display());
        }
    });
    assert!(files > 0, "the journals are in the store");
}

#[test]
fn a_runner_that_cannot_show_secrets_refuses_them() {
    let project = Project::with_steps(&[("a", "true", None)]);
    let mut hm = project.hm(&["run", "--runner", "process", "--secret", "TOKEN"]);
    let ended = Ended::of(hm.env("TOKEN", "x"));
    if ended.code != Some(0) {
        let ended = ended.expect(2);
        assert!(ended.stderr.contains("secrets"), "{}", ended.stderr);
    }
}

#[test]
fn a_hostile_log_cannot_rewrite_the_terminal() {
    let command = r"printf '\033[31mred\033[0m \033[2J\033]0;title\007 \010x\n'";
    let project = Project::with_steps(&[("hostile", command, None)]);
    let plain = project.run(&[]).expect(0);
    assert!(plain.stdout.contains("hostile | red  ^Hx\n"), "{:?}", plain.stdout);
    assert!(!plain.stdout.contains('\x1b'), "{:?}", plain.stdout);

    let mut forced = project.hm(&["run", "--runner", "process"]);
    let ended = Ended::of(forced.env("CLICOLOR_FORCE", "1")).expect(0);
    assert!(ended.stdout.contains("\x1b[31mred\x1b[0m  ^Hx\x1b[0m\n"), "{:?}", ended.stdout);
    assert!(!ended.stdout.contains("\x1b[2J") && !ended.stdout.contains("\x1b]"), "{:?}", ended.stdout);
    let ended = Ended::of(forced.env("NO_COLOR", "1")).expect(0);
    assert!(!ended.stdout.contains('\x1b'), "{:?}", ended.stdout);
}

#[test]
fn progress_without_a_terminal_reports_the_end_on_stderr() {
    let project = Project::with_steps(&[("ok", "echo quiet", None), ("bad", "echo why; exit 4", Some(0))]);
    let ended = project.run(&["--format", "progress"]).expect(1);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("✓ ok passed in"), "{}", ended.stderr);
    assert!(ended.stderr.contains("✗ bad failed with exit code 4 after"), "{}", ended.stderr);
    assert!(ended.stderr.contains("\n    why\n"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("quiet"), "{}", ended.stderr);
    let ended = project.run(&["--format", "progress", "--logs"]).expect(1);
    assert!(ended.stderr.contains("ok | quiet\n"), "{}", ended.stderr);
}
