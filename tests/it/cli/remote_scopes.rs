//! Whose results of the remote cache are used: scopes, signatures, and entries that an attacker put there.

use std::{fs, path::Path};

use hm_exec::remote::{Digest, reapi::ActionResult};
use serde_json::{Value, json};

use crate::support::{
    images::{Image, has_busybox},
    project::{Ended, Project},
    stock_engine::{Habits, StockEngine},
};

// Made by `minisign -G -W`.
const PUBLIC_KEY: &str = "RWRfC5MpuIKIIr658P0LhIa867meYNKOw0x4U2e67ywmVCub4jrssPoz";
const SECRET_KEY: &str = "untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAXwuTKbiCiCKsdONW8wBtXiFDeRVAHS8SKJvA157LYOmF4Neuw/zSPL658P0LhIa867meYNKOw0x4U2e67ywmVCub4jrssPozAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
const OTHER_PUBLIC_KEY: &str = "RWRl5ORru6bRol3v7L0gyH1f/R+I8RkLG2jgPc9OMBwMdx5Lksi7qs1d";

/// An engine, and a project with one cached step.
struct Team {
    engine: StockEngine,
    project: Project,
    image: String,
    machines: std::cell::Cell<u32>,
}

/// The name and the value of a variable.
type Variable<'a> = (&'a str, &'a str);

impl Team {
    fn new() -> Option<Self> {
        if !has_busybox() {
            return None;
        }
        let (engine, project) = (StockEngine::start(Habits::default()), Project::new());
        let layout = project.dir.with_file_name("image");
        Image::shell().write_oci(&layout, "it");
        fs::write(project.dir.with_file_name("key"), SECRET_KEY).unwrap();
        let team = Self {
            engine,
            image: format!("debian:bookworm=oci:{}:it", Path::display(&layout)),
            project,
            machines: std::cell::Cell::new(0),
        };
        team.step("build", "1");
        Some(team)
    }

    /// Sets the pipeline: a step with this key of the language.
    fn step(&self, step: &str, key: &str) {
        self.pipeline(&json!([{ "step": cached(step, key), "env": {} }]), &json!([]));
    }

    fn pipeline(&self, nodes: &Value, edges: &Value) {
        let ir = json!({ "version": "0", "default_image": "debian:bookworm", "graph": {
            "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges,
        } });
        self.project.file(".hm/ci.json", &ir.to_string());
    }

    fn signs(&self) -> String {
        self.project.dir.with_file_name("key").display().to_string()
    }

