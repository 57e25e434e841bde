//! One container: a step's command from its start to its snapshot.

mod helpers;
mod terminate;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bollard::{
    container::LogOutput,
    errors::Error,
    models::{ContainerConfig, ContainerCreateBody, HostConfig, HostConfigLogConfig},
    query_parameters::{AttachContainerOptionsBuilder, CommitContainerOptionsBuilder, CreateContainerOptionsBuilder},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    collect,
    connection::{BRIDGE, patient},
    container_image::{ContainerImage, MAX_LAYERS},
    error::{self, is_missing},
    inputs::InputVolume,
    outputs,
    processes::Processes,
    shared::{Connection, Shared},
    sweep::{remove_container, remove_image},
};
use crate::{
    image::ImageProgram,
    model::{SnapshotRef, StdStream},
    outputs::StepOutputs,
    runner::{
        Limits, Network, RunnerError,
        vm::{Command, Injection, NetworkRole, Output, Vm},
    },
    store::Store,
};

/// The variables of every step, unless its image or the step itself overrides them.
const DEFAULT_ENV: [(&str, &str); 3] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("CI", "true")];

/// The capability to see all packets of a network.
const RAW_SOCKETS: &str = "NET_RAW";

/// What services cannot write to: what Docker protects by default, and the files that containers in one
/// network have in common. Otherwise a service's image could decide where names lead in the step.
const READ_ONLY_FOR_SERVICES: [&str; 8] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/hostname",
];

/// The user of steps. Images have different users; steps run as root, as in the sandbox.
const USER: &str = "0:0";

/// A container. It exists at the daemon from [`exec`](Vm::exec) on.
#[derive(Debug)]
pub struct Container {
    shared: Arc<Shared>,
    connection: Connection,
    name: String,
    container_image: Arc<ContainerImage>,
    limits: Limits,
    /// The network that it shares with others, if it is not its own.
    joined: Option<Joined>,
    /// Counts the containers in the network that it holds for others. The receiver ends with the last of
    /// them.
    holds: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
    /// The files of other steps that its step gets.
    inputs: Option<Arc<InputVolume>>,
    /// Whether the container may exist at the daemon.
    may_exist: AtomicBool,
    /// Whether the daemon has said that it exists.
    created: AtomicBool,
    /// Whether its command has started.
    started: AtomicBool,
    /// Whether its command is to end.
    ending: AtomicBool,
    /// Whether its command, and so every process in it, has ended.
    ended: AtomicBool,
    /// The names of the step's own variables.
    env: OnceLock<BTreeSet<String>>,
}

/// A network that another container holds.
#[derive(Debug)]
struct Joined {
    holder: String,
    role: NetworkRole,
    /// Keeps the holder until this container is removed.
    _member: Option<mpsc::Sender<()>>,
}

