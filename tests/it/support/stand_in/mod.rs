//! A stand-in for the hosted service: builds whose jobs follow a script, logs that stream, and faults. It
//! records every request.
//!
//! Time is counted in ticks: each look at a build's jobs is one. So nothing depends on the clock.

#![allow(clippy::disallowed_methods, reason = "a server in the test's process has tasks of its own")]

pub(crate) mod front;
mod logs;
mod routes;
mod script;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::watch;

use self::script::Build;
pub(crate) use self::script::{Job, LogFault, Retry, Script};

/// The token that the stand-in accepts.
pub(crate) const TOKEN: &str = "hm_s3cret-token-of-the-user";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Answer = Result<Response<Body>, Closed>;

/// The connection is closed without an answer.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed by a fault")
    }
}

impl std::error::Error for Closed {}

/// A request that was received.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status, code, and number of seconds to wait.
    Status(u16, &'static str, Option<u32>),
    /// The connection is closed before there is an answer.
    Close,
    /// The connection is closed, but the request has its effect.
    CloseAfter,
    /// An answer with this body.
    Body(&'static str),
    /// A redirect to this address.
    Redirect(String),
}

/// The state of the service.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) requests: Vec<Recorded>,
    /// By slug: the name of the repository, and the pipeline's name there.
    pub(crate) pipelines: BTreeMap<String, (Option<String>, String)>,
    builds: Vec<Build>,
    /// The scripts of the next builds.
    pub(crate) scripts: VecDeque<Script>,
    /// By operation: what goes wrong with its next calls.
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    /// The lifetime of log tokens, in seconds.
    log_token_seconds: i64,
    log_tokens: Vec<String>,
    /// The log tokens that are refused from now on.
    expired: usize,
    /// The token that a browser has left, by nonce.
    pub(crate) parked: BTreeMap<String, String>,
    /// The size of the pieces in which logs are sent.
    piece: usize,
    revoked: bool,
}

/// The stand-in. It serves until it is dropped, on its own thread.
pub(crate) struct StandIn {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Changed whenever the state has changed.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl StandIn {
    pub(crate) fn start() -> Self {
        Self::at("127.0.0.1:0")
    }

    /// Starts to serve at an address.
    pub(crate) fn at(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        let address = listener.local_addr().unwrap();
        let state = State { log_token_seconds: 3600, piece: usize::MAX, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changes: watch::Sender::new(0) });
        let served = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&served);
                let service = service_fn(move |request| serve(Arc::clone(&shared), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let stand_in = Self { runtime: Some(runtime), address, shared };
        stand_in.pipeline("acme-app-ci", Some("acme/app"), "ci");
        stand_in
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Registers a pipeline.
    pub(crate) fn pipeline(&self, slug: &str, repo_name: Option<&str>, name: &str) {
        self.state().pipelines.insert(slug.into(), (repo_name.map(Into::into), name.into()));
    }

    /// Sets the script of the next build that has none yet.
    pub(crate) fn script(&self, script: Script) -> &Self {
        self.state().scripts.push_back(script);
        self
    }

    /// Makes the next call of an operation without a fault go wrong. Operations are named as in the service's
    /// description.
    pub(crate) fn fault(&self, operation: &'static str, fault: Fault) -> &Self {
        self.state().faults.entry(operation).or_default().push_back(fault);
        self
    }

    /// Sets the lifetime of the log tokens that follow.
    pub(crate) fn log_tokens_live(&self, seconds: i64) -> &Self {
        self.state().log_token_seconds = seconds;
        self
    }

    /// Refuses all log tokens that were given out.
    pub(crate) fn expire_log_tokens(&self) {
        let mut state = self.state();
        state.expired = state.log_tokens.len();
    }

    /// Sends logs in pieces of this many bytes.
    pub(crate) fn pieces(&self, bytes: usize) -> &Self {
        self.state().piece = bytes;
        self
    }

    /// Refuses the user's token from now on.
    pub(crate) fn revoke(&self) {
        self.state().revoked = true;
    }

    /// Returns the requests, as `METHOD PATH`. Repeated looks at a build are one.
    pub(crate) fn calls(&self) -> Vec<String> {
        let mut calls: Vec<String> = Vec::new();
        for Recorded { method, path, .. } in &self.state().requests {
            let call = format!("{method} {path}");
            let is_look = method == "GET" && !path.ends_with("/logs") && path.contains("/builds/");
            if !(is_look && calls.contains(&call)) {
                calls.push(call);
            }
        }
        calls
    }

    /// Returns the number of requests `METHOD PATH`.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.state().requests.iter().filter(|it| format!("{} {}", it.method, it.path) == call).count()
    }

    /// Returns whether a build was cancelled.
    pub(crate) fn is_canceled(&self, number: i64) -> bool {
        self.state().builds.iter().any(|build| build.number == number && build.canceled.is_some())
    }

    pub(crate) fn builds(&self) -> usize {
        self.state().builds.len()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn serve(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let authorization = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let recorded = Recorded {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        authorization,
        body: if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap_or(Value::Null) },
    };
    shared.state().requests.push(recorded.clone());
    let answer = match recorded.path.strip_prefix("/v0/jobs/") {
        Some(rest) => logs::answer(&shared, rest.trim_end_matches("/logs"), &recorded.query),
        None => routes::answer(&shared, &recorded),
    };
    shared.changed();
    answer
}

/// Returns an answer with a body.
fn json(status: u16, body: &Value) -> Answer {
    let body = http_body_util::Full::from(body.to_string()).map_err(|never: Infallible| match never {});
    let builder = Response::builder().status(status).header("content-type", "application/json");
    Ok(builder.body(body.boxed_unsync()).unwrap())
}

/// Returns the service's form of an error.
fn error(status: u16, code: &str, message: &str) -> Answer {
    let error = serde_json::json!({"type": "error", "code": code, "message": message, "request_id": "req-1",
        "doc_url": "https://docs.example/errors"});
    json(status, &serde_json::json!({ "error": error }))
}
