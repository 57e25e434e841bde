//! The order in which services and their step start and end.

mod output;
mod ready;

use std::{future::Future, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(in crate::runner) use self::{output::ServiceOutput, ready::command_line};
use crate::{
    awake,
    image::ImageProgram,
    model::{SnapshotRef, StdStream},
    runner::{ExecutorInput, RunnerError, ServiceArg, StepContext},
};

/// The exit code of a step whose service failed.
pub(in crate::runner) const FAILED: i32 = 1;

/// The most time that services have between TERM and KILL.
const MAX_GRACE: Duration = Duration::from_secs(5);

/// How a service ended.
#[derive(Debug)]
pub(in crate::runner) enum ServiceEnd {
    /// Its command exited.
    Exited(i32),
    /// It was killed.
    Killed,
    /// It exceeded the memory limit of its step.
    OutOfMemory,
    /// It exceeded the limit on processes of its step.
    TooManyProcesses,
}

/// A service that is about to start. Its attempt runs until the service has ended, and ends it when
/// [`Attempts::stop`] fires.
pub(in crate::runner) struct ServiceAttempt<'a> {
    pub(in crate::runner) output: &'a ServiceOutput<'a>,
    /// How long it has to become ready, from when it has [started](ServiceOutput::started).
    pub(in crate::runner) ready_timeout: Duration,
    pub(in crate::runner) attempt: BoxFuture<'a, Result<ServiceEnd, RunnerError>>,
}

/// The services of one attempt.
pub(in crate::runner) struct Attempts<'a> {
    services: Vec<ServiceAttempt<'a>>,
    /// Ends the services.
    pub(in crate::runner) stop: CancellationToken,
    /// Ends all of the attempt.
    cancel: &'a CancellationToken,
}

impl<'a> Attempts<'a> {
    /// Returns the attempts of no service yet.
    pub(in crate::runner) fn new(cancel: &'a CancellationToken) -> Self {
        Self { services: Vec::new(), stop: CancellationToken::new(), cancel }
    }

    pub(in crate::runner) fn with(self, services: Vec<ServiceAttempt<'a>>) -> Self {
        Self { services, ..self }
    }
}

/// Returns the time that services have between TERM and KILL, in an attempt with this grace period. Their
/// step may have used its own before, and the attempt is abandoned if it takes much longer than that.
pub(in crate::runner) fn grace(of_attempt: Duration) -> Duration {
    of_attempt.min(MAX_GRACE)
}

/// The end of a step and its services.
#[derive(Debug)]
pub(in crate::runner) struct Beside<T> {
    /// The step's result, if it was started.
    pub(in crate::runner) step: Option<T>,
    /// Why the step was not started, or was ended.
    pub(in crate::runner) failure: Option<ServiceFailure>,
    /// Whether all services are known to have ended.
    pub(in crate::runner) all_ended: bool,
}

/// Why a step with services does not run to its end.
#[derive(Debug)]
pub(in crate::runner) enum ServiceFailure {
    /// The attempt was cancelled before its step started.
    Cancelled,
    /// A service could not be run.
    Broken(RunnerError),
    /// A service failed.
    Failed(ServiceReport),
}

/// What to tell about a service that failed.
#[derive(Debug)]
pub(in crate::runner) struct ServiceReport {
    /// What happened.
    what: String,
    /// What the user may do.
    advice: Option<String>,
    last_lines: Vec<String>,
}

/// What the end of a step and of its services means, unless the step ended by itself.
#[derive(Debug)]
pub(in crate::runner) enum EndedEarly {
    /// The attempt was cancelled.
    Interrupted,
    /// A service could not be run.
    Broken(RunnerError),
    /// A service failed, for this reason. The step's log has it. The step's exit code is [`FAILED`].
    Failed(String),
}

