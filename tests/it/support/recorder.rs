//! A server that records everything that reaches it: gRPC calls with their headers, and other traffic as raw
//! bytes.

#![allow(clippy::disallowed_methods, reason = "a server in the test's process has tasks of its own")]

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

type Seen = Arc<Mutex<Vec<String>>>;

/// A recorder that listens until it is dropped.
pub(crate) struct Recorder {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    seen: Seen,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Recorder {
    pub(crate) fn start() -> Self {
        Self::on([127, 0, 0, 1].into())
    }

    /// Starts a recorder at a non-loopback address of this machine. Returns `None` if the machine has none.
    pub(crate) fn on_the_network() -> Option<Self> {
        // Nothing is sent: `connect` makes the kernel choose the source address.
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect("192.0.2.1:9").ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_loopback() && !ip.is_unspecified()).then(|| Self::on(ip))
    }

    fn on(ip: IpAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Seen::default();
        let log = Arc::clone(&seen);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                log.lock().unwrap().push("connected".into());
                tokio::spawn(serve(stream, Arc::clone(&log)));
            }
        });
        Self { runtime: Some(runtime), address, seen }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns everything that arrived since the last call, a line for each connection, header and body.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

async fn serve(mut stream: TcpStream, seen: Seen) {
    let mut start = [0; 3];
    match stream.peek(&mut start).await {
        Ok(_) if start == *b"PRI" => {
            let service = service_fn(|request: Request<Incoming>| {
                let seen = Arc::clone(&seen);
                async move {
                    let (head, body) = request.into_parts();
                    let mut lines = vec![format!("call {}", head.uri.path())];
                    for (name, value) in &head.headers {
                        lines.push(format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
                    }
                    seen.lock().unwrap().extend(lines);
                    if let Ok(body) = body.collect().await {
                        seen.lock().unwrap().push(String::from_utf8_lossy(&body.to_bytes()).into_owned());
                    }
                    // UNIMPLEMENTED, which clients do not retry.
                    let answer =
                        Response::builder().header("content-type", "application/grpc").header("grpc-status", "12");
                    answer.body(Empty::<Bytes>::new())
                }
            });
            // The task ends with the connection, however the connection ends.
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        }
        _ => {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(length) = stream.read(&mut bytes).await {
                if length == 0 {
                    break;
                }
                seen.lock().unwrap().push(String::from_utf8_lossy(&bytes[..length]).into_owned());
                let answer = b"HTTP/1.1 404 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                if stream.write_all(answer).await.is_err() {
                    break;
                }
            }
        }
    }
}
