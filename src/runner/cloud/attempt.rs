//! One attempt: an Action from its upload to the engine's result.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, future};

use super::{
    action::{Parts, Prepared},
    boot::{Boot, Part},
    error,
    output::Output,
    runner::{CloudRunner, RemoteEngine},
};
use crate::{
    awake, blocking,
    image::image_identity,
    model::StdStream,
    remote::{Cas, Digest, Endpoint, Execution, RemoteError, RemoteErrorKind, Update, reapi},
    runner::{ExecutorInput, Limits, RunnerError, StepContext},
    store::{Base, Store},
    transfer::{self, Packable, TransferContext},
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

impl CloudRunner {
    /// Uploads everything that the attempt needs to the engine.
    async fn prepare(
        &self,
        ctx: &StepContext,
        input: &ExecutorInput,
        limits: &Limits,
        cas: &Cas,
        store: &Arc<Store>,
    ) -> Result<Ready, RunnerError> {
        let program = self.program.blob().await?;
        let id_map = self.userns.prepare_trees(store).await?;
        let boot = Boot::of(ctx, input, store, &self.images, id_map).await?;
        let source = self.sources.bring(store, cas, &boot.source, |uploaded| self.count(uploaded)).await?;
        let context = TransferContext { store, cas, id_map };
        let layers = boot.parts.iter().map(async |part| {
            let Some(packable) = packable(part).await? else { return Ok(None) };
            let brought = self.uploads.bring(context, packable, |uploaded| self.count(uploaded)).await;
            brought.map(Some).map_err(error::transfer)
        });
        let layers: Vec<_> = future::try_join_all(layers).await?.into_iter().flatten().collect();
        let parts =
            Parts { boot: &boot, layers: &layers, source, program: program.digest, platform: &self.platform, limits };
        let mut prepared = parts.prepare(ctx, input)?;
        let mut blobs = std::mem::take(&mut prepared.blobs);
        blobs.push(program);
        let needs =
            blobs.iter().map(|blob| blob.digest).chain(layers.iter().map(transfer::digest)).chain([source]).collect();
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
    ) -> Result<Result<Box<reapi::ExecuteResponse>, RemoteError>, RunnerError> {
        let execution = Execution::new(engine.endpoint.clone());
        let mut updates = pin!(execution.run(action, skip_cache_lookup));
        let mut begun = Begun { runner: self, endpoint: &engine.endpoint, operation: String::new() };
        // Whether the attempt was interrupted, and whether the engine was asked to cancel it.
        let (mut interrupted, mut told) = (false, false);
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
                        begun.end();
                        return Err(ctx.interrupted());
                    }
                    Err(_) => return Err(ctx.interrupted()),
                }
            }
            tokio::select! {
                update = updates.next() => match update {
                    Some(Ok(Update::Progress { operation: name, stdout_stream, stderr_stream, .. })) => {
                        begun.operation = name;
                        output.follow(&engine.logs, StdStream::Stdout, &stdout_stream).await;
                        output.follow(&engine.logs, StdStream::Stderr, &stderr_stream).await;
                    }
                    Some(Ok(Update::Done(response))) => {
                        begun.end();
                        return Ok(Ok(response));
                    }
                    Some(Err(error)) => {
                        begun.end();
                        return Ok(Err(error));
                    }
                    None => return Err(RunnerError::infrastructure(
                        "run the step",
                        anyhow::anyhow!("the engine ended the stream of answers"),
                    )),
                },
                (stream, piece) = output.next() => output.show(stream, &piece).await,
                () = ctx.cancel.cancelled(), if !interrupted => interrupted = true,
                () = &mut patience, if interrupted => return Err(ctx.interrupted()),
            }
        }
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
        let cas = Cas::new(engine.endpoint.clone());
        let mut output = Output::new(&ctx.event_bus, input.step_id);
        let (mut round, mut distrust_cache) = (1, false);
        loop {
            let preparing = self.prepare(ctx, input, limits, &cas, store);
            let Ready { boot, prepared, needs } = tokio::select! {
                ready = preparing => ready?,
                () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            };
            let skip_cache_lookup = distrust_cache || !prepared.cacheable;
            let ended = self.run(engine, prepared.action, skip_cache_lookup, &mut output, ctx).await?;
            let response = match ended {
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
                    round += 1;
                    continue;
                }
                Err((error, response)) => {
                    if let Some(result) = response.and_then(|response| response.result) {
                        output.finish(&result, &cas, store).await?;
                    }
                    if ctx.cancel.is_cancelled() {
                        return Err(ctx.interrupted());
                    }
                    return Err(error::remote("run the step")(error));
                }
            };
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
