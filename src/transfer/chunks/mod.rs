//! Moves layers as chunks, of which only those move that the other side lacks.
//!
//! Input: a layer of the store, or the digest of a list that an engine has. Output: the digest of a list, or
//! a layer of the store. The list names the chunks of a layer's tar: see `docs/design/remote-cache.md`.

mod cutter;
mod join;
mod layout;
mod list;
mod pack;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream,
};
use tokio::{sync::Semaphore, time::Instant};

use self::{
    join::Collected,
    list::{Chunk, ChunkList, MAX_LIST_BYTES},
    pack::{KnownChunks, pack},
};
use super::{
    Parcel, RemoteLayer, TransferContext, TransferError, Uploads,
    fetch::{Looked, look},
};
use crate::{
    blocking,
    remote::{Blob, Cas, Digest, DigestFunction, RemoteError, RemoteErrorKind},
    store::{LayerId, ListDigest, Store},
    sync::Mutex,
};

/// For how long the engine is not asked again whether it has the chunks of a list.
const SEEN: Duration = Duration::from_secs(30);
/// Beyond this, everything that is remembered is forgotten at once.
const MAX_REMEMBERED: usize = 1 << 14;
/// The maximum number of lists that are read at a time.
const LOOKS: usize = 4;
/// The maximum number of chunks that are remembered, about 50 bytes each.
const MAX_CHUNKS_REMEMBERED: usize = 1 << 19;
/// The maximum number of calls at once that read chunks.
const READS: usize = 4;
/// How many bytes of blobs are read together at most. So many are in memory for each call.
const READ_BYTES: u64 = 4 << 20;
/// More than a blob takes in a message besides its bytes.
const AROUND_BYTES: u64 = 128;

/// A layer with no more bytes than this travels whole, and is not cut to find that out.
const SMALL_BYTES: u64 = 128 << 10;

/// How a layer travels, once it is known. Locked while the layer is packed, so that it is not packed twice.
type Slot = Arc<tokio::sync::Mutex<Option<Form>>>;

/// How a layer travels.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// As chunks. The blob is their list.
    Chunks(RemoteLayer),
    /// As one blob.
    Whole,
}

/// What is known about lists at an engine.
#[derive(Debug)]
pub(crate) struct ChunkTransfers {
    layers: Mutex<HashMap<LayerId, Slot>>,
    lists: Mutex<Lists>,
    /// Blobs that were not what their digests say when they were read, and those that were read with them.
    /// The engine says that it has them, so they cannot be replaced: layers that need them travel whole.
    suspects: Mutex<HashSet<Digest>>,
    /// Bounds how many lists are read and asked for at a time.
    looks: Semaphore,
}

/// Lists that were read.
#[derive(Debug, Default)]
struct Lists {
    known: HashMap<Digest, Arc<tokio::sync::Mutex<Known>>>,
    /// How many chunks they have, all together.
    chunks: usize,
}

/// A list that was read. Locked while the engine is asked for it, so that it is asked once.
#[derive(Debug, Default)]
struct Known {
    /// The blobs of its chunks.
    blobs: Option<Arc<[Digest]>>,
    /// When the engine last had them all.
    seen: Option<Instant>,
}

impl Default for ChunkTransfers {
    fn default() -> Self {
        Self {
            layers: Mutex::default(),
            lists: Mutex::default(),
            suspects: Mutex::default(),
            looks: Semaphore::new(LOOKS),
        }
    }
}

