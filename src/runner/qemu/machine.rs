//! One machine: from a template to the end of a step.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use serde_json::json;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    channel::{self, Orders, Words},
    error::{NoMachine, ResultExt},
    launch::{FILES_CHARDEV, Host, Launch, Launched, Log},
    qmp::Qmp,
    template::{Template, attend, capabilities},
};
use crate::{
    blocking,
    guest::{self, Ended, Job, Order, Word},
    model::{SnapshotRef, StdStream},
    runner::{
        Limits, RunnerError,
        sandbox::{Files, ProgramNetwork, Serving, c_string},
        vm::{Command, Injection, Output, Vm},
    },
    store::Store,
};

/// How long a copy of a template may take until it runs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A machine that waits for its step, or runs it. Dropping it kills the machine.
#[derive(Debug)]
pub struct Machine {
    // Declared before the files that it serves, so that it ends first.
    serving: Mutex<Option<Serving>>,
    words: Mutex<Words>,
    orders: Mutex<Orders>,
    log: Log,
    files: Files,
    memory_limit: u64,
    limits: Limits,
    /// The control channel. QEMU does not end when it is closed, but logs that.
    _qmp: Qmp,
}

impl Machine {
    /// Creates a machine from a template, with a step's files.
    pub(super) async fn start(
        Host { local, store, programs }: Host<'_>,
        template: &Template,
        files: Files,
        (limits, network): (&Limits, ProgramNetwork),
    ) -> Result<Self, NoMachine> {
        let copied = template.clone();
        let copied =
            blocking::run("copy a template", move || Ok::<_, io::Error>((copied.memory()?, copied.state()?))).await;
        let (memory, state) = copied.doing("copy a template")?;
        let launch = Launch {
            programs,
            accelerator: template.accelerator,
            size: template.size,
            initrd: &template.initrd(),
            memory,
            state: Some(state),
            files: Some(&files),
            network,
        };
        let Launched { mut serving, guest, qmp, log, state } = launch.start(local, store).await?;
        let restoring = async {
            let mut qmp = Qmp::open(qmp).await?;
            qmp.run("migrate-set-capabilities", capabilities()).await?;
            qmp.run("migrate-incoming", json!({ "uri": state })).await?;
            qmp.migrated().await?;
            let device =
                json!({ "driver": "vhost-user-fs-pci", "id": "files", "chardev": FILES_CHARDEV, "tag": guest::FILES });
            qmp.run("device_add", device).await?;
            qmp.run("cont", json!({})).await?;
            Ok(qmp)
        };
        let qmp = attend(&mut serving, &log, PATIENCE, restoring).await?;
        let (words, orders) = channel::split(guest);
        Ok(Self {
            serving: Mutex::new(Some(serving)),
            words: Mutex::new(words),
            orders: Mutex::new(orders),
            log,
            files,
            memory_limit: template.size.memory_limit(limits),
            limits: limits.clone(),
            _qmp: qmp,
        })
    }

    fn job(&self, command: &Command<'_>) -> Result<Job, RunnerError> {
        // The bytes are random except for a few version bits of the UUIDs.
        let mut seed = [0; 32];
        for half in seed.chunks_exact_mut(16) {
            half.copy_from_slice(Uuid::new_v4().as_bytes());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 4096e6, and above zero")]
        let micro_cpus = self.limits.cpus.map(|cpus| (cpus.0 * 1e6) as u64);
        Ok(Job {
            script: c_string("the command", command.script)?,
            env: self.files.environment(command.env)?,
            workdir: c_string("the work directory", command.workdir)?,
            memory_bytes: self.memory_limit,
            pids: self.limits.pids.map(std::num::NonZeroU64::get),
            micro_cpus,
            now_nanos: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            seed,
        })
    }

    /// Forwards the guest's output until the guest reports the end of the command.
    async fn listen(&self, output: &Output<'_>) -> Result<i32, RunnerError> {
        let mut words = self.words.lock().await;
        loop {
            let word = words.next().await;
            match word.map_err(|source| NoMachine::Guest { source, log: self.log.tail() })? {
                Word::Output { stderr, bytes } => {
                    let stream = if stderr { StdStream::Stderr } else { StdStream::Stdout };
                    output.write(stream, &bytes).await;
                }
                Word::Ended(Ended::Exited(code)) => return Ok(code),
                Word::Ended(Ended::OutOfMemory) => return Err(RunnerError::out_of_memory(self.memory_limit)),
                Word::Ended(Ended::TooManyProcesses(code)) => {
                    let limit = self.limits.pids.map_or(0, std::num::NonZeroU64::get);
                    return Err(RunnerError::too_many_processes(limit, code));
                }
                Word::Ended(Ended::Killed) => {
                    let error = io::Error::other("its first process was killed");
                    return Err(RunnerError::infrastructure("keep the step running", error));
                }
                Word::Failed(why) => {
                    return Err(RunnerError::infrastructure("run the step", io::Error::other(why)));
                }
                Word::Ready { .. } => {
                    return Err(RunnerError::infrastructure("run the step", io::Error::other("the machine rebooted")));
                }
            }
        }
    }

    /// Ends the machine. Returns the files of its step.
    pub(super) async fn stop(&mut self) -> &Files {
        if let Some(serving) = self.serving.get_mut().take() {
            serving.end().await;
        }
        &self.files
    }

    async fn end(mut self) -> Files {
        self.stop().await;
        self.files
    }
}

/// The futures of a step, boxed: see `docs/design/runners.md`, section Compile time.
impl Machine {
    fn boxed_exec<'a>(
        &'a self,
        command: &'a Command<'a>,
        output: &'a Output<'a>,
    ) -> BoxFuture<'a, Result<i32, RunnerError>> {
        async move {
            let order = Order::Run(Box::new(self.job(command)?));
            let running = async {
                let given = self.orders.lock().await.give(&order).await;
                given.map_err(|source| NoMachine::Guest { source, log: self.log.tail() })?;
                self.listen(output).await
            };
            let mut serving = self.serving.lock().await;
            let machine = async {
                match &mut *serving {
                    Some(serving) => serving.ended().await,
                    None => "it was stopped".into(),
                }
            };
            tokio::select! {
                biased;
                ended = running => ended,
                how = machine => Err(NoMachine::Ended { how, log: self.log.tail() }.into()),
            }
        }
        .boxed()
    }

    fn boxed_commit(self, store: &Arc<Store>) -> BoxFuture<'_, Result<SnapshotRef, RunnerError>> {
        async move { self.end().await.commit(store).await }.boxed()
    }
}

impl Vm for Machine {
    async fn inject(&mut self, _: Injection) -> Result<(), RunnerError> {
        Err(RunnerError::unsupported("a machine already has the source, which is a bug in hm"))
    }

    async fn exec(&self, command: &Command<'_>, output: &Output<'_>) -> Result<i32, RunnerError> {
        self.boxed_exec(command, output).await
    }

    async fn terminate(&self) {
        // If the order cannot be sent, the machine is killed when its grace is over.
        if let Err(error) = self.orders.lock().await.give(&Order::Terminate).await {
            tracing::debug!(%error, "failed to pass TERM on to a machine");
        }
    }

    async fn snapshot(self) -> Result<String, RunnerError> {
        drop(self.end().await);
        Err(RunnerError::unsupported("a machine's files are already a layer of the store, which is a bug in hm"))
    }

    fn wants_commit(&self) -> bool {
        true
    }

    async fn commit(self, store: &Arc<Store>) -> Result<SnapshotRef, RunnerError> {
        self.boxed_commit(store).await
    }

    async fn destroy(self) {
        drop(self.end().await);
    }
}
