//! Files of other steps: [`ExecutorInput::inputs`](crate::runner::ExecutorInput).

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::SnapshotRef,
    runner::InputFiles,
};

/// Checks that a step sees the files of others, cannot change them, and does not leave them to its children,
/// and that equal files have equal digests.
pub(in crate::conformance) async fn shown(harness: &Harness<'_>) -> Result<(), Broken> {
    let make = "umask 077; mkdir -p out/d; printf TEXT > out/d/f; ln -s d/f out/link";
    let step = |text: &str| Step::new(make.replace("TEXT", text));
    let (one, same) = (harness.snapshot(step("one")).await?, harness.snapshot(step("one")).await?);
    let other = harness.snapshot(step("other")).await?;
    let files =
        |snapshot: &SnapshotRef, path: &str, target: &str| InputFiles::new(("other", snapshot.clone()), path, target);
    let look = "cat /in/a/link /in/a/d/f /in/b; stat -c %a /in/a/d/f /in/b; for f in /in/a/new /in/b; do
        { echo x > $f; } 2>/dev/null && echo written; done; true";
    let joined = Step::new(look)
        .input(files(&one, "/workspace/out", "/in/a"))
        .input(files(&other, "/workspace/out/link", "/in/b"))
        .commit();
    let run = &mut harness.run()?;
    let done = run.step(harness.runner, joined).await?;
    done.passed()?;
    let seen = done.lines(crate::model::StdStream::Stdout);
    expect("what the step sees", seen, vec!["oneoneother600".to_owned(), "600".to_owned()])?;
    let child = Step::new("test ! -e /in/a/d && test ! -s /in/b").after(&done.snapshot()?);
    harness.sh(child).await?;

    let digests =
        run.digests(harness.runner, [&one, &same, &other].map(|it| files(it, "/workspace/out", "/in"))).await?;
    expect("whether equal files have equal digests", digests[0] == digests[1], true)?;
    expect("whether other files have another digest", digests[0] != digests[2], true)?;

    let missing = Step::new("echo ran").input(files(&one, "/workspace/none", "/in"));
    let error = run.step(harness.runner, missing).await?;
    let error = error.failed_as(crate::runner::RunnerErrorKind::Infrastructure)?;
    expect("whether the error names the path", error.to_line().contains("/workspace/none"), true)?;
    expect("whether a missing file is tried again", error.is_retryable(), false)
}
