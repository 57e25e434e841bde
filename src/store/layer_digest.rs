//! The digest of what a layer contains: names, types, modes, owners, attributes, contents and marks,
//! without times.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
    thread,
};

use super::{IdMap, Store, StoreError, error::IoContext};

/// What a layer has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerEntry {
    Directory,
    /// A mark after the directory's own entry: it hides what is below.
    Opaque,
    /// The mark of something that was removed.
    Whiteout,
    /// A file, a link, or something else.
    Other,
}

/// Returns the digest of the layer in a directory. Reads all of it, and hands out each entry with its
/// path, which has no slash at its start: a directory before what is in it, and before directories in it
/// all else. Sockets are left out.
///
/// # Errors
/// Returns an error if it cannot be read.
pub(crate) fn layer_digest(
    store: &Store,
    layer: &Path,
    id_map: IdMap,
    see: impl FnMut(&[u8], LayerEntry),
) -> Result<[u8; 32], StoreError> {
    stream(store, layer, id_map, |stream| digest(stream, see))
}

/// Reads a layer as a stream: an archive, in which a directory comes before what is in it, and what was
/// removed has a mark.
pub(super) fn stream<T>(
    store: &Store,
    layer: &Path,
    id_map: IdMap,
    read: impl FnOnce(io::PipeReader) -> io::Result<T>,
) -> Result<T, StoreError> {
    let doing = "read the layer";
    let (stream, write) = io::pipe().doing("make a pipe to read", layer)?;
    // Packing may happen in another process.
    let (packed, done) = thread::scope(|scope| {
        let packing =
            scope.spawn(|| store.trash().tree_ops().layer_tar(layer, File::from(OwnedFd::from(write)), id_map));
        let done = read(stream);
        (packing.join().unwrap_or_else(|_| Err(io::Error::other("the packing thread panicked"))), done)
    });
    // If the stream was not read to its end, packing failed as a consequence.
    let done = done.doing(doing, layer)?;
    packed.doing(doing, layer)?;
    Ok(done)
}

/// Hands out each entry of a layer's stream, and reads the stream to its end.
pub(super) fn each<R: Read>(
    stream: R,
    mut visit: impl FnMut(tar::Entry<'_, Buffered<R>>) -> io::Result<()>,
) -> io::Result<()> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 17, stream));
    for entry in archive.entries()? {
        visit(entry?)?;
    }
    // What follows is padding, but the writer must not lose its reader.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map(drop)
}

/// What the stream of a layer is read through.
pub(super) type Buffered<R> = io::BufReader<R>;

/// Returns the digest of no layer.
pub(crate) fn no_layer_digest() -> [u8; 32] {
    *blake3::Hasher::new().finalize().as_bytes()
}

/// Returns the digest of a layer's stream.
fn digest(stream: impl Read, mut see: impl FnMut(&[u8], LayerEntry)) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    each(stream, |mut entry| {
        let (path, kind) = entry_of(&entry.path_bytes(), entry.header().entry_type());
        see(&path, kind);
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        part(&entry.path_bytes());
        part(&entry.link_name_bytes().unwrap_or_default());
        let header = entry.header();
        part(&[header.entry_type().as_byte()]);
        for number in [u64::from(header.mode()?), header.uid()?, header.gid()?, entry.size()] {
            part(&number.to_le_bytes());
        }
        if let Some((major, minor)) = device_of(header)? {
            part(&major.to_le_bytes());
            part(&minor.to_le_bytes());
        }
        each_attribute(&mut entry, |name, value| {
            part(name);
            part(value);
        })?;
        io::copy(&mut entry, &mut hasher).map(drop)
    })?;
    Ok(*hasher.finalize().as_bytes())
}

/// Returns the numbers of a device.
pub(super) fn device_of(header: &tar::Header) -> io::Result<Option<(u32, u32)>> {
    // Other files have no numbers there, which would be an error.
    let kind = header.entry_type();
    if !kind.is_character_special() && !kind.is_block_special() {
        return Ok(None);
    }
    Ok(Some((header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default())))
}

/// Hands out what an entry has besides its header: attributes, and what is too long for that, without times.
pub(super) fn each_attribute<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    mut see: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        if record.key_bytes() != b"mtime" {
            see(record.key_bytes(), record.value_bytes());
        }
    }
    Ok(())
}

/// Returns what an entry of the stream stands for.
pub(super) fn entry_of(path: &[u8], entry_type: tar::EntryType) -> (Vec<u8>, LayerEntry) {
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (dir, name) = path.split_at(start);
    match name.strip_prefix(b".wh.") {
        _ if entry_type.is_dir() => (path.to_vec(), LayerEntry::Directory),
        Some(b".wh..opq") => (dir.strip_suffix(b"/").unwrap_or(dir).to_vec(), LayerEntry::Opaque),
        Some(name) => ([dir, name].concat(), LayerEntry::Whiteout),
        None => (path.to_vec(), LayerEntry::Other),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn digest_of(store: &Store, layer: &Path, id_map: IdMap) -> [u8; 32] {
        layer_digest(store, layer, id_map, |_, _| ()).unwrap()
    }

    #[test]
    fn each_entry_is_handed_out_with_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let layer = dir.path().join("layer");
        let id_map = if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single };
        fs::create_dir_all(layer.join("a/b")).unwrap();
        fs::write(layer.join("a/file"), "1").unwrap();
        crate::tree::whiteout(&layer.join("a/gone")).unwrap();
        let mark = rustix::fs::XattrFlags::empty();
        let is_marked = rustix::fs::setxattr(layer.join("a"), id_map.opaque_xattr(), b"y", mark).is_ok();
        let mut seen = Vec::new();
        let mut see = |path: &[u8], entry| seen.push((String::from_utf8(path.to_vec()).unwrap(), entry));
        layer_digest(&store, &layer, id_map, &mut see).unwrap();
        let opaque = is_marked.then_some(("a", LayerEntry::Opaque));
        let expected = [("a", LayerEntry::Directory)].into_iter().chain(opaque).chain([
            ("a/file", LayerEntry::Other),
            ("a/gone", LayerEntry::Whiteout),
            ("a/b", LayerEntry::Directory),
        ]);
        assert_eq!(seen, expected.map(|(path, entry)| (path.to_owned(), entry)).collect::<Vec<_>>());
    }

    #[test]
    fn all_but_times_is_in_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let layer = dir.path().join("layer");
        let id_map = if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single };
        fs::create_dir_all(layer.join("a/b")).unwrap();
        fs::write(layer.join("a/file"), "1").unwrap();
        let mut seen = vec![digest_of(&store, &layer, id_map)];
        fs::File::open(layer.join("a/file")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(digest_of(&store, &layer, id_map), seen[0]);
        let edits: [&dyn Fn(); 5] = [
            &|| fs::write(layer.join("a/file"), "2").unwrap(),
            &|| fs::set_permissions(layer.join("a/file"), fs::Permissions::from_mode(0o600)).unwrap(),
            &|| fs::rename(layer.join("a/file"), layer.join("a/renamed")).unwrap(),
            &|| std::os::unix::fs::symlink("x", layer.join("link")).unwrap(),
            &|| fs::remove_dir(layer.join("a/b")).unwrap(),
        ];
        for edit in edits {
            edit();
            let now = digest_of(&store, &layer, id_map);
            assert!(!seen.contains(&now));
            seen.push(now);
        }
    }
}
