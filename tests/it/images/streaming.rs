//! Layers that are unpacked while they are downloaded: nothing is used before its end is verified.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hm_exec::image::{ImageOptions, Images};
use hm_exec::store::{Base, IdMap, Store};

use super::registry_errors::{Answer, Fake};
use crate::support::{
    filesystem::Filesystem,
    images::{Image, Layer},
    programs::hm,
};

/// An image with a layer that begins with small files and ends with a large one.
fn image() -> Image {
    let noise: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layer = Layer::new().file("first", 0o644, "first").file("noise", 0o644, noise).file("last", 0o644, "last");
    Image { layers: vec![layer.bytes()], env: vec![] }
}

fn layer_of(image: &Image) -> String {
    hm_exec::store::ImageDigest::of(&image.blobs()[0]).to_string()
}

async fn fetch(store: &Arc<Store>, fake: &Fake) -> Result<Base, String> {
    let mut options = ImageOptions::default();
    options.docker_config = Some("/nonexistent".into());
    let id_map = if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single };
    let fetched = Images::new(options).fetch(store, &format!("{}/it:1", fake.host), id_map, &()).await;
    fetched.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

/// Returns the paths of files with this name in the store's directory for what is being made.
fn unfinished(store: &Path, name: &str) -> Vec<PathBuf> {
    let (mut work, mut found) = (vec![store.join("tmp")], Vec::new());
    while let Some(dir) = work.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => work.push(entry.path()),
                _ if entry.file_name() == name => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// Waits until the beginning of a layer is unpacked.
async fn begun(store: &Path) {
    while unfinished(store, "first").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn layers(store: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(store.join("layers")).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|layer| layer.join("root/noise").exists() || layer.join("root/first").exists()).collect()
}

#[tokio::test]
async fn a_layer_is_unpacked_meanwhile_and_removed_if_nobody_waits_for_its_end() {
    let image = image();
    let fake = Fake::start(&image, &[(&layer_of(&image), Answer::Stall(1_000_000))]).await;
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("store");
    let store = Store::open(&dir).unwrap();
    tokio::select! {
        fetched = fetch(&store, &fake) => panic!("the layer has no end yet: {fetched:?}"),
        () = begun(&dir) => {}
    }
    assert_eq!(layers(&dir), Vec::<PathBuf>::new());
    // The thread holds the store until it has noticed the stream's end.
    while Arc::strong_count(&store) > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(store);
    assert_eq!((layers(&dir), unfinished(&dir, "first")), (vec![], vec![]));
    let store = Store::open(&dir).unwrap();
    assert_eq!(fetch(&store, &fake).await, Ok(Base::Image(image.digest())));
    assert_eq!(fs::read_to_string(layers(&dir)[0].join("root/last")).unwrap(), "last");
}

#[tokio::test]
async fn a_killed_program_leaves_no_half_of_a_layer() {
    let image = image();
    let fake = Fake::start(&image, &[(&layer_of(&image), Answer::Stall(1_000_000))]).await;
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("store");
    fs::create_dir(top.path().join("source")).unwrap();
    let ir = serde_json::json!({ "version": "0", "graph": {
        "nodes": [{ "step": { "key": "a", "cmd": "true", "image": format!("{}/it:1", fake.host) }, "env": {} }],
        "node_holes": [], "edge_property": "directed", "edges": [],
    }});
    fs::write(top.path().join("ir.json"), ir.to_string()).unwrap();
    let mut run = std::process::Command::new(hm());
    run.args(["run", "--runner", "sandbox", "-f", "ir.json", "-d", "source"]).current_dir(top.path());
    run.env("HM_CACHE_DIR", &dir).env("HOME", top.path()).stdout(std::process::Stdio::null());
    let mut run = run.stderr(std::process::Stdio::null()).spawn().unwrap();
    begun(&dir).await;
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(layers(&dir), Vec::<PathBuf>::new());
    let store = Store::open(&dir).unwrap();
    assert_eq!(fetch(&store, &fake).await, Ok(Base::Image(image.digest())));
    assert_eq!(layers(&dir).len(), 1);
}

#[tokio::test]
async fn two_programs_download_a_layer_once() {
    let image = image();
    let fake = Fake::start(&image, &[]).await;
    let top = tempfile::tempdir().unwrap();
    let stores = [(); 2].map(|()| Store::open(&top.path().join("store")).unwrap());
    let (one, two) = tokio::join!(fetch(&stores[0], &fake), fetch(&stores[1], &fake));
    assert_eq!((one, two), (Ok(Base::Image(image.digest())), Ok(Base::Image(image.digest()))));
    assert_eq!(fake.requests(&layer_of(&image)), 1);
}

#[tokio::test]
async fn a_hostile_layer_with_the_right_digest_is_refused_at_once() {
    let noise = vec![7; 3_000_000];
    let layers = vec![Layer::new().file("f", 0o644, "x").hard_link("g", "etc/passwd").file("n", 0o644, noise).bytes()];
    let image = Image { layers, env: vec![] };
    let fake = Fake::start(&image, &[]).await;
    let top = tempfile::tempdir().unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    let error = fetch(&store, &fake).await.unwrap_err();
    assert!(error.contains("invalid entry `g`"), "{error}");
    assert_eq!(fake.requests(&layer_of(&image)), 1);
    // Another thread removes what was unpacked.
    for _ in 0..200 {
        if unfinished(store.dir(), "f").is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("left: {:?}", unfinished(store.dir(), "f"));
}

#[tokio::test]
async fn wrong_bytes_in_the_middle_are_noticed_at_the_end_and_downloaded_again() {
    let image = image();
    // An archive of its own, which unpacks well up to where the right bytes follow.
    let other = Layer::new().file("first", 0o644, "other").file("intruder", 0o644, vec![b'x'; 100_000]).bytes();
    let fake = Fake::start(&image, &[(&layer_of(&image), Answer::Instead(other[..51_200].to_vec()))]).await;
    let top = tempfile::tempdir().unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    assert_eq!(fetch(&store, &fake).await, Ok(Base::Image(image.digest())));
    let root = layers(store.dir())[0].join("root");
    assert_eq!(fs::read_to_string(root.join("first")).unwrap(), "first");
    assert!(!root.join("intruder").exists());
}

#[tokio::test]
async fn a_full_disk_is_reported_and_a_later_pull_works() {
    let image = image();
    let fake = Fake::start(&image, &[]).await;
    let Some(small) = Filesystem::tmpfs(24) else { return };
    let store = Store::open(&small.dir().join("store")).unwrap();
    small.fill(2_000_000);
    let error = fetch(&store, &fake).await.unwrap_err();
    assert!(error.contains("no space left"), "{error}");
    assert_eq!(layers(store.dir()), Vec::<PathBuf>::new());
    small.free();
    assert_eq!(fetch(&store, &fake).await, Ok(Base::Image(image.digest())));
}
