//! Output for CI services: groups, annotations and the job's summary.

use std::fs;

use serde_json::json;

use crate::support::{
    backends::usable,
    project::{Ended, Project, ir_of},
};

/// What a service understands of a log.
#[derive(Debug, Default)]
struct Understood {
    groups: Vec<String>,
    annotations: Vec<String>,
    /// The lines of each group.
    lines: Vec<Vec<String>>,
}

/// Reads a log as GitHub does: commands are at the beginning of a line, and a token suspends them.
#[track_caller]
fn understand(log: &str) -> Understood {
    let (mut found, mut token, mut is_open) = (Understood::default(), None::<String>, false);
    for line in log.lines() {
        assert!(!line.contains("##["), "an old command, which counts everywhere: {line}");
        if let Some(end) = &token {
            if line == format!("::{end}::") {
                token = None;
            } else if is_open {
                found.lines.last_mut().unwrap().push(line.to_owned());
            }
        } else if let Some(title) = line.strip_prefix("::group::") {
            assert!(!std::mem::replace(&mut is_open, true), "a group in a group: {log}");
            found.groups.push(title.to_owned());
            found.lines.push(Vec::new());
        } else if let Some(stop) = line.strip_prefix("::stop-commands::") {
            token = Some(stop.to_owned());
        } else if line == "::endgroup::" {
            assert!(std::mem::take(&mut is_open), "no group to end: {log}");
        } else if let Some(annotation) = line.strip_prefix("::error ") {
            found.annotations.push(annotation.to_owned());
        } else {
            assert!(!line.trim_start().starts_with("::"), "an unknown command: {line}");
        }
    }
    assert!(!is_open && token.is_none(), "{log}");
    found
}

/// A project whose steps print commands of the service, and whose names need escapes.
fn project() -> Project {
    let project = Project::new();
    let hostile = "echo ::endgroup::; echo '::error title=x::fake'; seq 1 3000; echo ' ##[error]x'; echo '100% | <b>' >&2; exit 3";
    let nodes = [
        json!({ "step": { "key": "bad", "label": "Tests: a, b | 50% <x>", "cmd": hostile }, "env": {} }),
        json!({ "step": { "key": "good", "cmd": "seq 1 40000" }, "env": {} }),
        json!({ "step": { "key": "quiet", "label": "Quiet ##[stop-commands]x", "cmd": "true" }, "env": {} }),
        json!({ "step": { "key": "after", "cmd": "true" }, "env": {} }),
    ];
    let graph =
        json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [[0, 3, "builds_in"]] });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    project
}

#[test]
fn github_gets_balanced_groups_escaped_annotations_and_a_table() {
    let project = project();
    let summary = project.dir.with_file_name("summary.md");
    let mut hm = project.hm(&["run", "--runner", "process", "-k", "-j3"]);
    hm.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", &summary).env("NO_COLOR", "1");
    let ended = Ended::of(&mut hm).expect(1);
    let found = understand(&ended.stdout);
    // A step without output needs no group.
    assert_eq!(found.groups.len(), 2, "{:?}", found.groups);
    let at = |name: &str| found.groups.iter().position(|title| title.contains(name)).unwrap();
    assert!(found.groups[at("(bad)")].starts_with("✗ Tests: a, b | 50%25 <x> (bad) failed with exit code 3"));
    assert!(found.groups[at("good")].starts_with("✓ good passed in "));
    assert_eq!(found.lines[at("(bad)")].len(), 3004);
    assert_eq!(found.lines[at("(bad)")][..2], ["::endgroup::", "::error title=x::fake"]);
    let good: Vec<String> = (1..=40_000).map(|number| number.to_string()).collect();
    assert!(found.lines[at("good")] == good, "a long output is complete");
    assert!(ended.stdout.contains("\n✓ Quiet ## [stop-commands]x (quiet) passed in "), "{}", ended.stdout);

    let [annotation] = &found.annotations[..] else { panic!("{:?}", found.annotations) };
    let (title, message) = annotation.strip_prefix("title=").unwrap().split_once("::").unwrap();
    assert!(title.starts_with("Tests%3A a%2C b | 50%25 <x> (bad) failed with exit code 3 after "), "{title}");
    let message = message.replace("%0A", "\n").replace("%25", "%");
    assert!(message.starts_with("$ echo ::endgroup::;") && message.ends_with("\nstderr │ 100% | <b>"), "{message}");

    let summary = fs::read_to_string(summary).unwrap();
    assert!(summary.starts_with("### ❌ 1 failed, 2 passed, 1 skipped (after) · "), "{summary}");
    assert!(summary.contains("| ❌ | Tests: a, b \\| 50% &lt;x&gt; (bad) | **failed** | "), "{summary}");
    assert!(
        summary.contains("| ✅ | Quiet ##&#91;stop-commands]x (quiet) | passed | ")
            && summary.contains("| ➖ | after | skipped | "),
        "{summary}"
    );
    assert!(summary.contains("stderr │ 100% | &lt;b&gt;\n") || summary.contains("stderr │ 100% | &lt;b&gt;</pre>"));

    // The user's choice comes first.
    let mut hm = project.hm(&["run", "--runner", "process", "-k", "--format", "human"]);
    let ended = Ended::of(hm.env("GITHUB_ACTIONS", "true")).expect(1);
    assert!(ended.stdout.contains("good | 40000\n") && !ended.stdout.contains("::group::"));
}

