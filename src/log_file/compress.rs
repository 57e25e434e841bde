//! Compresses logs that are complete.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    MIN_BYTES, compressed_path,
    seekable::{FRAME_BYTES, Writer},
};

/// A log that was compressed.
#[derive(Debug)]
pub(crate) struct Compressed {
    /// The path of the compressed log.
    pub(crate) path: PathBuf,
    /// Device and inode of the raw log, which may have other names.
    pub(crate) raw: (u64, u64),
    /// Whether the raw log has other names.
    pub(crate) is_shared: bool,
    /// By how many bytes it became shorter.
    pub(crate) freed_bytes: u64,
}

/// Compresses the logs in a directory, whose names end in `.log`, and calls `each` for each one. Nothing may
/// write to them, and no one else may compress them at the same time. Logs that were compressed stay so if
/// another fails. Logs that are small, and files that are no logs, are left alone.
///
/// # Errors
/// Returns the first error. A directory that does not exist is none.
pub(crate) fn compress_dir(dir: &Path, each: &mut dyn FnMut(Compressed)) -> io::Result<()> {
    for path in to_compress(dir)? {
        let path = path?;
        let mut tmp = compressed_path(&path).into_os_string();
        tmp.push(".new");
        // It exists if another process was killed while it wrote it.
        remove(Path::new(&tmp))?;
        if let Some(compressed) = compress(&path, Path::new(&tmp))? {
            each(compressed);
        }
    }
    Ok(())
}

/// Returns whether [`compress_dir`] would compress a log.
pub(crate) fn has_any_to_compress(dir: &Path) -> bool {
    to_compress(dir).is_ok_and(|mut paths| paths.next().is_some())
}

/// Returns the logs in a directory that are long.
fn to_compress(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<PathBuf>>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        entries => Some(entries?),
    };
    Ok(entries.into_iter().flatten().filter_map(|entry| {
        let check = |entry: io::Result<fs::DirEntry>| {
            let path = entry?.path();
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            let is_long = |found: fs::Metadata| found.is_file() && found.len() >= MIN_BYTES;
            Ok::<_, io::Error>((is_log && is_long(fs::symlink_metadata(&path)?)).then_some(path))
        };
        match check(entry) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => found.transpose(),
        }
    }))
}

/// Replaces the log at `path` by its compressed form, which is first written to `tmp`, where nothing exists.
/// Returns `None` if the log was replaced or removed meanwhile.
///
/// # Errors
/// Returns an error if the log cannot be read, or if the compressed form cannot be written. The log is still
/// there then.
pub(crate) fn compress(path: &Path, tmp: &Path) -> io::Result<Option<Compressed>> {
    let raw = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        raw => raw?,
    };
    let replaced = write_compressed(&raw, tmp).and_then(|()| put(path, &raw, tmp));
    if replaced.is_err() {
        // A leftover is removed later.
        let _ = fs::remove_file(tmp);
    }
    replaced
}

/// Replaces the log at `path` by `compressed`, its compressed form. Returns `None` if there is no such log.
///
/// # Errors
/// Returns an error if the log cannot be replaced. It is still there then.
pub(crate) fn replace(path: &Path, compressed: &Path) -> io::Result<Option<Compressed>> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        raw => put(path, &raw?, compressed),
    }
}

/// Moves `compressed` to its place, and removes the log at `path` if that still is `raw`.
pub(super) fn put(path: &Path, raw: &File, compressed: &Path) -> io::Result<Option<Compressed>> {
    let place = compressed_path(path);
    fs::rename(compressed, &place)?;
    let found = raw.metadata()?;
    let is_same = |now: fs::Metadata| (now.dev(), now.ino()) == (found.dev(), found.ino());
    if !fs::symlink_metadata(path).is_ok_and(is_same) {
        remove(&place)?;
        return Ok(None);
    }
    // A log that takes the place just now has the same cache key as this one.
    fs::remove_file(path)?;
    let freed_bytes = found.len().saturating_sub(fs::metadata(&place)?.len());
    Ok(Some(Compressed { path: place, raw: (found.dev(), found.ino()), is_shared: found.nlink() > 1, freed_bytes }))
}

/// Writes the compressed form of `raw` to `to`, where nothing exists, and syncs it.
///
/// # Errors
/// Returns an error if `raw` cannot be read, or if `to` cannot be written.
pub(crate) fn write_compressed(raw: &File, to: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut writer = Writer::new(BufWriter::with_capacity(FRAME_BYTES, file))?;
    let (mut raw, mut frame) = (raw, Vec::with_capacity(FRAME_BYTES));
    while Read::take(&mut raw, FRAME_BYTES as u64).read_to_end(&mut frame)? > 0 {
        writer.frame(&frame)?;
        frame.clear();
    }
    let mut sink = writer.finish()?;
    sink.flush()?;
    // The raw log is removed next, so its bytes must not depend on what the system wrote later.
    sink.get_ref().sync_data()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
