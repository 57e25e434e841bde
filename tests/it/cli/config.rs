//! `hm config`, and the effect of configuration files on `hm run` and `hm plan`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::fs::{CWD, FileType, Mode};
use serde_json::Value;

use crate::support::project::{Ended, Project, ir};

/// Returns a project, and the home directory of its user.
fn project() -> (Project, PathBuf) {
    let project = Project::new();
    project.file(".hm/ci.json", &ir(&[("a", "true", None)]));
    let home = project.store.with_file_name("home");
    fs::create_dir_all(home.join(".config/hm")).unwrap();
    (project, home)
}

/// Returns `hm ARGS` with a home of its own, and a limit: a hanging `hm` is killed.
fn hm(project: &Project, home: &PathBuf, args: &[&str]) -> Command {
    let plain = project.hm(args);
    let mut hm = Command::new("timeout");
    hm.args(["-s", "KILL", "100"]).arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
    hm.current_dir(plain.get_current_dir().unwrap());
    hm.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    for name in ["XDG_CONFIG_HOME", "HM_TRUST", "HM_REMOTE", "HM_BACKEND", "HM_ORG", "HM_API_TOKEN", "DOCKER_HOST"] {
        hm.env_remove(name);
    }
    hm.env("HOME", home).env("XDG_STATE_HOME", home.join("state"));
    hm
}

/// Returns the words of the row of a key.
fn row<'a>(ended: &'a Ended, key: &str) -> Vec<&'a str> {
    let found = ended.stdout.lines().find(|line| line.split_whitespace().next() == Some(key));
    found.unwrap_or_else(|| panic!("no row of {key}:\n{}", ended.stdout)).split_whitespace().skip(1).collect()
}

#[test]
fn each_value_is_shown_with_its_place_and_what_it_overrides() {
    let (project, home) = project();
    let theirs = "[cloud]\norg = 'theirs'\napi_url = 'https://api.theirs.example'\n";
    fs::write(home.join(".config/hm/config.toml"), theirs).unwrap();
    fs::write(home.join(".config/hm/hm.toml"), "[source]\ntimes = 'normal'\n[cloud]\norg = 'ours'\n").unwrap();
    let tokens = home.join(".config/hm/credentials.toml");
    fs::write(&tokens, "[entries.harmont-cloud]\n\"https://api.theirs.example\" = \"s3cret\"\n").unwrap();
    project.file(".hm/hm.toml", "[source]\ntimes = 'real'\n[cloud]\napi_url = 'https://evil.example'\n");
    let mut command = hm(&project, &home, &["--debug-trace", "trace.json", "config"]);
    command.env("HM_ORG", "variable").env("HM_API_TOKEN", "s3cret").env("HM_LOG", "trace");
    let shown = Ended::of(&mut command).expect(0);
    assert!(!(shown.stdout.clone() + &shown.stderr).contains("s3cret"), "{shown:?}");
    assert!(!fs::read_to_string(project.dir.join("trace.json")).unwrap().contains("s3cret"));
    assert!(shown.stderr.contains("its mode was") && shown.stderr.contains("credentials.toml"), "{}", shown.stderr);
    assert_eq!(row(&shown, "backend"), ["local", "default"]);
    assert_eq!(
        row(&shown, "cloud.org"),
        ["variable", "HM_ORG", "overrides", "~/.config/hm/hm.toml:4,", "~/.config/hm/config.toml:2"]
    );
    assert_eq!(row(&shown, "source.times"), ["real", ".hm/hm.toml:2", "overrides", "~/.config/hm/hm.toml:2"]);
    assert_eq!(row(&shown, "cloud.api_url"), ["https://api.theirs.example", "~/.config/hm/config.toml:3"]);
    let refused = "cloud.api_url                               https://evil.example        .hm/hm.toml:4";
    let is_refused = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words[..3] == refused.split_whitespace().collect::<Vec<_>>()[..3] && line.contains("not allowed")
    };
    assert_eq!(shown.stdout.lines().filter(is_refused).count(), 1, "{}", shown.stdout);
    assert_eq!(row(&shown, "HM_API_TOKEN"), ["(set)", "HM_API_TOKEN"]);
    let stored = "credentials.\"https://api.theirs.example\"";
    assert_eq!(row(&shown, stored), ["(set)", "~/.config/hm/credentials.toml:2"]);

    // With consent, the project's value counts.
    let trusted = Ended::of(hm(&project, &home, &["config", "cloud.api_url"]).env("HM_TRUST", "1")).expect(0);
    assert_eq!(row(&trusted, "cloud.api_url")[..2], ["https://evil.example", ".hm/hm.toml:4"]);
    assert_eq!(trusted.stdout.lines().count(), 1);

    let json = Ended::of(&mut hm(&project, &home, &["config", "cloud.org", "--format", "json"])).expect(0);
    let rows: Value = serde_json::from_str(&json.stdout).unwrap();
    let place = |at: usize| (rows[at]["value"].as_str().unwrap(), rows[at]["state"].as_str().unwrap());
    assert_eq!([place(0), place(1)], [("ours", "effective"), ("theirs", "overridden")]);
    assert_eq!((rows[0]["source"]["kind"].as_str(), rows[0]["source"]["line"].as_u64()), (Some("user"), Some(4)));
    let schema = Ended::of(&mut hm(&project, &home, &["config", "--schema"])).expect(0);
    let schema: Value = serde_json::from_str(&schema.stdout).unwrap();
    assert!(schema.pointer("/properties/remote/properties/endpoint").is_some(), "{schema}");
    let unknown = Ended::of(&mut hm(&project, &home, &["config", "cloud.orgg"])).expect(2);
    assert!(unknown.stderr.contains("did you mean `cloud.org`?"), "{}", unknown.stderr);
}

