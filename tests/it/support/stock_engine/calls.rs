//! The services without Actions: capabilities, blobs, and cached results.

use std::{fs::File, io::Read, pin::Pin, time::Duration};

use bazel_remote_apis::google::{
    bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
        byte_stream_server::ByteStream,
    },
    rpc,
};
use futures_util::{Stream, StreamExt, stream};
use hm_exec::remote::reapi::{
    self, action_cache_server::ActionCache, batch_read_blobs_response, batch_update_blobs_response,
    capabilities_server::Capabilities, content_addressable_storage_server::ContentAddressableStorage,
};
use tonic::{Request, Response, Status, Streaming};

use super::{Service, execution::result_key};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

const PIECE_BYTES: usize = 1 << 20;

#[tonic::async_trait]
impl Capabilities for Service {
    async fn get_capabilities(
        &self,
        _: Request<reapi::GetCapabilitiesRequest>,
    ) -> Result<Response<reapi::ServerCapabilities>, Status> {
        let functions: Vec<i32> = self.0.habits.functions.iter().map(|it| it.value() as i32).collect();
        let updates = reapi::ActionCacheUpdateCapabilities { update_enabled: true };
        Ok(Response::new(reapi::ServerCapabilities {
            cache_capabilities: Some(reapi::CacheCapabilities {
                digest_functions: functions.clone(),
                action_cache_update_capabilities: Some(updates),
                max_batch_total_size_bytes: self.0.habits.batch_bytes,
                ..Default::default()
            }),
            execution_capabilities: Some(reapi::ExecutionCapabilities {
                digest_function: if self.0.habits.announces_default { functions[0] } else { 0 },
                digest_functions: functions,
                exec_enabled: true,
                ..Default::default()
            }),
            ..Default::default()
        }))
    }
}

