//! Layers and trees that come from elsewhere, named by their content.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use hm_exec::{
    SnapshotRef,
    image::{self, ImageError, PackedLayer},
    store::{Base, BlobFile, CommitRequest, IdMap, ImageDigest, LayerId, Store, tree},
};

use crate::support::store::Bench;

fn packed(bench: &Bench) -> PackedLayer {
    let layer = bench.top().join("layer");
    fs::create_dir_all(layer.join("dir")).unwrap();
    fs::write(layer.join("dir/file"), "what a step wrote").unwrap();
    image::pack_layer(&bench.store, &layer, IdMap::Single).unwrap()
}

fn blob(path: &Path) -> BlobFile {
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    BlobFile { file, offset: 0, length }
}

fn find(store: &Store, digest: &ImageDigest) -> Option<PathBuf> {
    let dir = |layer: LayerId| store.layers().dir(&layer);
    image::find_layer(store, digest, IdMap::Single).unwrap().map(dir)
}

#[test]
fn a_packed_layer_is_unpacked_once_and_then_found_by_its_content() {
    let bench = Bench::new();
    let packed = packed(&bench);
    let bytes = fs::read(packed.path()).unwrap();
    assert_eq!((packed.digest(), packed.size_bytes()), (ImageDigest::of(&bytes), bytes.len() as u64));

    let dir = bench.top().join("other");
    let other = Store::open(&dir).unwrap();
    let lease = other.lease().unwrap();
    let diff_id = packed.diff_id();
    assert_eq!(find(&other, &diff_id), None);
    let layer =
        image::unpack_layer(&other, image::LayerFile::new("it", diff_id, blob(packed.path())), IdMap::Single).unwrap();
    let root = other.layers().dir(&layer);
    assert_eq!(fs::read_to_string(root.join("dir/file")).unwrap(), "what a step wrote");
    assert_eq!(find(&other, &diff_id), Some(root.clone()));
    // Packing the same layer again makes the same file, byte for byte.
    let again = image::pack_layer(&other, &root, IdMap::Single).unwrap();
    assert_eq!((again.diff_id(), again.digest()), (diff_id, packed.digest()));
    drop((again, lease, other));

    let other = Store::open(&dir).unwrap();
    assert_eq!(find(&other, &diff_id), Some(root.clone()), "another process finds it");
    fs::write(root.join("dir/file"), "somebody was here").unwrap();
    drop(other);
    let other = Store::open(&dir).unwrap();
    assert_eq!(find(&other, &diff_id), None, "a layer that changed is none");
    image::unpack_layer(&other, image::LayerFile::new("it", diff_id, blob(packed.path())), IdMap::Single).unwrap();
    assert_eq!(fs::read_to_string(root.join("dir/file")).unwrap(), "what a step wrote");
}

#[test]
fn a_layer_that_does_not_match_its_digest_is_refused() {
    let bench = Bench::new();
    let packed = packed(&bench);
    let wrong = ImageDigest::of(b"something else");
    let refused =
        image::unpack_layer(&bench.store, image::LayerFile::new("it", wrong, blob(packed.path())), IdMap::Single);
    assert!(matches!(refused, Err(ImageError::WrongDigest { .. })), "{refused:?}");
    assert_eq!(find(&bench.store, &wrong), None);
}

#[test]
fn a_tree_is_found_by_its_digest_only_if_it_was_kept() {
    let bench = Bench::new();
    let digest = ImageDigest::of(b"a directory");
    let dropped = image::new_tree(&bench.store).unwrap();
    fs::write(dropped.root().join("file"), "").unwrap();
    drop(dropped);
    assert_eq!(image::find_tree(&bench.store, &digest).unwrap(), None);

    let tree = image::new_tree(&bench.store).unwrap();
    fs::write(tree.root().join("file"), "content").unwrap();
    let layer = image::keep_tree(&bench.store, tree, &digest).unwrap();
    assert_eq!(image::find_tree(&bench.store, &digest).unwrap(), Some(layer.clone()));
    let seal = tree::seal(&bench.store.layers().dir(&layer)).unwrap();
    assert_eq!(seal.entries, 2);
}

#[tokio::test]
async fn only_one_task_at_a_time_makes_a_layer() {
    let bench = Bench::new();
    let layer = image::tree_id(&ImageDigest::of(b"a directory"));
    let lock = image::lock_layer(&bench.store, &layer).await.unwrap();
    let store = Arc::clone(&bench.store);
    let mut second = Box::pin(async move { image::lock_layer(&store, &layer).await.unwrap() });
    let waits = tokio::time::timeout(std::time::Duration::from_millis(120), &mut second).await;
    assert!(waits.is_err());
    drop(lock);
    drop(second.await);
}

/// An overlay accepts no directory twice.
#[test]
fn a_layer_that_occurs_twice_is_stacked_at_its_last_position() {
    let bench = Bench::new();
    let source = bench.freeze().id;
    let _lease = bench.store.lease().unwrap();
    let layers = ["one", "two"].map(|name| {
        let dir = bench.top().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(name), "").unwrap();
        let packed = image::pack_layer(&bench.store, &dir, IdMap::Single).unwrap();
        let (diff_id, blob) = (packed.diff_id(), blob(packed.path()));
        image::unpack_layer(&bench.store, image::LayerFile::new(name, diff_id, blob), IdMap::Single).unwrap()
    });
    let mut parent: Option<SnapshotRef> = None;
    for layer in [0, 1, 0] {
        let below = parent.as_ref().map(|parent| bench.store.snapshots().get(parent).unwrap());
        let request = CommitRequest {
            parent: below.as_deref(),
            base: Base::Host,
            source: source.clone(),
            delta: None,
            id_map: IdMap::Single,
        };
        parent = Some(bench.store.commit_layer(Some(layers[layer].clone()), request).unwrap());
    }
    assert_eq!(bench.store.snapshots().get(&parent.unwrap()).unwrap().layers, layers);
}