impl ChunkTransfers {
    /// Uploads the chunks of a layer that the engine lacks, and returns the list as the layer's blob. Returns
    /// `None` if the layer is to travel whole. The engine may have chunks of the layers `similar`.
    pub(crate) async fn bring(
        &self,
        context: TransferContext<'_>,
        uploads: &Uploads,
        layer: &LayerId,
        similar: &[LayerId],
    ) -> Result<Option<RemoteLayer>, TransferError> {
        const DOING: &str = "upload a layer's chunks";
        let TransferContext { store, cas, id_map } = context;
        let function = cas.digest_function().await.map_err(TransferError::remote(DOING))?;
        let slot = self.slot(layer);
        let mut slot = slot.lock().await;
        let known = match *slot {
            Some(Form::Whole) => return Ok(None),
            Some(Form::Chunks(known)) => Some(known),
            None => recorded(store, layer).await?.filter(|known| known.blob.function == function),
        };
        if let Some(known) = known
            && self.is_complete(cas, known.blob).await.or_else(unless_damaged)?
        {
            *slot = Some(Form::Chunks(known));
            return Ok(Some(known));
        }
        if is_small(store, layer).await? || uploads.has_whole(context, layer).await? {
            *slot = Some(Form::Whole);
            return Ok(None);
        }
        let known = self.chunks_of(context, function, similar).await;
        let pack = |known: KnownChunks| {
            let (from, dir) = (Arc::clone(store), store.layers().dir(layer));
            blocking::run("pack a layer", move || pack(&from, &dir, id_map, function, &known))
        };
        let Some(mut packed) = pack(known).await? else {
            *slot = Some(Form::Whole);
            return Ok(None);
        };
        let list = Blob::named_by(function, packed.list.encode());
        let name = RemoteLayer { diff_id: packed.diff_id, blob: list.digest };
        let blobs: Arc<[Digest]> = packed.list.chunks().map(|chunk| chunk.blob).collect();
        if self.has_suspect(&blobs, name.blob) {
            *slot = Some(Form::Whole);
            return Ok(None);
        }
        let missing = cas.find_missing([&*blobs, &[name.blob]].concat()).await;
        let missing = missing.map_err(TransferError::remote(DOING))?;
        if packed.lacks(&missing) {
            // The engine lost a chunk that the earlier layer had. What it has not is packed after all.
            let Some(again) = pack(KnownChunks::new()).await?.filter(|again| again.list == packed.list) else {
                return Err(TransferError::Chunks("the layer has changed while it was packed".into()));
            };
            packed = again;
        }
        cas.upload_missing(packed.blobs(), missing.clone()).await.map_err(TransferError::remote(DOING))?;
        // Last, so that a list names chunks that were there.
        cas.upload_missing(vec![list], missing).await.map_err(TransferError::remote(DOING))?;
        // Removes the file.
        blocking::run("remove a file", move || {
            drop(packed);
            Ok::<_, TransferError>(())
        })
        .await?;
        record(store, layer, name).await?;
        let list = self.list(name.blob);
        let mut list = list.lock().await;
        self.remember(&mut list, &blobs);
        list.seen = Some(Instant::now());
        *slot = Some(Form::Chunks(name));
        Ok(Some(name))
    }

    /// Returns the chunks of the first of these layers that has a list at the engine. If none can be read,
    /// every chunk is packed.
    async fn chunks_of(
        &self,
        TransferContext { store, cas, .. }: TransferContext<'_>,
        function: DigestFunction,
        layers: &[LayerId],
    ) -> KnownChunks {
        for layer in layers {
            let read = async {
                let known = recorded(store, layer).await?.filter(|known| known.blob.function == function);
                let Some(known) = known else { return Ok(None) };
                self.read_list(cas, known.blob).await.map(Some)
            };
            match read.await {
                Ok(None) => {}
                Ok(Some(list)) => return list.chunks().map(|chunk| (chunk.hash, *chunk)).collect(),
                Err(error) => {
                    tracing::debug!(%error, "packing every chunk");
                    break;
                }
            }
        }
        KnownChunks::new()
    }

    /// Adds a layer to the store, unless it is there already, as [`fetch_layer`](super::fetch_layer) does.
    /// The parcel's blob is the list. Chunks that the layers `similar` of the store have are not fetched.
    ///
    /// # Cancel safety
    /// If the future is dropped, at most a temporary file of the store is left, which is removed when this
    /// process ends.
    pub(crate) async fn fetch(
        &self,
        store: &Arc<Store>,
        cas: &Cas,
        name: &'static str,
        parcel: Parcel,
        similar: Vec<LayerId>,
    ) -> Result<LayerId, TransferError> {
        let Parcel { diff_id, blob, .. } = parcel;
        let layer = match look(store, parcel).await? {
            Looked::Found(layer) => layer,
            Looked::Locked(lock) => {
                let fetched = self.fetch_locked(store, cas, name, parcel, similar).await;
                if fetched.is_err() {
                    // Something of it is not what the engine said.
                    self.list(blob).lock().await.seen = None;
                }
                let (layer, is_verified) = fetched?;
                drop(lock);
                // So that the layer is not packed again when a step that builds on it is shared. This machine
                // offers no list of which it has not read everything.
                if is_verified {
                    let known = RemoteLayer { diff_id, blob };
                    record(store, &layer, known).await?;
                    *self.slot(&layer).lock().await = Some(Form::Chunks(known));
                }
                layer
            }
        };
        Ok(layer)
    }

