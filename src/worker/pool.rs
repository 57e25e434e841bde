//! A worker: its slots, and how it is stopped.

use std::num::NonZeroUsize;

use futures_util::future;
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

/// What a worker is to the engine.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The engine: leases, blobs.
    pub engine: Endpoint,
    /// Who takes what commands print while they run; the engine itself where nobody else does.
    pub logs: Option<Endpoint>,
    /// Leases at a time.
    pub slots: NonZeroUsize,
    /// The worker's name, unlike any other's. One that comes back under its old name is known to have lost its leases.
    pub name: String,
    /// What Actions may ask for, as in `pool` and `large`.
    pub platform: Vec<(String, String)>,
}

/// How a worker is stopped. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    drain: CancellationToken,
    cancel: CancellationToken,
}

impl Stop {
    /// Takes no more leases, and ends when those that are being run did.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends those that are being run, too. The engine gives them to others.
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

/// A worker for an engine that hands out work by the Remote Workers API.
#[derive(Debug)]
pub struct Worker {
    options: WorkerOptions,
    leases: LeaseRunner,
}

impl Worker {
    /// A worker that runs steps in `sandbox`.
    ///
    /// # Errors
    /// Where the sandbox does not work here.
    pub async fn new(options: WorkerOptions, sandbox: SandboxRunner) -> Result<Self, RunnerError> {
        sandbox.ready().await?;
        let logs = options.logs.clone().unwrap_or_else(|| options.engine.clone());
        let leases = LeaseRunner::new(sandbox, &options.engine, logs, options.name.clone());
        Ok(Self { options, leases })
    }

    /// Works until it is stopped. An engine that goes away is waited for.
    ///
    /// # Cancel safety
    /// Dropped, every process of every lease is killed; the engine finds out by itself.
    pub async fn run(&self, stop: &Stop, notes: &impl WorkerNotes) {
        let slots: Vec<Slot> = (1..=self.options.slots.get()).map(|number| self.slot(number)).collect();
        future::join_all(slots.iter().map(|slot| serve(slot, &self.options.engine, &self.leases, stop, notes))).await;
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
