//! The execution of one lease: from the Action in its payload to its result.

use std::{
    fs::{self, DirBuilder},
    num::NonZeroU64,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bazel_remote_apis::google::protobuf::Timestamp;
use prost::Message;
use prost_types::Any;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    bots::Streams,
    inputs::{InputError, TreeEntry, digest_of, look_up, message},
    lease_error::{LeaseError, status_of},
    live_log, rpc,
    rwapi::Lease,
    session::{Completed, Execute},
    spool::Spool,
    workspace::Workspaces,
};
use crate::{
    awake, blocking,
    image::{self, ImageError},
    remote::{Blob, Cas, Digest, DigestFunction, Endpoint, reapi},
    runner::{
        Cpus, Limits, MemorySize, Network, RunnerErrorKind,
        sandbox::{Control, LayeredCommand, SandboxRunner},
    },
    step::{self, Exit, LayerOutput, Lower, StepInput},
    store::{BlobFile, IdMap, ImageDigest, Store},
};

/// The command of every Action that this worker runs.
const COMMAND: [&str; 2] = ["./hm-step", "input.json"];
const ACTION: &str = "build.bazel.remote.execution.v2.Action";
const ACTION_RESULT: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ActionResult";
/// The maximum size of an input message.
const INPUT_BYTES: u64 = 16 << 20;
/// The maximum size of output that is part of the result itself.
const INLINE_BYTES: u64 = 32 << 10;
/// How long copying the last output to the live log may take.
const LOG_GRACE: Duration = Duration::from_secs(5);
/// The maximum time between SIGTERM and SIGKILL.
const LONGEST_GRACE: Duration = Duration::from_secs(60);

/// Runs leases in the sandbox.
#[derive(Debug)]
pub(super) struct LeaseRunner {
    sandbox: SandboxRunner,
    cas: Cas,
    /// The service to which log streams are written.
    logs: Endpoint,
    workspaces: Workspaces,
    name: String,
}

/// Where a step runs: the store with its layers, and the files for its output.
struct Host<'a> {
    store: &'a Arc<Store>,
    id_map: IdMap,
    spool: &'a Spool,
}

/// An Action that this worker can run, and the contents of its Command.
struct Task {
    input: StepInput,
    root: reapi::Directory,
    timeout: Option<Duration>,
}

impl Execute for LeaseRunner {
    async fn execute(&self, lease: Lease, streams: watch::Receiver<Streams>, cancel: CancellationToken) -> Completed {
        let started = SystemTime::now();
        match self.run(&lease, streams, &cancel, started).await {
            Ok((result, how)) => {
                let value = result.encode_to_vec();
                let seconds = started.elapsed().unwrap_or_default().as_secs_f64();
                Completed {
                    result: Some(Any { type_url: ACTION_RESULT.into(), value }),
                    status: rpc::Status::default(),
                    how: format!("{how} in {seconds:.1} s"),
                }
            }
            Err(error) => {
                let status = status_of(&error);
                let how = format!("did not run: {}", status.message);
                Completed { result: None, status, how }
            }
        }
    }
}

impl LeaseRunner {
    pub(super) fn new(sandbox: SandboxRunner, engine: &Endpoint, logs: Endpoint, name: String) -> Self {
        Self { sandbox, cas: Cas::new(engine.clone()), logs, workspaces: Workspaces::default(), name }
    }

