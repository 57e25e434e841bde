//! The published `hm` 0.0.9 and ours make the same requests, and end with the same exit codes but for the
//! listed differences.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    backends::skip_optional,
    programs::hm,
    project::{Ended, eventually},
    stand_in::{Fault, Job, Recorded, Script, StandIn, TOKEN},
};

const PIPELINE: &str = r#"import harmont as hm

@hm.pipeline("ci")
def ci():
    return hm.sh("echo hi", label="a", image="ubuntu:24.04")
"#;

/// One of the two programs, with a checkout, a home directory and a stand-in of its own.
struct Side {
    program: PathBuf,
    top: tempfile::TempDir,
    stand_in: StandIn,
}

impl Side {
    fn new(program: PathBuf) -> Self {
        let side = Self { program, top: tempfile::tempdir().unwrap(), stand_in: StandIn::start() };
        let dir = side.dir();
        fs::create_dir_all(dir.join(".hm")).unwrap();
        fs::create_dir_all(dir.join("src")).unwrap();
        fs::create_dir(side.top.path().join("home")).unwrap();
        for (path, text) in [
            (".hm/ci.py", PIPELINE),
            ("src/a.txt", "content"),
            ("run.sh", "#!/bin/sh\n"),
            ("left.log", "x"),
            (".gitignore", "*.log\n"),
        ] {
            fs::write(dir.join(path), text).unwrap();
        }
        fs::set_permissions(dir.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        for args in [
            &["init", "-q", "-b", "topic"][..],
            &["add", "."],
            &["commit", "-q", "-m", "one"],
            &["remote", "add", "origin", "https://example.com/acme/app.git"],
        ] {
            let mut git = Command::new("git");
            // Equal times give equal commits.
            git.env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z").env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z");
            git.args(["-c", "user.name=x", "-c", "user.email=x@example.com"]).args(args).current_dir(&dir);
            assert!(git.env("GIT_CONFIG_GLOBAL", "/dev/null").status().unwrap().success());
        }
        side
    }

    fn dir(&self) -> PathBuf {
        self.top.path().join("src")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let top = self.top.path();
        command.args(args).current_dir(self.dir()).stdin(Stdio::null());
        command.env("HOME", top.join("home")).env("HM_CACHE_DIR", top.join("store")).env("HM_CACHE_GC", "off");
        command.env("HM_API_URL", self.stand_in.url()).env("HM_API_TOKEN", TOKEN).env("HM_ORG", "acme");
        command.env_remove("XDG_CONFIG_HOME");
        command
    }

    /// Returns the requests since the last call, in a form in which they can be compared. Looks at a build
    /// are one; a repetition of any other request is kept.
    fn requests(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for request in std::mem::take(&mut self.stand_in.state().requests) {
            let is_look = request.method == "GET";
            let request = normal(&request);
            if !(is_look && all.contains(&request)) {
                all.push(request);
            }
        }
        all
    }
}

/// Returns a request without what differs from run to run.
fn normal(request: &Recorded) -> Value {
    let Recorded { method, path, query, body, .. } = request;
    let is_log = path.starts_with("/v0/jobs/");
    let path = if is_log { "/v0/jobs/ID/logs" } else { path };
    let query = if is_log { "token" } else { query };
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
        if let Some(ir) = fields.get_mut("pipeline_ir") {
            *ir = serde_json::from_str(ir.as_str().unwrap()).unwrap();
        }
        if let Some(source) = fields.get_mut("source_b64") {
            *source = files(source.as_str().unwrap());
        }
    }
    json!({"method": method, "path": path, "query": query, "body": body})
}

/// Returns the regular files of an archive: whether they are executable, and their content.
fn files(archive: &str) -> Value {
    let packed = STANDARD.decode(archive).unwrap();
    if packed.is_empty() {
        return Value::Null;
    }
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(&*packed)).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let path = entry
                .path()
                .unwrap()
                .strip_prefix("./")
                .map_or_else(|_| entry.path().unwrap().into_owned(), Path::to_owned);
            let is_executable = entry.header().mode().unwrap() & 0o100 != 0;
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(path.display().to_string(), json!([is_executable, text]));
        }
    }
    json!(files)
}

