//! What differs between two layers, entry by entry, without times.

use std::{collections::BTreeMap, io, io::Read};

use super::{
    IdMap, LayerId, Store, StoreError,
    layer_digest::{LayerEntry, device_of, each, each_attribute, entry_of, stream},
};

/// What a comparison of two layers found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LayerComparison {
    /// How many paths were compared.
    pub(crate) entries: usize,
    /// The paths that differ, in their order, and what differs.
    pub(crate) differences: Vec<LayerDifference>,
}

/// A path, without a slash at its start, and what differs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerDifference {
    pub(crate) path: Vec<u8>,
    pub(crate) what: Vec<&'static str>,
}

/// Compares a layer with the one that was expected, each of which may be none. Reads all of both; sockets are
/// left out.
///
/// # Errors
/// Returns an error if one cannot be read.
pub(crate) fn compare_layers(
    store: &Store,
    (expected, found): (Option<&LayerId>, Option<&LayerId>),
    id_map: IdMap,
) -> Result<LayerComparison, StoreError> {
    let entries_of = |layer: Option<&LayerId>| match layer {
        None => Ok(Entries::new()),
        Some(layer) => stream(store, &store.layers().dir(layer), id_map, entries),
    };
    Ok(compare(&entries_of(expected)?, &entries_of(found)?))
}

type Entries = BTreeMap<Vec<u8>, Facts>;

/// What there is at a path.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts {
    /// `None` if there is only a mark.
    kind: Option<Kind>,
    /// Whether it hides what is below.
    is_opaque: bool,
    mode: u32,
    owner: (u64, u64),
    target: Vec<u8>,
    content: Option<(u64, [u8; 32])>,
    attributes: BTreeMap<Vec<u8>, [u8; 32]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Something was removed here.
    Whiteout,
    Other(u8, Option<(u32, u32)>),
}

/// Reads the entries of a layer's stream.
fn entries(stream: impl Read) -> io::Result<Entries> {
    let mut entries = Entries::new();
    each(stream, |mut entry| {
        let (path, mark) = entry_of(&entry.path_bytes(), entry.header().entry_type());
        let facts = entries.entry(path).or_default();
        match mark {
            LayerEntry::Opaque => {
                facts.is_opaque = true;
                return Ok(());
            }
            LayerEntry::Whiteout => {
                facts.kind = Some(Kind::Whiteout);
                return Ok(());
            }
            LayerEntry::Directory | LayerEntry::Other => {}
        }
        let header = entry.header();
        facts.kind = Some(Kind::Other(header.entry_type().as_byte(), device_of(header)?));
        facts.mode = header.mode()?;
        facts.owner = (header.uid()?, header.gid()?);
        facts.target = entry.link_name_bytes().unwrap_or_default().into_owned();
        each_attribute(&mut entry, |name, value| {
            // They are in the path and in the target.
            if name != b"path" && name != b"linkpath" {
                facts.attributes.insert(name.to_vec(), *blake3::hash(value).as_bytes());
            }
        })?;
        if entry.header().entry_type().is_file() {
            let mut hasher = blake3::Hasher::new();
            let size = io::copy(&mut entry, &mut hasher)?;
            facts.content = Some((size, *hasher.finalize().as_bytes()));
        }
        Ok(())
    })?;
    Ok(entries)
}

fn compare(expected: &Entries, found: &Entries) -> LayerComparison {
    let mut comparison = LayerComparison::default();
    let mut add = |path: &[u8], what: Vec<&'static str>| {
        comparison.entries += 1;
        if !what.is_empty() {
            comparison.differences.push(LayerDifference { path: path.to_vec(), what });
        }
    };
    for (path, facts) in expected {
        add(path, found.get(path).map_or_else(|| vec!["is missing"], |found| differences(facts, found)));
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        add(path, vec!["appeared"]);
    }
    comparison.differences.sort_by(|a, b| a.path.cmp(&b.path));
    comparison
}