#[test]
fn every_wrong_file_is_named_and_the_rest_is_shown() {
    let (project, home) = project();
    project.file(".hm/hm.toml", "[source]\ntime = 'real'\n");
    rustix::fs::mknodat(CWD, project.dir.join(".hm/config.toml"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    rustix::fs::mknodat(CWD, home.join(".config/hm/hm.toml"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::write(home.join(".config/hm/config.toml"), "#".repeat(2 << 20)).unwrap();
    fs::write(home.join(".config/hm/credentials.toml"), "[entries").unwrap();
    let shown = Ended::of(hm(&project, &home, &["config"]).env("HM_ORG", "acme")).expect(2);
    assert_eq!(shown.stderr.matches("error: ").count(), 5, "{}", shown.stderr);
    for name in [".hm/hm.toml, line 2", ".hm/config.toml", "hm/hm.toml is not", "hm/config.toml", "credentials.toml"] {
        assert!(shown.stderr.contains(name), "{name}: {}", shown.stderr);
    }
    assert_eq!(row(&shown, "cloud.org"), ["acme", "HM_ORG"]);
    Ended::of(&mut hm(&project, &home, &["run", "--runner", "process"])).expect(2);
}

#[test]
fn the_published_directory_is_read_below_that_of_the_specification() {
    let (project, home) = project();
    let xdg = home.join("xdg");
    fs::create_dir_all(xdg.join("hm")).unwrap();
    fs::write(home.join(".config/hm/config.toml"), "[cloud]\norg = 'home'\npipeline = 'p'\nfuture = 1\n").unwrap();
    fs::write(home.join(".config/hm/hm.toml"), "not read").unwrap();
    fs::write(xdg.join("hm/config.toml"), "[cloud]\norg = 'xdg'\n").unwrap();
    let shown = Ended::of(hm(&project, &home, &["config"]).env("XDG_CONFIG_HOME", &xdg)).expect(0);
    assert_eq!(row(&shown, "cloud.org")[..2], ["xdg", "~/xdg/hm/config.toml:2"]);
    assert_eq!(row(&shown, "cloud.pipeline"), ["p", "~/.config/hm/config.toml:3"]);
    assert_eq!(row(&shown, "cloud.future"), ["(set)", "~/.config/hm/config.toml:4", "ignored:", "unknown", "key"]);
}

#[test]
fn a_backend_of_the_project_needs_consent() {
    let (project, home) = project();
    project.file(".hm/config.toml", "backend = 'cloud'\n[cloud]\norg = 'acme'\n");
    let run = |args: &[&str]| Ended::of(hm(&project, &home, &["run", "--runner", "process"]).args(args));
    let plan = Ended::of(&mut hm(&project, &home, &["plan"])).expect(0);
    assert!(plan.stderr.contains("backend = \"cloud\""), "{}", plan.stderr);
    run(&["--backend", "local"]).expect(0);
    fs::write(home.join(".config/hm/hm.toml"), "backend = 'local'\n[preferences]\nformat = 'json'\n").unwrap();
    project.file(".hm/config.toml", "[cloud]\norg = 'acme'\n");
    let events = run(&[]).expect(0).events();
    assert_eq!(events.last().unwrap()["kind"], "build_end");
    fs::write(home.join(".config/hm/hm.toml"), "").unwrap();
    fs::write(home.join(".config/hm/config.toml"), "backend = 'docker'\nfuture = 1\n").unwrap();
    let plan = Ended::of(&mut hm(&project, &home, &["plan", "--image", "host=debian"])).expect(0);
    assert!(plan.stdout.lines().next().unwrap().ends_with(" on docker"), "{}", plan.stdout);
    let note = "note: running steps in containers, because ~/.config/hm/config.toml:1 sets `backend = \"docker\"`\n";
    assert_eq!(plan.stderr, note);
    let doctor = Ended::of(&mut hm(&project, &home, &["doctor"]));
    assert!(doctor.stdout.contains("unknown keys: `future` (~/.config/hm/config.toml:2)"), "{}", doctor.stdout);
    fs::remove_file(home.join(".config/hm/config.toml")).unwrap();
    project.file(".hm/config.toml", "backend = 'docker'\n");
    let asked = run(&[]).expect(2);
    assert!(asked.stderr.contains("backend = \"docker\": steps run in containers"), "{}", asked.stderr);
}

#[test]
fn tables_for_steps_apply_and_say_where_they_are() {
    let (project, home) = project();
    let two = ir(&[("unit-test", "cat /dev/null", None), ("lint", "true", None)]);
    project.file(".hm/ci.json", &two);
    let users = "[step.'*']\nnetwork = 'none'\nmemory = '1g'\npids = 99\n[step.'other']\npids = 3\n";
    fs::write(home.join(".config/hm/hm.toml"), users).unwrap();
    project.file(
        ".hm/hm.toml",
        "[step.'*-test']\nretries = 2\nsoft_fail = [3]\n\n[step.'unit*']\npids = 77\n[step.gone]\npids = 1\n",
    );
    let plan = Ended::of(&mut hm(&project, &home, &["plan", "-v", "--runner", "sandbox"])).expect(0);
    for line in [
        "  memory = \"1g\" ([step.\"*\"] in ~/.config/hm/hm.toml:3)",
        "  pids = 77 ([step.\"unit*\"] in .hm/hm.toml:6)",
        "  retries = 2 ([step.\"*-test\"] in .hm/hm.toml:2)",
        "  pids = 99 ([step.\"*\"] in ~/.config/hm/hm.toml:4)",
    ] {
        assert!(plan.stdout.contains(line), "{line}\n{}", plan.stdout);
    }
    assert!(plan.stderr.contains("warning: [step.gone] in .hm/hm.toml:8 matches no step"), "{}", plan.stderr);
    assert!(!plan.stderr.contains("step.other"), "{}", plan.stderr);
    let plain = Ended::of(&mut hm(&project, &home, &["plan", "--runner", "sandbox"])).expect(0);
    assert!(!plain.stdout.contains("pids"), "{}", plain.stdout);
    let json = Ended::of(&mut hm(&project, &home, &["plan", "--runner", "sandbox", "--format", "json"])).expect(0);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["steps"][0]["arguments"]["pids"]["value"], 77);
    assert_eq!(json["steps"][1]["arguments"]["pids"]["value"], 99);

    // The runner `process` takes no arguments. The user's are left out.
    let plan = Ended::of(&mut hm(&project, &home, &["plan", "-v", "--runner", "process"])).expect(2);
    assert!(plan.stderr.contains("this runner takes no arguments (set by [step.\"unit*\"]"), "{}", plan.stderr);
    project.file(".hm/hm.toml", "[step.lint]\nsoft_fail = [3]\n");
    let run = Ended::of(&mut hm(&project, &home, &["run", "--runner", "process"])).expect(0);
    assert!(
        run.stderr.contains("warning: `memory` of [step.\"*\"] in ~/.config/hm/hm.toml:3 is left out for 2 steps"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("network"), "{}", run.stderr);
    project.file("ir.json", &ir(&[("lint", "exit 3", None)]));
    let given = Ended::of(&mut hm(&project, &home, &["run", "-f", "ir.json", "--runner", "process"])).expect(0);
    assert!(given.stdout.contains("lint failed (allowed)"), "{}", given.stdout);

    let shown = Ended::of(&mut hm(&project, &home, &["config", "step"])).expect(0);
    assert_eq!(row(&shown, "step.\"*\".memory"), ["1g", "~/.config/hm/hm.toml:3"]);
    assert_eq!(row(&shown, "step.lint.soft_fail"), ["[3]", ".hm/hm.toml:2"]);
    let schema = Ended::of(&mut hm(&project, &home, &["config", "--schema"])).expect(0);
    let schema: Value = serde_json::from_str(&schema.stdout).unwrap();
    let args = &schema["properties"]["step"]["additionalProperties"]["properties"];
    assert!(args["memory"].is_object() && args["retries"].is_object(), "{args}");
}

#[test]
fn wrong_tables_for_steps_are_refused_with_their_line() {
    let (project, home) = project();
    for (text, expected) in [
        ("[step.'*']\npids = 3\nmemroy = '1g'\n", "line 3: unknown argument `memroy` of steps, did you mean `memory`?"),
        ("\n[step.'a[']\npids = 3\n", "line 2: invalid glob `a[`"),
        ("[step]\npids = 3\n", "line 2: "),
        ("[service.db]\nimage = 'x'\nreday = 1\n", "line 3: unknown key `reday` of services, did you mean `ready`?"),
    ] {
        project.file(".hm/hm.toml", text);
        let ended = Ended::of(&mut hm(&project, &home, &["plan"])).expect(2);
        assert!(ended.stderr.contains(expected), "{text}\n{}", ended.stderr);
    }
    // A value is checked by the runner of a step.
    project.file(".hm/hm.toml", "[step.'*']\n\nmemory = 'much'\n");
    let ended = Ended::of(&mut hm(&project, &home, &["plan", "--runner", "sandbox"])).expect(2);
    assert!(ended.stderr.contains("(set by [step.\"*\"] in .hm/hm.toml:3)"), "{}", ended.stderr);
    // The published `hm` would remove the table from its file.
    project.file(".hm/hm.toml", "");
    project.file(".hm/config.toml", "[step.'*']\nmemory = 'much'\n");
    Ended::of(&mut hm(&project, &home, &["plan", "--runner", "sandbox"])).expect(0);
}

#[test]
fn ports_of_this_machine_in_a_projects_table_need_consent() {
    let (project, home) = project();
    project.file(".hm/hm.toml", "[step.'*']\nnetwork = 'private'\nhost_ports = [5432]\n");
    let ended = Ended::of(&mut hm(&project, &home, &["run"])).expect(2);
    assert!(ended.stderr.contains("[step] \"*\".host_ports = \"5432\""), "{}", ended.stderr);
    let plan = Ended::of(&mut hm(&project, &home, &["plan", "-v", "--runner", "sandbox"])).expect(0);
    assert!(plan.stdout.contains("network = \"private\"") && !plan.stdout.contains("host_ports"), "{}", plan.stdout);
    let shown = Ended::of(&mut hm(&project, &home, &["config"])).expect(0);
    assert!(row(&shown, "step.\"*\".host_ports").contains(&"(see"), "{}", shown.stdout);
    Ended::of(&mut hm(&project, &home, &["trust"])).expect(0);
    let plan = Ended::of(&mut hm(&project, &home, &["plan", "-v", "--runner", "sandbox"])).expect(0);
    assert!(plan.stdout.contains("host_ports = [5432]"), "{}", plan.stdout);
}