    async fn run(
        &self,
        lease: &Lease,
        streams: watch::Receiver<Streams>,
        cancel: &CancellationToken,
        queued: SystemTime,
    ) -> Result<(reapi::ActionResult, String), LeaseError> {
        let task = self.task(lease).await?;
        let (store, id_map) = self.sandbox.ready().await.map_err(LeaseError::Sandbox)?;
        let kept = store.lease()?;
        let dir = Scratch::new(&store)?;
        let spool = Spool::new(&dir.0).map_err(|error| LeaseError::Io("store the command's output", error))?;
        let work = async {
            let done = self.step(&task, &Host { store: &store, id_map, spool: &spool }, cancel, queued).await;
            let kept = spool.finish().map_err(|error| LeaseError::Io("store the command's output", error));
            kept.and(done)
        };
        let done = self.showing(work, streams, &spool).await?;
        let (mut result, layer) = done;
        let mut blobs = vec![Blob::of_bytes(layer.output.clone())];
        result.output_files.push(output_file("result.json", blobs[0].digest));
        if let Some((digest, path)) = layer.packed.as_ref().map(|packed| (packed_digest(packed), packed.path())) {
            blobs.push(Blob::of_file(digest, path));
            result.output_files.push(output_file("layer.tar.zst", digest));
        }
        for (file, raw, named) in [
            (&spool.stdout, &mut result.stdout_raw, &mut result.stdout_digest),
            (&spool.stderr, &mut result.stderr_raw, &mut result.stderr_digest),
        ] {
            let path = file.path().to_owned();
            let failed = |error| LeaseError::Io("read the command's output", error);
            let length = fs::metadata(&path).map_err(failed)?.len();
            if length <= INLINE_BYTES {
                *raw = fs::read(&path).map_err(failed)?;
                continue;
            }
            let digest =
                blocking::run("read what the command printed", move || Digest::of_file(&path).map_err(failed)).await?;
            *named = Some(digest.into());
            blobs.push(Blob::of_file(digest, file.path()));
        }
        self.cas.upload(blobs).await?;
        if let Some(metadata) = &mut result.execution_metadata {
            metadata.worker_completed_timestamp = Some(timestamp(SystemTime::now()));
        }
        drop(kept);
        let how = layer.how;
        Ok((result, how))
    }

    /// Runs `work`, and meanwhile writes its output to the log streams, if any are requested.
    async fn showing<T>(&self, work: impl Future<Output = T>, streams: watch::Receiver<Streams>, spool: &Spool) -> T {
        // Both senders are dropped when this call ends.
        let (stdout, stderr) = (watch::Sender::new(String::new()), watch::Sender::new(String::new()));
        let names = async {
            let mut streams = streams;
            loop {
                let known = streams.borrow_and_update().clone();
                stdout.send_if_modified(|name| std::mem::replace(name, known.stdout.clone()) != known.stdout);
                stderr.send_if_modified(|name| std::mem::replace(name, known.stderr.clone()) != known.stderr);
                if streams.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let shown = async {
            tokio::join!(
                live_log::follow(&self.logs, stdout.subscribe(), &spool.stdout),
                live_log::follow(&self.logs, stderr.subscribe(), &spool.stderr),
            );
        };
        tokio::pin!(work, shown, names);
        let mut is_shown = false;
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = &mut shown, if !is_shown => is_shown = true,
                () = &mut names => {}
            }
        };
        if !is_shown && tokio::time::timeout(LOG_GRACE, &mut shown).await.is_err() {
            tracing::debug!("the end of a live log was not sent in time");
        }
        done
    }

    /// Reads and validates what a lease requests.
    async fn task(&self, lease: &Lease) -> Result<Task, LeaseError> {
        let payload = lease.payload.as_ref().filter(|payload| payload.type_url.ends_with(ACTION));
        let payload = payload
            .ok_or_else(|| LeaseError::NotOurs("this worker runs only Actions that are part of the lease".into()))?;
        let action = reapi::Action::decode(&payload.value[..])
            .map_err(|error| InputError::Malformed(format!("a payload that cannot be decoded: {error}")))?;
        let command = digest_of(action.command_digest.as_ref(), "its command")?;
        let command: reapi::Command = message(&self.cas, command, "a command").await?;
        if command.arguments != COMMAND {
            let why = "this worker runs only steps of hm: Actions with the command `./hm-step input.json`";
            return Err(LeaseError::NotOurs(why.into()));
        }
        let root = digest_of(action.input_root_digest.as_ref(), "its input root")?;
        let root: reapi::Directory = message(&self.cas, root, "a directory").await?;
        let TreeEntry::File(input) = look_up(&self.cas, &root, COMMAND[1]).await? else {
            return Err(InputError::Malformed("input.json is a directory".into()).into());
        };
        let input = StepInput::decode(&self.cas.read(input, INPUT_BYTES).await?)?;
        let timeout = action.timeout.and_then(|timeout| {
            Some(Duration::new(u64::try_from(timeout.seconds).ok()?, u32::try_from(timeout.nanos).ok()?))
        });
        Ok(Task { input, root, timeout: timeout.filter(|timeout| !timeout.is_zero()) })
    }

