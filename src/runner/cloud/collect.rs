//! Collects the result of an Action: how its command ended, and the layer with its changes.

use std::{sync::Arc, time::Duration};

use super::{
    action::{LAYER, RESULT},
    boot::Boot,
    error,
};
use crate::{
    blocking,
    ir::CommandStep,
    model::SnapshotRef,
    remote::{Cas, Digest, DigestFunction, reapi},
    runner::{Limits, RunnerError, StepContext},
    step::{Exit, StepOutput},
    store::ImageDigest,
    transfer::{Parcel, RemoteLayer, TransferContext, Uploads, fetch_layer},
};

/// An upper bound on the size of `result.json`.
const MAX_RESULT_BYTES: u64 = 1 << 20;

/// Reads how the command ended.
pub(super) async fn step_output(result: &reapi::ActionResult, cas: &Cas) -> Result<StepOutput, RunnerError> {
    let Some(file) = result.output_files.iter().find(|file| file.path == RESULT) else {
        return Err(RunnerError::infrastructure(
            "run the step",
            anyhow::anyhow!(
                "hm-step ended with exit code {} and wrote no {RESULT}: is it static and built for the worker's system?",
                result.exit_code
            ),
        ));
    };
    let bytes = if file.contents.is_empty() {
        let function = cas.digest_function().await.map_err(error::remote("read the step's result"))?;
        let digest = file_digest(function, file)?;
        cas.read(digest, MAX_RESULT_BYTES).await.map_err(error::remote("read the step's result"))?
    } else {
        file.contents.clone()
    };
    StepOutput::decode(&bytes)
        .map_err(|error| RunnerError::unsupported(format!("failed to read the step's result: {error}")))
}

/// Returns the command's exit code, if it ended by itself.
pub(super) fn exit_code(
    output: &StepOutput,
    step: &CommandStep,
    limits: &Limits,
    ctx: &StepContext,
) -> Result<i32, RunnerError> {
    match &output.exit {
        Exit::Exited { code, too_many_processes: true } => {
            let limit = limits.pids.map_or(0, std::num::NonZeroU64::get);
            Err(RunnerError::too_many_processes(limit, *code))
        }
        Exit::Exited { code, .. } => Ok(*code),
        Exit::OutOfMemory => Err(RunnerError::out_of_memory(limits.memory.map_or(0, |memory| memory.bytes))),
        Exit::TimedOut => Err(match step.timeout_seconds {
            Some(seconds) => {
                let limit = Duration::from_secs(seconds.get().into());
                RunnerError::timed_out_by(format!("the step's time limit of {limit:?} was reached"))
            }
            None => RunnerError::timed_out(),
        }),
        Exit::Terminated if ctx.cancel.is_cancelled() => Err(ctx.interrupted()),
        Exit::Terminated => {
            Err(RunnerError::infrastructure("keep the step running", anyhow::anyhow!("its worker was told to stop it")))
        }
        Exit::Failed { message, retry: true } => {
            Err(RunnerError::infrastructure("run the step", anyhow::anyhow!("its worker reported: {message}")))
        }
        Exit::Failed { message, retry: false } => {
            Err(RunnerError::unsupported(format!("failed to run the step on its worker: {message}")))
        }
    }
}

/// Downloads the layer with the command's changes, and commits a snapshot of it.
pub(super) async fn snapshot(
    result: &reapi::ActionResult,
    output: &StepOutput,
    boot: Boot,
    context: TransferContext<'_>,
    uploads: &Uploads,
) -> Result<SnapshotRef, RunnerError> {
    let TransferContext { store, cas, id_map } = context;
    // Held until the snapshot refers to the layer.
    let _lease = store.lease().map_err(error::store("take a lease"))?;
    if let Some(reason) = &output.layer_lost {
        let error = anyhow::anyhow!("its worker reported: {reason}");
        return Err(RunnerError::infrastructure("keep the step's files", error));
    }
    let layer = match &output.layer {
        None => None,
        Some(left) => {
            let diff_id = image_digest(&left.diff_id)?;
            let Some(file) = result.output_files.iter().find(|file| file.path == LAYER) else {
                let error = anyhow::anyhow!("the engine's result does not have {LAYER}");
                return Err(RunnerError::infrastructure("download the step's layer", error));
            };
            let function = cas.digest_function().await.map_err(error::remote("download the step's layer"))?;
            let digest = file_digest(function, file)?;
            let parcel = Parcel { diff_id, blob: digest, id_map };
            let fetched = fetch_layer(store, cas, "the step's layer", parcel).await;
            let (layer, _) = fetched.map_err(error::transfer)?;
            let name = RemoteLayer { diff_id, blob: digest };
            uploads.note(store, &layer, name).await.map_err(error::transfer)?;
            Some(layer)
        }
    };
    let store = Arc::clone(store);
    blocking::run("commit the step's layer", move || {
        store.commit_layer(layer, boot.commit_request()).map_err(error::store("commit the step's layer"))
    })
    .await
}

/// Parses a digest in the format of images.
fn image_digest(text: &str) -> Result<ImageDigest, RunnerError> {
    text.parse().map_err(|error| RunnerError::infrastructure("read the step's result", anyhow::Error::new(error)))
}

fn file_digest(function: DigestFunction, file: &reapi::OutputFile) -> Result<Digest, RunnerError> {
    let digest = file.digest.as_ref().ok_or_else(|| anyhow::anyhow!("{} has no digest", file.path));
    let digest = digest.and_then(|digest| Ok(function.parse(digest)?));
    digest.map_err(|error| RunnerError::infrastructure("read the step's result", error))
}