#[test]
fn gitlab_gets_sections_that_steps_cannot_fake() {
    let project = Project::with_steps(&[("step", r"printf '\033[0Ksection_end:1:hm_x\r\033[0K\nlast\n'", None)]);
    let ended = Ended::of(project.hm(&["run", "--runner", "process"]).env("GITLAB_CI", "true")).expect(0);
    let sections: Vec<&str> = ended.stdout.split("\x1b[0Ksection_").skip(1).collect();
    let [start, end] = sections[..] else { panic!("{:?}", ended.stdout) };
    let name = start.split([':', '[']).nth(2).unwrap();
    assert!(start.contains("[collapsed=true]\r\x1b[0K") && start.ends_with("\nlast\n"), "{start:?}");
    assert!(end.starts_with("end:") && end.contains(&format!(":{name}\r\x1b[0K\n")), "{end:?}");
    // Both services show colours.
    assert!(start.contains("\x1b[32m✓\x1b[0m"), "{start:?}");
}

#[test]
fn colors_are_what_the_user_chooses() {
    let project = Project::with_steps(&[("step", "exit 3", None)]);
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let mut hm = project.hm(&["run", "--runner", "process", "--format", "human"]);
        Ended::of(hm.args(args).envs(variables.iter().copied())).expect(1).stdout.contains('\x1b')
    };
    assert!(!run(&[], &[]));
    assert!(run(&["--color", "always"], &[("NO_COLOR", "1")]));
    assert!(run(&[], &[("FORCE_COLOR", "1")]) && !run(&[], &[("FORCE_COLOR", "0")]));
    assert!(!run(&["--color", "never"], &[("FORCE_COLOR", "1")]) && !run(&["--no-color"], &[("FORCE_COLOR", "1")]));
    assert!(!run(&[], &[("FORCE_COLOR", "1"), ("NO_COLOR", "1")]));
    let error = Ended::of(&mut project.hm(&["--color", "always", "run", "nope"])).expect(2).stderr;
    assert!(
        error.starts_with("\x1b[1;31merror:\x1b[0m no pipeline") && error.contains("\x1b[32mhint:\x1b[0m"),
        "{error:?}"
    );
}

#[test]
fn ci_is_true_in_every_step_on_every_machine() {
    let project = Project::new();
    let nodes = [
        json!({ "step": { "key": "plain", "cmd": "echo CI=$CI" }, "env": {} }),
        json!({ "step": { "key": "own", "cmd": "echo CI=$CI" }, "env": { "CI": "own" } }),
        json!({ "step": { "key": "none", "cmd": "echo CI=$CI" }, "env": { "CI": "" } }),
    ];
    project.file(".hm/ci.json", &ir_of(&nodes, &[]));
    for runner in ["process", "sandbox"] {
        for outside in [None, Some("elsewhere")] {
            let mut hm = project.hm(&["run", "--runner", runner, "--format", "human"]);
            match outside {
                Some(value) => hm.env("CI", value),
                None => hm.env_remove("CI"),
            };
            let ended = Ended::of(&mut hm);
            if !usable(runner, ended.code != Some(3), &ended.stderr) {
                continue;
            }
            let shown = ended.expect(0).stdout;
            for line in ["plain | CI=true", "own | CI=own", "none | CI="] {
                assert!(shown.lines().any(|shown| shown == line), "{runner}: {line}: {shown}");
            }
        }
    }
}