    async fn step(
        &self,
        task: &Task,
        host: &Host<'_>,
        cancel: &CancellationToken,
        queued: SystemTime,
    ) -> Result<(reapi::ActionResult, Ended), LeaseError> {
        let (input, &Host { store, id_map, spool }) = (&task.input, host);
        let fetching = SystemTime::now();
        let mut lowers = Vec::new();
        // Topmost first, as overlays require.
        for lower in input.stack.iter().rev() {
            lowers.push(self.lower(task, store, id_map, lower).await?);
        }
        let fetched = SystemTime::now();
        let limits = limits_of(&input.limits);
        let step = LayeredCommand {
            lowers: &lowers,
            command: &input.command,
            env: &input.env,
            workdir: &input.workdir,
            limits: &limits,
        };
        let stop = cancel.child_token();
        let control = Control { cancel: &stop, grace: Duration::from_millis(input.grace_ms).min(LONGEST_GRACE) };
        let own = input.timeout_ms.map(Duration::from_millis);
        let limit = own.into_iter().chain(task.timeout).min();
        let running = self.sandbox.run_layered(step, control, spool);
        tokio::pin!(running);
        let mut timed_out = false;
        let ran = loop {
            tokio::select! {
                ran = &mut running => break ran,
                () = after(limit), if !timed_out => {
                    timed_out = true;
                    stop.cancel();
                }
            }
        };
        let ran = ran.map_err(LeaseError::Sandbox)?;
        if timed_out && own.is_none_or(|own| limit.is_some_and(|limit| limit < own)) {
            return Err(LeaseError::Deadline);
        }
        let ended = SystemTime::now();
        let (mut packed, mut layer_lost) = (None, None);
        let exit = match &ran.ended {
            Ok(code) => Exit::exited(*code),
            Err(error) => match error.kind() {
                RunnerErrorKind::OutOfMemory => Exit::OutOfMemory,
                RunnerErrorKind::TooManyProcesses => {
                    Exit::Exited { code: error.exit_code().unwrap_or(137), too_many_processes: true }
                }
                RunnerErrorKind::Cancelled if timed_out => Exit::TimedOut,
                RunnerErrorKind::Cancelled => Exit::Terminated,
                _ => Exit::Failed { message: error.to_line(), retry: error.is_retryable() },
            },
        };
        if input.packs(&exit) {
            let packer = Arc::clone(store);
            // The upper directory is part of `ran`, so it moves to the thread.
            let packing = blocking::run("pack what the command wrote", move || match ran.layer()? {
                Some(layer) => Ok::<_, LeaseError>(Some(image::pack_layer(&packer, &layer, id_map)?)),
                None => Ok(None),
            });
            match packing.await {
                Ok(layer) => packed = layer,
                Err(error) if exit == Exit::exited(0) => return Err(error),
                Err(error) => layer_lost = Some(format!("{:#}", anyhow::Error::new(error))),
            }
        }
        let layer = packed.as_ref().map(|packed| LayerOutput { diff_id: packed.diff_id().to_string() });
        let (exit_code, how) = told(&exit);
        let output = step::StepOutput { version: step::VERSION, exit, layer, layer_lost, cache_unused: None };
        let output = serde_json::to_vec(&output).map_err(|error| LeaseError::Io("write the result", error.into()))?;
        let metadata = reapi::ExecutedActionMetadata {
            worker: self.name.clone(),
            worker_start_timestamp: Some(timestamp(queued)),
            input_fetch_start_timestamp: Some(timestamp(fetching)),
            input_fetch_completed_timestamp: Some(timestamp(fetched)),
            execution_start_timestamp: Some(timestamp(fetched)),
            execution_completed_timestamp: Some(timestamp(ended)),
            ..Default::default()
        };
        let result = reapi::ActionResult { exit_code, execution_metadata: Some(metadata), ..Default::default() };
        Ok((result, Ended { output, packed, how }))
    }

