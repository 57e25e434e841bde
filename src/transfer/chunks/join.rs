//! Collects the chunks of a layer in a temporary file, and puts its tar together.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use tempfile::NamedTempFile;

use super::{
    cutter::cut,
    layout::{Part, TarLayout},
    list::{Chunk, ChunkList},
};
use crate::{
    image::{self, ImageError},
    remote::Digest,
    store::{BlobFile, IdMap, ImageDigest, LayerId, Store, StoreError},
    transfer::TransferError,
};

/// The reading of an own layer stops after this many bytes more than twice what is wanted.
const READ_AHEAD_BYTES: u64 = 64 << 20;

/// The place of a chunk in the file.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    length: usize,
    /// What an engine sent stays compressed: what a list says is no measure of what it may take on the disk.
    is_compressed: bool,
}

/// The chunks of a layer that are here already.
#[derive(Debug)]
pub(super) struct Collected {
    list: ChunkList,
    file: NamedTempFile,
    end: u64,
    places: HashMap<[u8; 32], Place>,
    /// Whether every blob of the list was read, and had what the list says.
    is_verified: bool,
}

impl Collected {
    /// Creates the file for the chunks of a list. Refuses a list of more than the disk has room for.
    pub(super) fn new(store: &Store, list: ChunkList) -> Result<Self, TransferError> {
        let tmp = store.instance().tmp();
        if list.tar_bytes() > store.room().map_err(TransferError::store("fetch a layer"))? {
            return Err(failed("make room in", &tmp, io::Error::from(rustix::io::Errno::NOSPC)));
        }
        let file = tempfile::Builder::new().prefix(".hm-chunks-").tempfile_in(&tmp);
        let file = file.map_err(|error| failed("create a file in", &tmp, error))?;
        Ok(Self { list, file, end: 0, places: HashMap::new(), is_verified: true })
    }

    /// Returns the chunks that are not here, each once.
    pub(super) fn missing(&self) -> Vec<Chunk> {
        let mut seen = HashSet::new();
        let is_missing = |chunk: &&Chunk| !self.places.contains_key(&chunk.hash) && seen.insert(chunk.hash);
        self.list.chunks().filter(is_missing).copied().collect()
    }