    /// Adds a layer to the store whose lock the caller holds. Returns whether its list can be offered to
    /// others.
    async fn fetch_locked(
        &self,
        store: &Arc<Store>,
        cas: &Cas,
        name: &'static str,
        parcel: Parcel,
        similar: Vec<LayerId>,
    ) -> Result<(LayerId, bool), TransferError> {
        const DOING: &str = "fetch a layer's chunks";
        let Parcel { diff_id, blob, id_map } = parcel;
        let list = self.read_list(cas, blob).await?;
        let (from, wanted) = (Arc::clone(store), list.clone());
        let collecting = blocking::run(DOING, move || {
            let mut collected = Collected::new(&from, wanted)?;
            let wanted = collected.missing().len();
            for layer in similar {
                // Another layer of the same step has the same. What is left then is new.
                if collected.missing().len() * 2 <= wanted {
                    break;
                }
                collected.take_from(&from, &from.layers().dir(&layer), id_map)?;
            }
            Ok::<_, TransferError>(collected)
        });
        // The engine is asked meanwhile.
        let has_all = async {
            match self.has_chunks(cas, blob, Some(&list)).await? {
                true => Ok(()),
                false => Err(TransferError::Chunks("the engine lost a chunk of the layer".into())),
            }
        };
        let fetching = async { self.fetch_missing(cas, collecting.await?).await };
        let ((), collected) = future::try_join(has_all, fetching).await?;
        let into = Arc::clone(store);
        blocking::run(DOING, move || collected.unpack(&into, name, diff_id, id_map)).await
    }

    /// Returns whether the engine has a list and all of its chunks. It counts them as just used. A list is
    /// read once, and the engine is asked at most every half minute.
    pub(crate) async fn is_complete(&self, cas: &Cas, list: Digest) -> Result<bool, TransferError> {
        self.has_chunks(cas, list, None).await
    }

    async fn has_chunks(&self, cas: &Cas, list: Digest, read: Option<&ChunkList>) -> Result<bool, TransferError> {
        let slot = self.list(list);
        let mut known = slot.lock().await;
        if known.seen.is_some_and(|seen| seen.elapsed() < SEEN) {
            return Ok(true);
        }
        let _turn = self.looks.acquire().await;
        let blobs = match (&known.blobs, read) {
            (Some(blobs), _) => Arc::clone(blobs),
            (None, Some(read)) => read.chunks().map(|chunk| chunk.blob).collect(),
            (None, None) => match self.read_list(cas, list).await {
                Err(error) if is_loss(&error) => return Ok(false),
                read => read?.chunks().map(|chunk| chunk.blob).collect(),
            },
        };
        self.remember(&mut known, &blobs);
        let is_complete = has_all(cas, [&*blobs, &[list]].concat()).await?;
        known.seen = is_complete.then(Instant::now);
        Ok(is_complete)
    }

    /// Reads a list from the engine.
    async fn read_list(&self, cas: &Cas, list: Digest) -> Result<ChunkList, TransferError> {
        let bytes = cas.read(list, MAX_LIST_BYTES).await;
        let bytes = bytes.map_err(TransferError::remote("read a layer's list of chunks"));
        let read = bytes.and_then(|bytes| ChunkList::decode(&bytes, list.function).map_err(TransferError::Chunks));
        if read.as_ref().is_err_and(is_damage) {
            self.suspect(&[list]);
        }
        read
    }

    /// Fetches the chunks that are not here.
    async fn fetch_missing(&self, cas: &Cas, mut collected: Collected) -> Result<Collected, TransferError> {
        const DOING: &str = "fetch a layer's chunks";
        let chunks: HashMap<Digest, Chunk> = collected.missing().into_iter().map(|chunk| (chunk.blob, chunk)).collect();
        // No more than fits into one message: a group is one call, and several calls run at a time.
        let most = match cas.batch_bytes().await {
            Ok(bytes) => bytes.min(READ_BYTES),
            Err(error) if error.kind() == RemoteErrorKind::Unimplemented => READ_BYTES,
            Err(error) => return Err(TransferError::remote(DOING)(error)),
        };
        // In the order of the list, in which they will be read.
        let mut groups: Vec<Vec<Digest>> = Vec::new();
        let mut room = 0;
        for Chunk { blob, .. } in collected.missing() {
            let bytes = blob.size_bytes.saturating_add(AROUND_BYTES);
            match groups.last_mut().filter(|_| bytes <= room) {
                Some(group) => group.push(blob),
                None => {
                    groups.push(vec![blob]);
                    room = most;
                }
            }
            room = room.saturating_sub(bytes);
        }
        let chunks = Arc::new(chunks);
        // Boxed and collected: the compiler cannot prove that a stream which creates the futures lazily is
        // `Send`.
        let reads: Vec<BoxFuture<'_, _>> =
            groups.into_iter().map(|group| self.read_group(cas, group).boxed()).collect();
        let mut reads = stream::iter(reads).buffered(READS);
        while let Some(blobs) = reads.next().await {
            let blobs = blobs.map_err(TransferError::remote(DOING))?;
            let chunks = Arc::clone(&chunks);
            collected = blocking::run(DOING, move || {
                collected.take(&chunks, &blobs)?;
                Ok::<_, TransferError>(collected)
            })
            .await?;
        }
        Ok(collected)
    }

