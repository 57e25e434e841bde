//! Placements: the layer that a step wrote over one parent is put over another one.
//!
//! ```text
//!   result over the old parent ──▶ layer ──▶ with other times ─┐
//!                                                              ├──▶ snapshot ──▶ result over the new parent
//!   new parent ──▶ its layers, delta of the source ────────────┘
//! ```
//!
//! Nothing here decides whether the step would write the same layer. The caller knows that by what the
//! step read.

use std::{collections::HashSet, fs, io::ErrorKind, slice, sync::Arc};

use super::{
    CommitRequest, LayerId, MAX_LAYERS, Snapshot, Store, StoreError,
    error::IoContext,
    index::{self, cache::CacheRow},
    snapshots::reference,
    tree::{FileTime, Retimed, Retiming},
};
use crate::{log_file::compressed_path, model::SnapshotRef, sync::Mutex};

/// The most bytes of a layer that is copied, unless the filesystem shares the data of copies.
const MAX_COPIED_BYTES: u64 = 1 << 30;

/// Held while a result is put over another parent: another step may need the same one.
static PLACING: Mutex<()> = Mutex::new(());

/// A result of a step, and the parent that it is put over.
#[derive(Debug)]
pub(crate) struct Placement<'a> {
    /// The key of a result that contains the layer.
    pub(crate) origin: &'a [u8; 32],
    /// The key of the new result.
    pub(crate) key: &'a [u8; 32],
    /// The layer that the step wrote, and when it started and had ended. `None` if it wrote nothing.
    pub(crate) layer: Option<(&'a LayerId, (FileTime, FileTime))>,
    /// The times of files that the step read, and those that they have now, if they differ.
    pub(crate) changed: &'a [(FileTime, FileTime)],
    /// The name of the new parent's snapshot.
    pub(crate) parent: &'a SnapshotRef,
    /// What the layer is put over.
    pub(crate) over: CommitRequest<'a>,
    /// Whether the result is kept, so that it is found by its key.
    pub(crate) is_kept: bool,
}

/// What became of a placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The result is found by its key now.
    Kept,
    /// This process has the result, until it removes it.
    Made(SnapshotRef),
    /// It would not be what a run of the step makes, or it costs too much.
    Refused(&'static str),
}

/// Puts the layer of a result over another parent, and keeps that as a result of its own. Blocks while
/// the layer is copied, and while another thread of this process does the same.
///
/// # Errors
/// Returns an error if the layer can be neither read nor copied, or if the index cannot be written. Then
/// nothing is kept.
pub(crate) fn place(store: &Arc<Store>, placement: &Placement<'_>) -> Result<Placed, StoreError> {
    let Placement { origin, key, layer, parent, .. } = *placement;
    // Nothing that is found from here on is removed meanwhile.
    let _lease = store.lease()?;
    let _turn = PLACING.lock();
    if store.steps().read(|reader| reader.get(key).is_some())? {
        return Ok(Placed::Kept);
    }
    let gone = Ok(Placed::Refused("its result was removed"));
    let Some(made) = store.index().read(|connection| index::cache::get(connection, origin))? else { return gone };
    let of_origin = reference(&made.snapshot);
    let Ok(kept) = store.snapshots().get(&of_origin) else { return gone };
    if let Some((layer, _)) = layer
        && (!kept.layers.contains(layer) || store.layers().damage(slice::from_ref(layer))?.is_some())
    {
        return gone;
    }
    // The same in every run, so that steps with a key that build on it are found.
    let id = placed_id(layer.map(|(layer, _)| layer), parent);
    let name = reference(&id);
    let is_there = store.snapshots().get(&name).is_ok() && store.snapshots().damage(&name)?.is_none();
    if !is_there {
        // This process may remember one whose layers were removed since.
        store.snapshots().remove(slice::from_ref(&name))?;
        let snapshot = match stack(store, placement)? {
            Ok(snapshot) => snapshot,
            Err(reason) => return Ok(Placed::Refused(reason)),
        };
        store.snapshots().add(id, snapshot);
    }
    if !placement.is_kept {
        return Ok(Placed::Made(name));
    }
    let keep = || {
        copy_log(store, origin, key)?;
        if let Some(config) = store.snapshots().config(&of_origin)? {
            store.snapshots().describe(&name, config);
        }
        store.snapshots().keep(&name, |transaction, id| {
            index::cache::touch(transaction, slice::from_ref(origin))?;
            index::cache::put(transaction, key, &CacheRow { snapshot: id.to_owned(), ..made }, true)
        })
    };
    let kept = keep();
    if kept.is_err() {
        store.snapshots().remove(slice::from_ref(&name))?;
    }
    kept.map(|()| Placed::Kept)
}

