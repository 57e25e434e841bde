//! Packs a layer as compressed chunks in a temporary file.

use std::{
    collections::{HashMap, HashSet},
    io::{self, BufWriter, Write},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{
    cutter::{MAX_BYTES, cut},
    layout::Part,
    list::{Chunk, ChunkList, MAX_CHUNKS},
};
use crate::{
    image::{self, ExportError},
    remote::{Blob, Content, Digest, DigestFunction},
    store::{IdMap, ImageDigest, Store, StoreError},
    transfer::TransferError,
};

/// The compression level of zstd, which is its own default.
const LEVEL: i32 = 3;
/// A layer with no more chunks than this travels whole: it is one blob, and compresses better.
const FEW: usize = 4;
/// What gzip's streams begin with. A tar that begins like one, because its first file is named so, would be
/// taken for one when it is unpacked, so it travels compressed as a whole. A name cannot begin like a stream
/// of zstd, which has a slash there.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// A layer as chunks. The file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct PackedChunks {
    /// The digest of the layer's tar.
    pub(super) diff_id: ImageDigest,
    pub(super) list: ChunkList,
    /// The compressed chunks, each once, but those that were known before.
    file: NamedTempFile,
    offsets: HashMap<[u8; 32], u64>,
}

/// Chunks that an engine had with an earlier layer. They are not compressed again to learn their digests.
pub(super) type KnownChunks = HashMap<[u8; 32], Chunk>;

impl PackedChunks {
    /// Returns whether a blob is missing that was known before, and so is not here.
    pub(super) fn lacks(&self, missing: &HashSet<Digest>) -> bool {
        self.list.chunks().any(|chunk| !self.offsets.contains_key(&chunk.hash) && missing.contains(&chunk.blob))
    }

    /// Returns the blobs of the chunks that were not known before, each once.
    pub(super) fn blobs(&self) -> Vec<Blob> {
        let mut offsets = self.offsets.clone();
        let blob = |chunk: &Chunk| {
            let offset = offsets.remove(&chunk.hash)?;
            Some(Blob { digest: chunk.blob, content: Content::File { path: self.file.path().into(), offset } })
        };
        self.list.chunks().filter_map(blob).collect()
    }
}

/// Why cutting stopped before the end.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The layer is to travel whole.
    Whole,
    /// The temporary file could not be written.
    Failed,
}

/// Packs the layer in the directory `dir`, but for the chunks in `known`. Returns `None` if the layer is to
/// travel whole. Blocks.
pub(super) fn pack(
    store: &Store,
    dir: &Path,
    id_map: IdMap,
    function: DigestFunction,
    known: &KnownChunks,
) -> Result<Option<PackedChunks>, TransferError> {
    let tmp = store.instance().tmp();
    let failed = |doing, path: &Path, error| TransferError::store("pack a layer")(StoreError::io(doing, path, error));
    let file = tempfile::Builder::new().prefix(".hm-chunks-").tempfile_in(&tmp);
    let file = file.map_err(|error| failed("create a file in", &tmp, error))?;
    let path = file.path().to_owned();
    let mut spool = Spool {
        out: BufWriter::with_capacity(1 << 17, file),
        end: 0,
        compressor: zstd::bulk::Compressor::new(LEVEL).map_err(|error| failed("compress to", &path, error))?,
        compressed: Vec::with_capacity(zstd::zstd_safe::compress_bound(MAX_BYTES)),
        function,
        known,
        spooled: HashMap::new(),
        list: ChunkList::default(),
    };
    let (mut hash, mut start, mut stop) = (Sha256::new(), Vec::new(), None);
    let (packed, read) = image::read_layer_tar(store, dir, id_map, |tar| {
        let mut is_start = true;
        let each = |bytes: &[u8]| {
            hash.update(bytes);
            if std::mem::take(&mut is_start) {
                start = bytes[..bytes.len().min(4)].to_vec();
            }
            Ok(())
        };
        cut(tar, each, |part, bytes| {
            if spool.list.len() >= MAX_CHUNKS {
                stop = Some(Stop::Whole);
                return Err(io::Error::other("too many chunks"));
            }
            spool.put(part, bytes).inspect_err(|_| stop = Some(Stop::Failed))
        })
    })
    .map_err(|error| failed("make a pipe in", &tmp, error))?;
    match (stop, packed, read) {
        (Some(Stop::Whole), ..) => return Ok(None),
        (Some(Stop::Failed), _, Err(error)) => return Err(failed("write", &path, error)),
        (_, Err(source), _) | (_, _, Err(source)) => {
            return Err(TransferError::Pack(ExportError::Read { path: dir.into(), source }));
        }
        (_, Ok(()), Ok(())) => {}
    }
    let Spool { out, list, spooled, .. } = spool;
    let file = out.into_inner().map_err(|error| failed("write", &path, error.into_error()))?;
    if list.len() <= FEW || start.starts_with(GZIP) {
        return Ok(None);
    }
    let offsets = spooled.into_iter().map(|(hash, (offset, _))| (hash, offset)).collect();
    Ok(Some(PackedChunks { diff_id: ImageDigest::from_bytes(hash.finalize().into()), list, file, offsets }))
}

/// Compressed chunks, as they are written.
struct Spool<'a> {
    out: BufWriter<NamedTempFile>,
    end: u64,
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
    function: DigestFunction,
    known: &'a KnownChunks,
    /// The chunks that the file has, and where.
    spooled: HashMap<[u8; 32], (u64, Chunk)>,
    list: ChunkList,
}

impl Spool<'_> {
    fn put(&mut self, part: Part, bytes: &[u8]) -> io::Result<()> {
        let hash = *blake3::hash(bytes).as_bytes();
        let is_same = |chunk: &&Chunk| chunk.size == bytes.len();
        let found = self.known.get(&hash).filter(is_same).or_else(|| Some(&self.spooled.get(&hash)?.1));
        let chunk = match found {
            Some(chunk) => *chunk,
            None => {
                self.compressed.clear();
                self.compressor.compress_to_buffer(bytes, &mut self.compressed)?;
                self.out.write_all(&self.compressed)?;
                let chunk = Chunk { hash, size: bytes.len(), blob: self.function.of(&self.compressed) };
                self.spooled.insert(hash, (self.end, chunk));
                self.end += self.compressed.len() as u64;
                chunk
            }
        };
        match part {
            Part::Metadata => self.list.metadata.push(chunk),
            Part::Content => self.list.content.push(chunk),
        }
        Ok(())
    }
}
