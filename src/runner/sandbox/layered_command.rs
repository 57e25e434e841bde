//! A command over a stack of directories: a step of which this machine knows only its files.

use crate::image;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    attempt::{self, Control, Order, OutputSink},
    boot::{MOUNT_POINTS, failed},
    exit_code::exit_code,
    jail::{self, End, JailSpec, Root},
    overlay_pool::overlay,
    own_network::StepNamespace,
    runner::SandboxRunner,
    step_spec::{c_string, environment},
};
use crate::{
    ir::Env,
    runner::{Limits, Network, RunnerError},
    store::{IdMap, Staging, Store, StoreError, tree},
};

/// A command to run, and the directories below it.
#[derive(Debug)]
pub(crate) struct LayeredCommand<'a> {
    /// The directories of files, topmost first. What every root filesystem needs is put below them.
    pub(crate) lowers: &'a [PathBuf],
    /// The command, which `/bin/sh -c` runs.
    pub(crate) command: &'a str,
    /// The environment, except for `PATH` and `HOME`, which have defaults.
    pub(crate) env: &'a Env,
    /// The directory where the command starts.
    pub(crate) workdir: &'a str,
    /// The limits of the command.
    pub(crate) limits: &'a Limits,
}

/// A command that ended. Dropping this discards the command's writes.
#[derive(Debug)]
pub(crate) struct LayeredEnd {
    /// The exit code, or why there is none: [`RunnerError::cancelled`] if the command was interrupted.
    pub(crate) ended: Result<i32, RunnerError>,
    staging: Staging,
}

impl LayeredEnd {
    /// Returns the directory with the command's changes, or `None` if it changed nothing.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be examined.
    pub(crate) fn layer(&self) -> Result<Option<PathBuf>, StoreError> {
        Ok(if self.staging.prune()? { None } else { Some(self.staging.upper()) })
    }
}

impl SandboxRunner {
    /// Returns the store, and how ids are mapped in steps here. Starts the helper if it is not running.
    ///
    /// # Errors
    /// Returns an error if there is no store, or no sandbox.
    pub(crate) async fn ready(&self) -> Result<(Arc<Store>, IdMap), RunnerError> {
        let store = self.store().map_err(|error| RunnerError::infrastructure("open the store", error))?;
        let zygote = self.zygote(&store).await?;
        let id_map = zygote.id_map();
        Ok((store, id_map))
    }

    /// Runs a command over a stack of directories, which stay unchanged, until its last process is dead.
    ///
    /// # Errors
    /// Returns an error if the sandbox cannot be set up. The result of the command is in
    /// [`LayeredEnd::ended`].
    ///
    /// # Cancel safety
    /// If the future is dropped, every process of the command gets SIGKILL.
    pub(crate) async fn run_layered(
        &self,
        step: LayeredCommand<'_>,
        control: Control<'_>,
        sink: &impl OutputSink,
    ) -> Result<LayeredEnd, RunnerError> {
        let store = self.store().map_err(|error| RunnerError::infrastructure("open the store", error))?;
        let zygote = self.zygote(&store).await?;
        let base_layer = image::base_layer(&store, zygote.id_map()).map_err(failed("make the lowest layer"))?;
        let mut seen = BTreeSet::new();
        let base_layer = [store.layers().dir(&base_layer)];
        // An overlay rejects a duplicate directory. The higher occurrence hides the lower one, so the lower
        // one can be dropped.
        let lowers: Vec<PathBuf> =
            step.lowers.iter().chain(&base_layer).filter(|it| seen.insert(*it)).cloned().collect();
        let staging = store.stage().map_err(failed("make the step's layer"))?;
        for name in MOUNT_POINTS {
            if !tree::topmost(&lowers, Path::new(name)).is_some_and(|metadata| metadata.is_dir()) {
                staging.premake(Path::new(name), &[]).map_err(failed("make the step's layer"))?;
            }
        }
        let root = overlay(&lowers, &staging.upper(), staging.work())?;
        let limited = self.hold(step.limits);
        let spec = JailSpec {
            binds: jail::resolver(&lowers).into_iter().collect(),
            shares_network: step.limits.network == Network::Host,
            cgroups: limited.procs(),
            group_views: limited.views(),
            watch: limited.watch(),
            memory_bytes: step.limits.memory.map(|memory| memory.bytes),
            workdir: c_string("the work directory", step.workdir)?,
            argv: vec![c"/bin/sh".into(), c"-c".into(), c_string("the command", step.command)?],
            env: environment(&Env::new(), step.env)?,
            ..self.jail(&zygote, store.dir(), Root::Overlay(root))?
        };
        // An engine's steps have no network of their own but the loopback device.
        let namespace = StepNamespace::of(step.limits, None);
        let ended = attempt::run(&zygote, Order { spec: &spec, network: namespace, trace: None }, control, sink).await;
        let ended = ended.and_then(|ended| match ended.end {
            End::Interrupted => Err(RunnerError::cancelled()),
            end => exit_code(&end, step.limits, &limited),
        });
        Ok(LayeredEnd { ended, staging })
    }
}
