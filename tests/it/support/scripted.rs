//! A runner that follows a script in virtual time, and records its requests.

use std::{
    collections::BTreeMap,
    future::pending,
    panic::resume_unwind,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use hm_exec::{
    BackendError, BuildEvent, BuildOutcome, Engine, EngineBuilder, ExecutorInput, Plan, RunRequest, RunnerSet,
    SnapshotRef, StepResult, StepStatus,
    event::StdStream,
    runner::{Pool, Probe, RunnerCapabilities, RunnerError, StepContext, StepRunner},
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::graphs::Graph;

/// The behavior of one attempt.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Exits with a code after some milliseconds; ends early if it is cancelled.
    Exit { code: i32, after_ms: u64 },
    /// Prints, then exits 0.
    Print(&'static [u8]),
    /// Fails with an infrastructure error, which is not the command's fault.
    Break,
    /// Fails in the same way, and reports that a retry is useless.
    BreakForGood,
    /// Exceeds its memory limit.
    Swell,
    /// Fails with a code, because the machine has no memory left.
    Starve { code: i32 },
    /// Waits to be cancelled, and then takes some milliseconds to end.
    Linger { ms: u64 },
    /// Ignores its cancellation token.
    Ignore,
    /// Panics.
    Panic,
    /// Reports a cancellation that was not requested.
    Desert,
    /// Reports that its own time limit was reached.
    OwnLimit,
    /// Does something after some milliseconds; ends early if it is cancelled.
    After(u64, Box<Act>),
    /// Waits to be cancelled, and then does something else than reporting it.
    OnceTold(Box<Act>),
}

pub(crate) const PASS: Act = Act::Exit { code: 0, after_ms: 0 };

/// One attempt as the runner saw it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) key: String,
    pub(crate) attempt: u32,
    pub(crate) at: Duration,
    pub(crate) parent: Option<String>,
    pub(crate) commits: bool,
}

/// The runner's records.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) seen: Vec<Seen>,
    pub(crate) running: usize,
    pub(crate) most_running: usize,
    /// Attempts whose future was dropped before it ended.
    pub(crate) dropped: Vec<String>,
    /// Snapshots that were handed back, and the runner that got them.
    pub(crate) reaped: Vec<(&'static str, String)>,
}

/// A runner that follows a script.
#[derive(Debug, Clone)]
pub(crate) struct Scripted {
    /// The name that its snapshots start with.
    pub(crate) name: &'static str,
    /// What the attempts of a step do, in order. A step that is not listed passes immediately.
    pub(crate) script: BTreeMap<String, Vec<Act>>,
    pub(crate) memory: Arc<Mutex<Memory>>,
    pub(crate) reaping_hangs: bool,
    pub(crate) probe: Probe,
    pub(crate) pool: Pool,
    pub(crate) capabilities: RunnerCapabilities,
    pub(crate) started: Instant,
}

#[derive(Debug, Clone, RunnerSet)]
pub(crate) struct Runners {
    #[runner(default)]
    pub(crate) scripted: Scripted,
    #[runner(name = "other")]
    pub(crate) other: Scripted,
}

impl Scripted {
    /// Returns a runner. Must be called within a runtime, because it reads the runtime's clock.
    pub(crate) fn new<const N: usize>(script: [(&str, Vec<Act>); N]) -> Self {
        Self {
            name: Self::NAME,
            script: script.map(|(key, acts)| (key.to_owned(), acts)).into(),
            memory: Arc::default(),
            reaping_hangs: false,
            probe: Probe::usable(),
            pool: Pool::Local,
            capabilities: RunnerCapabilities::default(),
            started: Instant::now(),
        }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.memory.lock().unwrap().seen.clone()
    }

    pub(crate) fn engine(&self) -> EngineBuilder<Runners> {
        Engine::builder(Runners { scripted: self.clone(), other: self.clone() })
            .parallelism(4.try_into().unwrap())
            .grace(Duration::from_secs(2))
    }

    async fn act(&self, act: Act, ctx: &StepContext, input: &ExecutorInput) -> Result<i32, RunnerError> {
        match act {
            Act::Exit { code, after_ms: 0 } => Ok(code),
            Act::Exit { code, after_ms: ms } => {
                let act = Act::After(ms, Box::new(Act::Exit { code, after_ms: 0 }));
                Box::pin(self.act(act, ctx, input)).await
            }
            Act::After(ms, act) => {
                tokio::select! {
                    biased;
                    () = ctx.cancel.cancelled() => Err(ctx.interrupted()),
                    () = sleep(Duration::from_millis(ms)) => Box::pin(self.act(*act, ctx, input)).await,
                }
            }
            Act::Print(bytes) => {
                ctx.event_bus.output(input.step_id, StdStream::Stdout, bytes).await;
                Ok(0)
            }
            Act::Break => Err(RunnerError::infrastructure("reach the worker", anyhow!("no route"))),
            Act::BreakForGood => Err(RunnerError::unsupported("no such device")),
            Act::Starve { code } => Err(RunnerError::machine_out_of_memory(code)),
            Act::Swell => Err(RunnerError::out_of_memory(1 << 20)),
            Act::Linger { ms } => {
                ctx.cancel.cancelled().await;
                sleep(Duration::from_millis(ms)).await;
                Err(ctx.interrupted())
            }
            Act::OnceTold(act) => {
                ctx.cancel.cancelled().await;
                Box::pin(self.act(*act, ctx, input)).await
            }
            Act::Ignore => pending().await,
            // Prints nothing on stderr.
            Act::Panic => resume_unwind(Box::new("scripted")),
            Act::Desert => Err(RunnerError::cancelled()),
            Act::OwnLimit => Err(RunnerError::timed_out()),
        }
    }
}

impl StepRunner for Scripted {
    const NAME: &'static str = "scripted";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        let key = input.step.key.to_string();
        {
            let mut memory = self.memory.lock().unwrap();
            memory.running += 1;
            memory.most_running = memory.most_running.max(memory.running);
            memory.seen.push(Seen {
                key: key.clone(),
                attempt: ctx.attempt,
                at: self.started.elapsed(),
                parent: input.parent_snapshot.as_ref().map(ToString::to_string),
                commits: input.cache_lookup.commits(),
            });
        }
        let mut presence = Presence { memory: &self.memory, key: Some(key.clone()) };
        let acts = self.script.get(&key).map_or(&[][..], Vec::as_slice);
        let act = acts.get(ctx.attempt as usize - 1).or(acts.last()).cloned().unwrap_or(PASS);
        let result = self.act(act, ctx, &input).await;
        presence.key = None;
        let exit_code = result?;
        let commits = exit_code == 0 && input.cache_lookup.commits();
        let committed_snapshot = commits.then(|| SnapshotRef::from(format!("{}:{key}", self.name)));
        Ok(StepResult::exited(exit_code).with_snapshot(committed_snapshot))
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        let reaped = snapshots.iter().map(|snapshot| (self.name, snapshot.to_string()));
        self.memory.lock().unwrap().reaped.extend(reaped);
        if self.reaping_hangs {
            pending::<()>().await;
        }
    }

    async fn probe(&self) -> Probe {
        self.probe.clone()
    }

    fn pool(&self) -> Pool {
        self.pool
    }

    fn capabilities(&self) -> RunnerCapabilities {
        self.capabilities
    }
}