impl Container {
    pub(super) fn new(
        shared: &Arc<Shared>,
        connection: &Connection,
        container_image: &Arc<ContainerImage>,
        limits: &Limits,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            connection: connection.clone(),
            name: format!("hm-{}", Uuid::new_v4().simple()),
            container_image: Arc::clone(container_image),
            limits: limits.clone(),
            joined: None,
            holds: None,
            inputs: None,
            may_exist: AtomicBool::new(false),
            created: AtomicBool::new(false),
            started: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            env: OnceLock::new(),
        }
    }

    fn body(&self, command: &Command<'_>) -> ContainerCreateBody {
        let mut env = BTreeMap::from(DEFAULT_ENV);
        let variables = self.container_image.env.iter().chain(command.env);
        env.extend(variables.map(|(name, value)| (name.as_str(), value.as_str())));
        // Variables that the daemon would inherit from the step that produced the image. In Docker, a name
        // without a value removes a variable.
        let stray = self.container_image.stray.iter().filter(|name| !env.contains_key(name.as_str())).cloned();
        let stray: Vec<_> = stray.collect();
        let cmd = argument(command.script, &stray);
        let env = env.into_iter().map(|(name, value)| format!("{name}={value}")).chain(stray).collect();
        let bytes = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let memory = self.limits.memory.map(|memory| bytes(memory.bytes));
        // A larger number would exceed any machine; the range is checked when the limits are read.
        #[expect(clippy::cast_possible_truncation, reason = "at most 4096e9")]
        let nano_cpus = self.limits.cpus.map(|cpus| (cpus.0 * 1e9) as i64);
        let network = match (&self.joined, self.limits.network) {
            (Some(Joined { holder, .. }), _) => format!("container:{holder}"),
            (None, Network::Host) => "host".to_owned(),
            // The daemon's default network: a network namespace for each container.
            (None, Network::Private) => BRIDGE.to_owned(),
            (None, Network::None) => "none".to_owned(),
        };
        let is_service = self.joined.as_ref().is_some_and(|joined| joined.role == NetworkRole::Service);
        let host_config = HostConfig {
            memory,
            // The limit for memory and swap together: no swap.
            memory_swap: memory,
            nano_cpus,
            pids_limit: self.limits.pids.map(|pids| bytes(pids.get())),
            network_mode: Some(network),
            cap_drop: is_service.then(|| vec![RAW_SOCKETS.to_owned()]),
            readonly_paths: is_service.then(|| READ_ONLY_FOR_SERVICES.map(str::to_owned).to_vec()),
            mounts: self.inputs.as_ref().map(|inputs| inputs.mounts.clone()),
            // Without an init process the command would be process 1, which signals do not end by default.
            init: Some(true),
            log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            image: Some(self.container_image.image.clone()),
            entrypoint: Some(vec!["/bin/sh".into(), "-c".into()]),
            cmd: Some(cmd),
            env: Some(env),
            working_dir: Some(command.workdir.to_owned()),
            user: Some(USER.into()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            labels: Some(self.labels()),
            host_config: Some(host_config),
            ..ContainerCreateBody::default()
        }
    }

    /// Creates the container, and returns its id.
    async fn create(&self, body: ContainerCreateBody) -> Result<String, RunnerError> {
        let options = CreateContainerOptionsBuilder::default().name(&self.name).build();
        self.may_exist.store(true, Relaxed);
        match self.connection.client.create_container(Some(options), body).await {
            Ok(created) => {
                self.created.store(true, Relaxed);
                Ok(created.id)
            }
            Err(error) => {
                if is_missing(&error) {
                    // The image was removed from outside: the next attempt makes it anew.
                    self.shared.forget(&self.container_image);
                }
                Err(error::daemon("create the container")(error))
            }
        }
    }

    async fn start(&self) -> Result<(), RunnerError> {
        let started = self.connection.client.start_container(&self.name, None).await;
        started.map_err(error::daemon("start the container"))
    }

    /// Returns the exit code of a container that has ended, or is about to.
    async fn exit_code(&self) -> Result<i32, RunnerError> {
        let client = patient(&self.connection.client);
        let mut waiting = pin!(client.wait_container(&self.name, None));
        let code = match waiting.next().await {
            Some(Ok(ended)) => ended.status_code,
            Some(Err(Error::DockerContainerWaitError { error, code })) if error.is_empty() => code,
            Some(Err(error)) => return Err(error::daemon("wait for the container")(error)),
            None => {
                let error = anyhow::anyhow!("the daemon reported no exit code");
                return Err(RunnerError::infrastructure("wait for the container", error));
            }
        };
        self.ended.store(true, Relaxed);
        if code != 0
            && let Some(memory) = self.limits.memory
        {
            let found = self.connection.client.inspect_container(&self.name, None).await;
            let state = found.map_err(error::daemon("look at the container"))?.state;
            if state.and_then(|state| state.oom_killed).unwrap_or(false) {
                return Err(RunnerError::out_of_memory(memory.bytes));
            }
        }
        i32::try_from(code).map_err(|error| RunnerError::infrastructure("read the exit code", error))
    }

    /// Returns the counter of the container's processes, if they are limited and this machine has the
    /// counter.
    async fn processes(&self, id: &str) -> Option<Processes> {
        self.limits.pids?;
        let state = self.connection.client.inspect_container(&self.name, None).await.ok()?.state?;
        Processes::of(id, state.pid.filter(|pid| *pid > 0)?)
    }

    /// Kills the processes that still run in the container.
    async fn kill(&self) -> Result<(), Error> {
        let client = &self.connection.client;
        match client.kill_container(&self.name, None).await {
            // The container ended by itself meanwhile.
            Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
            killed => killed,
        }?;
        match pin!(client.wait_container(&self.name, None)).next().await {
            Some(Err(error @ Error::DockerResponseServerError { .. })) => Err(error),
            _ => Ok(()),
        }
    }

    /// Commits the container's files as an image. The container is removed soon after, which is not waited
    /// for, because nothing runs in it any longer.
    async fn image(self) -> Result<ContainerImage, RunnerError> {
        if !self.ended.load(Relaxed) {
            self.kill().await.map_err(error::daemon("kill the container"))?;
        }
        let options = CommitContainerOptionsBuilder::default().container(&self.name).pause(false).build();
        let labels = Some(self.labels());
        let config = ContainerConfig { labels, ..ContainerConfig::default() };
        let committed = patient(&self.connection.client).commit_container(options, config).await;
        let image = committed.map_err(error::daemon("commit the container"))?.id;
        let none = BTreeSet::new();
        Ok(self.container_image.above(image, self.env.get().unwrap_or(&none)))
    }
}

