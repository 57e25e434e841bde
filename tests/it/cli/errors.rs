//! The errors that users can cause: each says what is wrong, and what to do next, once.

mod table;
mod texts;

use std::{fs, process::Stdio};

use serde_json::json;
use table::{Case, case};

use crate::support::project::{Ended, Project, eventually, ir, ir_of};

/// Runs the cases, checks their answers, and returns these.
#[track_caller]
fn answers(project: &Project, cases: &[Case]) -> Vec<String> {
    let home = project.dir.with_file_name("home");
    fs::create_dir_all(&home).unwrap();
    let path_of = |name: &str| match name.strip_prefix("~/") {
        Some(name) => home.join(name),
        None => project.dir.join(name),
    };
    let (mut answers, mut mistakes) = (Vec::new(), Vec::new());
    for case in cases {
        let Case { args, variables, files, .. } = case;
        for (name, content) in *files {
            let path = path_of(name);
            match name.ends_with('/') {
                true => fs::create_dir_all(path).unwrap(),
                false => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, content).unwrap();
                }
            }
        }
        let mut hm = project.hm(args);
        for variable in
            ["HM_REMOTE", "HM_NETWORK", "HM_TRUST", "HM_NODE", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "HM_ORG"]
        {
            hm.env_remove(variable);
        }
        let ended = Ended::of(hm.env("HOME", &home).envs(variables.iter().copied()));
        if let Some(mistake) = mistake(&ended, case) {
            mistakes.push(format!("{args:?}: {mistake}:\n{}{}", ended.stdout, ended.stderr));
        }
        for (name, _) in *files {
            let path = path_of(name);
            if path.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        answers.push(ended.stderr);
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    answers
}

/// Returns what is wrong with an answer.
fn mistake(ended: &Ended, case: &Case) -> Option<String> {
    let text = &ended.stderr;
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    // No cause is repeated, and no hint either.
    let repeated = lines.iter().enumerate().find(|(at, line)| lines[..*at].contains(line));
    Some(match repeated {
        _ if ended.code != Some(case.code) => format!("the exit code is {:?}", ended.code),
        _ if text.matches("error: ").count() != 1 => "it is not one error".to_owned(),
        _ if !text.contains(case.error) => format!("{:?} is missing", case.error),
        _ if !text.contains(case.next) => format!("{:?} is missing", case.next),
        _ if !ended.stdout.is_empty() => "something is on stdout".to_owned(),
        Some((_, line)) => format!("{line:?} is there twice"),
        None => return None,
    })
}

#[test]
fn the_short_help_of_a_run_fits_on_a_screen() {
    let project = Project::new();
    let mut hm = project.hm(&["run", "-h"]);
    let short = Ended::of(hm.env("COLUMNS", "80")).expect(0).stdout;
    assert!(short.lines().count() <= 40, "{}:\n{short}", short.lines().count());
    assert!(short.lines().all(|line| line.chars().count() <= 80), "{short}");
    assert!(short.contains("--failed") && short.contains("-k, --keep-going"), "{short}");
    let long = Ended::of(&mut project.hm(&["run", "--help"])).expect(0).stdout;
    for option in ["--remote-header", "--docker-host", "--verbose", "--host-dir", "HM_CACHE_GC"] {
        assert!(long.contains(option) && !short.contains(option), "{option}: {long}");
    }
}

fn in_an_empty_directory() -> Vec<String> {
    let project = Project::new();
    fs::remove_dir(project.dir.join(".hm")).unwrap();
    let mut all = answers(&project, table::EMPTY);
    fs::create_dir(project.dir.join(".hm")).unwrap();
    all.extend(answers(&project, &[case(&["run"], 2, "no pipelines in ", "hint: run `hm init` to create one")]));
    project.file(".hm/a.json", &ir(&[("a", "true", None)]));
    project.file(".hm/b.json", &ir(&[("b", "true", None)]));
    all.extend(answers(&project, table::SEVERAL));
    all
}