/// Counts an attempt as running, and as dropped if it is dropped with its key and without a panic.
struct Presence<'a> {
    memory: &'a Mutex<Memory>,
    key: Option<String>,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let mut memory = self.memory.lock().unwrap();
        memory.running -= 1;
        if !thread::panicking() {
            memory.dropped.extend(self.key.take());
        }
    }
}

/// Returns a request whose events depend only on the plan and the runners.
pub(crate) fn request(graph: &Graph) -> RunRequest {
    let mut request = RunRequest::new(Plan::parse(graph.to_ir_json()).unwrap(), "/nonexistent/source");
    request.run_id = Some(Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0));
    request.started_at = Some("2026-01-01T00:00:00Z".parse().unwrap());
    request
}

/// Runs a build to its end.
pub(crate) async fn run<R: RunnerSet>(
    builder: EngineBuilder<R>,
    request: RunRequest,
) -> Result<(Vec<BuildEvent>, BuildOutcome), BackendError> {
    let (mut events, control) = builder.build()?.start(request).await?.into_parts();
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(event);
    }
    Ok((seen, control.wait().await?))
}

pub(crate) fn statuses(outcome: &BuildOutcome) -> Vec<StepStatus> {
    outcome.steps.iter().map(|step| step.status).collect()
}

pub(crate) fn json_lines(events: &[BuildEvent]) -> String {
    events.iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect()
}
