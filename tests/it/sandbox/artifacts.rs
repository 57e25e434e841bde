//! Files that steps leave for users after their run.

use std::fs;

use hm_exec::{
    SnapshotRef,
    runner::{CancelReason, RunnerErrorKind, StepRunner},
    store::Store,
};

use crate::support::{
    processes::{eventually, is_asleep, marker},
    sandbox::{Ask, Bench},
};

/// Returns the text of a file that the step `s` of a run left, and whether the step passed.
fn left(store: &Store, run: uuid::Uuid, path: &str) -> Option<(String, bool)> {
    let (snapshot, passed) = store.steps().of_run(run, "s").unwrap()?;
    let layers = &store.snapshots().get(&snapshot).unwrap().layers;
    let text = layers.iter().find_map(|layer| fs::read_to_string(store.layers().dir(layer).join(path)).ok());
    Some((text?, passed))
}

#[tokio::test]
async fn a_failed_steps_files_are_kept_if_requested() {
    for keep in [true, false] {
        let bench = Bench::with(|builder| builder.keep_failed(keep));
        let mut run = bench.run();
        let parent = bench.step(&mut run, Ask::new("echo parent > p")).await.unwrap();
        let ask = Ask::new("echo broken > report; exit 4").after(&parent).env("GREETING", "hello");
        let result = bench.step(&mut run, ask).await.unwrap();
        assert_eq!((result.exit_code, result.committed_snapshot), (4, None));
        let found = left(&bench.store, run.id(), "workspace/report");
        assert_eq!(found, keep.then(|| ("broken\n".to_owned(), false)));
        if keep {
            let (snapshot, _) = bench.store.steps().of_run(run.id(), "s").unwrap().unwrap();
            let around = bench.store.snapshots().config(&snapshot).unwrap().unwrap();
            assert_eq!((&*around.workdir, around.env.get("GREETING").unwrap().as_str()), ("/workspace", "hello"));
            assert_eq!(left(&bench.store, run.id(), "workspace/p").unwrap().0, "parent\n", "with its parent's");
        }
    }
}

#[tokio::test]
async fn an_interrupted_steps_files_are_kept() {
    let bench = Bench::with(|builder| builder.keep_failed(true));
    for (reason, kind) in
        [(CancelReason::Cancelled, RunnerErrorKind::Cancelled), (CancelReason::TimedOut, RunnerErrorKind::TimedOut)]
    {
        let (mut run, marker) = (bench.run(), marker());
        let ctx = run.ctx.clone();
        let input = run.input(Ask::new(format!("echo half > f; sleep {marker}")));
        let watch = async {
            eventually("the command runs", || is_asleep(&marker)).await;
            ctx.interrupt(reason);
        };
        let (result, ()) = tokio::join!(bench.runner.execute(&run.ctx, input), watch);
        assert_eq!(result.unwrap_err().kind(), kind);
        assert_eq!(left(&bench.store, run.id(), "workspace/f"), Some(("half\n".into(), false)));
    }
}

#[tokio::test]
async fn a_passed_steps_snapshot_outlives_its_run_only_if_the_run_keeps_it() {
    let bench = Bench::with(|builder| builder.keep_failed(true));
    for keep in [true, false] {
        let mut run = bench.run();
        run.ctx.keep = keep;
        let snapshot = bench.step(&mut run, Ask::new("echo fine > f")).await.unwrap().committed_snapshot.unwrap();
        bench.runner.reap_snapshots(vec![snapshot.clone()]).await;
        assert_eq!(bench.store.snapshots().get(&snapshot).is_ok(), keep);
        assert_eq!(left(&bench.store, run.id(), "workspace/f"), keep.then(|| ("fine\n".into(), true)));
    }
    assert!(bench.store.steps().of_run(uuid::Uuid::nil(), "s").unwrap().is_none());
    assert!(bench.store.snapshots().get(&SnapshotRef::from("hm1:none")).is_err());
}
