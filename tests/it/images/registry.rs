//! Pulls from a real registry.

use std::{fs, path::Path, process::Command, sync::Arc};

use hm_exec::image::{ImageOptions, Images, Notes, PullPolicy};
use hm_exec::store::{Base, IdMap, Store};

use crate::support::{
    images::{Image, Layer, has_busybox},
    registry::Registry,
    sandbox::{Ask, Bench},
};

fn store(top: &Path) -> Arc<Store> {
    Store::open(&top.join("store")).unwrap()
}

fn id_map() -> IdMap {
    if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single }
}

fn options(pull: PullPolicy) -> ImageOptions {
    let mut options = ImageOptions::default();
    options.pull = pull;
    options.docker_config = Some("/nonexistent".into());
    options
}

/// The notes that were printed.
#[derive(Default)]
struct Lines(std::sync::Mutex<String>);

impl Notes for Lines {
    async fn note(&self, line: String) {
        self.0.lock().unwrap().extend([line.as_str(), "\n"]);
    }
}

/// Pulls in one run: returns the image that the name stands for, with its layers fetched, and the notes that
/// were printed.
async fn pull(store: &Arc<Store>, options: ImageOptions, name: &str) -> Result<(Base, String), String> {
    let lines = Lines::default();
    let fetched = Images::new(options).fetch(store, name, id_map(), &lines).await;
    let base = fetched.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    Ok((base, lines.0.into_inner().unwrap()))
}

fn small(text: &str) -> Image {
    Image { layers: vec![Layer::new().dir("d").file("d/f", 0o644, text).bytes()], env: vec![] }
}

#[tokio::test]
async fn steps_boot_from_images_of_a_registry() {
    if !has_busybox() {
        return;
    }
    let Some(registry) = Registry::start(false) else { return };
    registry.push(&Image::shell(), "some/shell:1", None);
    let bench = Bench::new();
    let mut run = bench.run();
    let name = format!("{}/some/shell:1", registry.host);
    // Both at once: the image is pulled once.
    let ask = || Ask::new("echo $(cat /etc/issue) $FROM_IMAGE").image(&name);
    let (first, second) = (run.input(ask()), run.input(ask()));
    let (first, second) = tokio::join!(
        hm_exec::runner::StepRunner::execute(&bench.runner, &run.ctx, first),
        hm_exec::runner::StepRunner::execute(&bench.runner, &run.ctx, second),
    );
    assert_eq!((first.unwrap().exit_code, second.unwrap().exit_code), (0, 0));
    let output = run.output().await;
    assert_eq!(output.matches("two yes\n").count(), 2, "{output}");
    assert_eq!(output.matches("in 3 layers").count(), 1, "{output}");
}

#[tokio::test]
async fn tags_are_resolved_as_often_as_the_pull_policy_requires() {
    let Some(mut registry) = Registry::start(false) else { return };
    let top = tempfile::tempdir().unwrap();
    let store = store(top.path());
    let name = format!("{}/it:latest", registry.host);
    registry.push(&small("one"), "it:latest", None);

    let error = pull(&store, options(PullPolicy::Never), &name).await.unwrap_err();
    assert!(error.contains("downloads are disabled"), "{error}");
    let (one, told) = pull(&store, options(PullPolicy::Missing), &name).await.unwrap();
    assert_eq!(one, Base::Image(small("one").digest()));
    assert!(told.contains("pulling") && told.contains("pulled"), "{told}");

    registry.push(&small("two"), "it:latest", None);
    assert_eq!(pull(&store, options(PullPolicy::Missing), &name).await.unwrap(), (one.clone(), String::new()));
    assert_eq!(pull(&store, options(PullPolicy::Never), &name).await.unwrap().0, one);
    let (two, _) = pull(&store, options(PullPolicy::Always), &name).await.unwrap();
    assert_eq!(two, Base::Image(small("two").digest()));
    assert_eq!(pull(&store, options(PullPolicy::Missing), &name).await.unwrap().0, two);

    registry.stop();
    let (still, told) = pull(&store, options(PullPolicy::Always), &name).await.unwrap();
    assert_eq!(still, two);
    assert!(told.contains("warning") && told.contains("failed to reach registry"), "{told}");
    let error = pull(&store, options(PullPolicy::Missing), &format!("{}/other", registry.host)).await.unwrap_err();
    assert!(error.contains("failed to reach registry"), "{error}");
}