impl<T> Beside<T> {
    /// Returns the step's result, or why there is none. `was_ended` tells whether the step was ended by its
    /// token.
    pub(in crate::runner) fn verdict(
        self,
        ctx: &StepContext,
        step_id: Uuid,
        was_ended: impl FnOnce(&T) -> bool,
    ) -> Result<T, EndedEarly> {
        match (self.step, self.failure) {
            // It ended by itself, perhaps at the same moment as a service.
            (Some(ended), _) if !was_ended(&ended) => Ok(ended),
            _ if ctx.cancel.is_cancelled() => Err(EndedEarly::Interrupted),
            (_, Some(ServiceFailure::Broken(error))) => Err(EndedEarly::Broken(error)),
            (_, Some(ServiceFailure::Failed(report))) => {
                ctx.event_bus.lines_beside(step_id, StdStream::Stderr, report.text().as_bytes());
                Err(EndedEarly::Failed(report.line()))
            }
            (_, Some(ServiceFailure::Cancelled) | None) => Err(EndedEarly::Interrupted),
        }
    }
}

/// Returns the line by which a service tells that it is ready, if it has a condition.
pub(in crate::runner) fn ready_mark(arg: &ServiceArg) -> Option<String> {
    arg.ready.is_some().then(|| format!("hm: {} is ready", Uuid::new_v4()))
}

/// Returns what a service runs. `of_image` is what its image runs by default.
pub(in crate::runner) fn program(
    (name, arg): (&str, &ServiceArg),
    workdir: &str,
    of_image: impl FnOnce() -> Result<Option<ImageProgram>, RunnerError>,
) -> Result<ImageProgram, RunnerError> {
    match &arg.cmd {
        Some(cmd) => {
            let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), cmd.clone()];
            Ok(ImageProgram { argv, workdir: workdir.to_owned() })
        }
        None => of_image()?
            .ok_or_else(|| RunnerError::unsupported(format!("service `{name}` needs a `cmd`: its image has none"))),
    }
}

/// Returns the snapshot that a service boots from.
pub(in crate::runner) fn snapshot_of<'a>(
    input: &'a ExecutorInput,
    name: &str,
    step: &str,
) -> Result<&'a SnapshotRef, RunnerError> {
    input.service_snapshot(step).ok_or_else(|| {
        RunnerError::unsupported(format!(
            "service `{name}` boots from step `{step}`, which has no snapshot: it did not pass in this run"
        ))
    })
}

/// Runs a step between its services. `step` gets the token that ends it.
///
/// # Cancel safety
/// As the attempts and the step.
pub(in crate::runner) async fn beside<T, F: Future<Output = T>>(
    attempts: Attempts<'_>,
    step: impl FnOnce(CancellationToken) -> F,
) -> Beside<T> {
    let Attempts { services, stop, cancel } = attempts;
    let outputs: Vec<_> = services.iter().map(|service| (service.output, service.ready_timeout)).collect();
    let mut running: FuturesUnordered<_> = services
        .into_iter()
        .map(|ServiceAttempt { output, attempt, .. }| async move {
            let ended = attempt.await;
            output.finish();
            (output, ended)
        })
        .collect();
    let mut all_ended = true;
    let mut ended = |(output, ended): (&ServiceOutput<'_>, Result<ServiceEnd, RunnerError>)| {
        all_ended &= ended.is_ok();
        match ended {
            Ok(end) => ServiceFailure::Failed(ServiceReport::ended(output, &end)),
            Err(error) => ServiceFailure::Broken(error),
        }
    };
    // All at once: each has its own time, and only the time during which this process runs counts.
    let readiness = outputs.into_iter().map(|(output, limit)| async move {
        output.until_started().await;
        (output, limit, awake::timeout(limit, Box::pin(output.ready())).await.is_some())
    });
    let mut readiness: FuturesUnordered<_> = readiness.collect();
    let mut failure = None;
    while failure.is_none() {
        tokio::select! {
            biased;
            () = cancel.cancelled() => failure = Some(ServiceFailure::Cancelled),
            Some(service) = running.next() => failure = Some(ended(service)),
            next = readiness.next() => match next {
                None => break,
                Some((_, _, true)) => {}
                Some((output, limit, false)) => {
                    failure = Some(ServiceFailure::Failed(ServiceReport::late(output, limit)));
                }
            },
        }
    }
    let mut result = None;
    if failure.is_none() {
        let token = cancel.child_token();
        let mut step = std::pin::pin!(step(token.clone()));
        result = Some(loop {
            tokio::select! {
                // A step that has ended needs its services no longer.
                biased;
                result = &mut step => break result,
                Some(service) = running.next() => {
                    let why = ended(service);
                    // The first reason counts.
                    failure.get_or_insert(why);
                    token.cancel();
                }
            }
        });
    }
    stop.cancel();
    while let Some(service) = running.next().await {
        if let ServiceFailure::Broken(error) = ended(service) {
            tracing::debug!(error = error.to_line(), "failed to end a service");
        }
    }
    Beside { step: result, failure, all_ended }
}

