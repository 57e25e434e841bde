//! Snapshots: when they are committed, what they contain, and when they are removed.

use std::fs;

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::{SnapshotRef, StdStream},
    runner::{DynStepRunner, RunnerErrorKind},
};

pub(in crate::conformance) async fn siblings(harness: &Harness<'_>) -> Result<(), Broken> {
    let parent = harness.snapshot(Step::new("echo base > f")).await?;
    let mut run = harness.run()?;
    let steps = ["one", "two", "three"]
        .map(|name| Step::new(format!("ls; touch own-{name}; echo {name} >> f; cat f")).after(&parent).commit());
    let done = run.steps(harness.runner, steps.to_vec(), 3).await?;
    for (name, sibling) in ["one", "two", "three"].into_iter().zip(done) {
        let snapshot = sibling.snapshot()?;
        expect("what a sibling saw", sibling.lines(StdStream::Stdout), ["f", "base", name])?;
        let lines = harness.sh(Step::new("ls; cat f").after(&snapshot)).await?;
        expect("what its child saw", lines, ["f", &format!("own-{name}"), "base", name])?;
    }
    expect(
        "what another child of the parent sees",
        harness.sh(Step::new("ls; cat f").after(&parent)).await?,
        ["f", "base"],
    )
}

pub(in crate::conformance) async fn commits_when_asked(harness: &Harness<'_>) -> Result<(), Broken> {
    let of = |done: Result<crate::StepResult, _>| done.ok().and_then(|result| result.committed_snapshot);
    let failed = harness.step(Step::new("echo x > f; exit 1").commit()).await?;
    expect("the exit code", failed.exit_code()?, 1)?;
    expect("the snapshot of a step that failed", of(failed.result), None)?;
    let unasked = harness.step(Step::new("echo x > f")).await?;
    unasked.passed()?;
    expect("the snapshot that was not requested", of(unasked.result), None)?;
    let snapshot = harness.snapshot(Step::new("true")).await?;
    let scheme = if harness.runner.capabilities().layers { "hm1" } else { harness.runner.name() };
    expect("the part of a snapshot's name before the colon", snapshot.scheme(), scheme)
}

pub(in crate::conformance) async fn unknown(harness: &Harness<'_>) -> Result<(), Broken> {
    let real = harness.snapshot(Step::new("true")).await?;
    let scheme = real.scheme();
    for unknown in [format!("{scheme}:{}", "0".repeat(32)), "somebody-else:snapshot".to_owned(), scheme.to_owned()] {
        refused(harness, &SnapshotRef::from(unknown.as_str())).await?;
    }
    Ok(())
}

/// Checks that a step does not start from this snapshot, and that the error is not retryable.
async fn refused(harness: &Harness<'_>, snapshot: &SnapshotRef) -> Result<(), Broken> {
    let done = harness.step(Step::new("true").after(snapshot)).await?;
    let error = done.failed_as(RunnerErrorKind::Infrastructure)?;
    expect(&format!("whether `{}` is worth a retry", error.to_line()), error.is_retryable(), false)
}

pub(in crate::conformance) async fn reaping(harness: &Harness<'_>) -> Result<(), Broken> {
    let parent = harness.snapshot(Step::new("echo x > f")).await?;
    let child = harness.snapshot(Step::new("echo y > g").after(&parent)).await?;
    harness.runner.reap_snapshots(vec![parent.clone()]).await;
    harness.step(Step::new("cat f g").after(&child)).await?.passed()?;
    refused(harness, &parent).await?;
    // A removed or unknown snapshot is ignored.
    harness.runner.reap_snapshots(vec![parent, "somebody-else:snapshot".into(), child.clone()]).await;
    refused(harness, &child).await
}

/// Checks that a chain can move between runners, and that each runner sees the previous one's changes.
pub(in crate::conformance) async fn exchange(harness: &Harness<'_>) -> Result<(), Broken> {
    fs::write(harness.source().join("source"), "source\n")?;
    let here = harness.runner;
    let there = harness.peer.unwrap_or(here);
    let add = |round: usize| match round {
        0 => "cat source > log; mkdir -p d/e; echo x > d/gone; ln -s log link; chmod 700 d".to_owned(),
        1 => "rm d/gone; echo 1 >> log; touch d/e/one; rm source".to_owned(),
        2 => "mv d/e d/moved; echo 2 >> log; test ! -e source".to_owned(),
        round => format!("echo {round} >> log; chmod 6755 log"),
    };
    let mut parent = None;
    for round in 0..5 {
        let runner: &dyn DynStepRunner = if round % 2 == 0 { here } else { there };
        let step = parent.iter().fold(Step::new(add(round)), Step::after);
        parent = Some(harness.run()?.step(runner, step.commit()).await?.snapshot()?);
    }
    let look =
        parent.iter().fold(Step::new("cat link; find . ! -name . | LC_ALL=C sort; stat -c %a log d"), Step::after);
    for runner in [here, there] {
        let done = harness.run()?.step(runner, look.clone()).await?;
        done.passed()?;
        let expected =
            ["source", "1", "2", "3", "4", "./d", "./d/moved", "./d/moved/one", "./link", "./log", "6755", "700"];
        let what = format!("what `{}` sees at the chain's end", runner.name());
        expect(&what, done.lines(StdStream::Stdout), expected)?;
    }
    Ok(())
}
