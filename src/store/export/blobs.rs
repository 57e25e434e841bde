//! Layers as files: packed, hashed, and compressed where that is wanted.

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

/// Fixed, because another level gives other bytes.
const LEVEL: Compression = Compression::new(4);

/// A layer in a temporary file beside its destination.
#[derive(Debug)]
pub(super) struct Packed {
    /// Of the uncompressed stream.
    pub(super) diff_id: ImageDigest,
    /// Of the file.
    pub(super) digest: ImageDigest,
    /// Of the file, in bytes.
    pub(super) size: u64,
    pub(super) file: NamedTempFile,
}

/// Packs layers, lowest first, into temporary files in the directory `near`, which is made where it is missing.
pub(super) fn pack(
    store: &Store,
    layers: &[PathBuf],
    id_map: IdMap,
    near: &Path,
    compress: bool,
) -> Result<Vec<Packed>, ExportError> {
    std::fs::create_dir_all(near).writing(near)?;
    layers.iter().map(|layer| pack_one(store, layer, id_map, near, compress)).collect()
}

fn pack_one(store: &Store, layer: &Path, id_map: IdMap, near: &Path, compress: bool) -> Result<Packed, ExportError> {
    let file = tempfile::Builder::new().prefix(".hm-export-").tempfile_in(near).writing(near)?;
    let (read, write) = io::pipe().writing(near)?;
    // Who packs may be another process; who hashes and compresses is this one.
    let (packed, written) = thread::scope(|scope| {
        let packing =
            scope.spawn(|| store.tree_ops().layer_tar(layer, File::from(std::os::fd::OwnedFd::from(write)), id_map));
        let written = write_blob(read, file.as_file(), compress);
        (packing.join().unwrap_or_else(|_| Err(io::Error::other("the thread that packs panicked"))), written)
    });
    // Where writing failed, packing did because of it.
    let (diff_id, digest, size) = match (packed, written) {
        (_, Err(source)) => return Err(ExportError::Write { path: file.path().into(), source }),
        (Err(source), _) => return Err(ExportError::Read { path: layer.into(), source }),
        (Ok(()), Ok(written)) => written,
    };
    Ok(Packed { diff_id, digest, size, file })
}

/// Writes a layer's stream to a file: the digests of the stream and of the file, and the file's size.
fn write_blob(mut stream: impl Read, file: &File, compress: bool) -> io::Result<(ImageDigest, ImageDigest, u64)> {
    let mut blob = Blob { out: BufWriter::new(file), hash: Sha256::new(), size: 0 };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    let mut sink = if compress { Sink::Gzip(GzBuilder::new().write(blob, LEVEL)) } else { Sink::Plain(blob) };
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
            Sink::Gzip(gzip) => gzip.write_all(&buffer[..read])?,
            Sink::Plain(blob) => blob.write_all(&buffer[..read])?,
        }
    }
    blob = match sink {
        Sink::Gzip(gzip) => gzip.finish()?,
        Sink::Plain(blob) => blob,
    };
    blob.flush()?;
    let diff_id = ImageDigest::from_bytes(hash.finalize().into());
    Ok((diff_id, ImageDigest::from_bytes(blob.hash.finalize().into()), blob.size))
}

enum Sink<'a> {
    Gzip(GzEncoder<Blob<'a>>),
    Plain(Blob<'a>),
}

/// A file that is hashed while it is written.
struct Blob<'a> {
    out: BufWriter<&'a File>,
    hash: Sha256,
    size: u64,
}

impl Write for Blob<'_> {
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

impl Packed {
    /// The file's content, from its beginning.
    pub(super) fn reader(&self) -> io::Result<File> {
        let mut file = self.file.reopen()?;
        file.rewind()?;
        Ok(file)
    }
}
