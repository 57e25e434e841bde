//! The cost of a run whose every step is found in the cache: `hm run -f IR.json` on the sandbox and the
//! host image, as a process, compared with the run that filled the cache. `hm --version` shows how much
//! of it is the start of a process. The other rows compare it with `ninja` and `tup`, which have the same
//! commands and nothing to do, and with `turbo`, whose tasks are all cached (`HM_TURBO` may name it).
//! Then the same for steps without a policy that are found by what they read, unchanged and after an edit
//! of a file that none has read.
//!
//! `cargo bench --bench warm [-- RUNS]`
//!
//! To verify that no helper process is started, the bench names a helper that does not exist: a run that
//! needed it would fail.

mod common;
#[path = "warm/peers.rs"]
mod peers;

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread};

/// The length of a chain of steps.
pub(crate) const CHAIN: usize = 8;

/// Returns the IR of cached steps in chains, each of which writes a file.
fn ir_json(steps: usize) -> String {
    let cache = |step: usize| format!(r#","cache":{{"policy":"forever","env_keys":[],"key":"{step:064x}"}}"#);
    chains(steps, |step| (format!("echo step {step} > made-{step}; echo made {step}"), cache(step)))
}

/// Returns the IR of steps in chains. `of` returns the command of each, and further members of its object.
fn chains(steps: usize, of: impl Fn(usize) -> (String, String)) -> String {
    let mut json = String::from(r#"{"version":"0","graph":{"nodes":["#);
    for step in 0..steps {
        let comma = if step == 0 { "" } else { "," };
        let image = if step % CHAIN == 0 { r#","image":"host""# } else { "" };
        let (cmd, more) = of(step);
        let step = format!(r#"{{"key":"step-{step}","cmd":"{cmd}"{more}{image}}}"#);
        write!(json, r#"{comma}{{"step":{step},"env":{{"CI":"true","TERM":"dumb"}}}}"#).expect("a string");
    }
    json.push_str(r#"],"node_holes":[],"edge_property":"directed","edges":["#);
    let edges = (0..steps).filter(|step| step % CHAIN > 0).map(|step| format!(r#"[{},{step},"builds_in"]"#, step - 1));
    json.push_str(&edges.collect::<Vec<_>>().join(","));
    json.push_str("]}}");
    json
}

/// Returns how long a command takes, from start to end.
fn time(command: &mut Command) -> Duration {
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("hm starts");
    let took = begin.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    took
}

fn hm(store: &Path) -> Command {
    let mut hm = Command::new(env!("CARGO_BIN_EXE_hm"));
    hm.env("HM_CACHE_DIR", store).env_remove("HM_LOG");
    hm
}

fn main() {
    let effort = Effort::asked();
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let runs = asked.unwrap_or_else(|| effort.pick(20_usize, 2)).max(1);
    // tup looks into no directory whose name begins with a dot.
    let top = tempfile::Builder::new().prefix("warm").tempdir().expect("a temporary directory");
    fs::create_dir(top.path().join("source")).expect("a directory");
    fs::write(top.path().join("source/file"), "text").expect("a file");
    let table = Table::new("warm");
    let mut starts: Vec<Duration> = (0..runs).map(|_| time(hm(top.path()).arg("--version"))).collect();
    let start = median(&mut starts);
    for steps in effort.pick([8, 10, 1000], [8, 9, 16]) {
        let store = top.path().join(format!("store-{steps}"));
        let ir = top.path().join(format!("{steps}.json"));
        fs::write(&ir, ir_json(steps)).expect("a file");
        let run = || {
            let mut run = hm(&store);
            run.args(["run", "-d"]).arg(top.path().join("source")).arg("-f").arg(&ir);
            run
        };
        let cold = time(&mut run());
        let peers = match steps {
            8 => vec![],
            9 | 10 => vec![peers::turbo(top.path(), steps)],
            _ => vec![peers::ninja(top.path(), steps), peers::tup(top.path(), steps)],
        };
        let (mut warm, mut theirs) = (vec![], vec![vec![]; peers.len()]);
        for _ in 0..runs {
            warm.push(time(run().env("HM_SANDBOX_HELPER", "/nonexistent/helper")));
            for (peer, times) in peers.iter().zip(&mut theirs) {
                times.extend(peer.command().map(|mut command| time(&mut command)));
            }
        }
        let what = format!("run of {steps} steps, all cached");
        let ours = Figure::ms(median(&mut warm));
        let besides = format!("`hm --version`: {}; {}", Figure::ms(start), spread(&mut warm));
        table.against(&what, &ours, &Figure::ms(cold).of("the run that filled the cache"), besides);
        for (peer, times) in peers.iter().zip(&mut theirs) {
            match times.is_empty() {
                true => table.alone(&what, &ours, format!("{}: not installed, or fails here", peer.name), ""),
                false => table.against(&what, &ours, &Figure::ms(median(times)).of(peer.name), spread(times)),
            }
        }
    }
    for steps in effort.pick([8, 1000], [8, 16]) {
        traced(&table, top.path(), (steps, effort.pick(200, 2), runs), start);
    }
}

/// Measures runs of steps that have no policy, and that have read some files of the source.
fn traced(table: &Table, top: &Path, (steps, files, runs): (usize, usize, usize), start: Duration) {
    let source = top.join(format!("traced-{steps}"));
    fs::create_dir_all(source.join("d")).expect("a directory");
    for file in 0..files {
        fs::write(source.join(format!("d/{file}")), file.to_string()).expect("a file");
    }
    fs::write(source.join("README"), "").expect("a file");
    let ir = top.join(format!("traced-{steps}.json"));
    let json = chains(steps, |step| (format!("cat d/* > made-{step}; echo made {step}"), String::new()));
    fs::write(&ir, json).expect("a file");
    let store = top.join(format!("traced-store-{steps}"));
    let run = || {
        let mut run = hm(&store);
        run.args(["run", "--cache", "auto", "-d"]).arg(&source).arg("-f").arg(&ir);
        time(&mut run)
    };
    let cold = run();
    let (mut unchanged, mut edited) = (vec![], vec![]);
    for round in 0..runs {
        unchanged.push(run());
        fs::write(source.join("README"), round.to_string()).expect("a file");
        edited.push(run());
    }
    for (when, times) in [("unchanged", &mut unchanged), ("after an edit of another file", &mut edited)] {
        let what = format!("run of {steps} steps that read {files} files each, `--cache auto`, {when}");
        let (ours, besides) = (Figure::ms(median(times)), format!("`hm --version`: {}", Figure::ms(start)));
        let besides = format!("{besides}; {}", spread(times));
        table.against(&what, &ours, &Figure::ms(cold).of("the run that filled the cache"), besides);
    }
}
