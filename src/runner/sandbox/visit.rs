//! Visits to a step's kept filesystem: a process in a jail like the step's own, whose changes are discarded.
//!
//! The input is a kept snapshot, the source it saw, and what to do there. The output is an exit code, and
//! whatever the process wrote to its streams. This module knows neither runs nor terminal settings.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{
    SandboxRunner, attempt,
    jail::{End, JailSpec, Pack, Root, SetupError},
    overlay_pool::c_path,
    own_network::StepNamespace,
    step_spec::{c_string, environment},
};
use crate::{
    model::SnapshotRef,
    network::resolver_config,
    runner::{Limits, Network, RunnerError},
    source::FrozenSource,
    store::SnapshotConfig,
};

/// The operation to perform over a snapshot.
#[derive(Debug)]
#[non_exhaustive]
pub enum VisitOperation<'a> {
    /// Runs a program with a step's surroundings.
    Run {
        /// The program's path and its arguments.
        argv: &'a [String],
        /// The step's surroundings. Its secrets are not available.
        surroundings: &'a SnapshotConfig,
        /// Variables that override the step's own.
        env: &'a [(String, String)],
    },
    /// Writes the tree at a path to standard output: see [`tree::pack`](crate::store::tree::pack).
    Pack {
        /// The path: absolute, in the step's root.
        path: PathBuf,
    },
    /// Writes the file or directory at a path to standard output, without owners and times: see
    /// [`tree::pack_plain`](crate::store::tree::pack_plain).
    PackPlain {
        /// The path: absolute, in the step's root.
        path: PathBuf,
    },
}

/// The streams of a visitor.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "a process has three streams")]
pub struct Streams {
    /// Standard input; if it is `None`, there is nothing to read.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// Whether all three are a terminal, which becomes the visitor's controlling one.
    pub terminal: bool,
}

/// A visit for [`SandboxRunner::visit`] to make.
#[derive(Debug)]
#[non_exhaustive]
pub struct Visit<'a> {
    /// The snapshot, kept and under lease.
    pub snapshot: &'a SnapshotRef,
    /// The source: the one that the snapshot saw, or another one, whose changes are then visible.
    pub source: &'a FrozenSource,
    /// The operation to perform.
    pub operation: VisitOperation<'a>,
}

impl<'a> Visit<'a> {
    /// Describes a visit.
    #[must_use]
    pub fn new(snapshot: &'a SnapshotRef, source: &'a FrozenSource, operation: VisitOperation<'a>) -> Self {
        Self { snapshot, source, operation }
    }
}

/// Why a visit failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisitError {
    /// The sandbox cannot be set up.
    #[error("failed to make the sandbox")]
    Sandbox(#[source] RunnerError),
    /// The visitor failed to perform the operation.
    #[error("failed to {doing}")]
    Operation {
        /// The failed operation: completes "failed to ...".
        doing: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl SandboxRunner {
    /// Makes a visit to a step's filesystem, and returns the visitor's exit code: 128+n after signal n.
    /// Returns when no process of the visit is left.
    ///
    /// # Errors
    /// Returns an error if the sandbox cannot be set up, or if the operation fails.
    ///
    /// # Cancel safety
    /// If the future is dropped, every process of the visit gets SIGKILL.
    pub async fn visit(&self, visit: Visit<'_>, streams: Streams) -> Result<i32, VisitError> {
        self.boxed_visit(visit, streams).await
    }

    fn boxed_visit<'a>(&'a self, visit: Visit<'a>, streams: Streams) -> BoxFuture<'a, Result<i32, VisitError>> {
        async move {
            let failed =
                |doing: &'static str| move |error: io::Error| sandbox(RunnerError::infrastructure(doing, error));
            let store = self
                .store()
                .map_err(|error| VisitError::Sandbox(RunnerError::infrastructure("open the store", error)))?;
            let zygote = self.zygote(&store).await.map_err(|error| VisitError::Sandbox(error.into()))?;
            let snapshot = store
                .snapshots()
                .get(visit.snapshot)
                .map_err(|error| sandbox(RunnerError::infrastructure("read the snapshot", error)))?;
            let base = snapshot.base.clone();
            let context = self.boot_context(&store, &zygote);
            let boot = context.boot_over(visit.source, Some(snapshot), base, false, None).await.map_err(sandbox)?;
            let mut spec = JailSpec {
                binds: boot.binds.clone(),
                terminal: streams.terminal,
                ..self.jail(&zygote, store.dir(), Root::Overlay(boot.root.clone())).map_err(sandbox)?
            };
            let limits = match visit.operation {
                VisitOperation::Pack { path } => {
                    spec.pack = Some(Pack::Path(c_path(&path).map_err(sandbox)?));
                    Limits { network: Network::None, ..Limits::default() }
                }
                VisitOperation::PackPlain { path } => {
                    spec.pack = Some(Pack::Plain(c_path(&path).map_err(sandbox)?));
                    Limits { network: Network::None, ..Limits::default() }
                }
                VisitOperation::Run { argv, surroundings, env } => {
                    let mut all = (*surroundings.env).clone();
                    all.extend(env.iter().cloned());
                    spec.env = environment(&boot.env, &all).map_err(sandbox)?;
                    let argv = argv.iter().map(|arg| c_string("an argument", arg.as_bytes()));
                    spec.argv = argv.collect::<Result<_, _>>().map_err(sandbox)?;
                    Limits::of_args(surroundings.runner_args.as_ref()).map_err(sandbox)?
                }
            };
            let network = self.network(&zygote, &limits, Box::new(|_| ())).await.map_err(sandbox)?;
            spec.resolver = network.is_some().then(resolver_config);
            spec.shares_network = limits.network == Network::Host;
            let namespace = StepNamespace::of(&limits, network.as_ref());
            let fds: Vec<_> =
                [&streams.stdout, &streams.stderr].into_iter().chain(&streams.stdin).map(AsFd::as_fd).collect();
            let ended = attempt::run_on(&zygote, &spec, namespace, &fds).await.map_err(failed("keep it running"))?;
            match ended {
                Ok(End::Exited { code }) => Ok(code),
                Ok(_) => Ok(128 + 9),
                Err(SetupError { doing, errno }) => {
                    Err(VisitError::Operation { doing, source: io::Error::from_raw_os_error(errno) })
                }
            }
        }
        .boxed()
    }
}

fn sandbox(error: RunnerError) -> VisitError {
    VisitError::Sandbox(error)
}
