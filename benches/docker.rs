//! The cost of a no-op step in a container: through `hm`, through the published `hm` 0.0.9 if `HM_PEER` names
//! it, and by `docker run` and `docker commit`, on the same daemon.
//!
//! `HM_PEER=.../bin/hm cargo bench --bench docker`

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

#[path = "../tests/it/support/backends.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod backends;
mod common;
#[path = "../tests/it/support/docker_daemon.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod docker_daemon;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median};
use docker_daemon::{Daemon, IMAGE};
use serde_json::{Value, json};

/// The number of steps of the longer pipeline.
const STEPS: usize = 6;

fn main() {
    let (rounds, cli_rounds) = Effort::asked().pick((9, 10), (1, 1));
    let table = Table::new("docker");
    let Some(daemon) = Daemon::get() else {
        return;
    };
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    fs::create_dir_all(source.join(".hm")).unwrap();
    fs::write(source.join("file"), "one file\n").unwrap();
    let host = daemon.host.as_str();
    let ours = |chain: bool, steps: usize| {
        let ir = top.path().join(format!("{chain}-{steps}.json"));
        fs::write(&ir, pipeline(chain, steps).to_string()).unwrap();
        let mut hm = Command::new(env!("CARGO_BIN_EXE_hm"));
        hm.args(["run", "-j", "1", "--runner", "docker", "--docker-host", host, "-f"]).arg(ir).arg("-d").arg(&source);
        hm.env("HM_CACHE_DIR", top.path().join("store")).env("HM_CACHE_GC", "off");
        hm
    };
    let peer = std::env::var_os("HM_PEER").map(PathBuf::from);
    let docker = |args: &[&str]| timed(Command::new("docker").args(["--host", host]).args(args));
    let mut by_hand = Vec::new();
    for round in 0..=cli_rounds {
        let name = format!("bench-{}-{round}", std::process::id());
        let run = docker(&["run", "--network", "host", "--init", "--name", &name, IMAGE, "true"]);
        let commit = docker(&["commit", &name, &name]);
        let removed = docker(&["rm", "--force", "--volumes", &name]);
        docker(&["rmi", &name]);
        if round > 0 {
            by_hand.push(run + commit + removed);
        }
    }
    let by_hand = Figure::ms(median(&mut by_hand)).of("docker run, commit, rm");
    for (shape, chain) in [("independent", false), ("each in the previous one", true)] {
        let dirs = [1, STEPS].map(|steps| top.path().join(format!("peer-{chain}-{steps}")));
        let mut contenders: Vec<Box<dyn Fn(usize) -> Command + '_>> = vec![Box::new(|steps| ours(chain, steps))];
        if let Some(peer) = peer.as_deref() {
            dirs.iter().zip([1, STEPS]).for_each(|(dir, steps)| peer_source(dir, chain, steps));
            contenders.push(Box::new(|steps| theirs(peer, &dirs[usize::from(steps > 1)], host)));
        }
        let times = per_step(&contenders, rounds);
        let what = format!("container step that does nothing, {STEPS} {shape}");
        let ours = Figure::ms(times[0]);
        table.against(&what, &ours, &by_hand, "what a step adds to a run");
        match times.get(1) {
            Some(&theirs) => {
                table.against(&what, &ours, &Figure::ms(theirs).of("hm 0.0.9"), "what a step adds to a run")
            }
            None => table.alone(&what, &ours, "hm 0.0.9: `HM_PEER` names none", ""),
        }
    }
}

/// Returns the time that each step beyond the first adds, for each of the commands, which run in turn: the
/// median over the rounds.
fn per_step(contenders: &[Box<dyn Fn(usize) -> Command + '_>], rounds: usize) -> Vec<Duration> {
    let steps = u32::try_from(STEPS - 1).unwrap();
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (command, times) in contenders.iter().zip(&mut times) {
            let (short, long) = (timed(&mut command(1)), timed(&mut command(STEPS)));
            // The first round only fills caches.
            if round > 0 {
                times.push(long.saturating_sub(short) / steps);
            }
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

fn timed(command: &mut Command) -> Duration {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let took = started.elapsed();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    took
}

fn pipeline(chain: bool, steps: usize) -> Value {
    let node = |step: usize| {
        let image = (!chain || step == 0).then_some(IMAGE);
        json!({ "step": { "key": format!("step-{step}"), "cmd": "true", "image": image }, "env": {} })
    };
    let edges: Vec<Value> = (1..steps).filter(|_| chain).map(|step| json!([step - 1, step, "builds_in"])).collect();
    let nodes: Vec<Value> = (0..steps).map(node).collect();
    json!({ "version": "0", "graph": { "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges } })
}

/// Writes the same pipeline for the published `hm`, which does not accept IR.
fn peer_source(dir: &Path, chain: bool, steps: usize) {
    let returned = match chain {
        true => format!(
            "    for at in range(1, {steps}):\n        step = step.sh(\"true\", label=f\"{{at}}\")\n    return (step,)\n"
        ),
        false => {
            let more = format!("hm.sh(\"true\", label=f\"{{at}}\", image=\"{IMAGE}\") for at in range(1, {steps})");
            format!("    return (step, *({more}))\n")
        }
    };
    let step = format!("    step = hm.sh(\"true\", label=\"0\", image=\"{IMAGE}\")\n");
    let text = format!("import harmont as hm\n\n\n@hm.pipeline(\"ci\")\ndef ci():\n{step}{returned}");
    fs::create_dir_all(dir.join(".hm")).unwrap();
    fs::write(dir.join("file"), "one file\n").unwrap();
    fs::write(dir.join(".hm/ci.py"), text).unwrap();
}

fn theirs(peer: &Path, dir: &Path, host: &str) -> Command {
    let mut hm = Command::new(peer);
    hm.args(["run", "ci", "--parallelism", "1", "--dir"]).arg(dir).current_dir(dir);
    hm.env("DOCKER_HOST", host).env("HOME", dir).env("XDG_CACHE_HOME", dir);
    hm
}
