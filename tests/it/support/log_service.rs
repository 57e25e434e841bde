//! A log service that sends wrong output.

#![allow(clippy::disallowed_methods, reason = "a server in the test's process has tasks of its own")]

use std::{net::SocketAddr, pin::Pin};

use bazel_remote_apis::google::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
    byte_stream_server::{ByteStream, ByteStreamServer},
};
use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

/// The text that it sends for every stream, before it stays silent.
pub(crate) const SAID: &str = "what no step has printed";

/// A lying log service that runs until it is dropped, on its own thread.
pub(crate) struct Liar {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

impl Liar {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(ByteStreamServer::new(Lies));
        runtime.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { runtime: Some(runtime), address }
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc://{}", self.address)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

struct Lies;

#[tonic::async_trait]
impl ByteStream for Lies {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let said = Ok(ReadResponse { data: format!("{SAID}\n").into() });
        Ok(Response::new(stream::iter([said]).chain(stream::pending()).boxed()))
    }

    async fn write(&self, _: Request<Streaming<WriteRequest>>) -> Result<Response<WriteResponse>, Status> {
        Err(Status::unimplemented("it only reads"))
    }

    async fn query_write_status(
        &self,
        _: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        Err(Status::unimplemented("it only reads"))
    }
}
