//! A proxy in front of an engine: it requires certificates and a bearer token, and fails some calls.

#![allow(clippy::disallowed_methods, reason = "a server in the test's process has tasks of its own")]

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use http_body_util::{Either, Empty};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    client::conn::http2 as client,
    server::conn::http2 as server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// A function that is called with a call's path before the call is forwarded.
pub(crate) type Before = Arc<dyn Fn(&str) + Send + Sync>;

/// What a proxy does to calls.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    /// The function to call before each call.
    pub(crate) before: Option<Before>,
    /// The interval in calls at which one is answered with UNAVAILABLE.
    pub(crate) fail_every: Option<u64>,
    /// The required value of `authorization`.
    pub(crate) authorization: Option<String>,
    /// The proxy's TLS configuration.
    pub(crate) tls: Option<Arc<ServerConfig>>,
}

/// A proxy that runs until it is dropped, on its own threads.
pub(crate) struct Proxy {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    failed: Arc<AtomicU64>,
    connections: Connections,
}

type Connections = Arc<Mutex<Vec<tokio::task::AbortHandle>>>;

impl Drop for Proxy {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Proxy {
    /// Starts a proxy in front of `grpc://HOST:PORT`.
    pub(crate) fn start(upstream: &str, rules: Rules) -> Self {
        let upstream = upstream.strip_prefix("grpc://").unwrap().to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let failed = Arc::<AtomicU64>::default();
        let counts = (Arc::<AtomicU64>::default(), Arc::clone(&failed));
        let connections = Connections::default();
        let open = Arc::clone(&connections);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (upstream, rules, counts) = (upstream.clone(), rules.clone(), counts.clone());
                let connection = tokio::spawn(async move {
                    match rules.tls.clone() {
                        None => serve(stream, upstream, rules, counts).await,
                        // A client without a valid certificate gets the error from the handshake.
                        Some(tls) => {
                            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                                serve(stream, upstream, rules, counts).await;
                            }
                        }
                    }
                });
                open.lock().unwrap().push(connection.abort_handle());
            }
        });
        assert!(TcpStream::connect(address).is_ok());
        Self { runtime: Some(runtime), address, failed, connections }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks every connection, with all calls on it. New connections are accepted.
    pub(crate) fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    /// Returns how many calls the proxy failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Serves one connection over a new connection to the engine.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    upstream: String,
    rules: Rules,
    (calls, failed): (Arc<AtomicU64>, Arc<AtomicU64>),
) {
    let Ok(engine) = tokio::net::TcpStream::connect(&upstream).await else { return };
    let Ok((engine, connection)) = client::handshake(TokioExecutor::new(), TokioIo::new(engine)).await else { return };
    tokio::spawn(connection);
    let service = service_fn(|mut request: Request<Incoming>| {
        let mut engine = engine.clone();
        let sent = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let code = if rules.authorization.is_some() && rules.authorization.as_deref() != sent {
            Some("16")
        } else if rules.fail_every.is_some_and(|every| calls.fetch_add(1, Ordering::Relaxed) % every == every - 1) {
            failed.fetch_add(1, Ordering::Relaxed);
            Some("14")
        } else {
            None
        };
        let path = request.uri().path().to_owned();
        if let Some(before) = &rules.before {
            before(&path);
        }
        *request.uri_mut() = Uri::try_from(format!("http://{upstream}{path}")).unwrap();
        async move {
            if let Some(code) = code {
                let answer = Response::builder().header("content-type", "application/grpc").header("grpc-status", code);
                return Ok(answer
                    .header("grpc-message", "says the proxy")
                    .body(Either::Left(Empty::<Bytes>::new()))
                    .unwrap());
            }
            engine.send_request(request).await.map(|response| response.map(Either::Right))
        }
    });
    // The task ends with the connection, however the connection ends.
    let _ = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}
