//! A small engine of the tests that behaves as stock engines do: NativeLink, Buildbarn, BuildBuddy.
//!
//! Input: [`Habits`], one switch for each behaviour. Output: an address that speaks the Remote Execution API.
//! It stores blobs in a directory, and runs each Action as a process of this machine, in a directory with the
//! Action's input root. It knows nothing about hm.

#![allow(clippy::disallowed_methods, reason = "a server in the test's process has tasks of its own")]

mod blobs;
mod calls;
mod execution;
mod traffic;
mod worker;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bazel_remote_apis::google::{
    bytestream::byte_stream_server::ByteStreamServer, longrunning::operations_server::OperationsServer,
};
use futures_util::stream;
use hm_exec::remote::{
    EndpointOptions,
    reapi::{
        self, action_cache_server::ActionCacheServer, capabilities_server::CapabilitiesServer,
        content_addressable_storage_server::ContentAddressableStorageServer, execution_server::ExecutionServer,
    },
};
use tonic::{Code, Request, service::InterceptorLayer};

use self::{blobs::Blobs, execution::Running, traffic::Counted};
pub(crate) use self::{blobs::Function, traffic::Traffic};

/// How an engine behaves. The default is that of an engine without peculiarities.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    /// The longest `Action.timeout` that is accepted. It is also the limit of an Action without one.
    pub(crate) max_timeout: Option<Duration>,
    /// Whether a response with a status also has a result, whose digests are 64 zeros of size 0.
    pub(crate) zero_digests: bool,
    /// Whether operations can be cancelled.
    pub(crate) cancels: bool,
    /// The digest functions that are supported. The first one is the default.
    pub(crate) functions: Vec<Function>,
    /// Whether the capabilities name the default one. If not, a blob's name without a function is SHA-256, as
    /// the protocol requires.
    pub(crate) announces_default: bool,
    /// Whether files get the modes and times that node properties name.
    pub(crate) node_properties: bool,
    /// Whether inputs are read-only hard links into a cache: 444 or 555, and times of their creation.
    pub(crate) read_only: bool,
    /// The number of Actions that run at once.
    pub(crate) slots: usize,
    /// How long an Action without a waiting client runs on.
    pub(crate) abandons_after: Option<Duration>,
    /// The platform properties that a worker must have. No worker has one.
    pub(crate) lists: Vec<String>,
    /// The status with which the first Actions end after they have run, and how many of them.
    pub(crate) fails: Option<(Code, &'static str, u32)>,
    /// How many workers are lost when the Action that they run prints something. It is queued again then.
    pub(crate) loses_workers: u32,
    /// Whether streams of blobs stand still.
    pub(crate) stalls: bool,
    /// Whether blobs can be read together.
    pub(crate) reads_batches: bool,
    /// How many bytes of blobs a batch may have.
    pub(crate) batch_bytes: i64,
    /// Whether the output of running Actions can be read.
    pub(crate) shows_output: bool,
    /// The number of calls at once on one connection.
    pub(crate) max_calls: Option<u32>,
    /// How many Actions must wait at once before one is answered with the result of the first Action, and is
    /// not run. Zero runs every Action.
    pub(crate) replays: usize,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            max_timeout: None,
            zero_digests: false,
            cancels: true,
            functions: vec![Function::Sha256],
            announces_default: true,
            node_properties: true,
            read_only: false,
            slots: 4,
            abandons_after: None,
            lists: Vec::new(),
            fails: None,
            loses_workers: 0,
            stalls: false,
            reads_batches: true,
            batch_bytes: 64 << 10,
            shows_output: false,
            max_calls: None,
            replays: 0,
        }
    }
}

impl Habits {
    /// Those of NativeLink 1.6 as it is configured by default, with a `directory_cache`.
    pub(crate) fn nativelink() -> Self {
        Self {
            max_timeout: Some(Duration::from_secs(1_200)),
            zero_digests: true,
            cancels: false,
            functions: vec![Function::Sha256, Function::Blake3],
            node_properties: false,
            read_only: true,
            abandons_after: Some(Duration::from_secs(60)),
            ..Self::default()
        }
    }

    /// Those of Buildbarn as its example deployment configures it.
    pub(crate) fn buildbarn() -> Self {
        Self {
            max_timeout: Some(Duration::from_secs(3_600)),
            cancels: false,
            node_properties: false,
            read_only: true,
            abandons_after: Some(Duration::from_secs(60)),
            ..Self::default()
        }
    }

    /// Those of BuildBuddy's open-source executor.
    pub(crate) fn buildbuddy() -> Self {
        Self {
            max_timeout: Some(Duration::from_secs(86_400)),
            cancels: false,
            functions: vec![Function::Sha256, Function::Blake3],
            node_properties: false,
            ..Self::default()
        }
    }
}

/// An engine that runs until it is dropped, on its own threads.
pub(crate) struct StockEngine {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    state: Arc<State>,
    dir: tempfile::TempDir,
}