    /// Reads blobs together, or one after another from an engine that does not support that.
    async fn read_group(&self, cas: &Cas, group: Vec<Digest>) -> Result<Vec<(Digest, Vec<u8>)>, RemoteError> {
        let read = match cas.read_many(group.clone()).await {
            Err(error) if error.kind() == RemoteErrorKind::Unimplemented => read_each(cas, &group).await,
            read => read,
        };
        if read.as_ref().is_err_and(|error| error.kind() == RemoteErrorKind::Corrupt) {
            self.suspect(&group);
        }
        read
    }

    fn suspect(&self, blobs: &[Digest]) {
        let mut suspects = self.suspects.lock();
        if suspects.len() >= MAX_REMEMBERED {
            suspects.clear();
        }
        suspects.extend(blobs);
    }

    fn has_suspect(&self, blobs: &[Digest], list: Digest) -> bool {
        let suspects = self.suspects.lock();
        suspects.contains(&list) || blobs.iter().any(|blob| suspects.contains(blob))
    }

    fn remember(&self, known: &mut Known, blobs: &Arc<[Digest]>) {
        if known.blobs.is_none() {
            self.lists.lock().chunks += blobs.len();
            known.blobs = Some(Arc::clone(blobs));
        }
    }

    fn list(&self, list: Digest) -> Arc<tokio::sync::Mutex<Known>> {
        let mut lists = self.lists.lock();
        if lists.known.len() >= MAX_REMEMBERED || lists.chunks >= MAX_CHUNKS_REMEMBERED {
            *lists = Lists::default();
        }
        Arc::clone(lists.known.entry(list).or_default())
    }

    fn slot(&self, layer: &LayerId) -> Slot {
        let mut layers = self.layers.lock();
        if layers.len() >= MAX_REMEMBERED {
            layers.clear();
        }
        Arc::clone(layers.entry(layer.clone()).or_default())
    }
}

/// Returns that a list is not complete, if the engine does not have it as it should be.
fn unless_damaged(error: TransferError) -> Result<bool, TransferError> {
    if is_loss(&error) || is_damage(&error) { Ok(false) } else { Err(error) }
}

/// Returns whether a blob was not there.
fn is_loss(error: &TransferError) -> bool {
    matches!(error, TransferError::Remote { source, .. } if source.kind() == RemoteErrorKind::MissingBlobs)
}

/// Returns whether a blob was there, but was not what it should be.
fn is_damage(error: &TransferError) -> bool {
    match error {
        TransferError::Chunks(_) => true,
        TransferError::Remote { source, .. } => source.kind() == RemoteErrorKind::Corrupt,
        _ => false,
    }
}

/// Returns whether the engine has all of these blobs.
async fn has_all(cas: &Cas, blobs: Vec<Digest>) -> Result<bool, TransferError> {
    let missing = cas.find_missing(blobs).await;
    Ok(missing.map_err(TransferError::remote("look for a layer's chunks"))?.is_empty())
}

/// Reads blobs one after another.
async fn read_each(cas: &Cas, blobs: &[Digest]) -> Result<Vec<(Digest, Vec<u8>)>, RemoteError> {
    let mut read = Vec::new();
    for &blob in blobs {
        read.push((blob, cas.read(blob, blob.size_bytes).await?));
    }
    Ok(read)
}

/// Returns whether a layer has so few bytes that it is not worth cutting.
async fn is_small(store: &Arc<Store>, layer: &LayerId) -> Result<bool, TransferError> {
    const DOING: &str = "look the layer up";
    let (store, layer) = (Arc::clone(store), layer.clone());
    let bytes = blocking::run(DOING, move || store.digests().bytes_of(&layer).map_err(TransferError::store(DOING)));
    Ok(bytes.await?.is_some_and(|bytes| bytes <= SMALL_BYTES))
}

/// Returns the list of a layer that the store knows.
async fn recorded(store: &Arc<Store>, layer: &LayerId) -> Result<Option<RemoteLayer>, TransferError> {
    const DOING: &str = "look the layer up";
    let (store, layer) = (Arc::clone(store), layer.clone());
    let found = blocking::run(DOING, move || store.digests().list_of(&layer).map_err(TransferError::store(DOING)));
    let Some(ListDigest { diff_id, list }) = found.await? else { return Ok(None) };
    Ok(list.parse().ok().map(|blob| RemoteLayer { diff_id, blob }))
}

/// Records the list of a layer, for as long as the store keeps the layer.
async fn record(store: &Arc<Store>, layer: &LayerId, name: RemoteLayer) -> Result<(), TransferError> {
    const DOING: &str = "remember the layer";
    let (store, layer) = (Arc::clone(store), layer.clone());
    let list = ListDigest { diff_id: name.diff_id, list: name.blob.to_string() };
    blocking::run(DOING, move || store.digests().remember_list(&layer, &list).map_err(TransferError::store(DOING)))
        .await
}
