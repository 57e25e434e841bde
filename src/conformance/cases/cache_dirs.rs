//! Directories that persist between runs: [`Limits::caches`](crate::runner::Limits).

use serde_json::json;

use crate::conformance::harness::{Broken, Harness, Step, expect};

/// Checks that the content of the last step that passed is there in the next run, and in no snapshot.
pub(in crate::conformance) async fn persist(harness: &Harness<'_>) -> Result<(), Broken> {
    let caches = json!({ "caches": { "kept": "/var/cache/kept" } });
    let list = "cd /var/cache/kept 2>/dev/null && ls";
    let with = |cmd: &str| Step::new(cmd).args(caches.clone());
    let none: Vec<String> = Vec::new();
    let first = with(&format!("{list}; echo 1 > /var/cache/kept/passed"));
    let snapshot = harness.snapshot(first).await?;
    expect("the exit code", harness.step(with("echo 2 > /var/cache/kept/failed; exit 3")).await?.exit_code()?, 3)?;
    expect("what the next run has", harness.sh(with(list)).await?, vec!["passed".to_owned()])?;
    let child = Step::new(format!("{list} || true")).after(&snapshot);
    expect("what the snapshot has", harness.sh(child).await?, none)?;
    let at_once = ["a", "b"].map(|name| with(&format!("echo > /var/cache/kept/{name}; {list}")));
    for done in harness.run()?.steps(harness.runner, at_once.into(), 2).await? {
        done.passed()?;
    }
    harness.sh(with("rm /var/cache/kept/passed")).await?;
    let left = harness.sh(with(list)).await?;
    expect("how many of two steps at once were kept", left.len(), 1)
}