fn in_a_project() -> Vec<String> {
    let project = Project::with_steps(&[("test", "exit 3", None)]);
    let long = "x".repeat(128 << 10);
    project.run(&["ci"]).expect(1);
    project.file(".hm/long.json", &ir(&[("long", &long, None)]));
    project.file(".hm/fresh.json", &ir(&[("fresh", "true", None)]));
    let mut all = answers(&project, table::PROJECT);
    project.file(".hm/hm.toml", "backend = [\n");
    all.extend(answers(&project, &[case(&["run"], 2, "hm.toml, line ", "")]));
    project.file(".hm/hm.toml", "bakcend = 1\n");
    all.extend(answers(&project, &[case(&["run"], 2, "unknown field `bakcend`", "did you mean `backend`?")]));
    project.file(".hm/hm.toml", "[servise.db]\nimage = 'x'\n");
    all.extend(answers(&project, &[case(&["run"], 2, "unknown field `servise`", "did you mean `service`?")]));
    project.file(".hm/hm.toml", "");
    let twin = |key: &str| json!({ "step": { "key": key, "label": "Twin", "cmd": "true" }, "env": {} });
    project.file(".hm/twins.json", &ir_of(&[twin("a"), twin("b")], &[]));
    project.run(&["twins"]).expect(0);
    let several = "several steps have the label `Twin`\n  - a\n  - b\n";
    for args in [&["run", "twins", "Twin"][..], &["logs", "Twin"], &["why", "Twin"]] {
        all.extend(answers(&project, &[case(args, 2, several, "hint: name one of them by its key")]));
    }
    all
}

fn of_settings() -> Vec<String> {
    let project = Project::with_steps(&[("test", "exit 3", None)]);
    let tables = [table::TRUST, table::CONFIGURATION, table::ENGINE, table::SERVICE, table::PIPELINES];
    tables.into_iter().flat_map(|cases| answers(&project, cases)).collect()
}

fn after_runs() -> Vec<String> {
    let project = Project::with_steps(&[("test", "exit 3", None)]);
    project.file(".hm/good.json", &ir(&[("fine", "true", None)]));
    project.file(".hm/chain.json", &ir(&[("broken", "exit 1", None), ("never", "true", Some(0))]));
    project.run(&["ci"]).expect(1);
    project.run(&["good"]).expect(0);
    project.run(&["chain"]).expect(1);
    project.file(".hm/long.json", &ir(&[("endless", "touch $MARK; sleep 600", None)]));
    let mark = project.store.with_file_name("mark");
    let mut hm = project.hm(&["run", "--runner", "process", "long", "-e", &format!("MARK={}", mark.display())]);
    let mut hm = hm.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the step", || mark.exists());
    hm.kill().unwrap();
    hm.wait().unwrap();
    let mut all = answers(&project, table::RUNS);
    all.extend(answers(&project, table::COLLECTOR));
    project.file(".hm/chain.json", &ir(&[("other", "true", None)]));
    let gone = "the pipeline no longer has the steps that did not pass in its last run";
    all.extend(answers(&project, &[case(&["run", "chain", "--failed"], 2, gone, "hint: run the pipeline without")]));
    all
}

#[test]
fn errors_in_an_empty_directory_say_how_to_begin() {
    in_an_empty_directory();
}

#[test]
fn errors_in_a_project_say_what_to_do_next() {
    in_a_project();
}

#[test]
fn errors_of_settings_say_what_is_expected() {
    of_settings();
}

#[test]
fn errors_about_runs_say_where_they_are() {
    after_runs();
}

/// The table is complete: what it lacks of the texts in the source is listed with the test that shows it, or
/// with the reason why no test does.
#[test]
fn every_error_text_is_in_a_table() {
    let answers = [in_an_empty_directory(), in_a_project(), of_settings(), after_runs()].concat();
    let wrong = texts::mistakes(&answers);
    assert!(wrong.is_empty(), "\n{wrong}");
}