    /// Returns the directory of a part of the step's filesystem, and creates it if it is not in the store
    /// yet.
    async fn lower(
        &self,
        task: &Task,
        store: &Arc<Store>,
        id_map: IdMap,
        lower: &Lower,
    ) -> Result<PathBuf, LeaseError> {
        match lower {
            // The tree names all attributes, and its files are created by this worker.
            Lower::Workspace { path } => match look_up(&self.cas, &task.root, path).await? {
                TreeEntry::Directory(digest) => Ok(self.workspaces.get(store, &self.cas, digest).await?),
                TreeEntry::File(_) => Err(InputError::Malformed(format!("the source `{path}` is a file")).into()),
            },
            Lower::Layer { path, diff_id } => {
                let diff_id: ImageDigest =
                    diff_id.parse().map_err(|_| InputError::Malformed(format!("the layer `{path}` has no digest")))?;
                let layer = image::layer_id(&diff_id, id_map);
                let lock = image::lock_layer(store, &layer).await?;
                let looker = Arc::clone(store);
                let found = blocking::run("look for a layer", move || {
                    Ok::<_, LeaseError>(image::find_layer(&looker, &diff_id, id_map)?)
                })
                .await?;
                if found.is_some() {
                    return Ok(store.layers().dir(&layer));
                }
                let TreeEntry::File(digest) = look_up(&self.cas, &task.root, path).await? else {
                    return Err(InputError::Malformed(format!("the layer `{path}` is a directory")).into());
                };
                let dir = Scratch::new(store)?;
                let blob = dir.0.join("layer");
                self.cas.read_to_file(digest, &blob).await?;
                let (unpacker, name) = (Arc::clone(store), path.clone());
                blocking::run("unpack a layer", move || {
                    // Held until the thread is done, even if the future that waits for it is dropped.
                    let _held = (dir, lock);
                    let file = fs::File::open(&blob).map_err(|error| LeaseError::Io("open a layer", error))?;
                    let blob = BlobFile { file, offset: 0, length: digest.size_bytes };
                    let unpacked = image::unpack_layer(&unpacker, image::LayerFile::new(&name, diff_id, blob), id_map);
                    unpacked.map_err(|error| match error {
                        ImageError::Store(error) => LeaseError::Store(error),
                        error => LeaseError::Layer(error),
                    })
                })
                .await?;
                Ok(store.layers().dir(&layer))
            }
        }
    }
}

/// What a command left in addition to its output.
struct Ended {
    /// `result.json`.
    output: Vec<u8>,
    packed: Option<crate::image::PackedLayer>,
    /// A summary for the log.
    how: String,
}

/// A temporary directory in the store for one lease.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(store: &Store) -> Result<Self, LeaseError> {
        let path = store.instance().new_tmp();
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| LeaseError::Io("make a directory", error))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "leaving a file to the next process that opens the store");
        }
    }
}

/// Completes after the time limit, or never if there is none.
async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => awake::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn limits_of(limits: &step::Limits) -> Limits {
    Limits {
        memory: limits.memory_bytes.map(|bytes| MemorySize { bytes: bytes.max(MemorySize::MIN_BYTES) }),
        cpus: limits.cpus.map(|cpus| Cpus(cpus.clamp(0.01, 4096.0))),
        pids: limits.pids.and_then(NonZeroU64::new),
        network: match limits.network {
            step::Network::Host => Network::Host,
            step::Network::None => Network::None,
        },
        ..Limits::default()
    }
}

/// Returns the exit code of an Action, which is that of `hm-step`, and a short description for the log.
fn told(exit: &Exit) -> (i32, String) {
    match exit {
        Exit::Exited { code: 0, .. } => (0, "passed".into()),
        Exit::Exited { code, too_many_processes: true } => (*code, "too many processes".into()),
        Exit::Exited { code, .. } => (*code, format!("failed with exit code {code}")),
        Exit::OutOfMemory => (137, "out of memory".into()),
        Exit::TimedOut => (124, "timed out".into()),
        Exit::Terminated => (143, "ended".into()),
        Exit::Failed { message, .. } => (125, format!("could not run: {message}")),
    }
}

fn packed_digest(packed: &crate::image::PackedLayer) -> Digest {
    Digest { function: DigestFunction::Sha256, hash: *packed.digest().as_bytes(), size_bytes: packed.size_bytes() }
}

fn output_file(path: &str, digest: Digest) -> reapi::OutputFile {
    reapi::OutputFile { path: path.into(), digest: Some(digest.into()), ..Default::default() }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_within_what_the_sandbox_takes() {
        let asked = step::Limits { memory_bytes: Some(1), cpus: Some(0.0), pids: Some(0), ..step::Limits::default() };
        let limits = limits_of(&asked);
        assert_eq!(limits.memory.map(|memory| memory.bytes), Some(MemorySize::MIN_BYTES));
        assert_eq!((limits.cpus, limits.pids), (Some(Cpus(0.01)), None));
    }
}
