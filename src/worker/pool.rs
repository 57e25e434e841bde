//! A worker: its slots, and how it is stopped.

use std::num::NonZeroUsize;

use futures_util::{
    FutureExt,
    future::{self, LocalBoxFuture},
};
use tokio_util::sync::CancellationToken;

use super::{
    lease::LeaseRunner,
    rwapi,
    session::{Slot, WorkerNotes, serve},
};
use crate::{
    remote::Endpoint,
    runner::{RunnerError, sandbox::SandboxRunner},
};

/// The options of a worker.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The engine, which provides leases and blobs.
    pub engine: Endpoint,
    /// The service that takes the commands' output while they run, if it is not the engine itself.
    pub logs: Option<Endpoint>,
    /// The maximum number of concurrent leases.
    pub slots: NonZeroUsize,
    /// The worker's name, which must be unique. If a worker reconnects under the same name, the engine knows
    /// that its old leases are lost.
    pub name: String,
    /// The properties that Actions may require, such as `pool` and `large`.
    pub platform: Vec<(String, String)>,
}

/// A handle to stop a worker. Clones refer to the same worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerStop {
    drain: CancellationToken,
    cancel: CancellationToken,
}

impl WorkerStop {
    /// Makes the worker accept no more leases, and end when the running ones have ended.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Also cancels running leases. The engine assigns them to other workers.
    pub fn cancel(&self) {
        self.drain.cancel();
        self.cancel.cancel();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub(super) async fn draining(&self) {
        self.drain.cancelled().await;
    }
}

/// A worker for an engine that assigns work by the Remote Workers API.
#[derive(Debug)]
pub struct Worker {
    options: WorkerOptions,
    leases: LeaseRunner,
}

impl Worker {
    /// Creates a worker that runs steps in `sandbox`.
    ///
    /// # Errors
    /// Returns an error if the sandbox does not work here.
    pub async fn new(options: WorkerOptions, sandbox: SandboxRunner) -> Result<Self, RunnerError> {
        sandbox.ready().await?;
        let logs = options.logs.clone().unwrap_or_else(|| options.engine.clone());
        let leases = LeaseRunner::new(sandbox, &options.engine, logs, options.name.clone());
        Ok(Self { options, leases })
    }

    /// Works until it is stopped. Waits for an engine that becomes unreachable.
    ///
    /// # Cancel safety
    /// If the future is dropped, every process of every lease is killed; the engine detects this by itself.
    pub async fn run(&self, stop: &WorkerStop, notes: &impl WorkerNotes) {
        self.boxed_run(stop, notes).await;
    }

    fn boxed_run<'a>(&'a self, stop: &'a WorkerStop, notes: &'a dyn WorkerNotes) -> LocalBoxFuture<'a, ()> {
        async move {
            let slots: Vec<Slot> = (1..=self.options.slots.get()).map(|number| self.slot(number)).collect();
            future::join_all(slots.iter().map(|slot| serve(slot, &self.options.engine, &self.leases, stop, notes)))
                .await;
        }
        .boxed_local()
    }

    fn slot(&self, number: usize) -> Slot {
        let property =
            |(key, value): &(String, String)| rwapi::device::Property { key: key.clone(), value: value.clone() };
        let device = rwapi::Device {
            handle: self.options.name.clone(),
            properties: self.options.platform.iter().map(property).collect(),
        };
        let worker = rwapi::Worker { devices: vec![device], ..rwapi::Worker::default() };
        Slot { number, bot_id: format!("{}.{number}", self.options.name), worker }
    }
}
