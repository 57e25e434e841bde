//! A command over a stack of directories: a step of which this machine knows nothing but its files.

use std::{
    collections::BTreeSet,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    attempt::{self, Control, End, OutputSink},
    boot::{MOUNT_POINTS, failed},
    jail::{self, JailSpec, Place, Root},
    overlays::overlay,
    runner::{SandboxRunner, c_string, environment, exit_code, unusable},
};
use crate::{
    ir::Env,
    runner::{Limits, Network, RunnerError},
    store::{IdMap, Staging, Store, StoreError, tree},
};

/// What to run, and over what.
#[derive(Debug)]
pub(crate) struct StackStep<'a> {
    /// Directories of files, topmost first. What every root filesystem needs is put below them.
    pub(crate) lowers: &'a [PathBuf],
    /// Run by `/bin/sh -c`.
    pub(crate) command: &'a str,
    /// Its environment, but for `PATH` and `HOME` where nobody sets them.
    pub(crate) env: &'a Env,
    /// Where it starts.
    pub(crate) workdir: &'a str,
    /// What it may use.
    pub(crate) limits: &'a Limits,
}

/// A command that ended. What it wrote goes with this.
#[derive(Debug)]
pub(crate) struct StackEnd {
    /// Its exit code, or why there is none: [`RunnerError::cancelled`] where it was interrupted.
    pub(crate) ended: Result<i32, RunnerError>,
    staging: Staging,
}

impl StackEnd {
    /// The directory that has what the command changed, where it changed anything.
    ///
    /// # Errors
    /// Where it can't be looked at.
    pub(crate) fn layer(&self) -> Result<Option<PathBuf>, StoreError> {
        Ok(if self.staging.prune()? { None } else { Some(self.staging.upper()) })
    }
}

impl SandboxRunner {
    /// The store, and how ids are mapped in steps here; the helper runs from now on.
    ///
    /// # Errors
    /// Where there is no store, or no sandbox.
    pub(crate) async fn ready(&self) -> Result<(Arc<Store>, IdMap), RunnerError> {
        let store = self.store().map_err(|error| RunnerError::infrastructure("open the store", error))?;
        let zygote = self.zygote(&store).await.map_err(unusable)?;
        let id_map = zygote.id_map();
        Ok((store, id_map))
    }

    /// Runs a command over a stack of directories that stay as they are, to the death of the last process that it left.
    ///
    /// # Errors
    /// Where the sandbox can't be made. What became of the command is in [`StackEnd::ended`].
    ///
    /// # Cancel safety
    /// Dropped, every process of it gets SIGKILL.
    pub(crate) async fn run_stack(
        &self,
        step: StackStep<'_>,
        control: Control<'_>,
        sink: &impl OutputSink,
    ) -> Result<StackEnd, RunnerError> {
        let store = self.store().map_err(|error| RunnerError::infrastructure("open the store", error))?;
        let zygote = self.zygote(&store).await.map_err(unusable)?;
        let ground = store.ground_layer(zygote.id_map()).map_err(failed("make the lowest layer"))?;
        let mut seen = BTreeSet::new();
        let ground = [store.layer_dir(&ground)];
        // An overlay takes no directory twice; what lies higher hides what lies lower.
        let lowers: Vec<PathBuf> = step.lowers.iter().chain(&ground).filter(|it| seen.insert(*it)).cloned().collect();
        let staging = store.stage().map_err(failed("make the step's layer"))?;
        for name in MOUNT_POINTS {
            if !tree::topmost(&lowers, Path::new(name)).is_some_and(|metadata| metadata.is_dir()) {
                staging.premake(Path::new(name), &[]).map_err(failed("make the step's layer"))?;
            }
        }
        let root = overlay(&lowers, &staging.upper(), staging.work())?;
        let limited = self.hold(step.limits);
        let spec = JailSpec {
            user_namespace: zygote.user_namespace(),
            mount_api: self.mount_api(),
            mountpoint: c_string("the store's path", store.dir().as_os_str().as_bytes())?,
            root: Root::Overlay(root),
            place: Place::Root,
            binds: jail::resolver(&lowers).into_iter().collect(),
            secrets: Vec::new(),
            shares_network: step.limits.network == Network::Host,
            cgroups: limited.procs(),
            group_views: limited.views(),
            watch: limited.watch(),
            memory_bytes: step.limits.memory.map(|memory| memory.bytes),
            workdir: c_string("the work directory", step.workdir)?,
            argv: vec![c"/bin/sh".into(), c"-c".into(), c_string("the command", step.command)?],
            pack: None,
            terminal: false,
            env: environment(&Env::new(), step.env)?,
        };
        let isolate_network = step.limits.network == Network::None;
        let ended = attempt::run(&zygote, &spec, isolate_network, control, sink).await;
        let ended = ended.and_then(|end| match end {
            End::Interrupted => Err(RunnerError::cancelled()),
            end => exit_code(&end, step.limits, &limited),
        });
        Ok(StackEnd { ended, staging })
    }
}