    fn put(&mut self, hash: [u8; 32], bytes: &[u8], is_compressed: bool) -> io::Result<()> {
        if self.places.contains_key(&hash) {
            return Ok(());
        }
        self.file.as_file_mut().write_all(bytes)?;
        self.places.insert(hash, Place { offset: self.end, length: bytes.len(), is_compressed });
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Takes what is wanted from a layer of the store. A layer that cannot be read gives nothing, because
    /// what it does not give is fetched. Blocks.
    pub(super) fn take_from(&mut self, store: &Store, layer: &Path, id_map: IdMap) -> Result<(), TransferError> {
        let missing = self.missing();
        let mut wanted: HashSet<[u8; 32]> = missing.iter().map(|chunk| chunk.hash).collect();
        let wanted_bytes: u64 = missing.iter().map(|chunk| chunk.size as u64).sum();
        let mut left = wanted_bytes.saturating_mul(2).saturating_add(READ_AHEAD_BYTES);
        let mut full = None;
        let read = image::read_layer_tar(store, layer, id_map, |tar| {
            let each = |bytes: &[u8]| {
                left = left.saturating_sub(bytes.len() as u64);
                if left == 0 { Err(io::Error::other("enough")) } else { Ok(()) }
            };
            cut(tar, each, |_, bytes| {
                let hash = *blake3::hash(bytes).as_bytes();
                if wanted.remove(&hash) {
                    self.is_verified = false;
                    self.put(hash, bytes, false).map_err(|error| {
                        let text = error.to_string();
                        full = Some(error);
                        io::Error::other(text)
                    })?;
                }
                if wanted.is_empty() { Err(io::Error::other("all are found")) } else { Ok(()) }
            })
        });
        if let Some(error) = full {
            return Err(failed("write", self.file.path(), error));
        }
        if let Ok((_, Err(error))) | Err(error) = read {
            tracing::debug!(%error, "stopped reading the layer {}", layer.display());
        }
        Ok(())
    }

    /// Takes fetched blobs in. `chunks` are those that are missing, by blob.
    pub(super) fn take(
        &mut self,
        chunks: &HashMap<Digest, Chunk>,
        blobs: &[(Digest, Vec<u8>)],
    ) -> Result<(), TransferError> {
        let invalid = |why: &str, blob: &Digest| TransferError::Chunks(format!("the chunk {blob} {why}"));
        let mut decompressor =
            zstd::bulk::Decompressor::new().map_err(|error| failed("decompress to", self.file.path(), error))?;
        for (blob, bytes) in blobs {
            let Some(chunk) = chunks.get(blob) else { continue };
            let plain = decompressor
                .decompress(bytes, chunk.size)
                .map_err(|_| invalid("is not compressed, or is larger than listed", blob))?;
            if plain.len() != chunk.size || *blake3::hash(&plain).as_bytes() != chunk.hash {
                return Err(invalid("does not have the bytes that are listed", blob));
            }
            self.put(chunk.hash, bytes, true).map_err(|error| failed("write", self.file.path(), error))?;
        }
        Ok(())
    }

    /// Puts the tar together, and unpacks it as a layer of the store. The caller must hold its lock. Returns
    /// whether the list is that of the layer, blob by blob, and can be offered to others. Blocks.
    pub(super) fn unpack(
        &self,
        store: &Arc<Store>,
        name: &str,
        diff_id: ImageDigest,
        id_map: IdMap,
    ) -> Result<(LayerId, bool), TransferError> {
        let (reader, writer) = io::pipe().map_err(|error| failed("make a pipe in", self.file.path(), error))?;
        let file = BlobFile { file: File::from(OwnedFd::from(reader)), offset: 0, length: self.list.tar_bytes() };
        let (joined, unpacked) = thread::scope(|scope| {
            let joining = scope.spawn(|| self.join(writer));
            let unpacked = image::unpack_layer(store, image::LayerFile::new(name, diff_id, file), id_map);
            (joining.join().unwrap_or_else(|_| Err(io::Error::other("the joining thread panicked"))), unpacked)
        });
        match (joined, unpacked) {
            // The tar has the layer's digest, even if the list has more than it needs.
            (joined, Ok(layer)) => Ok((layer, joined.is_ok() && self.is_verified)),
            (_, Err(full @ ImageError::Store(StoreError::Full { .. }))) => Err(full.into()),
            (Err(error), Err(_)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(TransferError::Chunks(error.to_string()))
            }
            (Err(error), Err(_)) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(failed("read", self.file.path(), error))
            }
            // Unpacking stopped reading, or did not get what it expected.
            (_, Err(unpacked)) => Err(unpacked.into()),
        }
    }

    fn join(&self, mut out: impl Write) -> io::Result<()> {
        let mut metadata = PartReader::new(self, Part::Metadata);
        let mut content = PartReader::new(self, Part::Content);
        let mut layout = TarLayout::default();
        loop {
            let (part, length) = layout.next();
            let reader = if part == Part::Metadata { &mut metadata } else { &mut content };
            let bytes = reader.next(length)?;
            if bytes.is_empty() {
                break;
            }
            layout.advance(bytes);
            out.write_all(bytes)?;
        }
        let is_all = metadata.next(1)?.is_empty() && content.next(1)?.is_empty();
        let unfit = || io::Error::new(io::ErrorKind::InvalidData, "its metadata and its content do not fit");
        if is_all { Ok(()) } else { Err(unfit()) }
    }
}

/// Reads one part of a tar.
struct PartReader<'a> {
    from: &'a Collected,
    chunks: std::slice::Iter<'a, Chunk>,
    chunk: Vec<u8>,
    /// How much of the chunk was read.
    at: usize,
}

impl<'a> PartReader<'a> {
    fn new(from: &'a Collected, part: Part) -> Self {
        Self { from, chunks: from.list.part(part).iter(), chunk: Vec::new(), at: 0 }
    }

    /// Returns the next bytes, at most `limit`; at the end, none.
    fn next(&mut self, limit: u64) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() {
            let Some(Chunk { hash, size, .. }) = self.chunks.next() else { return Ok(&[]) };
            let missing = || io::Error::new(io::ErrorKind::InvalidData, "a chunk is missing");
            let Place { offset, length, is_compressed } = *self.from.places.get(hash).ok_or_else(missing)?;
            let mut bytes = vec![0; length];
            self.from.file.as_file().read_exact_at(&mut bytes, offset)?;
            self.chunk = if is_compressed { zstd::bulk::decompress(&bytes, *size)? } else { bytes };
            self.at = 0;
        }
        let left = self.chunk.len() - self.at;
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(left);
        let from = self.at;
        self.at += length;
        Ok(&self.chunk[from..from + length])
    }
}