fn rpc_status(result: Result<(), Status>) -> rpc::Status {
    match result {
        Ok(()) => rpc::Status::default(),
        Err(status) => rpc::Status { code: status.code() as i32, message: status.message().into(), details: vec![] },
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Service {
    async fn find_missing_blobs(
        &self,
        request: Request<reapi::FindMissingBlobsRequest>,
    ) -> Result<Response<reapi::FindMissingBlobsResponse>, Status> {
        let request = request.into_inner();
        let function = self.0.function(request.digest_function)?;
        let mut missing_blob_digests = Vec::new();
        for digest in request.blob_digests {
            if !self.0.blobs.has(function, &digest)? {
                missing_blob_digests.push(digest);
            }
        }
        Ok(Response::new(reapi::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<reapi::BatchUpdateBlobsRequest>,
    ) -> Result<Response<reapi::BatchUpdateBlobsResponse>, Status> {
        let request = request.into_inner();
        let function = self.0.function(request.digest_function)?;
        let responses = request.requests.into_iter().map(|blob| {
            let digest = blob.digest.unwrap_or_default();
            let status = Some(rpc_status(self.0.blobs.write(function, &digest, &blob.data)));
            batch_update_blobs_response::Response { digest: Some(digest), status }
        });
        Ok(Response::new(reapi::BatchUpdateBlobsResponse { responses: responses.collect() }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<reapi::BatchReadBlobsRequest>,
    ) -> Result<Response<reapi::BatchReadBlobsResponse>, Status> {
        if !self.0.habits.reads_batches {
            return Err(Status::unimplemented("BatchReadBlobs"));
        }
        let request = request.into_inner();
        let function = self.0.function(request.digest_function)?;
        let responses = request.digests.into_iter().map(|digest| {
            let (data, status) = match self.0.blobs.read(function, &digest) {
                Ok(data) => (data, rpc_status(Ok(()))),
                Err(status) => (Vec::new(), rpc_status(Err(status))),
            };
            let (digest, status) = (Some(digest), Some(status));
            batch_read_blobs_response::Response { digest, data, status, ..Default::default() }
        });
        Ok(Response::new(reapi::BatchReadBlobsResponse { responses: responses.collect() }))
    }

    type GetTreeStream = Answers<reapi::GetTreeResponse>;

    async fn get_tree(&self, _: Request<reapi::GetTreeRequest>) -> Result<Response<Self::GetTreeStream>, Status> {
        Err(Status::unimplemented("GetTree"))
    }

    async fn split_blob(
        &self,
        _: Request<reapi::SplitBlobRequest>,
    ) -> Result<Response<reapi::SplitBlobResponse>, Status> {
        Err(Status::unimplemented("SplitBlob"))
    }

    type GetChunkMappingStream = Answers<reapi::GetChunkMappingResponse>;

    async fn get_chunk_mapping(
        &self,
        _: Request<reapi::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(Status::unimplemented("GetChunkMapping"))
    }

    async fn splice_blob(
        &self,
        _: Request<reapi::SpliceBlobRequest>,
    ) -> Result<Response<reapi::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("SpliceBlob"))
    }

    async fn register_chunk_mapping(
        &self,
        _: Request<Streaming<reapi::RegisterChunkMappingRequest>>,
    ) -> Result<Response<reapi::RegisterChunkMappingResponse>, Status> {
        Err(Status::unimplemented("RegisterChunkMapping"))
    }
}

#[tonic::async_trait]
impl ByteStream for Service {
    type ReadStream = Answers<ReadResponse>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let offset = usize::try_from(request.read_offset).map_err(|_| Status::out_of_range("read_offset"))?;
        if let Some(name) = request.resource_name.strip_prefix("logs/") {
            return Ok(Response::new(self.log(name, offset)?));
        }
        if self.0.habits.stalls {
            return Ok(Response::new(stream::pending().boxed()));
        }
        let (function, digest) = self.0.blobs.resource(&request.resource_name)?;
        let bytes = self.0.blobs.read(function, &digest)?;
        let pieces: Vec<_> = bytes.get(offset..).unwrap_or_default().chunks(PIECE_BYTES).map(<[u8]>::to_vec).collect();
        Ok(Response::new(stream::iter(pieces).map(|data| Ok(ReadResponse { data })).boxed()))
    }

    async fn write(&self, request: Request<Streaming<WriteRequest>>) -> Result<Response<WriteResponse>, Status> {
        let mut pieces = request.into_inner();
        if self.0.habits.stalls {
            pieces.message().await?;
            return std::future::pending().await;
        }
        let (mut name, mut bytes) = (String::new(), Vec::new());
        while let Some(piece) = pieces.message().await? {
            if name.is_empty() {
                name = piece.resource_name;
            }
            bytes.extend_from_slice(&piece.data);
        }
        let (function, digest) = self.0.blobs.resource(&name)?;
        self.0.blobs.write(function, &digest, &bytes)?;
        Ok(Response::new(WriteResponse { committed_size: digest.size_bytes }))
    }

    async fn query_write_status(
        &self,
        _: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        Err(Status::not_found("no upload is kept"))
    }
}

impl Service {
    /// Follows the output of a running Action, named `OPERATION/stdout` or `OPERATION/stderr`.
    fn log(&self, name: &str, offset: usize) -> Result<Answers<ReadResponse>, Status> {
        let (operation, stream) = name.split_once('/').ok_or_else(|| Status::not_found("no such log"))?;
        let running = self.0.running.lock().unwrap().get(operation).cloned();
        let running = running.ok_or_else(|| Status::not_found("no such operation"))?;
        let path = self.0.actions.join(format!("{operation}.{stream}"));
        let open = move |file: Option<File>| file.or_else(|| File::open(&path).ok());
        let state = (None::<File>, offset, running, open);
        let pieces = stream::unfold(state, async |(file, mut skip, running, open)| {
            let mut file = open(file);
            loop {
                let is_over = running.is_done();
                let mut data = vec![0; PIECE_BYTES];
                let read = file.as_mut().map_or(0, |file| file.read(&mut data).unwrap());
                data.truncate(read);
                let skipped = skip.min(read);
                data.drain(..skipped);
                skip -= skipped;
                if !data.is_empty() {
                    return Some((Ok(ReadResponse { data }), (file, skip, running, open)));
                }
                if is_over && read == 0 {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                file = open(file);
            }
        });
        Ok(pieces.boxed())
    }
}

#[tonic::async_trait]
impl ActionCache for Service {
    async fn get_action_result(
        &self,
        request: Request<reapi::GetActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let request = request.into_inner();
        let key = result_key(self.0.function(request.digest_function)?, request.action_digest.as_ref())?;
        let result = self.0.results.lock().unwrap().get(&key).cloned();
        result.map(Response::new).ok_or_else(|| Status::not_found("no such result"))
    }

    async fn update_action_result(
        &self,
        request: Request<reapi::UpdateActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let request = request.into_inner();
        let key = result_key(self.0.function(request.digest_function)?, request.action_digest.as_ref())?;
        let result = request.action_result.unwrap_or_default();
        self.0.results.lock().unwrap().insert(key, result.clone());
        Ok(Response::new(result))
    }
}
