//! Finding pipelines, and invalid input: always exit code 2, before anything runs.

use std::{fs, io::Write, process::Stdio};

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    project::{Ended, Project, ir},
};

const TRUE: &[(&str, &str, Option<usize>)] = &[("a", "true", None)];

#[test]
fn an_unknown_pipeline_names_the_nearest_one() {
    let project = Project::new();
    project.file(".hm/release.json", &ir(TRUE));
    project.file(".hm/nightly.json", &ir(TRUE));
    let ended = project.run(&["relaese"]).expect(2);
    assert!(ended.stderr.contains("no pipeline named `relaese`"), "{}", ended.stderr);
    assert!(ended.stderr.contains("did you mean `release`? (pipelines: nightly, release)"), "{}", ended.stderr);
    let ended = project.run(&["xyz"]).expect(2);
    assert!(ended.stderr.contains("hint: pipelines: nightly, release"), "{}", ended.stderr);
}

#[test]
fn without_a_name_the_only_pipeline_is_taken_or_the_one_called_ci() {
    let project = Project::new();
    project.file(".hm/release.json", &ir(&[("only", "true", None)]));
    assert!(project.run(&[]).expect(0).stdout.contains("only passed"));
    project.file(".hm/nightly.json", &ir(TRUE));
    let ended = project.run(&[]).expect(2);
    assert!(ended.stderr.contains("error: several pipelines"), "{}", ended.stderr);
    assert!(ended.stderr.contains("- nightly\n  - release\n"), "{}", ended.stderr);
    project.file(".hm/ci.json", &ir(&[("chosen", "true", None)]));
    assert!(project.run(&[]).expect(0).stdout.contains("chosen passed"));
}

#[test]
fn pipelines_are_searched_upwards_to_the_root_of_the_repository() {
    let project = Project::with_steps(&[("where", "ls", None)]);
    project.file("deep/down/file", "");
    let deep = project.dir.join("deep/down");
    // Outside a repository, parent directories are not searched.
    let ended = Ended::of(project.hm(&["run", "--runner", "process"]).current_dir(&deep)).expect(2);
    assert!(ended.stderr.contains("no directory .hm in"), "{}", ended.stderr);
    let hint = format!("hint: to use that one, pass `-d {}`", project.dir.display());
    assert!(ended.stderr.contains(&hint), "{}", ended.stderr);

    fs::create_dir(project.dir.join(".git")).unwrap();
    let ended = Ended::of(project.hm(&["run", "--runner", "process"]).current_dir(&deep)).expect(0);
    assert!(ended.stdout.contains("where | deep\n"), "the source is the directory of .hm: {}", ended.stdout);
    // A directory that is named explicitly is the source itself.
    let ended = project.run(&["-d", "deep/down"]).expect(0);
    assert!(ended.stdout.contains("where | file\n"), "{}", ended.stdout);
}

