//! A server of log streams: the output of a command, written by a worker and read by the clients that wait
//! for the command.
//!
//! Engines such as BuildGrid request a stream for each Action and pass on its names: one to write to, which
//! contains a secret, and one to read from. A stream is an unnamed file, so that the kernel keeps it in
//! memory as far as there is space, and nothing remains if the server is killed.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use bazel_remote_apis::{
    build::bazel::remote::logstream::v1::{
        CreateLogStreamRequest, LogStream,
        log_stream_service_server::{LogStreamService, LogStreamServiceServer},
    },
    google::bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
        byte_stream_server::{ByteStream, ByteStreamServer},
    },
};
use futures_util::{FutureExt, Stream as FutureStream, future::BoxFuture, stream};
use tokio::{net::TcpListener, sync::watch};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};
use uuid::Uuid;

use super::{pool::WorkerStop, spool::SpoolProgress};
use crate::sync::Mutex;

/// The maximum number of bytes in one message.
const PIECE_BYTES: u64 = 64 << 10;
/// The maximum size of a stream.
const MAX_STREAM_BYTES: u64 = 4 << 30;
/// The maximum number of streams.
const MAX_STREAMS: usize = 65_536;
/// How long a stream can be read after the last write to it.
const KEPT_FINISHED: Duration = Duration::from_secs(15 * 60);
const KEPT_OPEN: Duration = Duration::from_secs(24 * 3600);

/// The reason why log streams cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogStreamError {
    /// The server cannot listen on the address.
    #[error("failed to listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server failed.
    #[error("failed to serve log streams")]
    Serve(#[source] tonic::transport::Error),
}

/// A server of log streams.
#[derive(Debug)]
pub struct LogStreams {
    listener: TcpListener,
    address: SocketAddr,
}

impl LogStreams {
    /// Starts to listen, without answering requests yet. Port 0 selects a free port.
    ///
    /// # Errors
    /// Returns an error if the server cannot listen on the address.
    pub async fn bind(address: SocketAddr) -> Result<Self, LogStreamError> {
        let failed = |source| LogStreamError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Returns the address on which the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// Returns an error if the listener fails.
    pub async fn serve(self, stop: &WorkerStop) -> Result<(), LogStreamError> {
        self.boxed_serve(stop).await
    }

    fn boxed_serve(self, stop: &WorkerStop) -> BoxFuture<'_, Result<(), LogStreamError>> {
        async move {
            let shelf = Arc::new(Shelf::default());
            tonic::transport::Server::builder()
                .tcp_nodelay(true)
                .add_service(LogStreamServiceServer::from_arc(Arc::clone(&shelf)))
                .add_service(ByteStreamServer::from_arc(shelf))
                .serve_with_incoming_shutdown(TcpIncoming::from(self.listener), stop.draining())
                .await
                .map_err(LogStreamError::Serve)
        }
        .boxed()
    }
}

/// The streams, by the names from which they are read.
#[derive(Debug, Default)]
struct Shelf(Mutex<HashMap<String, Arc<Log>>>);

#[derive(Debug)]
struct Log {
    file: File,
    /// The secret that follows the name when writing.
    token: String,
    progress: watch::Sender<SpoolProgress>,
    touched: Mutex<Instant>,
}

impl Log {
    fn is_stale(&self) -> bool {
        let limit = if self.progress.borrow().finished { KEPT_FINISHED } else { KEPT_OPEN };
        self.touched.lock().elapsed() > limit
    }

    /// Appends `data`, which begins at `offset`, as far as it is new. Returns the length of the stream.
    fn add(&self, offset: u64, data: &[u8], finish: bool) -> Result<u64, Status> {
        *self.touched.lock() = Instant::now();
        let mut answer = Ok(0);
        self.progress.send_if_modified(|progress| {
            answer = self.append(progress, offset, data, finish);
            answer.is_ok()
        });
        answer
    }

    fn append(&self, progress: &mut SpoolProgress, offset: u64, data: &[u8], finish: bool) -> Result<u64, Status> {
        let known = progress.length_bytes.checked_sub(offset);
        let known =
            known.ok_or_else(|| Status::out_of_range(format!("the log stream has {} bytes", progress.length_bytes)))?;
        let new = data.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
        if !new.is_empty() {
            if progress.finished {
                return Err(Status::failed_precondition("the log stream is finished"));
            }
            if progress.length_bytes + new.len() as u64 > MAX_STREAM_BYTES {
                return Err(Status::resource_exhausted(format!("a log stream has at most {MAX_STREAM_BYTES} bytes")));
            }
            (&self.file).write_all(new).map_err(|error| Status::resource_exhausted(error.to_string()))?;
            progress.length_bytes += new.len() as u64;
        }
        progress.finished |= finish;
        Ok(progress.length_bytes)
    }
}

