//! One attempt: an Action from its upload to the engine's result.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, future};
use tokio::time::Instant;

use super::{
    action::{AROUND_STEP, Parts, Prepared, layer_cache},
    boot::{Boot, Part, SourceForm},
    error,
    output::Output,
    runner::{CloudRunner, RemoteEngine},
};
use crate::{
    awake, blocking,
    image::image_identity,
    model::StdStream,
    remote::{Cas, Digest, DigestFunction, Endpoint, Execution, RemoteError, RemoteErrorKind, Stage, Update, reapi},
    runner::{CancelReason, ExecutorInput, Limits, RunnerError, StepContext},
    store::{Base, Store},
    transfer::{Packable, TransferContext},
};

/// The most times to upload again, in one attempt, blobs that the engine lost.
const MAX_ROUNDS: u32 = 4;
/// How long a request to the engine to end a step may take.
const CANCELLING: Duration = Duration::from_secs(5);
/// How long an engine may take to report the end of a step, beyond the step's grace.
const LINGER: Duration = Duration::from_secs(2);

/// An attempt's Action, and the data to process its result.
struct Ready {
    boot: Boot,
    prepared: Prepared,
    /// The blobs that the engine had when the Action was ready, except the source's files.
    needs: Vec<Digest>,
}

/// An engine's store and this machine's, and what the engine accepts.
#[derive(Clone, Copy)]
struct Place<'a> {
    cas: &'a Cas,
    store: &'a Arc<Store>,
    function: DigestFunction,
    longest_bound: Option<Duration>,
}

/// An Action's way through the engine: its queue, and a worker.
struct Progress<'a> {
    ctx: &'a StepContext,
    stage: Stage,
    /// Whether a worker had the Action at any time.
    was_executing: bool,
    /// Whether the user knows that the step waits.
    was_reported: bool,
}

impl<'a> Progress<'a> {
    fn new(ctx: &'a StepContext) -> Self {
        Self { ctx, stage: Stage::Unknown, was_executing: false, was_reported: false }
    }

    /// Notes the stage that the engine reported. Returns whether the Action has just entered the queue. Only
    /// there, the clock of the attempt's limit stands still. An unknown stage changes nothing.
    fn is_at(&mut self, stage: Stage) -> bool {
        if stage == self.stage || stage == Stage::Unknown {
            return false;
        }
        self.stage = stage;
        match stage {
            Stage::Queued => self.ctx.stop_limit(),
            Stage::Executing | Stage::Unknown => {
                self.was_executing = true;
                start_bound(self.ctx);
            }
        }
        stage == Stage::Queued
    }

    /// Returns whether the step waits without the user's knowledge.
    fn is_silent(&self) -> bool {
        self.stage == Stage::Queued && !self.was_reported
    }

    fn ended(&self, response: Result<Box<reapi::ExecuteResponse>, RemoteError>) -> Executed {
        Executed { was_executing: self.was_executing, response }
    }
}

/// Starts the clock that ends the attempt some time after the step's limit, in case that the worker or the
/// engine does not end it: hm-step keeps the limit.
fn start_bound(ctx: &StepContext) {
    ctx.restart_limit(ctx.grace.saturating_add(AROUND_STEP));
}

/// The end of an execution.
struct Executed {
    /// Whether a worker had the Action at any time.
    was_executing: bool,
    response: Result<Box<reapi::ExecuteResponse>, RemoteError>,
}

/// Returns the message about a step that was interrupted and continues.
fn left_running(endpoint: &Endpoint) -> String {
    let place = endpoint.place();
    format!(
        "hm: {place} cannot cancel steps: this one continues there until its time limit, or until {place} ends it\n"
    )
}