impl ServiceReport {
    fn late(output: &ServiceOutput<'_>, limit: Duration) -> Self {
        let (name, limit) = (output.name(), limit.as_secs());
        Self {
            what: format!("service `{name}` was not ready within {limit} s"),
            advice: Some("check its `ready`, or raise `ready_timeout_seconds`".into()),
            last_lines: output.last(),
        }
    }

    fn ended(output: &ServiceOutput<'_>, end: &ServiceEnd) -> Self {
        let name = output.name();
        let (how, limit) = match end {
            ServiceEnd::Exited(code) => (format!("exited with {code}"), None),
            ServiceEnd::Killed => ("was killed".to_owned(), None),
            ServiceEnd::OutOfMemory => ("exceeded the memory limit of its step".to_owned(), Some("memory")),
            ServiceEnd::TooManyProcesses => ("exceeded the limit on processes of its step".to_owned(), Some("pids")),
        };
        let what = format!("service `{name}` {how} before the step had ended");
        let advice = limit.map(|limit| format!("raise `{limit}` in the step's `runner_args`"));
        Self { what, advice, last_lines: output.last() }
    }

    /// Returns the report for the step's log.
    fn text(&self) -> String {
        let mut text = format!("error: {}", self.what);
        text.push_str(if self.last_lines.is_empty() { "; it printed nothing\n" } else { "; its last lines:\n" });
        self.last_lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        text
    }

    /// Returns the reason for the step's failure, in one line.
    fn line(&self) -> String {
        match &self.advice {
            Some(advice) => format!("{}: {advice}", self.what),
            None => self.what.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::runner::context::tests::limited;

    #[test]
    fn a_report_has_the_last_lines_and_what_to_do() {
        let report = ServiceReport {
            what: "service `db` was not ready within 30 s".into(),
            advice: Some("check its `ready`".into()),
            last_lines: vec!["one".into(), "two".into()],
        };
        let expected = "error: service `db` was not ready within 30 s; its last lines:\n  one\n  two\n";
        assert_eq!(report.text(), expected);
        assert_eq!(report.line(), "service `db` was not ready within 30 s: check its `ready`");
    }

    #[tokio::test]
    async fn a_step_without_services_runs() {
        let cancel = CancellationToken::new();
        let done = beside(Attempts::new(&cancel), |_| async { 7 }).await;
        assert!(done.step == Some(7) && done.failure.is_none() && done.all_ended);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_to_become_ready_counts_from_the_start() {
        let (_writer, ctx) = limited();
        for (mark, starting, becoming, has_run_after) in [
            (Some("ready"), 60, 4, Some(64)),
            (Some("ready"), 60, 6, None),
            // It is ready when it has started.
            (None, 60, 1000, Some(60)),
        ] {
            let attempts = Attempts::new(&ctx.cancel);
            let stop = attempts.stop.clone();
            let output = ServiceOutput::new("db", mark, &ctx.event_bus, Uuid::nil());
            let attempt = async {
                awake::sleep(Duration::from_secs(starting)).await;
                output.started();
                awake::sleep(Duration::from_secs(becoming)).await;
                output.write(StdStream::Stdout, b"ready\n").await;
                stop.cancelled().await;
                Ok(ServiceEnd::Exited(0))
            };
            let ready_timeout = Duration::from_secs(5);
            let service = ServiceAttempt { output: &output, ready_timeout, attempt: Box::pin(attempt) };
            let begin = Instant::now();
            let done = beside(attempts.with(vec![service]), |_| async { begin.elapsed().as_secs() }).await;
            assert_eq!((done.step, done.failure.is_none()), (has_run_after, has_run_after.is_some()));
        }
    }
}