#[tokio::test]
async fn pinning_fetches_no_layer_and_layers_are_shared() {
    let Some(registry) = Registry::start(false) else { return };
    let top = tempfile::tempdir().unwrap();
    let store = store(top.path());
    let mut image = small("one");
    registry.push(&image, "it:1", None);
    image.layers.push(Layer::new().file("more", 0o644, "more").bytes());
    registry.push(&image, "it:2", None);
    let (one, two) = (format!("{}/it:1", registry.host), format!("{}/it:2", registry.host));

    let pinned = Images::new(options(PullPolicy::Missing)).pin(&store, &two, &()).await.unwrap();
    assert_eq!(pinned, Base::Image(image.digest()));
    assert_eq!(fs::read_dir(store.dir().join("layers")).unwrap().count(), 0);
    assert!(pull(&store, options(PullPolicy::Missing), &one).await.unwrap().1.contains("in 1 layer\n"));
    assert!(pull(&store, options(PullPolicy::Missing), &two).await.unwrap().1.contains("in 1 layer\n"));

    // Damaged layers are pulled again, and are the same.
    for entry in fs::read_dir(store.dir().join("layers")).unwrap() {
        fs::write(entry.unwrap().path().join("root/intruder"), "x").unwrap();
    }
    drop(store);
    let store = self::store(top.path());
    let (base, told) = pull(&store, options(PullPolicy::Missing), &two).await.unwrap();
    assert_eq!(base, pinned);
    assert!(told.contains("in 2 layers"), "{told}");
    assert_eq!(pull(&store, options(PullPolicy::Never), &two).await.unwrap(), (pinned, String::new()));
}

#[tokio::test]
async fn images_named_by_digest_are_not_resolved_again() {
    let Some(mut registry) = Registry::start(false) else { return };
    let top = tempfile::tempdir().unwrap();
    let store = store(top.path());
    registry.push(&small("one"), "it:1", None);
    let manifest = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
        .arg(format!("docker://{}/it:1", registry.host))
        .env("HOME", top.path())
        .output()
        .unwrap();
    let name = format!("{}/it@{}", registry.host, String::from_utf8_lossy(&manifest.stdout).trim());
    let (base, _) = pull(&store, options(PullPolicy::Missing), &name).await.unwrap();
    assert_eq!(base, Base::Image(small("one").digest()));
    registry.stop();
    // No registry is asked what a digest stands for.
    assert_eq!(pull(&store, options(PullPolicy::Always), &name).await.unwrap(), (base, String::new()));
}

#[tokio::test]
async fn private_registries_get_the_credentials_of_the_docker_configuration() {
    let Some(registry) = Registry::start(true) else { return };
    let top = tempfile::tempdir().unwrap();
    let store = store(top.path());
    registry.push(&small("secret"), "private/it:1", Some("ann:sesame"));
    let name = format!("{}/private/it:1", registry.host);

    let error = pull(&store, options(PullPolicy::Missing), &name).await.unwrap_err();
    assert!(error.contains("docker login"), "{error}");
    // `ann:wrong` and `ann:sesame` in base64.
    for (auth, is_right) in [("YW5uOndyb25n", false), ("YW5uOnNlc2FtZQ==", true)] {
        let config = top.path().join("config.json");
        fs::write(&config, format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host)).unwrap();
        let mut options = options(PullPolicy::Missing);
        options.docker_config = Some(config);
        let pulled = pull(&store, options, &name).await;
        assert_eq!(pulled.is_ok(), is_right, "{pulled:?}");
        assert!(!format!("{pulled:?}").contains("wrong"), "{pulled:?}");
    }
}

#[tokio::test]
async fn a_mirror_is_tried_before_the_registry_of_a_name() {
    let Some(registry) = Registry::start(false) else { return };
    let top = tempfile::tempdir().unwrap();
    let store = store(top.path());
    registry.push(&small("mirrored"), "hub/library/debian:bookworm", None);
    let mut options = options(PullPolicy::Missing);
    options.mirror = Some(format!("{}/hub", registry.host));
    let (base, _) = pull(&store, options, "debian:bookworm").await.unwrap();
    assert_eq!(base, Base::Image(small("mirrored").digest()));
}

#[tokio::test]
async fn an_image_that_a_registry_does_not_have_is_reported() {
    let Some(registry) = Registry::start(false) else { return };
    let top = tempfile::tempdir().unwrap();
    let store = store(top.path());
    registry.push(&small("one"), "it:1", None);
    for (name, expected) in [
        (format!("{}/it:2", registry.host), "no image `"),
        (format!("{}/other", registry.host), "no image `"),
        (format!("{}/UPPER", registry.host), "invalid image name"),
    ] {
        let error = pull(&store, options(PullPolicy::Missing), &name).await.unwrap_err();
        assert!(error.contains(expected) && error.contains(&name), "{name}: {error}");
    }
}
