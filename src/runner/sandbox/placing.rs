//! Results that are put over another parent than the one that they were made over. See
//! `docs/design/trace-cache.md`, "Another parent".

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    reuse::{ReadByStep, ResultOf, result_key},
    shadow::{Matching, Written, written},
};
use crate::{
    cache::{Explained, RecordedLayer},
    model::SnapshotRef,
    runner::RunnerError,
    source::HiddenFiles,
    store::{
        self, CommitRequest, LayerEntry, LayerId, Placed, Placement, Store, StoreError, layer_digest, no_layer_digest,
    },
    tree::FileTime,
};

/// What a step that passed wrote.
#[derive(Debug)]
pub(super) struct WrittenByStep {
    pub(super) digest: [u8; 32],
    pub(super) layer: RecordedLayer,
}

/// Looks at what a step wrote between two snapshots: that of its parent and its own. Returns `None` if
/// that is no longer a layer of its own, or if it is at paths of the source that are hidden from the
/// step: what is there now is not compared, and an edit of it would replace what the step wrote.
pub(super) async fn written_by(
    store: &Arc<Store>,
    (parent, snapshot): (Option<&SnapshotRef>, &SnapshotRef),
    hidden: Option<HiddenFiles>,
    read: ReadByStep,
) -> Result<Option<(ReadByStep, WrittenByStep)>, RunnerError> {
    let hidden = hidden.filter(|hidden| !hidden.is_empty());
    let (store, parent, snapshot) = (Arc::clone(store), parent.cloned(), snapshot.clone());
    RunnerError::blocking("read what a step wrote", move || {
        let snapshot = store.snapshots().get(&snapshot)?;
        let parent = parent.map(|parent| store.snapshots().get(&parent)).transpose()?;
        let below: &[LayerId] = parent.as_deref().map_or(&[], |parent| &parent.layers);
        let written = match written(&store, below, &snapshot.layers) {
            Written::Nothing => WrittenByStep { digest: no_layer_digest(), layer: RecordedLayer::Nothing },
            Written::Merged => return Ok(None),
            Written::Layer(layer) => {
                let mut explained = Explained::new(&read.asked, &read.answers);
                let dir = store.layers().dir(&layer);
                let mut is_over_hidden = false;
                let see = |path: &[u8], entry| {
                    if let Some(hidden) = &hidden {
                        is_over_hidden |= is_over(hidden, path, entry, &explained);
                    }
                    explained.see(path, entry);
                };
                let digest = layer_digest(&store, &dir, snapshot.id_map, see)?;
                if is_over_hidden {
                    tracing::info!("a result is not kept: its step wrote over files that are hidden from it");
                    return Ok(None);
                }
                let layer = match explained.unexplained() {
                    Some(path) => {
                        let path = String::from_utf8_lossy(&path).into_owned();
                        RecordedLayer::Fixed(format!("its layer depends on {path}, which it did not read"))
                    }
                    // The clock is read after all that was written.
                    None => RecordedLayer::Layer(layer, read.started_at, now()),
                };
                WrittenByStep { digest, layer }
            }
        };
        Ok(Some((read, written)))
    })
    .await
}

/// Returns whether an entry of a layer is where files of the source may be hidden, now or later, or
/// above such a path.
fn is_over(hidden: &HiddenFiles, path: &[u8], entry: LayerEntry, explained: &Explained<'_>) -> bool {
    let Some(path_of_source) = path.strip_prefix(b"workspace/") else {
        return path == b"workspace" && entry != LayerEntry::Directory;
    };
    let removes_dir = match entry {
        LayerEntry::Whiteout | LayerEntry::Opaque => true,
        LayerEntry::Other => explained.was_dir(path),
        LayerEntry::Directory => false,
    };
    removes_dir || entry != LayerEntry::Directory && hidden.may_hide(Path::new(OsStr::from_bytes(path_of_source)))
}

/// Returns the time, which is not earlier than that of any file.
fn now() -> FileTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos())
}

/// Puts the result of the first record that matches, and for which that is possible, over a parent. If it
/// is not kept, it is only expected, and nothing finds it.
pub(super) fn place<'a>(
    store: &Arc<Store>,
    matching: &'a Matching,
    parent: Option<&SnapshotRef>,
    is_kept: bool,
) -> Result<ResultOf<'a>, StoreError> {
    let missed = |why: &str| Ok(ResultOf::None(why.to_owned()));
    let gone = "its result was removed";
    // Without a parent, it boots from what the key names.
    let (Some(name), Some(seen)) = (parent, &matching.seen) else { return missed(gone) };
    let snapshot = store.snapshots().get(name)?;
    let mut why: Option<String> = None;
    for found in &matching.records {
        let record = &found.record;
        let layer = match &record.written {
            _ if record.parent.as_ref() == parent => {
                why.get_or_insert_with(|| gone.to_owned());
                continue;
            }
            RecordedLayer::Fixed(reason) => {
                why.get_or_insert_with(|| reason.clone());
                continue;
            }
            RecordedLayer::Nothing => None,
            RecordedLayer::Layer(layer, started, ended) => Some((layer, (*started, *ended))),
        };
        let key = result_key(&matching.key, &found.bytes, parent);
        let over = CommitRequest {
            parent: Some(&snapshot),
            base: snapshot.base.clone(),
            source: seen.source.clone(),
            delta: seen.delta.layer.clone(),
            id_map: snapshot.id_map,
        };
        let placement = Placement {
            origin: &result_key(&matching.key, &found.bytes, record.parent.as_ref()),
            key: &key,
            layer,
            changed: &found.changed,
            parent: name,
            over,
            is_kept,
        };
        match store::place(store, &placement)? {
            Placed::Kept => {
                store.traces().touch(&matching.key, &found.bytes)?;
                return Ok(ResultOf::Kept(key, found));
            }
            Placed::Made(snapshot) => return Ok(ResultOf::Made(snapshot)),
            Placed::Refused(reason) => drop(why.get_or_insert_with(|| reason.to_owned())),
        }
    }
    missed(why.as_deref().unwrap_or(gone))
}
