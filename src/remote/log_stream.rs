//! The output of an Action while it runs.

use bazel_remote_apis::google::bytestream::ReadRequest;
use futures_util::{Stream, stream};
use tonic::{Request, Streaming};

use super::{
    Endpoint,
    endpoint::{Seat, byte_stream_client},
};

/// Reads a log stream that an engine named, piece by piece, until it ends. A permanent error ends it, too:
/// the output that was not read comes with the Action's result.
pub fn read_log(endpoint: &Endpoint, name: String) -> impl Stream<Item = Vec<u8>> + Send + use<> {
    let reading = Reading { endpoint: endpoint.clone(), name, offset: 0, answer: None, failures: 0 };
    stream::unfold(reading, async |mut reading| reading.next().await.map(|piece| (piece, reading)))
}

struct Reading {
    endpoint: Endpoint,
    name: String,
    offset: i64,
    answer: Option<(Streaming<bazel_remote_apis::google::bytestream::ReadResponse>, Seat)>,
    failures: u32,
}

impl Reading {
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let status = match self.try_next().await {
                Ok(piece) => {
                    self.failures = 0;
                    let piece = piece?;
                    self.offset += i64::try_from(piece.len()).unwrap_or(0);
                    if !piece.is_empty() {
                        return Some(piece);
                    }
                    continue;
                }
                Err(status) => status,
            };
            let error = self.endpoint.error(&status);
            self.answer = None;
            self.failures += 1;
            // The stream may not exist yet if its worker has not begun to write.
            let may_come = error.is_transient() || error.kind() == super::RemoteErrorKind::NotFound;
            if !may_come || self.failures >= self.endpoint.retry().attempts {
                tracing::debug!(%error, "the step's output will be read at its end");
                return None;
            }
            tokio::time::sleep(self.endpoint.retry().pause(self.failures)).await;
        }
    }

    async fn try_next(&mut self) -> Result<Option<Vec<u8>>, tonic::Status> {
        let answer = match &mut self.answer {
            Some((answer, _)) => answer,
            None => {
                let request = ReadRequest { resource_name: self.name.clone(), read_offset: self.offset, read_limit: 0 };
                let (service, seat) = self.endpoint.long_call().await;
                let mut client = byte_stream_client(service);
                &mut self.answer.insert((client.read(Request::new(request)).await?.into_inner(), seat)).0
            }
        };
        Ok(answer.message().await?.map(|piece| piece.data))
    }
}
