//! Packs what a step wrote into a layer file.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use hm_exec_step::{
    LayerOutput,
    tree::{self, IdMap},
};
use sha2::{Digest, Sha256};

use super::Failure;

/// The layer's file name in the directory of the input.
const NAME: &str = "layer.tar.zst";

/// The zstd compression level: the default of zstd, which most layers use.
const LEVEL: i32 = 3;

/// Packs what was written to the upper directory `upper` into a file in `dir`. Returns `None` if nothing was
/// written.
///
/// # Errors
/// Returns an error if the directory cannot be read or the file cannot be written.
pub(crate) fn pack(upper: &Path, dir: &Path, id_map: IdMap) -> Result<Option<LayerOutput>, Failure> {
    let is_empty = || -> io::Result<bool> { Ok(fs::read_dir(upper)?.next().is_none()) };
    if is_empty().map_err(|error| Failure::io("read the step's changes", &error))? {
        return Ok(None);
    }
    let aside = dir.join(format!(".{NAME}"));
    let write = || -> io::Result<LayerOutput> {
        let file = File::create(&aside)?;
        let encoder = zstd::Encoder::new(file, LEVEL)?;
        let mut out = Hashed { out: encoder, hash: Sha256::new() };
        tree::layer_tar(upper, BufWriter::with_capacity(1 << 17, &mut out), id_map)?;
        out.out.finish()?;
        fs::rename(&aside, dir.join(NAME))?;
        Ok(LayerOutput { diff_id: digest(&out.hash.finalize()) })
    };
    write().map(Some).map_err(|error| {
        // Best effort: nothing reads the incomplete file, but the disk may be full.
        let _ = fs::remove_file(&aside);
        Failure::io("pack the step's changes", &error)
    })
}

/// Formats a SHA-256 hash as text.
pub(crate) fn digest(hash: &[u8]) -> String {
    format!("sha256:{}", hex(hash))
}

/// Formats a hash as hexadecimal digits.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A writer that hashes what is written.
struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
