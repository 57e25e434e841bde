//! Layers as files: packed, hashed, and optionally compressed.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::error::{ExportError, Writing};
use crate::store::{IdMap, ImageDigest, Store};

/// Fixed, because another level produces different bytes.
const LEVEL: Compression = Compression::new(4);

/// The compression level of zstd, which is its own default.
const ZSTD_LEVEL: i32 = 3;

/// The compression of a layer's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerCompression {
    /// No compression.
    Plain,
    /// Readable by all tools.
    Gzip,
    /// Fast and small.
    Zstd,
}

/// A layer in a temporary file, which is removed when this is dropped.
#[derive(Debug)]
pub struct PackedLayer {
    /// The digest of the uncompressed stream.
    pub(super) diff_id: ImageDigest,
    /// The digest of the file.
    pub(super) digest: ImageDigest,
    /// The size of the file, in bytes.
    pub(super) size: u64,
    pub(super) file: NamedTempFile,
}

/// Packs layers, lowest first, into temporary files in the directory `near`, which is created if it is
/// missing.
pub(super) fn pack(
    store: &Store,
    layers: &[PathBuf],
    id_map: IdMap,
    near: &Path,
    compression: LayerCompression,
) -> Result<Vec<PackedLayer>, ExportError> {
    std::fs::create_dir_all(near).writing(near)?;
    layers.iter().map(|layer| pack_one(store, layer, id_map, near, compression)).collect()
}

/// Packs the layer in the directory `layer` into a temporary file of the store, compressed with zstd. Blocks.
///
/// # Errors
/// Returns an error if the layer cannot be read, or if the file cannot be written.
pub fn pack_layer(store: &Store, layer: &Path, id_map: IdMap) -> Result<PackedLayer, ExportError> {
    pack_one(store, layer, id_map, &store.instance().tmp(), LayerCompression::Zstd)
}

/// Packs a layer as [`pack_layer`] does, into a temporary file in the directory `near`.
pub(crate) fn pack_layer_in(
    store: &Store,
    layer: &Path,
    id_map: IdMap,
    near: &Path,
) -> Result<PackedLayer, ExportError> {
    pack_one(store, layer, id_map, near, LayerCompression::Zstd)
}

/// Packs a layer as [`pack_layer`] does, without compression.
pub(crate) fn pack_layer_tar(store: &Store, layer: &Path, id_map: IdMap) -> Result<PackedLayer, ExportError> {
    pack_one(store, layer, id_map, &store.instance().tmp(), LayerCompression::Plain)
}

fn pack_one(
    store: &Store,
    layer: &Path,
    id_map: IdMap,
    near: &Path,
    compression: LayerCompression,
) -> Result<PackedLayer, ExportError> {
    let file = tempfile::Builder::new().prefix(".hm-export-").tempfile_in(near).writing(near)?;
    let (packed, written) =
        read_layer_tar(store, layer, id_map, |tar| write_blob(tar, file.as_file(), compression)).writing(near)?;
    // If writing failed, packing failed as a consequence.
    let (diff_id, digest, size) = match (packed, written) {
        (_, Err(source)) => return Err(ExportError::Write { path: file.path().into(), source }),
        (Err(source), _) => return Err(ExportError::Read { path: layer.into(), source }),
        (Ok(()), Ok(written)) => written,
    };
    Ok(PackedLayer { diff_id, digest, size, file })
}

/// Passes the tar of the layer in the directory `layer` to `read`, which need not read all of it. Returns how
/// packing ended, and what `read` returned. Blocks.
///
/// # Errors
/// Returns an error if there is no pipe.
pub(crate) fn read_layer_tar<T>(
    store: &Store,
    layer: &Path,
    id_map: IdMap,
    read: impl FnOnce(io::PipeReader) -> T,
) -> io::Result<(io::Result<()>, T)> {
    let (reader, writer) = io::pipe()?;
    // Packing may happen in another process. Reading happens in this one.
    Ok(thread::scope(|scope| {
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        let packing = scope.spawn(|| store.trash().tree_ops().layer_tar(layer, writer, id_map));
        let done = read(reader);
        (packing.join().unwrap_or_else(|_| Err(io::Error::other("the packing thread panicked"))), done)
    }))
}

/// Writes a layer's stream to a file. Returns the digests of the stream and of the file, and the file's size.
fn write_blob(
    mut stream: impl Read,
    file: &File,
    compression: LayerCompression,
) -> io::Result<(ImageDigest, ImageDigest, u64)> {
    let mut blob = HashedFile { out: BufWriter::new(file), hash: Sha256::new(), size: 0 };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    let mut sink = match compression {
        LayerCompression::Plain => Compressor::Plain(blob),
        LayerCompression::Gzip => Compressor::Gzip(GzBuilder::new().write(blob, LEVEL)),
        LayerCompression::Zstd => Compressor::Zstd(zstd::Encoder::new(blob, ZSTD_LEVEL)?),
    };
    loop {
        let read = match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        match &mut sink {
            Compressor::Gzip(gzip) => gzip.write_all(&buffer[..read])?,
            Compressor::Zstd(zstd) => zstd.write_all(&buffer[..read])?,
            Compressor::Plain(blob) => blob.write_all(&buffer[..read])?,
        }
    }
    blob = match sink {
        Compressor::Gzip(gzip) => gzip.finish()?,
        Compressor::Zstd(zstd) => zstd.finish()?,
        Compressor::Plain(blob) => blob,
    };
    blob.flush()?;
    let diff_id = ImageDigest::from_bytes(hash.finalize().into());
    Ok((diff_id, ImageDigest::from_bytes(blob.hash.finalize().into()), blob.size))
}

enum Compressor<'a> {
    Gzip(GzEncoder<HashedFile<'a>>),
    Zstd(zstd::Encoder<'static, HashedFile<'a>>),
    Plain(HashedFile<'a>),
}

/// A file that is hashed while it is written.
struct HashedFile<'a> {
    out: BufWriter<&'a File>,
    hash: Sha256,
    size: u64,
}

impl Write for HashedFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl PackedLayer {
    /// Returns the digest of the layer's tar, which is the layer's name wherever it is unpacked.
    #[must_use]
    pub fn diff_id(&self) -> ImageDigest {
        self.diff_id
    }

    /// Returns the digest of the file.
    #[must_use]
    pub fn digest(&self) -> ImageDigest {
        self.digest
    }

    /// Returns the file's length in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Moves the file to another path of its filesystem, and replaces what is there.
    pub(crate) fn persist(self, to: &Path) -> io::Result<()> {
        self.file.persist(to).map(drop).map_err(|error| error.error)
    }

    /// Opens the file at its beginning.
    pub(super) fn reader(&self) -> io::Result<File> {
        let mut file = self.file.reopen()?;
        file.rewind()?;
        Ok(file)
    }
}
