//! A link between machines and an engine that has a bandwidth and a delay, as networks have.

#![allow(clippy::disallowed_methods, reason = "a server in the test's process has tasks of its own")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// About what is under way at once, in pieces of at most 16 KiB.
const PIECES: usize = 1024;

/// What a link can carry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed {
    pub(crate) megabits: u64,
    /// From one end to the other and back.
    pub(crate) round_trip: Duration,
}

/// A link, until it is dropped.
pub(crate) struct Link {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// One direction, which all connections share: when it has carried what it took.
type Direction = Arc<Mutex<Instant>>;

impl Link {
    /// Makes a link to `grpc://HOST:PORT`.
    pub(crate) fn to(upstream: &str, speed: Speed) -> Self {
        let upstream = upstream.strip_prefix("grpc://").unwrap().to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let (there, back) = (Arc::new(Mutex::new(Instant::now())), Arc::new(Mutex::new(Instant::now())));
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&upstream).await else { continue };
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                carry(near_read, far_write, Arc::clone(&there), speed);
                carry(far_read, near_write, Arc::clone(&back), speed);
            }
        });
        Self { runtime: Some(runtime), address }
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }
}

/// Carries what comes from one end to the other, until either is closed.
fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction, speed: Speed) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    tokio::spawn(async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                break;
            }
            let sent = {
                let mut free = direction.lock().unwrap();
                let bits = read as u64 * 8;
                *free = (*free).max(Instant::now()) + Duration::from_nanos(bits * 1000 / speed.megabits);
                *free
            };
            // What is not sent yet is not read: the sender notices how fast the link is.
            sleep_until(sent).await;
            if send.send((sent + speed.round_trip / 2, buffer[..read].to_vec())).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((arrives, bytes)) = receive.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
}