impl Shelf {
    fn logs(&self) -> MutexGuard<'_, HashMap<String, Arc<Log>>> {
        self.0.lock()
    }

    fn create(&self, parent: &str) -> Result<LogStream, Status> {
        let file = tempfile::tempfile().map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let (id, token) = (Uuid::new_v4().simple().to_string(), Uuid::new_v4().simple().to_string());
        let name = if parent.is_empty() { format!("logstreams/{id}") } else { format!("{parent}/logstreams/{id}") };
        let write_resource_name = format!("{name}/{token}");
        let progress = watch::Sender::new(SpoolProgress::default());
        let log = Arc::new(Log { file, token, progress, touched: Mutex::new(Instant::now()) });
        let mut logs = self.logs();
        logs.retain(|_, log| {
            let is_stale = log.is_stale();
            if is_stale {
                // Ends the stream for its remaining readers.
                log.progress.send_modify(|progress| progress.finished = true);
            }
            !is_stale
        });
        if logs.len() >= MAX_STREAMS {
            return Err(Status::resource_exhausted("too many log streams"));
        }
        logs.insert(name.clone(), log);
        Ok(LogStream { name, write_resource_name })
    }

    /// Returns the log that is read from `name`.
    fn to_read(&self, name: &str) -> Result<Arc<Log>, Status> {
        self.logs().get(name).map(Arc::clone).ok_or_else(|| Status::not_found("no such log stream"))
    }

    /// Returns the log that is written to `name`, which ends with the secret token.
    fn to_write(&self, name: &str) -> Result<Arc<Log>, Status> {
        let none = || Status::not_found("no such log stream to write to");
        let (name, token) = name.rsplit_once('/').ok_or_else(none)?;
        self.to_read(name).ok().filter(|log| log.token == token).ok_or_else(none)
    }
}

#[tonic::async_trait]
impl LogStreamService for Shelf {
    async fn create_log_stream(&self, request: Request<CreateLogStreamRequest>) -> Result<Response<LogStream>, Status> {
        Ok(Response::new(self.create(&request.into_inner().parent)?))
    }
}

#[tonic::async_trait]
impl ByteStream for Shelf {
    type ReadStream = Pin<Box<dyn FutureStream<Item = Result<ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadRequest { resource_name, read_offset, read_limit } = request.into_inner();
        let wrong = |_| Status::out_of_range("negative offset");
        let from = u64::try_from(read_offset).map_err(wrong)?;
        let limit = u64::try_from(read_limit).map_err(wrong)?;
        let end = if limit == 0 { u64::MAX } else { from.saturating_add(limit) };
        let log = self.to_read(&resource_name)?;
        let progress = log.progress.subscribe();
        let pieces = stream::unfold(Some((log, progress, from)), move |state| async move {
            let (log, mut progress, at) = state?;
            // The sender was dropped: the stream has been removed, and nothing follows.
            let reached = *progress.wait_for(|it| it.finished || it.length_bytes > at).await.ok()?;
            let length = reached.length_bytes.min(end).saturating_sub(at).min(PIECE_BYTES);
            if length == 0 {
                return None;
            }
            let mut data = vec![0; usize::try_from(length).ok()?];
            if let Err(error) = log.file.read_exact_at(&mut data, at) {
                return Some((Err(Status::internal(error.to_string())), None));
            }
            Some((Ok(ReadResponse { data }), Some((log, progress, at + length))))
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn write(&self, request: Request<Streaming<WriteRequest>>) -> Result<Response<WriteResponse>, Status> {
        let mut pieces = request.into_inner();
        let mut log: Option<Arc<Log>> = None;
        let mut length = 0;
        while let Some(piece) = pieces.message().await? {
            let log = match &log {
                Some(log) => log,
                None => log.insert(self.to_write(&piece.resource_name)?),
            };
            let offset = u64::try_from(piece.write_offset).map_err(|_| Status::out_of_range("negative offset"))?;
            length = log.add(offset, &piece.data, piece.finish_write)?;
            if piece.finish_write {
                break;
            }
        }
        Ok(Response::new(WriteResponse { committed_size: i64::try_from(length).unwrap_or(i64::MAX) }))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let SpoolProgress { length_bytes, finished } =
            *self.to_write(&request.into_inner().resource_name)?.progress.borrow();
        let committed_size = i64::try_from(length_bytes).unwrap_or(i64::MAX);
        Ok(Response::new(QueryWriteStatusResponse { committed_size, complete: finished }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_by_one_name_and_written_by_another() {
        let shelf = Shelf::default();
        let stream = shelf.create("main/job").unwrap();
        assert!(stream.name.starts_with("main/job/logstreams/"), "{}", stream.name);
        assert!(shelf.to_read(&stream.name).is_ok() && shelf.to_write(&stream.write_resource_name).is_ok());
        assert!(shelf.to_read(&stream.write_resource_name).is_err() && shelf.to_write(&stream.name).is_err());
        assert!(shelf.to_write(&format!("{}/{}", stream.name, "0".repeat(32))).is_err());
    }

    #[test]
    fn what_comes_twice_is_there_once_and_gaps_are_refused() {
        let shelf = Shelf::default();
        let stream = shelf.create("").unwrap();
        let log = shelf.to_write(&stream.write_resource_name).unwrap();
        assert_eq!(log.add(0, b"abc", false).unwrap(), 3);
        assert_eq!(log.add(1, b"bcde", false).unwrap(), 5);
        assert_eq!(log.add(0, b"abc", false).unwrap(), 5);
        assert_eq!(log.add(7, b"x", false).unwrap_err().code(), tonic::Code::OutOfRange);
        assert_eq!(log.add(5, b"", true).unwrap(), 5);
        assert_eq!(log.add(5, b"x", false).unwrap_err().code(), tonic::Code::FailedPrecondition);
        let mut bytes = [0; 5];
        log.file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"abcde");
    }
}