fn failed(doing: &'static str, path: &Path, error: io::Error) -> TransferError {
    TransferError::store("fetch a layer")(StoreError::io(doing, PathBuf::from(path), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::layer_id,
        remote::DigestFunction,
        transfer::chunks::pack::{KnownChunks, PackedChunks, pack},
    };

    const FUNCTION: DigestFunction = DigestFunction::Sha256;

    fn id_map() -> IdMap {
        if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single }
    }

    /// A store, a layer, and the layer as chunks.
    struct Bench {
        top: tempfile::TempDir,
        store: Arc<Store>,
        packed: PackedChunks,
    }

    impl Bench {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let store = Store::open(&top.path().join("store")).unwrap();
            let layer = top.path().join("layer");
            std::fs::create_dir_all(layer.join("dir")).unwrap();
            let mut noise = vec![0; 2 << 20];
            blake3::Hasher::new().finalize_xof().fill(&mut noise);
            std::fs::write(layer.join("noise"), &noise).unwrap();
            std::fs::write(layer.join("dir/same"), &noise).unwrap();
            std::fs::write(layer.join("zeros"), vec![0; 1 << 20]).unwrap();
            let packed = pack(&store, &layer, id_map(), FUNCTION, &KnownChunks::new()).unwrap().unwrap();
            Self { top, store, packed }
        }

        fn layer(&self) -> PathBuf {
            self.top.path().join("layer")
        }

        fn collected(&self, list: ChunkList) -> Collected {
            Collected::new(&self.store, list).unwrap()
        }

        /// Returns what an engine has: the blob of each chunk.
        fn blobs(&self) -> Vec<(Digest, Vec<u8>)> {
            let read = |blob: crate::remote::Blob| {
                let crate::remote::Content::File { path, offset } = &blob.content else { panic!("{blob:?}") };
                let mut bytes = vec![0; usize::try_from(blob.digest.size_bytes).unwrap()];
                File::open(path).unwrap().read_exact_at(&mut bytes, *offset).unwrap();
                (blob.digest, bytes)
            };
            self.packed.blobs().into_iter().map(read).collect()
        }

        /// Takes blobs as those that were asked for.
        fn take(&self, collected: &mut Collected, blobs: &[(Digest, Vec<u8>)]) -> Result<(), TransferError> {
            let chunks = collected.missing().into_iter().map(|chunk| (chunk.blob, chunk)).collect();
            collected.take(&chunks, blobs)
        }

        fn unpack(&self, collected: &Collected) -> Result<(LayerId, bool), TransferError> {
            collected.unpack(&self.store, "a layer", self.packed.diff_id, id_map())
        }
    }

    #[test]
    fn a_layer_comes_from_an_engine_or_from_layers_that_are_here() {
        let bench = Bench::new();
        let list = &bench.packed.list;
        let blobs = bench.blobs();
        assert!(blobs.len() < list.len(), "equal chunks are there once");
        let mut fetched = bench.collected(list.clone());
        bench.take(&mut fetched, &blobs).unwrap();
        assert!(fetched.missing().is_empty());
        let (layer, is_verified) = bench.unpack(&fetched).unwrap();
        assert!(is_verified);
        assert_eq!(layer, layer_id(&bench.packed.diff_id, id_map()));
        let noise = std::fs::read(bench.layer().join("noise")).unwrap();
        assert!(std::fs::read(bench.store.layers().dir(&layer).join("dir/same")).unwrap() == noise);

        // A layer that is gone, one that has little of it, and one that has most of it.
        let own = bench.top.path().join("own");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("moved"), &noise[..1 << 20]).unwrap();
        let mut found = bench.collected(list.clone());
        found.take_from(&bench.store, &bench.top.path().join("gone"), id_map()).unwrap();
        assert_eq!(found.missing().len(), blobs.len());
        found.take_from(&bench.store, &own, id_map()).unwrap();
        let (after, all) = (found.missing().len(), blobs.len());
        assert!((1..all - 4).contains(&after), "{after} of {all}");
        std::fs::write(own.join("zz"), &noise).unwrap();
        found.take_from(&bench.store, &own, id_map()).unwrap();
        bench.take(&mut found, &blobs).unwrap();
        assert_eq!(bench.unpack(&found).unwrap(), (layer, false), "not every blob was read");
    }

    #[test]
    fn chunks_that_an_engine_had_before_are_packed_only_if_it_lost_them() {
        let bench = Bench::new();
        let before = bench.packed.list.clone();
        let known: KnownChunks = before.chunks().map(|chunk| (chunk.hash, *chunk)).collect();
        std::fs::write(bench.layer().join("zz"), "new ".repeat(1000)).unwrap();
        let packed = pack(&bench.store, &bench.layer(), id_map(), FUNCTION, &known).unwrap().unwrap();
        let whole = pack(&bench.store, &bench.layer(), id_map(), FUNCTION, &KnownChunks::new()).unwrap().unwrap();
        assert_eq!(packed.list, whole.list);
        let (new, all) = (packed.blobs().len(), whole.blobs().len());
        assert!((1..=4).contains(&new) && all > 20, "{new} of {all}");
        assert!(!packed.lacks(&packed.blobs().iter().map(|blob| blob.digest).collect()), "it has those");
        let lost = before.chunks().find(|chunk| packed.list.chunks().any(|other| other == *chunk)).unwrap();
        assert!(packed.lacks(&HashSet::from([lost.blob])));
        assert!(!whole.lacks(&HashSet::from([lost.blob])));
    }

    #[test]
    fn what_an_engine_sends_instead_of_chunks_is_refused() {
        let bench = Bench::new();
        let (list, blobs) = (&bench.packed.list, bench.blobs());
        let refused = |bytes: Vec<u8>| {
            let mut collected = bench.collected(list.clone());
            let error = bench.take(&mut collected, &[(blobs[0].0, bytes)]).unwrap_err();
            assert!(matches!(error, TransferError::Chunks(_)), "{error}");
            assert_eq!(collected.end, 0, "nothing of it was written");
            error.to_string()
        };
        let size = list.chunks().find(|chunk| chunk.blob == blobs[0].0).unwrap().size;
        assert!(refused(b"not compressed".to_vec()).contains("not compressed"));
        assert!(refused(zstd::bulk::compress(&vec![0; 1 << 30], 1).unwrap()).contains("larger than listed"));
        assert!(refused(zstd::bulk::compress(&vec![1; size], 1).unwrap()).contains("does not have the bytes"));
        assert!(refused(zstd::bulk::compress(b"short", 1).unwrap()).contains("does not have the bytes"));
        refused(Vec::new());

        // A chunk never comes, a list has them in another order, or fewer, or more.
        let incomplete = bench.collected(list.clone());
        assert!(bench.unpack(&incomplete).unwrap_err().to_string().contains("a chunk is missing"));
        let changes: [fn(&mut ChunkList); 4] = [
            |list| list.content.reverse(),
            |list| list.content.truncate(list.content.len() - 1),
            |list| list.metadata.truncate(list.metadata.len() - 1),
            |list| list.metadata.push(list.metadata[0]),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut list = list.clone();
            change(&mut list);
            let mut collected = bench.collected(list);
            bench.take(&mut collected, &blobs).unwrap();
            let error = bench.unpack(&collected).unwrap_err();
            assert!(matches!(error, TransferError::Chunks(_) | TransferError::Unpack(_)), "{number}: {error:?}");
            let layer = bench.store.layers().dir(&layer_id(&bench.packed.diff_id, id_map()));
            assert!(!layer.exists(), "{number}: it became a layer");
        }
        // What is never read is no harm: the tar has its digest.
        let mut longer = list.clone();
        longer.content.push(longer.content[0]);
        let mut collected = bench.collected(longer);
        bench.take(&mut collected, &blobs).unwrap();
        assert!(!bench.unpack(&collected).unwrap().1, "the list has too much");
    }

    #[test]
    fn small_layers_and_those_that_look_compressed_travel_whole() {
        let bench = Bench::new();
        let pack_of = |name: &[u8], bytes: usize| {
            let dir = tempfile::tempdir().unwrap();
            let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name);
            let mut noise = vec![0; bytes];
            blake3::Hasher::new().finalize_xof().fill(&mut noise);
            std::fs::write(dir.path().join(name), noise).unwrap();
            // With a fraction of a second, an extended header would be the first.
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
            File::open(dir.path().join(name)).unwrap().set_modified(time).unwrap();
            pack(&bench.store, dir.path(), id_map(), FUNCTION, &KnownChunks::new()).unwrap().is_some()
        };
        assert!(pack_of(b"file", 1 << 20));
        assert!(!pack_of(b"file", 1000));
        assert!(!pack_of(b"\x1f\x8bfile", 1 << 20));
    }
}