impl CloudRunner {
    /// Uploads everything that the attempt needs to the engine.
    async fn prepare(
        &self,
        ctx: &StepContext,
        input: &ExecutorInput,
        limits: &Limits,
        place: Place<'_>,
    ) -> Result<Ready, RunnerError> {
        let Place { cas, store, function, longest_bound } = place;
        let program = self.program.blob(function).await?;
        let id_map = self.userns.prepare_trees(store).await?;
        let source_form = if layer_cache(&self.platform).is_some() { SourceForm::Layers } else { SourceForm::Tree };
        let boot = Boot::of(ctx, input, store, &self.images, (id_map, source_form)).await?;
        let source = match source_form {
            SourceForm::Tree => {
                Some(self.sources.bring(store, cas, &boot.source, |uploaded| self.count(uploaded)).await?)
            }
            SourceForm::Layers => None,
        };
        let context = TransferContext { store, cas, id_map };
        let layers = boot.parts.iter().map(async |part| {
            let Some(packable) = packable(part).await? else { return Ok(None) };
            let brought = self.uploads.bring(context, packable, |uploaded| self.count(uploaded)).await;
            brought.map(Some).map_err(error::transfer)
        });
        let layers: Vec<_> = future::try_join_all(layers).await?.into_iter().flatten().collect();
        let parts = Parts {
            function,
            boot: &boot,
            layers: &layers,
            source,
            program: program.digest,
            platform: &self.platform,
            limits,
            longest_bound,
        };
        let mut prepared = parts.prepare(ctx, input)?;
        let mut blobs = std::mem::take(&mut prepared.blobs);
        blobs.push(program);
        let needs = blobs
            .iter()
            .map(|blob| blob.digest)
            .chain(layers.iter().map(|layer| layer.blob))
            .chain(source.iter().flat_map(|source| [source.root, source.attributes]))
            .collect();
        self.count(cas.upload(blobs).await.map_err(error::remote("upload the step"))?);
        Ok(Ready { boot, prepared, needs })
    }