#[test]
fn a_pipeline_comes_from_a_file_or_from_stdin() {
    let project = Project::new();
    fs::remove_dir(project.dir.join(".hm")).unwrap();
    project.file("some/ir.json", &ir(&[("from-file", "true", None)]));
    assert!(project.run(&["-f", "some/ir.json"]).expect(0).stdout.contains("from-file passed"));

    let mut command = project.hm(&["run", "--runner", "process", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(ir(&[("from-stdin", "true", None)]).as_bytes()).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap()).expect(0);
    assert!(ended.stdout.contains("from-stdin passed"), "{}", ended.stdout);

    let ended = project.run(&["-f", "missing.json"]).expect(2);
    assert!(ended.stderr.contains("failed to read missing.json"), "{}", ended.stderr);
}

#[test]
fn all_mistakes_of_an_invalid_pipeline_are_reported_at_once() {
    let project = Project::new();
    let mut pipeline: Value = serde_json::from_str(&ir(&[("a", "true", None), ("a", "true", Some(0))])).unwrap();
    pipeline["graph"]["edges"] = serde_json::json!([[0, 9, "builds_in"]]);
    pipeline["version"] = "7".into();
    project.file(".hm/ci.json", &pipeline.to_string());
    for command in ["run", "plan", "render"] {
        let ended = Ended::of(&mut project.hm(&[command])).expect(2);
        assert!(ended.stderr.starts_with("error: pipeline `ci` ("), "{}", ended.stderr);
        let listed = ended.stderr.lines().filter(|line| line.starts_with("  - ")).count();
        assert_eq!(listed, 3, "{}", ended.stderr);
    }
    assert!(!project.store.exists(), "nothing has run");
}

#[test]
fn an_unknown_runner_is_reported_before_anything_runs() {
    let project = Project::with_steps(TRUE);
    for command in ["run", "plan"] {
        let ended = Ended::of(&mut project.hm(&[command, "--runner", "proces"])).expect(2);
        assert!(ended.stderr.contains("did you mean `process`?"), "{}", ended.stderr);
    }
}

#[test]
fn an_invalid_or_missing_image_is_reported_before_anything_runs() {
    let project = Project::new();
    project.file("empty/file", "");
    for (image, expected) in [
        ("oci:missing", "`missing` does not exist"),
        ("oci:empty:tag", "`empty/index.json` does not exist"),
        ("oci-archive:empty", "`empty` is not a regular file"),
        ("docker-archive:missing.tar", "`missing.tar` does not exist"),
        ("rootfs:missing", "no such directory"),
        ("a//b", "invalid image name `a//b`"),
        ("UPPER:case", "invalid image name `UPPER:case`"),
    ] {
        let mut pipeline: Value = serde_json::from_str(&ir(TRUE)).unwrap();
        pipeline["default_image"] = image.into();
        project.file(".hm/ci.json", &pipeline.to_string());
        for command in ["run", "plan"] {
            let ended = Ended::of(&mut project.hm(&[command])).expect(2);
            assert!(ended.stderr.contains(expected) && ended.stderr.contains("step `a`"), "{}", ended.stderr);
        }
    }
}

#[test]
fn a_missing_secret_is_reported_before_anything_runs() {
    let project = Project::with_steps(TRUE);
    let ended = project.run(&["--secret", "HM_TEST_NO_SUCH_VARIABLE"]).expect(2);
    assert!(ended.stderr.contains("secret `HM_TEST_NO_SUCH_VARIABLE` is missing"), "{}", ended.stderr);
    let ended = project.run(&["--secret", "token=file:no-such-file"]).expect(2);
    assert!(ended.stderr.contains("failed to read secret `token` from no-such-file"), "{}", ended.stderr);
    let ended = project.run(&["--secret", "token=hunter2"]).expect(2);
    assert!(ended.stderr.contains("token=env:VAR") || ended.stderr.contains("NAME=env:VAR"), "{}", ended.stderr);
    assert!(!project.store.exists(), "nothing has run");
}

#[test]
fn wrong_usage_exits_with_2() {
    let project = Project::with_steps(TRUE);
    for args in
        [&["-j0"][..], &["--format", "xml"], &["--timeout", "soon"], &["--image", "x"], &["ci", "-f", "x"], &["--nope"]]
    {
        project.run(args).expect(2);
    }
    let ended = project.run(&["-d", "no-such-dir"]).expect(2);
    assert!(ended.stderr.contains("failed to open directory no-such-dir"), "{}", ended.stderr);
}

#[test]
fn a_substitution_that_matches_nothing_prints_a_warning() {
    let project = Project::with_steps(TRUE);
    let ended = project.run(&["--image", "debain:12=host"]).expect(0);
    assert_eq!(
        ended.stderr,
        "warning: `--image debain:12=...` has no effect: no step starts from that image, but from `host`\n"
    );
}

#[test]
fn render_prints_a_pipeline_that_run_accepts() {
    let project = Project::with_steps(TRUE);
    let ended = Ended::of(&mut project.hm(&["render"])).expect(0);
    assert_eq!(ended.stdout.trim_end(), ir(TRUE));
}

#[test]
fn pipelines_and_plan_print_text_and_json() {
    let project = Project::with_steps(&[("build", "cc x.c", None), ("test", "./a.out", Some(0))]);
    for args in [&["ls"][..], &["pipelines", "--format", "text"]] {
        let ended = Ended::of(&mut project.hm(args)).expect(0);
        assert!(ended.stdout.starts_with("ci  "), "{}", ended.stdout);
    }
    let envelope =
        |args: &[&str]| -> Value { serde_json::from_str(&Ended::of(&mut project.hm(args)).expect(0).stdout).unwrap() };
    let ir = json!({ "schema_version": "1", "pipelines": [{
        "slug": "ci", "name": "ci", "allow_manual": true, "triggers": [],
        "definition": serde_json::from_str::<Value>(&fs::read_to_string(project.dir.join(".hm/ci.json")).unwrap()).unwrap(),
    }]});
    assert_eq!(envelope(&["pipelines", "--format", "json"]), ir);
    assert_eq!(envelope(&["pipelines"]), ir, "JSON unless stdout is a terminal");
    let nothing = tempfile::tempdir().unwrap();
    let dir = nothing.path().to_str().unwrap();
    assert_eq!(envelope(&["pipelines", "-d", dir]), json!({ "schema_version": "1", "pipelines": [] }));

    let ended = Ended::of(&mut project.hm(&["plan", "--runner", "process"])).expect(0);
    assert_eq!(ended.stdout, "ci: 2 steps in 1 chain on process\n\nbuild    image host\n└─ test\n");
    let ended = Ended::of(&mut project.hm(&["plan", "--format", "json"])).expect(0);
    let plan: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(plan["steps"][1]["builds_in"], "build");
    assert_eq!(plan["steps"][0]["image"], "host");
}

#[test]
fn runners_and_doctor_print_text_and_json() {
    let project = Project::new();
    let ended = Ended::of(&mut project.hm(&["runners"])).expect(0);
    assert!(ended.stdout.lines().any(|line| line.starts_with("process ")), "{}", ended.stdout);
    let ended = Ended::of(&mut project.hm(&["runners", "--format", "json"])).expect(0);
    let list: Value = serde_json::from_str(&ended.stdout).unwrap();
    let defaults = list.as_array().unwrap().iter().filter(|runner| runner["default"] == true).count();
    assert_eq!(defaults, 1);

    let doctor = Ended::of(&mut project.hm(&["doctor"]));
    let code = if doctor.stdout.contains("FAIL") { 3 } else { 0 };
    let ended = doctor.expect(code);
    for check in [
        "user namespaces",
        "overlay",
        "store",
        "uid ranges",
        "cgroups",
        "kvm",
        "runner vm",
        "runner docker",
        "runner process",
    ] {
        assert!(ended.stdout.contains(check), "{check}: {}", ended.stdout);
    }
    let ended = Ended::of(&mut project.hm(&["doctor", "--format", "json"])).expect(code);
    let checks: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(checks.as_array().unwrap().iter().all(|check| check["state"].is_string()), "{checks}");
}

#[test]
fn plan_and_run_warn_of_a_step_that_names_the_pipelines_directory() {
    let project = Project::with_steps(&[("lint", "test ! -e .hm/ci.json", None), ("other", "true", None)]);
    for command in ["plan", "run"] {
        let ended = Ended::of(&mut project.hm(&[command, "--runner", "process"])).expect(0);
        assert!(ended.stderr.contains("steps cannot see `.hm/`"), "{}", ended.stderr);
        assert!(ended.stderr.contains("`lint`") && !ended.stderr.contains("`other`"), "{}", ended.stderr);
    }
}

#[test]
fn clones_of_one_repository_share_results_and_other_directories_do_not() {
    let projects =
        [Some("git@github.com:o/r.git"), Some("https://token@github.com/o/r"), Some("git@github.com:o/x"), None];
    let store = tempfile::tempdir().unwrap();
    let mut ir: serde_json::Value = serde_json::from_str(&ir(&[("made", "echo made > made", None)])).unwrap();
    ir["graph"]["nodes"][0]["step"]["cache"] = serde_json::json!({ "policy": "forever", "key": "k" });
    let mut hits = Vec::new();
    for origin in projects {
        let project = Project::new();
        project.file(".hm/ci.json", &ir.to_string());
        if let Some(url) = origin {
            project.file(".git/config", &format!("[remote \"origin\"]\n\turl = {url}\n"));
        }
        let ended = Ended::of(project.hm(&["run", "--format", "json"]).env("HM_CACHE_DIR", store.path()));
        if ended.code == Some(3) {
            assert!(!usable("the sandbox", false, &ended.stderr));
            return;
        }
        hits.push(ended.expect(0).events().iter().any(|event| event["kind"] == "step_cache_hit"));
    }
    assert_eq!(hits, [false, true, false, false]);
}

#[test]
fn commands_and_variables_of_maximum_length_work_and_longer_ones_are_refused() {
    const MOST: usize = 128 * 1024 - 1;
    let project = Project::new();
    let pipeline = |cmd: usize, value: usize| {
        let mut ir: Value = serde_json::from_str(&ir(&[("a", "echo ${#A}\n#", None)])).unwrap();
        let node = &mut ir["graph"]["nodes"][0];
        let command = node["step"]["cmd"].as_str().unwrap().to_owned();
        node["step"]["cmd"] = format!("{command}{}", "x".repeat(cmd - command.len())).into();
        node["env"]["A"] = "x".repeat(value - 2).into();
        project.file(".hm/ci.json", &ir.to_string());
    };
    pipeline(MOST, MOST);
    let ended = project.run(&["--format", "human"]).expect(0);
    assert!(ended.stdout.contains(&format!("| {}\n", MOST - 2)), "{}", ended.stdout);
    for (cmd, value, named) in [(MOST + 1, MOST, "step `a`: `cmd`"), (MOST, MOST + 1, "variable `A`")] {
        pipeline(cmd, value);
        for command in ["plan", "run"] {
            let ended = Ended::of(&mut project.hm(&[command])).expect(2);
            assert!(ended.stderr.contains(named), "{}", ended.stderr);
        }
    }
}

#[test]
fn only_the_user_can_name_a_project() {
    let project = Project::with_steps(TRUE);
    for (text, said) in [
        ("[project.'/x']\nid = 'y'\n", "`[project]` is not allowed in a project's hm.toml"),
        ("[cache]\nshare = 'y'\n", "hm trust"),
    ] {
        project.file(".hm/hm.toml", text);
        let ended = project.run(&[]).expect(2);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
}

#[test]
fn doctor_goes_on_after_an_invalid_configuration() {
    let project = Project::with_steps(TRUE);
    project.file(".hm/hm.toml", "[");
    let ended = Ended::of(&mut project.hm(&["doctor"])).expect(3);
    for shown in ["FAIL  configuration ", "hm.toml, line 1", "not checked, because the configuration is invalid"] {
        assert!(ended.stdout.contains(shown), "{shown}: {ended:?}");
    }
    assert!(ended.stderr.is_empty(), "{ended:?}");
}