/// Returns the new snapshot, or why there can be none. The layer is in its place then.
fn stack(store: &Arc<Store>, placement: &Placement<'_>) -> Result<Result<Snapshot, &'static str>, StoreError> {
    let Placement { layer, changed, over, .. } = placement;
    let CommitRequest { parent, base, source, delta, id_map } = over;
    let mut below: Vec<LayerId> = delta.iter().cloned().collect();
    below.extend(parent.iter().flat_map(|parent| &parent.layers).cloned());
    if below.len() >= MAX_LAYERS {
        // They would be merged, which takes long, and what is merged is found over one parent only.
        return Ok(Err("its parent has too many layers"));
    }
    let mut layers = Vec::new();
    if let Some((layer, span)) = *layer {
        let newest = |latest: FileTime, layer| Ok::<_, StoreError>(latest.max(store.layers().newest(layer)?));
        let latest = below.iter().try_fold((i64::MIN, 0), newest)?;
        let request = Retiming { span, changed: changed.to_vec(), below: latest, max_bytes: MAX_COPIED_BYTES };
        let (staging, root) = (store.stage()?, store.layers().dir(layer));
        let retimed = store.trash().tree_ops().retime(&root, &staging.upper(), *id_map, &request);
        layers.push(match retimed.doing("copy the layer", &root)? {
            Retimed::Unneeded => layer.clone(),
            Retimed::Copied => store.layers().place(staging.home())?,
            Retimed::Refused(reason) => return Ok(Err(reason.as_str())),
        });
    }
    layers.append(&mut below);
    // As at a commit.
    let mut seen = HashSet::new();
    layers.retain(|layer| seen.insert(layer.clone()));
    Ok(Ok(Snapshot { base: base.clone(), source: source.clone(), layers, id_map: *id_map }))
}

/// Keeps the output of a cached step for another key, too.
fn copy_log(store: &Store, from: &[u8; 32], to: &[u8; 32]) -> Result<(), StoreError> {
    let (from, to) = (store.steps().log(from), store.steps().log(to));
    // Garbage collection may replace the first one by the other meanwhile.
    for (from, to) in [(from.clone(), to.clone()), (compressed_path(&from), compressed_path(&to))] {
        let tmp = store.instance().new_tmp();
        match fs::hard_link(&from, &tmp) {
            Err(error) if error.kind() == ErrorKind::NotFound => store.trash().discard_from(&to)?,
            linked => linked.and_then(|()| fs::rename(&tmp, &to)).doing("keep", &from)?,
        }
    }
    Ok(())
}

/// Returns the id of the snapshot of a layer over a parent.
fn placed_id(layer: Option<&LayerId>, parent: &SnapshotRef) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"hm-exec placed layer");
    for part in [layer.map_or("", LayerId::as_str), &*parent.0] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use uuid::Uuid;

    use super::*;
    use crate::store::{Base, Cached, IdMap, KeepAs, SourceId};

    const ORIGIN: [u8; 32] = [1; 32];

    /// A store with a step's result over one parent, and another parent.
    struct Bench {
        _dir: tempfile::TempDir,
        store: Arc<Store>,
        layer: LayerId,
        span: (FileTime, FileTime),
        parent: SnapshotRef,
    }

    fn source() -> SourceId {
        SourceId::parse(&"a".repeat(64)).unwrap()
    }

    fn id_map() -> IdMap {
        if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single }
    }

    fn over(parent: Option<&Snapshot>) -> CommitRequest<'_> {
        CommitRequest { parent, base: Base::Host, source: source(), delta: None, id_map: id_map() }
    }

    /// Commits a layer with a file.
    fn commit(store: &Arc<Store>, name: &str, parent: Option<&SnapshotRef>) -> SnapshotRef {
        let staging = store.stage().unwrap();
        fs::write(staging.upper().join(name), name).unwrap();
        let parent = parent.map(|parent| store.snapshots().get(parent).unwrap());
        store.commit(staging, over(parent.as_deref())).unwrap()
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("store")).unwrap();
            let old = commit(&store, "old", None);
            let start = crate::tree::file_clock();
            let made = commit(&store, "made", Some(&old));
            let layer = store.snapshots().get(&made).unwrap().layers[0].clone();
            let log = dir.path().join("log");
            fs::write(&log, "output").unwrap();
            store.steps().keep_log(&ORIGIN, &log).unwrap();
            let name = KeepAs::Traced { key: &ORIGIN, run: Uuid::nil(), pipeline: "ci", step: "s", created_at: 7 };
            store.keep(&made, name).unwrap();
            // The clock has steps.
            std::thread::sleep(std::time::Duration::from_millis(30));
            let parent = commit(&store, "new", None);
            let span = (start, (i64::MAX, 0));
            Self { _dir: dir, store, layer, span, parent }
        }

        fn place(&self, key: u8) -> Placed {
            self.place_with(key, true)
        }

        fn place_with(&self, key: u8, is_kept: bool) -> Placed {
            let parent = self.store.snapshots().get(&self.parent).unwrap();
            let placement = Placement {
                origin: &ORIGIN,
                key: &[key; 32],
                layer: Some((&self.layer, self.span)),
                changed: &[],
                parent: &self.parent,
                over: over(Some(&parent)),
                is_kept,
            };
            place(&self.store, &placement).unwrap()
        }

        fn found(&self, key: u8) -> Option<SnapshotRef> {
            match self.store.steps().cached(&[key; 32]).unwrap() {
                Cached::Found { snapshot, run, step, created_at } => {
                    assert_eq!((run, &*step, created_at), (Uuid::nil(), "s", 7));
                    Some(snapshot)
                }
                _ => None,
            }
        }

        fn file(&self, layer: &LayerId, name: &str) -> std::path::PathBuf {
            self.store.layers().dir(layer).join(name)
        }
    }

    #[test]
    fn a_placement_is_a_result_with_the_layer_over_the_other_parent() {
        let bench = Bench::new();
        assert_eq!(bench.place(2), Placed::Kept);
        let found = bench.found(2).unwrap();
        let snapshot = bench.store.snapshots().get(&found).unwrap();
        let [layer, below] = &snapshot.layers[..] else { panic!("{snapshot:?}") };
        let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(fs::read(bench.file(layer, "made")).unwrap(), b"made");
        assert!(modified(&bench.file(layer, "made")) > modified(&bench.file(below, "new")));
        assert_ne!(layer, &bench.layer);
        assert_eq!(fs::read(bench.store.steps().log(&[2; 32])).unwrap(), b"output");
        // The same has the same name.
        assert_eq!(bench.place(3), Placed::Kept);
        assert_eq!(bench.found(3), Some(found));
        assert_eq!(bench.place(3), Placed::Kept);
        assert_eq!(fs::read_dir(bench.store.paths().layers()).unwrap().count(), 4, "one copy");
    }

    #[test]
    fn a_placement_that_is_not_kept_is_found_by_nothing_and_can_be_removed() {
        let bench = Bench::new();
        let layers = || fs::read_dir(bench.store.paths().layers()).unwrap().count();
        let before = layers();
        let Placed::Made(made) = bench.place_with(2, false) else { panic!("it is kept") };
        assert_eq!(bench.store.snapshots().get(&made).unwrap().layers.len(), 2);
        assert_eq!((bench.found(2), layers()), (None, before + 1));
        bench.store.snapshots().remove(&[made]).unwrap();
        assert_eq!(layers(), before);
        assert_eq!(bench.place(2), Placed::Kept);
        assert_eq!(bench.place_with(2, false), Placed::Kept, "it is there");
    }

    #[test]
    fn a_placement_in_another_process_has_the_same_name() {
        let bench = Bench::new();
        bench.place(2);
        let found = bench.found(2).unwrap();
        bench.store.keep(&bench.parent, KeepAs::ForInspection { run: Uuid::nil(), step: "p", passed: true }).unwrap();
        let Bench { _dir, store, layer, span, parent } = bench;
        let dir = store.dir().to_owned();
        drop(store);
        let store = Store::open(&dir).unwrap();
        let bench = Bench { _dir, store, layer, span, parent };
        assert_eq!(bench.place(3), Placed::Kept);
        assert_eq!(bench.found(3), Some(found));
    }

    #[test]
    fn what_is_gone_or_changed_or_too_deep_is_refused() {
        let bench = Bench::new();
        let gone = Placed::Refused("its result was removed");
        let other = Bench { layer: LayerId::parse(&"b".repeat(32)).unwrap(), ..Bench::new() };
        assert_eq!(other.place(2), gone, "another layer");
        let mut deep = Bench::new();
        for _ in 0..MAX_LAYERS - 1 {
            deep.parent = commit(&deep.store, "more", Some(&deep.parent));
        }
        assert_eq!(deep.place(2), Placed::Refused("its parent has too many layers"));
        assert_eq!(deep.found(2), None);
        fs::write(bench.file(&bench.layer, "made"), "damaged").unwrap();
        assert_eq!(bench.place(2), gone);
        fs::remove_dir_all(bench.store.layers().home(&bench.layer)).unwrap();
        assert_eq!(bench.place(2), gone);
    }
}