/// Returns the arguments of `/bin/sh -c`: the command, without the variables in `stray`. Podman needs a shell
/// to remove those.
fn argument(script: &str, stray: &[String]) -> Vec<String> {
    let is_name = |name: &&String| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let names: Vec<&str> = stray.iter().filter(is_name).map(String::as_str).collect();
    if names.is_empty() {
        return vec![script.to_owned()];
    }
    vec![format!("unset {}; exec /bin/sh -c \"$0\"", names.join(" ")), script.to_owned()]
}

/// Completes when the container is refused a process. Never completes without a counter.
async fn refused_any(processes: Option<&Processes>) {
    match processes {
        Some(processes) => processes.refused().await,
        None => std::future::pending().await,
    }
}

/// The futures of a step, boxed: see `docs/design/runners.md`, section Compile time.
impl Container {
    fn boxed_exec<'a>(
        &'a self,
        command: &'a Command<'a>,
        output: &'a Output<'a>,
    ) -> BoxFuture<'a, Result<i32, RunnerError>> {
        async move {
            let _ = self.env.set(command.env.keys().cloned().collect());
            let id = output.booting(self.create(self.body(command))).await?;
            let options = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
            let attached = self.connection.client.attach_container(&self.name, Some(options)).await;
            let mut printed = attached.map_err(error::daemon("attach to the container"))?.output;
            if self.ending.load(Relaxed) {
                return Err(RunnerError::cancelled());
            }
            output.booting(self.start()).await?;
            self.started.store(true, Relaxed);
            output.started();
            if self.ending.load(Relaxed) {
                // It was asked for while the daemon started the container.
                self.boxed_terminate().await;
            }
            let processes = self.processes(&id).await;
            let mut refused = false;
            loop {
                let chunk = tokio::select! {
                    biased;
                    () = refused_any(processes.as_ref()), if !refused => {
                        refused = true;
                        continue;
                    }
                    chunk = printed.next() => chunk,
                };
                let Some(chunk) = chunk else { break };
                match chunk.map_err(error::daemon("read the container's output"))? {
                    LogOutput::StdErr { message } => output.write(StdStream::Stderr, &message).await,
                    LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        output.write(StdStream::Stdout, &message).await;
                    }
                    LogOutput::StdIn { .. } => {}
                }
            }
            refused = refused || processes.is_some_and(|processes| processes.were_refused());
            let code = self.exit_code().await?;
            match self.limits.pids {
                Some(limit) if refused && code != 0 => Err(RunnerError::too_many_processes(limit.get(), code)),
                _ => Ok(code),
            }
        }
        .boxed()
    }

    /// Ends the container, and copies the outputs of its step. The future is boxed as those of a step.
    pub(super) fn copy_outputs<'a>(
        &'a mut self,
        outputs: &'a Arc<StepOutputs>,
        workdir: &'a str,
    ) -> BoxFuture<'a, Result<(), RunnerError>> {
        async move {
            if !*self.ended.get_mut() {
                self.kill().await.map_err(error::daemon("kill the container"))?;
                *self.ended.get_mut() = true;
            }
            outputs::copy(&self.connection.client, &self.name, outputs, workdir).await
        }
        .boxed()
    }

    fn boxed_snapshot(self) -> BoxFuture<'static, Result<String, RunnerError>> {
        async move {
            let shared = Arc::clone(&self.shared);
            let container_image = self.image().await?;
            let name = container_image.image.clone();
            shared.keep(container_image);
            Ok(name)
        }
        .boxed()
    }

    fn boxed_commit(self, store: &Arc<Store>) -> BoxFuture<'_, Result<SnapshotRef, RunnerError>> {
        async move {
            let (shared, client, below) =
                (Arc::clone(&self.shared), self.connection.client.clone(), Arc::clone(&self.container_image));
            let base = shared.base_in_store(&client, store, &below).await?;
            let container_image = self.image().await?;
            let saved = collect::save(&client, store, &container_image.image).await?;
            let name = collect::snapshot(saved, &below, base.clone(), store).await?;
            let snapshot = store.snapshots().get(&name).map_err(error::store("read the snapshot"))?;
            if container_image.layer_count() > MAX_LAYERS {
                // A child loads the image anew, with the layers that the store has merged.
                if let Err(error) = remove_image(&client, &container_image.image).await {
                    tracing::debug!(%error, "an image is kept until the end of the build");
                }
            } else {
                shared.put(&name, container_image, base, &snapshot);
            }
            Ok(name)
        }
        .boxed()
    }

    fn boxed_destroy(mut self) -> BoxFuture<'static, ()> {
        async move {
            if *self.ended.get_mut() || !*self.may_exist.get_mut() {
                // Nothing runs in the container, so its removal is not waited for.
                return;
            }
            match remove_container(&self.connection.client, &self.name).await {
                // Otherwise the daemon may still be creating it.
                Ok(()) => *self.may_exist.get_mut() = !*self.created.get_mut(),
                Err(error) => tracing::debug!(%error, "failed to remove a container at once"),
            }
        }
        .boxed()
    }
}

