//! Packs a source as a tar stream, for runners that cannot mount layers.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

use super::{
    FrozenSource, SourceTimes,
    manifest::{EntryKind, Manifest, ManifestChange, ManifestEntry, Times},
    stat_cache::now,
    times::{later_than, let_pass},
};
use crate::store::{SourceId, Store, StoreError};

/// Writes `source`, or its differences from the older source `since`, as a tar stream with paths relative
/// to the tree. Returns the paths to remove before the stream is unpacked over the older source; a directory
/// comes after its contents.
///
/// The differences have the times of `source`. If those are [normal](SourceTimes::Normal), the differences
/// have the next full second of this machine's clock, because the files that they must be newer than are
/// elsewhere. What changed links lead to is not among them: a step may have written it.
pub(crate) fn source_tar(
    store: &Store,
    source: &FrozenSource,
    since: Option<&SourceId>,
    out: impl Write,
) -> Result<Vec<PathBuf>, StoreError> {
    let Some(since) = since else { return write_tree(source, out).map(|()| Vec::new()) };
    let (older, manifest) = (Manifest::of(store, since)?, source.manifest()?);
    let mut archive = Builder::new(out);
    let mut removed = Vec::new();
    let mut time = None;
    let times = match source.times {
        SourceTimes::Normal => {
            time = Some(later_than(now(), [&older, &manifest]));
            Times::PassOver
        }
        SourceTimes::Real => Times::OfFiles,
    };
    let mut append = |entry: ManifestEntry<'_>| {
        append(&mut archive, &ManifestEntry { mtime: time.unwrap_or(entry.mtime), ..entry }, source)
    };
    for change in older.changes(&manifest, times) {
        match change {
            ManifestChange::Removed(entry) => removed.push(entry.as_path().to_owned()),
            ManifestChange::Added(entry) => {
                // The entry may replace one of another kind.
                removed.push(entry.as_path().to_owned());
                append(entry)?;
            }
            ManifestChange::Changed(entry) => append(entry)?,
        }
    }
    finish(archive, source)?;
    if let Some(time) = time {
        let_pass(time);
    }
    removed.reverse();
    Ok(removed)
}

/// Writes the whole of `source` as a tar stream with paths relative to the tree.
pub(super) fn write_tree(source: &FrozenSource, out: impl Write) -> Result<(), StoreError> {
    let mut archive = Builder::new(out);
    for entry in source.manifest()?.entries() {
        append(&mut archive, &entry, source)?;
    }
    finish(archive, source)
}

fn finish(archive: Builder<impl Write>, source: &FrozenSource) -> Result<(), StoreError> {
    let finished = archive.into_inner().and_then(|mut out| out.flush());
    finished.map_err(|error| StoreError::io("pack", source.locate(Path::new("")), error))
}

fn append(
    archive: &mut Builder<impl Write>,
    entry: &ManifestEntry<'_>,
    source: &FrozenSource,
) -> Result<(), StoreError> {
    // The root of the tree is the directory where the stream is unpacked.
    let path = if entry.path.is_empty() { Path::new(".") } else { entry.as_path() };
    append_to(archive, entry, path, source)
        .map_err(|error| StoreError::io("pack", source.locate(entry.as_path()), error))
}

fn append_to(
    archive: &mut Builder<impl Write>,
    entry: &ManifestEntry<'_>,
    path: &Path,
    source: &FrozenSource,
) -> io::Result<()> {
    let (seconds, nanos) = entry.mtime;
    if nanos != 0 {
        archive.append_pax_extensions([("mtime", format!("{seconds}.{nanos:09}").as_bytes())])?;
    }
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(seconds).unwrap_or_default());
    header.set_size(0);
    match entry.kind {
        EntryKind::Directory => {
            header.set_entry_type(EntryType::Directory);
            archive.append_data(&mut header, path, io::empty())
        }
        EntryKind::Symlink { target } => {
            header.set_entry_type(EntryType::Symlink);
            archive.append_link(&mut header, path, OsStr::from_bytes(target))
        }
        EntryKind::File { size_bytes, .. } => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(size_bytes);
            archive.append_data(&mut header, path, File::open(source.locate(entry.as_path()))?)
        }
    }
}
