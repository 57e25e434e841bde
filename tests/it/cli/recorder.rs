//! A server that writes down all that reaches it: calls of gRPC with their headers, and all else as it came.

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

/// Listens for as long as this lives.
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

    /// Starts one at an address of this machine that is not the loopback; `None` if it has none.
    pub(crate) fn on_the_network() -> Option<Self> {
        // Nothing is sent: the kernel chooses the address from which it would be.
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

    /// Returns all that came since the last time, a line for each connection, header and body.
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
                    // UNIMPLEMENTED, which clients do not try again.
                    let answer =
                        Response::builder().header("content-type", "application/grpc").header("grpc-status", "12");
                    answer.body(Empty::<Bytes>::new())
                }
            });
            // Ends with the connection, however it does.
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
