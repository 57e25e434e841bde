//! Outputs of steps: the files that match a step's patterns are read in a jail over its layers.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};
use rustix::pipe::PipeFlags;

use super::{
    attempt,
    boot::{Boot, failed},
    jail::{End, InnerOverlay, JailSpec, Overlay, Pack, Root},
    overlay_pool::c_path,
    own_network::StepNamespace,
    runner::SandboxRunner,
};
use crate::{
    model::SnapshotRef,
    outputs::{LIMITS, Received, StepOutputs},
    runner::{Limits, RunnerError, StepContext},
    store::{Staging, Store},
    userns::Zygote,
};

/// The work directory of steps whose results the cache has.
const WORKDIR: &str = "/workspace";

impl SandboxRunner {
    /// Copies the outputs of a step that has left its files in `boot`. No process of the step may be left.
    pub(super) async fn copy_boot_outputs(
        &self,
        zygote: &Zygote,
        (store, boot): (&Arc<Store>, &Boot),
        outputs: &Arc<StepOutputs>,
        workdir: &str,
    ) {
        if let Err(error) = Box::pin(self.read_outputs(zygote, (store, boot), outputs, workdir)).await {
            outputs.failed(error.to_line());
        }
    }

    /// Copies the outputs of a step whose snapshot the store has.
    pub(crate) fn copy_snapshot_outputs<'a>(
        &'a self,
        ctx: &'a StepContext,
        snapshot: SnapshotRef,
    ) -> BoxFuture<'a, ()> {
        async move {
            let Some(outputs) = &ctx.outputs else { return };
            let copied = async {
                let store = self.store().map_err(failed("open the store"))?;
                let zygote = self.zygote(&store).await?;
                let source = ctx.frozen_source(&store).await.map_err(failed("freeze the source"))?;
                let snapshot = store.snapshots().get(&snapshot).map_err(failed("read the snapshot"))?;
                let base = snapshot.base.clone();
                let mut context = self.boot_context(&store, &zygote);
                // As the step saw them.
                if let Some(step) = &ctx.found_step {
                    context.hidden = Limits::of_args(step.runner_args.as_ref())?.ignore;
                }
                let boot = context.boot_over(&source, Some(snapshot), base, false, None).await?;
                self.read_outputs(&zygote, (&store, &boot), outputs, WORKDIR).await
            };
            if let Err(error) = copied.await {
                outputs.failed(error.to_line());
            }
        }
        .boxed()
    }

    async fn read_outputs(
        &self,
        zygote: &Zygote,
        (store, boot): (&Arc<Store>, &Boot),
        outputs: &Arc<StepOutputs>,
        workdir: &str,
    ) -> Result<(), RunnerError> {
        let mut scratch = Vec::with_capacity(1 + boot.caches.len());
        let mut over = |step: &Overlay| {
            let staging = store.stage().map_err(failed("make a layer to read the step's files"))?;
            let overlay = above(step, &staging)?;
            scratch.push(staging);
            Ok::<_, RunnerError>(overlay)
        };
        let root = over(&boot.root)?;
        let mut overlays = Vec::with_capacity(boot.caches.len());
        for cache in &boot.caches {
            let InnerOverlay { overlay, target } = cache.mount()?;
            overlays.push(InnerOverlay { overlay: over(&overlay)?, target });
        }
        let spec = JailSpec {
            binds: boot.binds.clone(),
            overlays,
            pack: Some(Pack::Matching { patterns: outputs.below_root(workdir), limits: LIMITS }),
            ..self.jail(zygote, store.dir(), Root::Overlay(root))?
        };
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let null = File::options().write(true).open("/dev/null")?;
        let is_complete = Arc::new(AtomicBool::new(false));
        let receiving = {
            let (outputs, is_complete, workdir) = (Arc::clone(outputs), Arc::clone(&is_complete), workdir.to_owned());
            let is_complete = move || is_complete.load(Ordering::Acquire);
            let receive = move || Ok(outputs.receive(File::from(read), &workdir, is_complete));
            RunnerError::blocking("copy the outputs", receive)
        };
        let sending = async {
            let fds = [write.as_fd(), null.as_fd()];
            let ended = attempt::run_on(zygote, &spec, StepNamespace::Loopback, &fds).await;
            is_complete.store(matches!(ended, Ok(Ok(End::Exited { code: 0 }))), Ordering::Release);
            // Only then does the reader see the end.
            drop(write);
            match ended {
                Ok(Ok(End::Exited { code: 0 })) => Ok(()),
                Ok(Ok(_)) => Err(io::Error::other("the process that reads them was killed").into()),
                Ok(Err(error)) => Err(attempt::setup_error(error)),
                Err(error) => Err(RunnerError::infrastructure("read the step's files", error)),
            }
        };
        let (received, sent) = tokio::join!(receiving, sending);
        if received? == Received::Failed { Ok(()) } else { sent }
    }
}

/// Returns an overlay that shows the files of `step`, which has ended, with a new layer over them.
///
/// The step's own overlay cannot be mounted again: it was volatile, and the kernel refuses such an upper
/// directory for ever, because after a crash nothing would say what is missing in it. As a lower directory it
/// is like any layer.
fn above(step: &Overlay, staging: &Staging) -> Result<Overlay, RunnerError> {
    let lowers = [&step.upper].into_iter().chain(&step.lowers).cloned().collect();
    Ok(Overlay { lowers, upper: c_path(&staging.upper())?, work: c_path(staging.work())? })
}
