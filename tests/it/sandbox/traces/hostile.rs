//! Steps that attack their tracer: the step must end, and its trace must not be wrong.

use std::{
    fs,
    time::{Duration, Instant},
};

use hm_exec::{
    cache::{Kinds, Trace},
    runner::RunnerErrorKind,
};
use serde_json::json;

use super::{Traced, built};
use crate::support::sandbox::{Ask, Bench};

/// Ends a step that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn bench() -> Option<Bench> {
    let program = built("hostile")?;
    let bench = Bench::new();
    fs::copy(program, bench.source().join("hostile")).unwrap();
    fs::write(bench.source().join("F"), "content").unwrap();
    // An interpreter.
    fs::copy("/bin/true", bench.source().join("F2")).unwrap();
    Some(bench)
}

async fn run(name: &str) -> Option<Traced> {
    let bench = bench()?;
    let running = Traced::run(&bench, Ask::new(format!("./hostile {name}")));
    let it = tokio::time::timeout(PATIENCE, running).await.expect("the step hangs");
    assert_eq!(it.code, 0, "{name}: {}", it.output);
    assert!(it.kinds("/workspace/hostile").contains(Kinds::CONTENT), "{:?}", it.source());
    Some(it)
}

/// Runs a program that reads `F` at its end, and whose trace must be complete.
macro_rules! reads {
    ($($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let Some(it) = run(stringify!($name)).await else { return };
                assert!(it.kinds("/workspace/F").contains(Kinds::CONTENT), "{:?}", it.source());
                assert_eq!(it.reasons(), Vec::<String>::new());
            }
        )*
    };
}

reads! { close_all killed_in_calls signals threads many_directories stalls loops }

#[tokio::test]
async fn the_tracer_cannot_be_reached() {
    let Some(it) = run("tracer").await else { return };
    assert!(it.kinds("/workspace/F").contains(Kinds::CONTENT), "{:?}", it.source());
}

#[tokio::test]
async fn a_traced_program_has_no_descriptor_of_the_tracer() {
    let Some(it) = run("descriptors").await else { return };
    assert_eq!(it.output, "");
}

#[tokio::test]
async fn a_denying_filter_of_the_step_stays_in_force() {
    let Some(it) = run("denying_filter").await else { return };
    assert_eq!(it.kinds("/workspace/F"), Kinds::default(), "{:?}", it.source());
    assert_eq!(it.reasons(), Vec::<String>::new());
}

#[tokio::test]
async fn more_paths_than_a_trace_holds_are_a_reason() {
    let Some(it) = run("many_paths").await else { return };
    assert!(it.reasons().contains(&"it read too many paths".to_owned()), "{:?}", it.reasons());
    let bytes: usize = it.trace.entries.keys().map(Vec::len).sum();
    assert!(bytes <= 32 << 20 && it.trace.entries.len() <= 500_000, "{bytes}");
}

#[tokio::test]
async fn a_fork_bomb_ends_with_the_step() {
    let Some(bench) = bench() else { return };
    let started = Instant::now();
    let mut run = bench.run();
    let dir = tempfile::tempdir().unwrap();
    run.ctx.traces = Some(dir.path().into());
    let cmd = "./hostile fork_bomb & sleep 1; cat F > /dev/null";
    let running = bench.step(&mut run, Ask::new(cmd).args(json!({ "network": "none", "pids": 100 })));
    let ended = tokio::time::timeout(PATIENCE, running).await.expect("the step hangs");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    // The limit may be enforced by polling, and then ends the step: then there is no trace.
    let traces: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let is_limit = ended.as_ref().is_err_and(|error| error.kind() == RunnerErrorKind::TooManyProcesses);
    assert!(traces.len() == 1 || is_limit && traces.is_empty(), "{ended:?}: {traces:?}");
    for trace in traces {
        let trace = Trace::decode(&fs::read(trace).unwrap()).unwrap();
        let kinds = trace.entries.get(&b"/workspace/hostile"[..]).copied().unwrap_or_default();
        assert!(kinds.contains(Kinds::CONTENT), "{trace:?}");
    }
}

/// A process that opens a file with a lease waits for its holder. The tracer does not, and records a reason
/// if it could not examine the program.
#[tokio::test]
async fn a_lease_on_a_program_does_not_hold_up_the_tracer() {
    let Some(it) = run("lease").await else { return };
    assert!(it.kinds("/workspace/F").contains(Kinds::CONTENT), "{:?}", it.source());
    let is_known = it.kinds("/workspace/F2").contains(Kinds::CONTENT);
    let is_said = it.reasons().iter().any(|reason| reason.contains("could not be examined (execve"));
    assert!(is_known || is_said, "{:?}: {:?}", it.reasons(), it.source());
}

/// The listener of the filter must be answered until the end, also of what outlives the command.
#[tokio::test]
async fn a_cancelled_step_ends_within_its_grace_period() {
    let Some(bench) = bench() else { return };
    let mut run = bench.run();
    let dir = tempfile::tempdir().unwrap();
    run.ctx.traces = Some(dir.path().join("traces").into());
    let cancel = run.ctx.cancel.clone();
    let input = run.input(Ask::new("while :; do ./hostile threads; done").args(json!({ "network": "none" })));
    let canceller = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cancel.cancel();
        Instant::now()
    };
    let executing = hm_exec::runner::StepRunner::execute(&bench.runner, &run.ctx, input);
    let both = tokio::time::timeout(PATIENCE, async { tokio::join!(executing, canceller) }).await;
    let (ended, cancelled) = both.expect("the step hangs");
    assert!(cancelled.elapsed() < Duration::from_secs(20), "{:?}", cancelled.elapsed());
    assert_eq!(ended.unwrap_err().kind(), RunnerErrorKind::Cancelled);
    assert!(!dir.path().join("traces").exists(), "an interrupted step has no result");
}