    /// Runs the pipeline on a machine that has nothing.
    fn run(&self, how: &str, variables: &[Variable<'_>]) -> Ended {
        self.machines.set(self.machines.get() + 1);
        self.run_in(&format!("machine-{}", self.machines.get()), how, variables).expect(0)
    }

    /// Runs the pipeline with the store of this name.
    fn run_in(&self, store: &str, how: &str, variables: &[Variable<'_>]) -> Ended {
        let store = self.project.store.with_file_name(store);
        let url = self.engine.url();
        let mut hm = self.project.hm(&["run", "--format", "json", "--image", &self.image]);
        hm.args(["--remote", &url, "--remote-cache", how]).env("HM_CACHE_DIR", store);
        hm.envs(variables.iter().copied());
        Ended::of(&mut hm)
    }

    /// Returns whether the step was found, and what was printed about it.
    fn finds(&self, variables: &[Variable<'_>]) -> (bool, String) {
        let ended = self.run("read", variables);
        let is_hit = |event: &Value| event["kind"] == "step_cache_hit";
        (ended.events().iter().any(is_hit), ended.stderr)
    }

    /// Runs the pipeline where it is shared. Returns the name of the Action, and its result.
    fn share(&self, variables: &[Variable<'_>]) -> (String, ActionResult) {
        let before: Vec<String> = self.engine.results().keys().cloned().collect();
        self.run("write", variables);
        let results = self.engine.results();
        let (name, result) = results.iter().find(|(name, _)| !before.contains(name)).expect("it was shared");
        (name.clone(), result.clone())
    }

    fn put(&self, name: &str, result: ActionResult) {
        self.engine.results().insert(name.to_owned(), result);
    }

    /// Changes a file of a result, as someone could who may write to the engine.
    fn change(&self, mut result: ActionResult, path: &str, change: impl FnOnce(String) -> String) -> ActionResult {
        let file = result.output_files.iter_mut().find(|file| file.path == path).unwrap();
        let blobs = self.engine.dir().join("sha256");
        let text = fs::read_to_string(blobs.join(&file.digest.as_ref().unwrap().hash)).unwrap();
        let changed = change(text);
        let digest = Digest::of(changed.as_bytes());
        fs::write(blobs.join(digest.hex()), changed).unwrap();
        file.digest = Some(digest.into());
        result
    }
}

fn cached(step: &str, key: &str) -> Value {
    json!({ "key": step, "cmd": "echo made > made", "cache": { "policy": "forever", "key": key } })
}

#[test]
fn a_result_whose_files_were_changed_is_not_used_and_is_named() {
    let Some(team) = Team::new() else { return };
    let used = json!({ "key": "use", "cmd": "cat made" });
    let nodes = json!([{ "step": cached("build", "1"), "env": {} }, { "step": used, "env": {} }]);
    team.pipeline(&nodes, &json!([[0, 1, "builds_in"]]));
    let (_, result) = team.share(&[]);
    assert!(team.finds(&[]).0);
    let blobs = team.engine.dir().join("sha256");
    for file in result.output_files.iter().filter(|file| file.path.starts_with("blobs/")) {
        let blob = blobs.join(&file.digest.as_ref().unwrap().hash);
        let changed: Vec<u8> = fs::read(&blob).unwrap().iter().map(|byte| byte ^ 1).collect();
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, changed).unwrap();
    }
    let (is_found, stderr) = team.finds(&[]);
    assert!(!is_found, "{stderr}");
    assert!(stderr.contains("failed to use the shared result of step `build`"), "{stderr}");
    assert!(stderr.contains(" instead of "), "{stderr}");
}

#[test]
fn a_run_uses_trusted_results_and_those_of_its_own_scope() {
    let Some(team) = Team::new() else { return };
    let (one, two) = (("HM_REMOTE_CACHE_SCOPE", "pr-1"), ("HM_REMOTE_CACHE_SCOPE", "pr-2"));
    let (action, result) = team.share(&[one]);
    assert!(team.finds(&[one]).0, "another machine of the pull request");
    for (what, variables) in [("trusted", &[][..]), ("another one", &[two])] {
        let (is_found, stderr) = team.finds(variables);
        assert!(!is_found && !stderr.contains("scope"), "{what}: {stderr}");
    }
    // An attacker who puts the entry into another scope is found out.
    let (trusted, _) = team.share(&[]);
    assert!(team.finds(&[one]).0 && team.finds(&[two]).0);
    team.put(&trusted, result.clone());
    let (is_found, stderr) = team.finds(&[]);
    assert!(!is_found, "{stderr}");
    assert!(
        stderr.contains("in scope `trusted`, an entry of step `build` for another key or scope (pr-1)"),
        "{stderr}"
    );
    // The pull request's own entry is used in spite of that.
    assert!(team.finds(&[one]).0);
    // So is one who offers it under another key.
    team.step("build", "2");
    let (other, _) = team.share(&[one]);
    team.put(&other, result);
    let (is_found, stderr) = team.finds(&[one]);
    assert!(!is_found && stderr.contains("for another key or scope (pr-1)"), "{stderr}");
    assert_ne!(action, other);
}

#[test]
fn a_store_has_the_results_of_one_scope() {
    let Some(team) = Team::new() else { return };
    let own = ("HM_REMOTE_CACHE_SCOPE", "pr-1");
    let refused = |store: &str, variables: &[Variable<'_>], why: &str| {
        let ended = team.run_in(store, "both", variables);
        assert!(ended.stderr.contains(why), "{why}: {}", ended.stderr);
        assert!(!ended.stdout.contains("step_cache_hit"), "{}", ended.stdout);
    };
    team.run_in("pull-request", "both", &[own]).expect(0);
    team.run_in("pull-request", "both", &[own]).expect(0);
    refused("pull-request", &[], "has results of the scope `pr-1`, and this run's scope is `trusted`");
    // So is a store whose results were made before there was an engine.
    let local = team.project.store.with_file_name("main");
    let mut hm = team.project.hm(&["run", "--image", &team.image]);
    Ended::of(hm.env("HM_CACHE_DIR", local)).expect(0);
    refused("main", &[own], "has results of the scope `trusted`, and this run's scope is `pr-1`");
    team.run_in("main", "both", &[]).expect(0);
    refused("main", &[own], "has results of the scope `trusted`, and this run's scope is `pr-1`");
}

#[test]
fn with_keys_only_signed_results_are_trusted() {
    let Some(team) = Team::new() else { return };
    let (keys, signs) = (("HM_REMOTE_CACHE_KEYS", PUBLIC_KEY), team.signs());
    let signs = ("HM_REMOTE_CACHE_SIGNING_KEY", &*signs);
    let own = ("HM_REMOTE_CACHE_SCOPE", "pr-1");
    let (action, signed) = team.share(&[keys, signs]);
    assert!(team.finds(&[keys]).0 && team.finds(&[keys, own]).0 && team.finds(&[]).0);
    let other_keys = ("HM_REMOTE_CACHE_KEYS", OTHER_PUBLIC_KEY);
    let both = format!("{OTHER_PUBLIC_KEY} {PUBLIC_KEY}");
    assert!(team.finds(&[("HM_REMOTE_CACHE_KEYS", &both)]).0);
    let refused = |variables: &[Variable<'_>], why: &str| {
        let (is_found, stderr) = team.finds(variables);
        assert!(!is_found, "{why}: {stderr}");
        let named = format!("the entry of step `build` in scope `trusted` is not used: {why}");
        assert!(stderr.contains(&named), "{why}: {stderr}");
    };
    refused(&[other_keys], "it is signed by the key 228882B829930B5F, which is not trusted here");
    // Every byte of the entry counts, and so does the signature.
    let renamed = |text: String| text.replace("\"created_at\":1", "\"created_at\":2");
    team.put(&action, team.change(signed.clone(), "entry.json", renamed));
    refused(&[keys], "its signature by the key 228882B829930B5F is wrong");
    team.put(
        &action,
        team.change(signed.clone(), "entry.json.minisig", |text| text.replace("step build", "step other")),
    );
    refused(&[keys], "its signature by the key 228882B829930B5F is wrong");
    team.put(&action, team.change(signed.clone(), "entry.json.minisig", |_| "no signature".into()));
    refused(&[keys], "its signature is malformed");
    let mut unsigned = signed.clone();
    unsigned.output_files.retain(|file| file.path != "entry.json.minisig");
    team.put(&action, unsigned);
    refused(&[keys], "it is not signed");
    // A run that signs does not sign what follows from it either.
    refused(&[signs], "it is not signed");
    // A run of another scope makes its own, and finds that.
    refused(&[keys, own], "it is not signed");
    team.share(&[keys, own]);
    assert!(team.finds(&[keys, own]).0);
    // A signed entry is worth nothing under another key.
    team.put(&action, signed.clone());
    assert!(team.finds(&[keys]).0);
    team.step("build", "2");
    let (other, _) = team.share(&[keys, signs]);
    team.put(&other, signed);
    let (is_found, stderr) = team.finds(&[keys]);
    assert!(!is_found && stderr.contains("for another key or scope (trusted)"), "{stderr}");
}

#[test]
fn without_a_key_nothing_is_shared_that_nobody_would_use() {
    let Some(team) = Team::new() else { return };
    let keys = ("HM_REMOTE_CACHE_KEYS", PUBLIC_KEY);
    let ended = team.run("both", &[keys]);
    assert!(ended.stderr.contains("results are not shared"), "{}", ended.stderr);
    assert!(team.engine.results().is_empty());
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let Some(team) = Team::new() else { return };
    let url = team.engine.url();
    let run = |name: &str, value: &str| {
        let mut hm = team.project.hm(&["run", "--image", &team.image, "--remote", &url, "--remote-cache", "both"]);
        Ended::of(hm.env(name, value)).expect(2).stderr
    };
    assert!(run("HM_REMOTE_CACHE_SCOPE", "TRUSTED").contains("a scope is `trusted`, or a name such as `pr-12`"));
    assert!(run("HM_REMOTE_CACHE_KEYS", "RWx").contains("key 1 is not a public key of minisign"));
    assert!(run("HM_REMOTE_CACHE_SIGNING_KEY", "/nowhere/key").contains("failed to read /nowhere/key"));
    let public = team.project.dir.with_file_name("public");
    fs::write(&public, PUBLIC_KEY).unwrap();
    assert!(run("HM_REMOTE_CACHE_SIGNING_KEY", public.to_str().unwrap()).contains("not a secret key of minisign"));
    // A project decides nothing about whom its user trusts.
    for line in ["cache_scope = \"trusted\"", "cache_keys = []", "cache_signing_key = \"key\""] {
        team.project.file(".hm/hm.toml", &format!("[remote]\n{line}\n"));
        let stderr = run("HM_TRUST", "1");
        assert!(stderr.contains("not allowed in a project's hm.toml"), "{stderr}");
    }
}
