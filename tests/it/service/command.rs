//! `hm run --backend cloud`, against a stand-in of the service.

use std::{
    fs,
    io::Read,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    project::{Ended, Project, eventually, walk},
    stand_in::{Fault, Job, LogFault, Script, StandIn, TOKEN},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CANCEL: &str = "PUT /api/v0/organizations/acme/pipelines/acme-app-ci/builds/1/cancel";

/// A checkout of `acme/app`, and a stand-in.
pub(super) struct Checkout {
    pub(super) project: Project,
    pub(super) stand_in: StandIn,
}

impl Checkout {
    pub(super) fn new() -> Self {
        let project = Project::with_steps(&[("a", "true", None), ("b", "true", Some(0))]);
        project.file("source.txt", "content");
        project.file(".git/HEAD", "ref: refs/heads/topic\n");
        project.file(".git/refs/heads/topic", COMMIT);
        project.file(".git/config", "[remote \"origin\"]\nurl = https://ann:hunter2@example.com/acme/app.git\n");
        Self { project, stand_in: StandIn::start() }
    }

    /// Returns the command `hm ARGS` with the stand-in and its token.
    pub(super) fn hm(&self, args: &[&str]) -> Command {
        let mut hm = self.project.hm(args);
        let home = self.project.dir.with_file_name("home");
        fs::create_dir_all(&home).unwrap();
        hm.env("HOME", home).env_remove("XDG_CONFIG_HOME");
        hm.env("HM_API_URL", self.stand_in.url()).env("HM_API_TOKEN", TOKEN).env("HM_ORG", "acme");
        hm
    }

    fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.hm(&["run", "--backend", "cloud"]).args(args))
    }

    /// Starts a build whose output goes to a file, and waits until it shows `text`.
    fn start(&self, args: &[&str], text: &str) -> Child {
        let log = self.project.dir.with_file_name("log");
        let out = fs::File::create(&log).unwrap();
        let child = self
            .hm(&["run", "--backend", "cloud", "--format", "human"])
            .args(args)
            .stdout(out)
            .stderr(Stdio::piped())
            .spawn();
        eventually(text, || fs::read_to_string(&log).unwrap().contains(text));
        child.unwrap()
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

#[test]
fn a_build_on_the_service_looks_like_a_local_one() {
    let here = Checkout::new();
    here.stand_in.script(Script::new([Job::passes("a").out("hello\n").err("odd\n"), Job::fails("b", 4)]));
    let ended = here.run(&["-m", "why", "-e", "NAME=value", "--format", "human"]).expect(1);
    let app = here.stand_in.url();
    for line in [
        format!("=> build #1 of acme-app-ci: {app}/acme/pipelines/acme-app-ci/builds/1"),
        "=> a started (cloud)".into(),
        "a | hello".into(),
        "a | odd".into(),
        "=> a passed in 1.50s".into(),
        "=> b failed with exit code 4 after 1.50s".into(),
    ] {
        assert!(ended.stdout.lines().any(|shown| shown == line), "{line}\n{}", ended.stdout);
    }
    let request = here.stand_in.state().requests[0].clone();
    assert_eq!(request.path, "/api/v0/organizations/acme/builds");
    let text = |name: &str| request.body[name].as_str().unwrap().to_owned();
    let found = ["branch", "commit", "message", "repo_name", "source_slug"].map(text);
    assert_eq!(found, ["topic", COMMIT, "why", "acme/app", "ci"]);
    assert_eq!(request.body["env"]["NAME"], "value");

    // The run is in the store, as a local one.
    let logs = Ended::of(&mut here.hm(&["logs", "a"])).expect(0);
    assert_eq!(logs.stdout, "hello\nodd\n");
}

#[test]
fn tables_that_have_no_effect_on_the_service_are_named() {
    let here = Checkout::new();
    here.stand_in.script(Script::new([Job::passes("a"), Job::passes("b")]));
    here.project.file(".hm/hm.toml", "[service.db]\nimage = 'redis:7'\n\n[step.'*']\nservices = ['db']\n");
    let ended = here.run(&[]).expect(0);
    for table in ["[step.", "[service.db] of hm.toml"] {
        let is_named = |line: &str| line.contains(table) && line.contains("has no effect on the service");
        assert!(ended.stderr.lines().any(is_named), "{}", ended.stderr);
    }
}

#[test]
fn the_published_reader_decodes_every_event() {
    let here = Checkout::new();
    let soft = Job { soft_failed: true, ..Job::fails("b", 3) };
    here.stand_in.script(Script::new([Job::passes("a").out("hello\n"), soft, Job::is("c", &["pending", "skipped"])]));
    let ended = here.run(&["--format", "json"]).expect(0);
    for line in ended.stdout.lines() {
        serde_json::from_str::<hm_plugin_protocol::BuildEvent>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let events = ended.events();
    let of_kind = |kind: &str| events.iter().find(|event| event["kind"] == kind).unwrap_or(&Value::Null);
    assert_eq!(of_kind("build_start")["plan"]["chain_count"], 1);
    assert_eq!(of_kind("build_accepted")["build"]["number"], 1);
    assert_eq!(of_kind("step_end")["snapshot"], Value::Null);
}

#[test]
fn a_retry_of_the_service_is_in_the_stream_of_the_published_reader() {
    let here = Checkout::new();
    let job = Job { exit_code: Some(7), ..Job::is("a", &["running", "failed", "running", "passed"]) };
    here.stand_in.script(Script::new([job.out("x\n").retried()]));
    let ended = here.run(&["--format", "json"]).expect(0);
    for line in ended.stdout.lines() {
        serde_json::from_str::<hm_plugin_protocol::BuildEvent>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let events = ended.events();
    let of_kind = |kind: &str| events.iter().filter(|event| event["kind"] == kind).collect::<Vec<_>>();
    let starts = of_kind("step_start");
    assert_eq!(starts.iter().map(|start| &start["attempt"]).collect::<Vec<_>>(), [1, 2]);
    let retry = &starts[1]["retry"];
    assert_eq!((&retry["message"], &retry["exit_code"]), (&"the command exited with 7".into(), &7.into()));
    let ends = of_kind("step_end");
    let [end] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!((&end["exit_code"], &end["status"]), (&0.into(), &"flaky".into()));
    assert!(of_kind("chain_failed").is_empty() && of_kind("build_end")[0]["exit_code"] == 0);
}

#[test]
fn a_build_that_is_not_watched_is_only_submitted() {
    let here = Checkout::new();
    let ended = here.run(&["--no-watch"]).expect(0);
    assert!(ended.stdout.contains("build #1 of acme-app-ci"), "{}", ended.stdout);
    assert_eq!(here.stand_in.calls(), ["POST /api/v0/organizations/acme/builds"]);
}

#[test]
fn each_failure_has_its_exit_code_and_says_what_to_do() {
    let here = Checkout::new();
    let expect = |ended: Ended, code: i32, texts: &[&str]| {
        let ended = ended.expect(code);
        for text in texts {
            assert!(ended.stderr.contains(text), "{text}\n{}", ended.stderr);
        }
        assert!(!ended.stderr.contains(TOKEN) && !ended.stderr.contains("hunter2"), "{}", ended.stderr);
    };
    let run = |change: &dyn Fn(&mut Command) -> &mut Command| {
        let mut hm = here.hm(&["run", "--backend", "cloud"]);
        change(&mut hm);
        Ended::of(&mut hm)
    };
    expect(run(&|hm| hm.env_remove("HM_API_TOKEN")), 3, &["not logged in", "hm cloud login"]);
    expect(run(&|hm| hm.env("HM_API_TOKEN", "wrong")), 3, &["does not accept", "HM_API_TOKEN"]);
    expect(run(&|hm| hm.env_remove("HM_ORG")), 2, &["no organization", "--org"]);
    expect(run(&|hm| hm.args(["--keep"])), 2, &["`--keep`", "--backend local"]);
    expect(run(&|hm| hm.args(["--secret", "X=env:HOME"])), 2, &["`--secret`"]);
    for (status, code, exit, text) in [
        (402, "no_credit", 7, "billing balance"),
        (403, "manual_off", 7, "allow_manual"),
        (422, "bad_ir", 7, "[bad_ir]"),
        (500, "broken", 5, "may have been created"),
    ] {
        here.stand_in.fault("createBuildBySource", Fault::Status(status, code, None));
        expect(run(&|hm| hm), exit, &[text]);
    }
    here.stand_in.fault("createBuildBySource", Fault::CloseAfter);
    expect(run(&|hm| hm), 4, &["may have been created", "hm cloud build list"]);
}

#[test]
fn a_pipeline_that_the_service_does_not_know_is_created() {
    let here = Checkout::new();
    here.stand_in.state().pipelines.clear();
    let ended = here.run(&["--no-watch"]).expect(0);
    assert!(ended.stderr.contains("created pipeline `ci`"), "{}", ended.stderr);
    let requests = here.stand_in.state().requests.clone();
    let calls: Vec<_> = requests.iter().map(|it| format!("{} {}", it.method, it.path)).collect();
    let prefix = "/api/v0/organizations/acme";
    assert_eq!(
        calls,
        [
            format!("POST {prefix}/builds"),
            format!("GET {prefix}/pipelines/ci"),
            format!("POST {prefix}/pipelines"),
            format!("POST {prefix}/pipelines/ci/builds"),
        ]
    );
    let created = &requests[2].body;
    assert_eq!((&created["name"], &created["repo_name"]), (&"ci".into(), &"acme/app".into()));
    assert_eq!(created["repository"], "https://example.com/acme/app.git");

    // Without an origin, the pipeline is known by its name alone.
    fs::remove_file(here.project.dir.join(".git/config")).unwrap();
    here.run(&["--no-watch"]).expect(0);
    assert_eq!(here.stand_in.calls().last().unwrap(), &format!("POST {prefix}/pipelines/ci/builds"));
}

#[test]
fn ctrl_c_cancels_the_build_at_the_service() {
    let here = Checkout::new();
    here.stand_in
        .script(Script { stopping: 1, ..Script::new([Job::hangs("a").out("up\n"), Job::is("b", &["pending"])]) });
    let child = here.start(&[], "a | up");
    signal(&child, Signal::INT);
    let ended = Ended::from(child.wait_with_output().unwrap()).expect(130);
    assert!(ended.stderr.contains("cancelling"), "{}", ended.stderr);
    assert_eq!(here.stand_in.count(CANCEL), 1);
    let log = fs::read_to_string(here.project.dir.with_file_name("log")).unwrap();
    assert!(log.contains("=> b cancelled") && log.contains("── cancelled: 2 cancelled"), "{log}");
}

#[test]
fn a_second_ctrl_c_leaves_the_build() {
    let here = Checkout::new();
    here.stand_in.script(Script { stopping: usize::MAX - 9, ..Script::new([Job::hangs("a").out("up\n")]) });
    let child = here.start(&[], "a | up");
    signal(&child, Signal::INT);
    eventually("the cancellation", || here.stand_in.is_canceled(1));
    signal(&child, Signal::INT);
    Ended::from(child.wait_with_output().unwrap()).expect(130);
}

#[test]
fn a_killed_hm_leaves_the_build_and_watching_it_again_shows_everything() {
    let here = Checkout::new();
    here.stand_in.script(Script::new([Job::hangs("a").out("one\n").out("two\n")]));
    let mut child = here.start(&[], "a | one");
    signal(&child, Signal::KILL);
    assert_eq!(child.wait().unwrap().code(), None, "it ended by itself");
    assert!(!here.stand_in.is_canceled(1));
    Ended::of(&mut here.hm(&["cloud", "build", "cancel", "-p", "acme-app-ci", "1"])).expect(0);
    let mut watch = here.hm(&["cloud", "build", "watch", "-p", "acme-app-ci", "1", "--format", "human"]);
    let ended = Ended::of(&mut watch).expect(130);
    let output: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("a | ")).collect();
    assert_eq!(output, ["a | one", "a | two"]);
}

#[test]
fn secrets_are_in_no_output_and_no_file() {
    let here = Checkout::new();
    let job = Job::passes("a").out("x\n").log_fault(LogFault::Status(503)).log_fault(LogFault::CloseAfter(0));
    here.stand_in.script(Script::new([job]));
    for fault in [Fault::Close, Fault::Status(500, "x", None)] {
        here.stand_in.fault("getBuild", fault.clone()).fault("getBuildLogToken", fault);
    }
    let mut hm = here.hm(&["run", "--backend", "cloud", "-e", "PASSWORD=correct-horse", "--debug-trace", "../trace"]);
    let ended = Ended::of(hm.env("HM_LOG", "trace")).expect(0);
    let mut texts =
        vec![("stdout".to_owned(), ended.stdout.into_bytes()), ("stderr".to_owned(), ended.stderr.into_bytes())];
    walk(here.project.dir.parent().unwrap(), &mut |path| {
        let mut bytes = Vec::new();
        if path.is_file() && fs::File::open(path).unwrap().read_to_end(&mut bytes).is_ok() {
            texts.push((path.display().to_string(), bytes));
        }
    });
    for (name, text) in texts.iter().filter(|(name, _)| !name.ends_with(".git/config")) {
        for secret in [TOKEN, "log-token-0", "correct-horse", "hunter2"] {
            let at = memchr::memmem::find(text, secret.as_bytes());
            let near = at.map(|at| String::from_utf8_lossy(&text[at.saturating_sub(200)..at]).into_owned());
            // The frozen source has the checkout's own files.
            assert!(at.is_none() || (secret == "hunter2" && name.contains("/store/")), "{secret} in {name}: {near:?}");
        }
    }
}
