//! Which of several images a name means: tags, platforms, and nested indexes.

use std::{fs, path::Path};

use hm_exec::image::Images;
use hm_exec::store::{Base, ImageDigest, Store};
use serde_json::{Value, json};

use crate::support::images::{Image, Layer};

fn small(text: &str) -> Image {
    Image { layers: vec![Layer::new().file("f", 0o644, text).bytes()], env: vec![] }
}

fn here() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes a document among the blobs, and returns its descriptor.
fn blob(dir: &Path, bytes: &[u8], platform: Option<Value>, tag: Option<&str>) -> Value {
    let digest = ImageDigest::of(bytes);
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    let mut entry = json!({ "mediaType": "application/x", "digest": digest.to_string(), "size": bytes.len() });
    if let Some(platform) = platform {
        entry["platform"] = platform;
    }
    if let Some(tag) = tag {
        entry["annotations"]["org.opencontainers.image.ref.name"] = tag.into();
    }
    entry
}

fn manifest(dir: &Path, image: &Image, platform: Option<Value>, tag: Option<&str>) -> Value {
    let blobs = image.blobs();
    for bytes in &blobs {
        blob(dir, bytes, None, None);
    }
    blob(dir, blobs.last().unwrap(), platform, tag)
}

fn index(entries: &[Value]) -> Vec<u8> {
    serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap()
}

/// Returns the image that `name` stands for in the layout that `make` writes, or the error's text.
async fn pinned(tag: &str, make: impl FnOnce(&Path) -> Vec<u8>) -> Result<Base, String> {
    let top = tempfile::tempdir().unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    let dir = top.path().join("oci");
    fs::create_dir(&dir).unwrap();
    let index = make(&dir);
    fs::write(dir.join("index.json"), index).unwrap();
    let pinned = Images::default().pin(&store, &format!("oci:{}{tag}", dir.display()), &()).await;
    pinned.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

fn of(image: &Image) -> Result<Base, String> {
    Ok(Base::Image(image.digest()))
}

#[tokio::test]
async fn a_layout_needs_a_tag_only_if_it_has_several_images() {
    let (one, two) = (small("one"), small("two"));
    for tag in ["", ":v1", ":stable"] {
        let named = |dir: &Path| index(&["v1", "stable"].map(|tag| manifest(dir, &one, None, Some(tag))));
        assert_eq!(pinned(tag, named).await, of(&one), "{tag}");
    }
    let several = |dir: &Path| index(&[manifest(dir, &one, None, Some("v1")), manifest(dir, &two, None, Some("v2"))]);
    let error = pinned("", several).await.unwrap_err();
    assert!(error.contains("add `:TAG` of one (v1, v2)"), "{error}");
    assert_eq!(pinned(":v2", several).await, of(&two));
    let unnamed = |dir: &Path| index(&[manifest(dir, &one, None, None), manifest(dir, &two, None, None)]);
    assert!(pinned("", unnamed).await.unwrap_err().contains("none of which has a name"));
    assert!(pinned(":v3", several).await.unwrap_err().contains("no image `"));
}

#[tokio::test]
async fn the_platform_of_this_machine_is_chosen() {
    let (one, two, three) = (small("one"), small("two"), small("three"));
    let platform = |arch: &str, variant: Option<&str>| {
        let mut platform = json!({ "os": "linux", "architecture": arch });
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        Some(platform)
    };
    for tag in ["", ":it"] {
        let found = pinned(tag, |dir| {
            let other = manifest(dir, &one, platform("other", None), Some("it"));
            let own = manifest(dir, &two, platform(here(), None), Some("it"));
            let unknown = manifest(dir, &three, platform("unknown", None), Some("it"));
            index(&[other, own, unknown])
        });
        assert_eq!(found.await, of(&two));
    }
    if here() != "amd64" {
        return;
    }
    // No processor supports the first one, and every processor supports the last two.
    let levels = |dir: &Path| {
        let unborn = manifest(dir, &one, platform("amd64", Some("v99")), None);
        let plain = manifest(dir, &two, platform("amd64", None), None);
        let first = manifest(dir, &three, platform("amd64", Some("v1")), None);
        index(&[unborn, plain, first])
    };
    assert_eq!(pinned("", levels).await, of(&two));
    let none = pinned("", |dir| {
        let entry = || manifest(dir, &one, platform("amd64", Some("v98")), None);
        let nested = index(&[entry(), manifest(dir, &two, platform("amd64", Some("v99")), None)]);
        index(&[blob(dir, &nested, None, None)])
    });
    let none = none.await.unwrap_err();
    assert!(none.contains("is for linux/amd64/v98, linux/amd64/v99, but this machine is linux/amd64/v"), "{none}");
}

#[tokio::test]
async fn nested_indexes_are_followed() {
    let (one, two) = (small("one"), small("two"));
    let platform = |arch: &str| Some(json!({ "os": "linux", "architecture": arch }));
    for tag in ["", ":it"] {
        let nested = pinned(tag, |dir| {
            let other = index(&[manifest(dir, &one, platform("other"), None)]);
            let own = index(&[manifest(dir, &two, platform(here()), None)]);
            // Neither of them names its platform.
            let both = index(&[blob(dir, &other, None, None), blob(dir, &own, None, None)]);
            index(&[blob(dir, &both, None, Some("it"))])
        });
        assert_eq!(nested.await, of(&two));
    }
    // If a manifest does not name its platform, its config is read.
    let asked = pinned("", |dir| {
        let mut image = serde_json::from_slice::<Value>(&one.config()).unwrap();
        image["architecture"] = "other".into();
        let config = blob(dir, &serde_json::to_vec(&image).unwrap(), None, None);
        let foreign = json!({ "schemaVersion": 2, "config": config, "layers": [] });
        let foreign = blob(dir, &serde_json::to_vec(&foreign).unwrap(), None, None);
        let both = index(&[foreign, manifest(dir, &two, None, None)]);
        index(&[blob(dir, &both, None, None)])
    });
    assert_eq!(asked.await, of(&two));
    // No honest image has this many levels.
    let deep = pinned("", |dir| {
        let bottom = index(&[manifest(dir, &one, None, None)]);
        (0..20).fold(bottom, |below, _| index(&[blob(dir, &below, None, None)]))
    });
    assert!(deep.await.unwrap_err().contains("too many other indexes"));
}

#[tokio::test]
async fn only_regular_files_are_read() {
    let one = small("one");
    let error = pinned("", |dir| {
        let entry = manifest(dir, &one, None, None);
        let at = dir.join("blobs/sha256").join(&entry["digest"].as_str().unwrap()[7..]);
        fs::remove_file(&at).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &at, rustix::fs::Mode::RUSR).unwrap();
        index(&[entry])
    });
    let error = error.await.unwrap_err();
    assert!(error.contains("is not a regular file"), "{error}");
    let top = tempfile::tempdir().unwrap();
    let pipe = top.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    let error = Images::default().pin(&store, &format!("docker-archive:{}", pipe.display()), &()).await.unwrap_err();
    assert!(error.to_string().contains("is not a regular file"), "{error}");
}
