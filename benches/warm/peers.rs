//! Programs that skip what is up to date, with the commands of the bench.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::json;

use crate::CHAIN;

/// A program that has run all commands once.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    dir: PathBuf,
    has_run: bool,
}

impl Peer {
    fn new(name: &'static str, program: PathBuf, arguments: &'static [&'static str], dir: PathBuf) -> Self {
        let mut peer = Self { name, program, arguments, dir, has_run: true };
        // The second run records what the first one made.
        peer.has_run = (0..2).all(|_| {
            let mut command = peer.command().expect("it has not failed yet");
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        peer
    }

    /// Returns the command that does everything again, if the program is installed and works.
    pub(crate) fn command(&self) -> Option<Command> {
        let mut command = Command::new(&self.program);
        command.args(self.arguments).current_dir(&self.dir).env("TURBO_TELEMETRY_DISABLED", "1");
        self.has_run.then_some(command)
    }
}

/// Returns the lines of a file with a rule for each step, which waits for the step before it in its chain.
fn rules(steps: usize, rule: impl Fn(usize, &str) -> String) -> String {
    (0..steps).fold(String::new(), |mut text, step| {
        let after = if step % CHAIN == 0 { String::new() } else { format!("made-{}", step - 1) };
        writeln!(text, "{}", rule(step, &after)).expect("a string");
        text
    })
}

fn dir(top: &Path, name: &str) -> PathBuf {
    let dir = top.join(name);
    fs::create_dir(&dir).expect("a directory");
    dir
}

pub(crate) fn ninja(top: &Path, steps: usize) -> Peer {
    let dir = dir(top, "ninja");
    let rules = rules(steps, |step, after| format!("build made-{step}: run {after}\n  step = {step}"));
    let rule = "rule run\n  command = echo step $step > $out; echo made $step\n";
    fs::write(dir.join("build.ninja"), rule.to_owned() + &rules).expect("a file");
    Peer::new("ninja", "ninja".into(), &["--quiet"], dir)
}

pub(crate) fn tup(top: &Path, steps: usize) -> Peer {
    let dir = dir(top, "tup");
    let rules = rules(steps, |step, after| format!(": {after} |> echo step {step} > %o |> made-{step}"));
    fs::write(dir.join("Tupfile"), rules).expect("a file");
    let mut init = Command::new("tup");
    // If this fails, so does the first run.
    let _ = init.arg("init").current_dir(&dir).stdout(Stdio::null()).stderr(Stdio::null()).status();
    Peer::new("tup", "tup".into(), &[], dir)
}

pub(crate) fn turbo(top: &Path, steps: usize) -> Peer {
    let dir = dir(top, "turbo");
    let write = |path: String, text: String| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    };
    let root = json!({
        "name": "root", "private": true, "packageManager": "npm@10.0.0", "workspaces": ["packages/*"],
    });
    write("package.json".into(), root.to_string());
    write("turbo.json".into(), json!({ "tasks": { "build": { "outputs": ["made"] } } }).to_string());
    write(".gitignore".into(), "made\n.turbo\n".into());
    for step in 0..steps {
        let script = format!("echo step {step} > made; echo made {step}");
        let package = json!({ "name": format!("p{step}"), "version": "1.0.0", "scripts": { "build": script } });
        write(format!("packages/p{step}/package.json"), package.to_string());
    }
    // Without a repository, what a task made counts as its input.
    let mut git = Command::new("git");
    let _ = git.args(["init", "--quiet"]).current_dir(&dir).status();
    let program = std::env::var_os("HM_TURBO").map_or_else(|| "turbo".into(), PathBuf::from);
    Peer::new("turbo", program, &["run", "build"], dir)
}