/// Returns the published program and ours, or `None` if the former is not there.
fn sides() -> Option<[Side; 2]> {
    match std::env::var_os("HM_PUBLISHED") {
        Some(published) => Some([Side::new(published.into()), Side::new(hm())]),
        None => {
            skip_optional("the published hm", "set HM_PUBLISHED to its path");
            None
        }
    }
}

fn script() -> Script {
    Script::new([Job::passes("a").out("hi\n"), Job::fails("b", 4).err("no\n")])
}

#[test]
fn builds_are_submitted_and_watched_with_the_same_requests() {
    let Some(sides) = sides() else { return };
    type Prepare = fn(&StandIn);
    let nothing: Prepare = |_| ();
    let forget: Prepare = |stand_in| stand_in.state().pipelines.clear();
    let refuse: Prepare = |stand_in| {
        stand_in.fault("createBuildBySource", Fault::Status(422, "bad_ir", None));
    };
    let forbid: Prepare = |stand_in| {
        stand_in.fault("createBuildBySource", Fault::Status(401, "unauthorized", None));
    };
    // The exit codes are those of the published program and ours.
    for (about, args, prepare, codes) in [
        ("a build that fails", &["-m", "why", "-e", "K=V"][..], nothing, [1, 1]),
        ("a build that is not watched", &["--no-watch"], nothing, [0, 0]),
        ("a branch by name", &["--no-watch", "-b", "other"], nothing, [0, 0]),
        ("a build that is refused", &[], refuse, [7, 7]),
        ("a token that is refused", &[], forbid, [3, 3]),
        // Last, because the published program then records the pipeline in the checkout.
        ("a pipeline that is not known", &["--no-watch"], forget, [0, 0]),
    ] {
        let found = sides.each_ref().map(|side| {
            prepare(&side.stand_in);
            side.stand_in.script(script());
            let ended = Ended::of(side.command(&["run", "ci", "--backend", "cloud"]).args(args));
            side.stand_in.state().scripts.clear();
            (ended, side.requests())
        });
        let [(published, theirs), (ended, ours)] = &found;
        assert_eq!([published.code, ended.code], codes.map(Some), "{about}: {published:?} {ended:?}");
        let sorted = |requests: &[Value]| requests.iter().map(Value::to_string).collect::<BTreeSet<_>>();
        assert_eq!(sorted(theirs), sorted(ours), "{about}");
        // Requests with an effect are in the same order.
        let effects =
            |requests: &[Value]| requests.iter().filter(|it| it["method"] != "GET").cloned().collect::<Vec<_>>();
        assert_eq!(effects(theirs), effects(ours), "{about}");
    }
}

#[test]
fn an_interrupt_cancels_the_build_with_the_same_request() {
    let Some(sides) = sides() else { return };
    let effects = sides.each_ref().map(|side| {
        side.stand_in.script(Script::new([Job::hangs("a").out("up\n")]));
        let mut child = side
            .command(&["run", "ci", "--backend", "cloud"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let is_log = |it: &Recorded| it.path.starts_with("/v0/jobs/");
        eventually("the log to be read", || side.stand_in.state().requests.iter().any(is_log));
        kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let requests = side.requests();
        requests.into_iter().filter(|it| it["method"] != "GET").collect::<Vec<_>>()
    });
    assert_eq!(effects[0], effects[1]);
    assert_eq!(effects[0].len(), 2);
}

#[test]
fn commands_that_only_look_make_the_same_requests() {
    let Some(sides) = sides() else { return };
    for side in &sides {
        side.stand_in.script(script());
        Ended::of(&mut side.command(&["run", "ci", "--backend", "cloud"])).expect(1);
        side.requests();
    }
    let p = "acme-app-ci";
    for args in [
        &["whoami"][..],
        &["pipeline", "list"],
        &["pipeline", "show", p],
        &["build", "show", "-p", p, "1"],
        &["build", "cancel", "-p", p, "1"],
        &["job", "list", "-p", p, "-b", "1"],
        &["billing", "balance"],
        &["billing", "transactions"],
        &["billing", "usage", "--from", "2026-01-01", "--to", "2026-01-31"],
        &["billing", "topup", "5", "--no-browser"],
        &["billing", "redeem", "CODE"],
    ] {
        let [theirs, ours] = sides.each_ref().map(|side| {
            Ended::of(side.command(&["cloud"]).args(args)).expect(0);
            side.requests()
        });
        assert_eq!(theirs, ours, "{args:?}");
    }
}
