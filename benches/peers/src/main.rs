//! Runs no-op steps on the published hm-exec 0.0.9: `hm-exec-peers SHAPE STEPS ROUNDS`.
//!
//! Prints one line: nanoseconds per step in the best round, the number of events in it, peak memory in MiB.
//! Each graph gets a process of its own, because long chains overflow its stack.

#[path = "../../common/shapes.rs"]
mod shapes;

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use async_trait::async_trait;
use futures_util::StreamExt;
use hm_exec::{BuildStatus, ExecutionBackend, LocalBackend, Plan, RunOptions, RunRequest, SourceMeta};
use hm_vm::{OutputSink, SnapshotId, SnapshotLabel, Vm, VmBackend, VmConfig};

/// Machines that do nothing and end at once.
#[derive(Debug)]
struct Noop;

#[async_trait]
impl VmBackend for Noop {
    async fn create(&self, _: &str, _: &VmConfig) -> anyhow::Result<Box<dyn Vm>> {
        Ok(Box::new(Noop))
    }

    async fn restore(&self, _: &SnapshotId, _: &VmConfig) -> anyhow::Result<Box<dyn Vm>> {
        Ok(Box::new(Noop))
    }

    async fn snapshot_exists(&self, _: &SnapshotId) -> anyhow::Result<bool> {
        Ok(true)
    }

    async fn remove_snapshot(&self, _: &SnapshotId) -> anyhow::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Vm for Noop {
    async fn inject(&self, _: &Path, _: &str) -> anyhow::Result<()> {
        Ok(())
    }

    async fn exec(&self, _: &str, _: &[(String, String)], _: &str, _: &dyn OutputSink) -> anyhow::Result<i32> {
        Ok(0)
    }

    async fn snapshot(&mut self, _: &SnapshotLabel) -> anyhow::Result<SnapshotId> {
        Ok(SnapshotId::new("noop"))
    }

    async fn destroy(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, steps, rounds] = arguments.as_slice() else { anyhow::bail!("wanted: SHAPE STEPS ROUNDS") };
    let (steps, rounds) = (steps.parse::<usize>()?, rounds.parse::<usize>()?);
    let (_, edges) = shapes::SHAPES.iter().find(|(name, _)| name == shape).context("no such shape")?;
    let json = shapes::ir_json(steps, &edges(steps));
    let source = tempfile::tempdir()?;
    shapes::forget_peak();
    let mut best: Option<(Duration, usize)> = None;
    for _ in 0..rounds {
        let round = measure(&json, source.path())?;
        best = Some(best.map_or(round, |best| best.min(round)));
    }
    let (time, events) = best.context("no rounds")?;
    println!("{} {events} {}", time.as_nanos() / steps as u128, shapes::peak_rss_mib().unwrap_or_default());
    Ok(())
}

/// Measures as the bench measures its own side: on this thread, from the start of a parsed plan to its
/// outcome.
fn measure(json: &str, source: &Path) -> anyhow::Result<(Duration, usize)> {
    let request = RunRequest {
        plan: Plan::parse(json.to_owned())?,
        repo_root: source.into(),
        pipeline_slug: "peer".into(),
        env: Default::default(),
        source: SourceMeta { branch: "main".into(), commit: "0".repeat(40), message: None, repo_name: None },
        options: RunOptions { watch: true, ..Default::default() },
        cloud_pipeline_slug: None,
    };
    let parallelism = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let backend = LocalBackend::new(parallelism, Arc::new(Noop));
        let begin = Instant::now();
        let (mut events, control) = backend.start(request).await?.into_parts();
        let mut seen = 0;
        while events.next().await.is_some() {
            seen += 1;
        }
        let outcome = control.wait().await?;
        let took = begin.elapsed();
        anyhow::ensure!(outcome.status == BuildStatus::Passed, "the build ended as {:?}", outcome.status);
        Ok((took, seen))
    })
}