    /// Executes an Action to its end, or until the attempt is interrupted.
    async fn run(
        &self,
        engine: &RemoteEngine,
        action: Digest,
        skip_cache_lookup: bool,
        output: &mut Output<'_>,
        ctx: &StepContext,
    ) -> Result<Executed, RunnerError> {
        let execution = Execution::new(engine.endpoint.clone());
        let mut updates = pin!(execution.run(action, skip_cache_lookup));
        let mut begun = Begun { runner: self, endpoint: &engine.endpoint, operation: String::new() };
        let mut progress = Progress::new(ctx);
        let mut waited = pin!(tokio::time::sleep(self.queue_notice));
        // Whether the attempt was interrupted, and whether the engine was asked to cancel it.
        let (mut interrupted, mut told) = (false, false);
        // Whether the engine cannot cancel, and the execution may end by itself in time.
        let mut runs_on = false;
        // How long to wait for the end of an interrupted execution. The time counts from the first poll.
        let mut patience = pin!(awake::sleep(ctx.grace.saturating_add(LINGER)));
        loop {
            if interrupted && !told && !begun.operation.is_empty() {
                told = true;
                let cancelled = tokio::time::timeout(CANCELLING, execution.cancel(&begun.operation)).await;
                match cancelled {
                    Ok(Ok(())) => {}
                    // The execution continues, and ends by its own time limit.
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "leaving a cancelled step to the engine");
                        runs_on = true;
                        begun.end();
                    }
                    Err(_) => return Err(ctx.interrupted()),
                }
            }
            // At a time limit, hm-step may be ending the command, too, and then the engine has its output.
            if runs_on && ctx.cancel_reason() == CancelReason::Cancelled {
                output.say(&left_running(&engine.endpoint)).await;
                return Err(ctx.interrupted());
            }
            tokio::select! {
                update = updates.next() => match update {
                    Some(Ok(Update::Progress { operation: name, stage, stdout_stream, stderr_stream })) => {
                        if !runs_on {
                            begun.operation = name;
                        }
                        if progress.is_at(stage) {
                            waited.as_mut().reset(Instant::now() + self.queue_notice);
                        }
                        output.follow(&engine.logs, StdStream::Stdout, &stdout_stream).await;
                        output.follow(&engine.logs, StdStream::Stderr, &stderr_stream).await;
                    }
                    Some(Ok(Update::Done(response))) => {
                        begun.end();
                        return Ok(progress.ended(Ok(response)));
                    }
                    Some(Err(error)) => {
                        begun.end();
                        return Ok(progress.ended(Err(error)));
                    }
                    None => return Err(RunnerError::infrastructure(
                        "run the step",
                        anyhow::anyhow!("the engine ended the stream of answers"),
                    )),
                },
                (stream, piece) = output.next() => {
                    // Some engines do not report that a worker has the Action.
                    progress.is_at(Stage::Executing);
                    output.show(stream, &piece).await;
                }
                () = ctx.cancel.cancelled(), if !interrupted => interrupted = true,
                () = &mut waited, if progress.is_silent() => {
                    progress.was_reported = true;
                    output.say(&self.waiting(&engine.endpoint)).await;
                }
                () = &mut patience, if interrupted => {
                    if runs_on {
                        output.say(&left_running(&engine.endpoint)).await;
                    }
                    return Err(ctx.interrupted());
                }
            }
        }
    }

    /// Returns the message about a step that waits for a worker.
    fn waiting(&self, endpoint: &Endpoint) -> String {
        let properties: Vec<String> = self.platform.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let which = match &properties[..] {
            [] => String::new(),
            properties => format!(" with the platform properties {}", properties.join(" ")),
        };
        format!(
            "hm: this step has waited {:.0?} for a worker of {}: every worker{which} is busy, or there is none\n",
            self.queue_notice,
            endpoint.place()
        )
    }

    /// Runs one attempt, up to the engine's result.
    pub(super) async fn attempt(
        &self,
        engine: &RemoteEngine,
        ctx: &StepContext,
        input: &ExecutorInput,
        limits: &Limits,
        store: &Arc<Store>,
    ) -> Result<(Boot, reapi::ActionResult), RunnerError> {
        // Neither uploads nor the engine's queue count.
        start_bound(ctx);
        let cas = Cas::new(engine.endpoint.clone());
        let function = tokio::select! {
            function = cas.digest_function() => function.map_err(error::remote("ask the engine what it supports"))?,
            () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
        };
        let mut output = Output::new(&ctx.event_bus, input.step_id, function);
        let (mut round, mut distrust_cache) = (1, false);
        // The time limit that the engine refused, or may have refused, and the same if nothing else went
        // wrong after that.
        let (mut refused, mut learned) = (None, None);
        loop {
            let longest_bound = refused.map(|_| Duration::ZERO).or_else(|| self.longest_bound());
            let preparing = self.prepare(ctx, input, limits, Place { cas: &cas, store, function, longest_bound });
            let Ready { boot, prepared, needs } = tokio::select! {
                ready = preparing => ready?,
                () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            };
            let skip_cache_lookup = distrust_cache || !prepared.cacheable;
            let Executed { was_executing, response } =
                self.run(engine, prepared.action, skip_cache_lookup, &mut output, ctx).await?;
            // From here on, only files are transferred.
            start_bound(ctx);
            let response = match response {
                Ok(response) => match Execution::new(engine.endpoint.clone()).error_of(&response) {
                    Some(error) => Err((error, Some(response))),
                    None => Ok(response),
                },
                Err(error) => Err((error, None)),
            };
            let response = match response {
                Ok(response) => response,
                Err((error, _)) if round < MAX_ROUNDS && comes_of_loss(&error, &cas, needs).await => {
                    tracing::debug!(%error, round, "uploading again what the engine lost");
                    output.say("hm: the engine lost uploaded files; uploading them again\n").await;
                    self.sources.forget();
                    self.uploads.distrust().await;
                    (round, learned) = (round + 1, None);
                    continue;
                }
                // The step's limit does not depend on it, so any engine may have a maximum of its own. What a
                // worker had is not run again.
                Err((error, _))
                    if error.kind() == RemoteErrorKind::Refused && prepared.bound.is_some() && !was_executing =>
                {
                    tracing::debug!(%error, "executing the step without a time limit at the engine");
                    (refused, learned) = (prepared.bound, prepared.bound);
                    continue;
                }
                Err((error, response)) => {
                    if let Some(result) = response.and_then(|response| response.result) {
                        output.finish_failed(&result, &cas, store).await;
                    }
                    if ctx.cancel.is_cancelled() {
                        return Err(ctx.interrupted());
                    }
                    return Err(error::remote("run the step")(error));
                }
            };
            if let Some(refused) = learned {
                self.note_refused_bound(refused);
            }
            let is_cached = response.cached_result;
            let Some(result) = response.result else {
                let error = anyhow::anyhow!("the engine reported the end of the step without a result");
                return Err(RunnerError::infrastructure("run the step", error));
            };
            // A failure may be temporary, so a cached one is not accepted: the user runs the step again to
            // see it pass.
            if is_cached && result.exit_code != 0 && !distrust_cache {
                distrust_cache = true;
                continue;
            }
            output.finish(&result, &cas, store).await?;
            return Ok((boot, result));
        }
    }
}