/// Returns what differs between two entries of one path.
fn differences(expected: &Facts, found: &Facts) -> Vec<&'static str> {
    if expected.kind != found.kind {
        let is_removed = |facts: &Facts| facts.kind == Some(Kind::Whiteout);
        return match (is_removed(expected), is_removed(found)) {
            (true, false) => vec!["was removed, and is there"],
            (false, true) => vec!["was there, and is removed"],
            _ => vec!["type"],
        };
    }
    let parts = [
        ("content", expected.content != found.content),
        ("target", expected.target != found.target),
        ("mode", expected.mode != found.mode),
        ("owner", expected.owner != found.owner),
        ("attributes", expected.attributes != found.attributes),
        ("what it hides", expected.is_opaque != found.is_opaque),
    ];
    parts.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

    use super::*;

    type Change = fn(&Path);

    /// Compares a layer with one that was changed.
    fn changed(change: Change) -> Vec<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let id_map = if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single };
        let layer = |store: &Arc<Store>, change: Change| {
            let staging = store.stage().unwrap();
            let upper = staging.upper();
            fs::create_dir_all(upper.join("d/e")).unwrap();
            fs::write(upper.join("d/file"), "1").unwrap();
            fs::write(upper.join("other"), "1").unwrap();
            fs::set_permissions(upper.join("other"), fs::Permissions::from_mode(0o644)).unwrap();
            std::os::unix::fs::symlink("a", upper.join("link")).unwrap();
            crate::tree::whiteout(&upper.join("gone")).unwrap();
            change(&upper);
            store.layers().place(staging.home()).unwrap()
        };
        let (expected, found) = (layer(&store, |_| ()), layer(&store, change));
        let compared = compare_layers(&store, (Some(&expected), Some(&found)), id_map).unwrap();
        assert!(compared.entries >= 6, "{compared:?}");
        let text = |it: LayerDifference| (String::from_utf8(it.path).unwrap(), it.what.join(", "));
        compared.differences.into_iter().map(text).collect()
    }

    #[test]
    fn each_difference_is_named_with_its_path_and_times_are_none() {
        let cases: [(Change, &[(&str, &str)]); 9] = [
            (|_| (), &[]),
            (|upper| fs::File::open(upper.join("other")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap(), &[]),
            (|upper| fs::write(upper.join("d/file"), "2").unwrap(), &[("d/file", "content")]),
            (|upper| fs::write(upper.join("d/e/new"), "2").unwrap(), &[("d/e/new", "appeared")]),
            (|upper| fs::remove_dir(upper.join("d/e")).unwrap(), &[("d/e", "is missing")]),
            (
                |upper| {
                    fs::remove_file(upper.join("link")).unwrap();
                    std::os::unix::fs::symlink("b", upper.join("link")).unwrap();
                },
                &[("link", "target")],
            ),
            (
                |upper| {
                    fs::write(upper.join("other"), "2").unwrap();
                    fs::set_permissions(upper.join("other"), fs::Permissions::from_mode(0o755)).unwrap();
                },
                &[("other", "content, mode")],
            ),
            (
                |upper| {
                    fs::remove_file(upper.join("other")).unwrap();
                    fs::create_dir(upper.join("other")).unwrap();
                },
                &[("other", "type")],
            ),
            (
                |upper| {
                    fs::remove_file(upper.join("gone")).unwrap();
                    fs::write(upper.join("gone"), "").unwrap();
                },
                &[("gone", "was removed, and is there")],
            ),
        ];
        for (change, expected) in cases {
            let expected: Vec<_> =
                expected.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
            assert_eq!(changed(change), expected);
        }
    }

    #[test]
    fn a_layer_where_there_was_none_has_all_its_entries_as_differences() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let id_map = if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single };
        let staging = store.stage().unwrap();
        fs::write(staging.upper().join("file"), "1").unwrap();
        let layer = store.layers().place(staging.home()).unwrap();
        let compare = |expected, found| compare_layers(&store, (expected, found), id_map).unwrap();
        assert_eq!(compare(None, None), LayerComparison::default());
        let what = |compared: LayerComparison| compared.differences[0].what.clone();
        assert_eq!(what(compare(None, Some(&layer))), ["appeared"]);
        assert_eq!(what(compare(Some(&layer), None)), ["is missing"]);
    }
}