/// What all calls share.
struct State {
    habits: Habits,
    blobs: Blobs,
    /// The directories of running Actions are below this one.
    actions: std::path::PathBuf,
    results: Mutex<HashMap<String, reapi::ActionResult>>,
    running: Mutex<HashMap<String, Arc<Running>>>,
    slots: tokio::sync::Semaphore,
    /// What [`Habits::replays`] needs: the first result, and the Actions that wait for it.
    replayed: tokio::sync::OnceCell<reapi::ActionResult>,
    waiting: tokio::sync::Barrier,
    executed: AtomicU32,
    refused: AtomicU32,
    timeouts: Mutex<Vec<Option<u64>>>,
    /// The number of requests that named no digest function.
    unnamed: AtomicU32,
    traffic: Arc<Traffic>,
}

impl State {
    /// Returns the digest function of a request: the default one if it names none.
    fn function(&self, named: i32) -> Result<Function, tonic::Status> {
        if named == reapi::digest_function::Value::Unknown as i32 {
            self.unnamed.fetch_add(1, Ordering::Relaxed);
        }
        self.blobs.function(named)
    }
}

/// The services of an engine.
#[derive(Clone)]
struct Service(Arc<State>);

impl StockEngine {
    pub(crate) fn start(habits: Habits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let actions = dir.path().join("actions");
        std::fs::create_dir(&actions).unwrap();
        let state = Arc::new(State {
            slots: tokio::sync::Semaphore::new(habits.slots),
            replayed: tokio::sync::OnceCell::new(),
            waiting: tokio::sync::Barrier::new(habits.replays.max(1)),
            blobs: Blobs::new(dir.path(), &habits),
            habits,
            actions,
            results: Mutex::default(),
            running: Mutex::default(),
            executed: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            timeouts: Mutex::default(),
            unnamed: AtomicU32::new(0),
            traffic: Arc::default(),
        });
        let service = Service(Arc::clone(&state));
        let (calls, traffic) = (Arc::clone(&state.traffic), Arc::clone(&state.traffic));
        let count = move |request: Request<()>| {
            calls.count_call();
            Ok(request)
        };
        // The default of the library is 200.
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(state.habits.max_calls.or(Some(u32::MAX)))
            .layer(InterceptorLayer::new(count))
            .add_service(CapabilitiesServer::new(service.clone()))
            .add_service(ContentAddressableStorageServer::new(service.clone()).max_decoding_message_size(8 << 20))
            .add_service(ByteStreamServer::new(service.clone()).max_decoding_message_size(8 << 20))
            .add_service(ActionCacheServer::new(service.clone()))
            .add_service(OperationsServer::new(service.clone()))
            .add_service(ExecutionServer::new(service));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let accepted = stream::unfold((listener, traffic), async |(listener, traffic)| {
                let accepted = listener.accept().await.map(|(stream, _)| Counted::new(stream, Arc::clone(&traffic)));
                Some((accepted, (listener, traffic)))
            });
            server.serve_with_incoming(accepted).await
        });
        Self { runtime: Some(runtime), address, state, dir }
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    pub(crate) fn options(&self) -> EndpointOptions {
        EndpointOptions::new(self.url())
    }

    /// Returns the directory of the blobs.
    pub(crate) fn dir(&self) -> std::path::PathBuf {
        self.dir.path().join("blobs")
    }

    /// Returns the results in the action cache, by the name of their Action, to read or to change.
    pub(crate) fn results(&self) -> std::sync::MutexGuard<'_, HashMap<String, reapi::ActionResult>> {
        self.state.results.lock().unwrap()
    }

    /// Returns how many Actions a worker has begun to run.
    pub(crate) fn executed(&self) -> u32 {
        self.state.executed.load(Ordering::Relaxed)
    }

    /// Returns how many Actions were refused because of their time limit.
    pub(crate) fn refused(&self) -> u32 {
        self.state.refused.load(Ordering::Relaxed)
    }

    /// Returns the time limits in seconds of the Actions that were accepted.
    pub(crate) fn timeouts(&self) -> Vec<Option<u64>> {
        self.state.timeouts.lock().unwrap().clone()
    }

    /// Returns how many requests named no digest function.
    pub(crate) fn unnamed(&self) -> u32 {
        self.state.unnamed.load(Ordering::Relaxed)
    }

    /// Returns the calls and bytes so far.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.state.traffic
    }

    /// Returns whether an Action is queued or running.
    pub(crate) fn is_busy(&self) -> bool {
        self.state.running.lock().unwrap().values().any(|running| !running.is_done())
    }

    /// Checks that no step wrote to the inputs that Actions share.
    #[track_caller]
    pub(crate) fn assert_inputs_are_intact(&self) {
        self.state.blobs.assert_intact();
    }
}

impl Drop for StockEngine {
    fn drop(&mut self) {
        // Actions are killed with the tasks that run them.
        self.runtime.take().unwrap().shutdown_background();
    }
}