/// An Action that the engine executes. If this is dropped before the end, the engine is asked to cancel it.
struct Begun<'a> {
    runner: &'a CloudRunner,
    endpoint: &'a Endpoint,
    /// The name of the operation; empty before it is known, and after its end.
    operation: String,
}

impl Begun<'_> {
    fn end(&mut self) {
        self.operation.clear();
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.operation.is_empty() {
            return;
        }
        let (endpoint, operation) = (self.endpoint.apart(), std::mem::take(&mut self.operation));
        let what = format!("cancel the step {operation}, which is still running at {}", endpoint.place());
        let cancelling = async move { Execution::new(endpoint).cancel(&operation).await };
        self.runner.cleanup.run(what, cancelling);
    }
}

/// Returns whether an engine refuses an Action because it has lost blobs. Not every engine reports that as
/// the protocol requires.
async fn comes_of_loss(error: &RemoteError, cas: &Cas, needs: Vec<Digest>) -> bool {
    match error.kind() {
        RemoteErrorKind::MissingBlobs => true,
        RemoteErrorKind::NotFound | RemoteErrorKind::Refused | RemoteErrorKind::Internal => {
            cas.find_missing(needs).await.is_ok_and(|missing| !missing.is_empty())
        }
        _ => false,
    }
}

/// Returns the part of a step's filesystem to transfer as a layer, or `None` for the source.
async fn packable(part: &Part) -> Result<Option<Packable>, RunnerError> {
    Ok(match part {
        Part::Source => None,
        Part::Layer(layer) => Some(Packable::Layer(layer.clone())),
        Part::Rootfs(dir) => {
            let base = Base::Rootfs(dir.clone());
            let identity = blocking::run("look at the image", move || {
                image_identity(&base, &[]).map_err(error::store("look at the image"))
            });
            Some(Packable::Tree { identity: identity.await?, dir: dir.clone() })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::context::tests::limited;

    /// Returns after how many seconds an attempt with a limit of 10 s is ended, if the engine reports these
    /// stages after so many seconds each.
    async fn ended_after(stages: &[(u64, Stage)]) -> u64 {
        let (_writer, ctx) = limited();
        let begun = Instant::now();
        start_bound(&ctx);
        let engine = async {
            let mut progress = Progress::new(&ctx);
            for (after, stage) in stages {
                tokio::time::sleep(Duration::from_secs(*after)).await;
                progress.is_at(*stage);
            }
        };
        tokio::join!(engine, ctx.limit_reached(Duration::from_secs(10)));
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_counts_what_one_worker_takes() {
        use Stage::{Executing, Queued, Unknown};
        let bound = 10 + 5 + AROUND_STEP.as_secs();
        assert_eq!(ended_after(&[]).await, bound);
        assert_eq!(ended_after(&[(3, Queued), (9_000, Executing)]).await, 9_003 + bound);
        // What was reported before, and what is unknown, changes nothing.
        assert_eq!(ended_after(&[(0, Executing), (500, Executing), (500, Unknown)]).await, bound);
        let lost = [(0, Queued), (9_000, Executing), (1_200, Queued), (9_000, Executing)];
        assert_eq!(ended_after(&lost).await, 9_000 + 1_200 + 9_000 + bound);
        // An engine that goes on without a word about its queue.
        assert_eq!(ended_after(&[(0, Executing), (1_200, Unknown)]).await, bound);
    }
}