impl Vm for Container {
    /// Fails, because a container gets its source as a layer of its image.
    async fn inject(&mut self, _: Injection) -> Result<(), RunnerError> {
        Err(RunnerError::unsupported("the snapshot was made on another source, in a run that has ended"))
    }

    fn join(&mut self, holder: &Self, role: NetworkRole) {
        let member = holder.holds.as_ref().map(|(member, _)| member.clone());
        self.joined = Some(Joined { holder: holder.name.clone(), role, _member: member });
    }

    fn program(&self) -> Option<ImageProgram> {
        self.container_image.program.clone()
    }

    async fn exec(&self, command: &Command<'_>, output: &Output<'_>) -> Result<i32, RunnerError> {
        self.boxed_exec(command, output).await
    }

    /// Sends TERM from within the container. The daemon would send a signal only to the first process, which
    /// forwards it only to the command's shell.
    async fn terminate(&self) {
        self.boxed_terminate().await
    }

    fn wants_commit(&self) -> bool {
        self.container_image.layer_count() >= MAX_LAYERS
    }

    async fn snapshot(self) -> Result<String, RunnerError> {
        self.boxed_snapshot().await
    }

    async fn commit(self, store: &Arc<Store>) -> Result<SnapshotRef, RunnerError> {
        self.boxed_commit(store).await
    }

    async fn destroy(self) {
        self.boxed_destroy().await
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if *self.may_exist.get_mut() {
            let (client, name) = (self.connection.client.clone(), std::mem::take(&mut self.name));
            let what = format!("remove container {name}, which is left to the end of the build or the next run");
            let (joined, holds) = (self.joined.take(), self.holds.take());
            self.shared.cleanup.run(what, async move {
                if let Some((own, mut members)) = holds {
                    drop(own);
                    // Podman removes no container whose network others have.
                    while members.recv().await.is_some() {}
                }
                let removed = remove_container(&client, &name).await;
                drop(joined);
                removed
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::argument;

    #[test]
    fn variables_of_other_steps_are_taken_away_where_a_shell_can() {
        assert_eq!(argument("echo \"$0\"", &[]), ["echo \"$0\""]);
        let stray = ["A".to_owned(), "x.y".to_owned(), "_b2".to_owned(), "2c".to_owned(), "a b".to_owned()];
        assert_eq!(argument("true", &stray), ["unset A _b2; exec /bin/sh -c \"$0\"", "true"]);
    }
}
