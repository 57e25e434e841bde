//! A layer that is unpacked while it is downloaded.
//!
//! Received bytes go through a pipe to a thread, which unpacks them or has the helper in the steps' user
//! namespace do it. Result: a tree that is not in its place yet. The caller puts it there once the download's
//! digest is verified, too. If bytes turn out to be wrong, the tree is removed, and a new one is started.

use std::{fs::File, io, sync::Arc};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::{
    net::unix::pipe,
    task::{JoinError, JoinHandle},
};

use super::{
    super::{
        ImageDigest, ImageError,
        layers::{LayerFile, unpack_tree},
        partial::Partial,
    },
    download::BlobSink,
};
use crate::store::{BlobFile, IdMap, Store, StoreError, tree::UnpackLimits};

/// The size of the pipe in bytes: as much as any user may have. If there are too many pipes, it is smaller.
const PIPE_BYTES: usize = 1 << 20;

/// The layer to unpack.
#[derive(Debug, Clone)]
pub(in crate::image) struct StreamedLayer {
    pub(in crate::image) store: Arc<Store>,
    /// The image as the user wrote it.
    pub(in crate::image) image: String,
    pub(in crate::image) diff_id: ImageDigest,
    pub(in crate::image) id_map: IdMap,
    pub(in crate::image) limits: UnpackLimits,
}

/// Unpacks the bytes that are written to it.
///
/// # Cancel safety
/// If this is dropped, the stream ends, and so does the thread, which then removes what it made.
pub(super) struct LayerSink {
    layer: StreamedLayer,
    /// Started by the first bytes.
    unpacking: Option<Unpacking>,
}

struct Unpacking {
    /// `None` if there is nothing more to write, or if the thread ended before the stream.
    pipe: Option<pipe::Sender>,
    work: JoinHandle<Result<Partial, ImageError>>,
    /// The result of a thread that ended before the stream. It counts only if the bytes were the right ones,
    /// which is known at the stream's end.
    ended: Option<Result<Partial, ImageError>>,
}

impl LayerSink {
    pub(super) fn new(layer: StreamedLayer) -> Self {
        Self { layer, unpacking: None }
    }

    /// Ends the stream, and returns the unpacked tree.
    pub(super) async fn finish(mut self) -> Result<Partial, ImageError> {
        let Unpacking { pipe, work, ended } = match self.unpacking.take() {
            Some(unpacking) => unpacking,
            None => Unpacking::start(&self.layer)?,
        };
        drop(pipe);
        match ended {
            Some(ended) => ended,
            None => joined(&self.layer.store, work.await),
        }
    }

    fn unpacking(&mut self) -> Result<&mut Unpacking, StoreError> {
        let started = match self.unpacking.take() {
            Some(unpacking) => unpacking,
            None => Unpacking::start(&self.layer)?,
        };
        Ok(self.unpacking.insert(started))
    }
}

impl BlobSink for LayerSink {
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        let store = Arc::clone(&self.layer.store);
        let unpacking = self.unpacking()?;
        while let Some(pipe) = unpacking.pipe.as_ref().filter(|_| !bytes.is_empty()) {
            let written = match pipe.try_write(bytes) {
                // Another process may hold the pipe's other end open, so its end alone does not show that the
                // thread ended.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::select! {
                    ended = &mut unpacking.work => Err(ended),
                    ready = pipe.writable() => Ok(ready.map(|()| 0)),
                },
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err((&mut unpacking.work).await),
                written => Ok(written),
            };
            match written {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(StoreError::io("write to a pipe for", store.dir(), error)),
                Err(ended) => {
                    unpacking.pipe = None;
                    match joined(&store, ended) {
                        // The rest of the stream would change nothing.
                        Err(ImageError::Store(error)) => {
                            self.unpacking = None;
                            return Err(error);
                        }
                        ended => unpacking.ended = Some(ended),
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn restart(&mut self) {
        if let Some(Unpacking { pipe, work, ended }) = self.unpacking.take() {
            drop(pipe);
            if ended.is_none() {
                // The result of wrong bytes has no meaning. What was made is removed.
                drop(work.await);
            }
        }
    }
}

impl Unpacking {
    fn start(layer: &StreamedLayer) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError::io("make a pipe for", layer.store.dir(), error);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        if let Err(error) = fcntl_setpipe_size(&writer, PIPE_BYTES) {
            tracing::debug!(%error, "a layer is unpacked through a small pipe");
        }
        let pipe = Some(pipe::Sender::from_owned_fd(writer).map_err(failed)?);
        let layer = layer.clone();
        let work = tokio::task::spawn_blocking(move || {
            let StreamedLayer { store, image, diff_id, id_map, limits } = layer;
            let blob = BlobFile { file: File::from(reader), offset: 0, length: u64::MAX };
            unpack_tree(&store, LayerFile { name: &image, diff_id, blob, limits }, id_map)
        });
        Ok(Self { pipe, work, ended: None })
    }
}

fn joined(store: &Store, ended: Result<Result<Partial, ImageError>, JoinError>) -> Result<Partial, ImageError> {
    ended.map_err(|error| StoreError::io("unpack to", store.dir(), io::Error::other(error)))?
}
