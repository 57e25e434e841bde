//! A registry that fails in every way that a registry can.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use futures_util::future::join_all;
use hm_exec::image::{ImageOptions, Images};
use hm_exec::store::{Base, IdMap, ImageDigest, Store};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::images::{Image, Layer};

/// The registry's answer to a request for a path with a given suffix.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// This status, and no body.
    Status(u16),
    /// This many bytes of the right body, then the connection ends.
    Cut(usize),
    /// This many bytes of the right body, then nothing more.
    Stall(usize),
    /// Another body.
    Instead(Vec<u8>),
}

/// The registry's contents, and the answers that it gives before the right ones.
struct Script {
    bodies: BTreeMap<String, Vec<u8>>,
    answers: Vec<(String, Answer)>,
    requests: Vec<String>,
}

pub(super) struct Fake {
    pub(super) host: String,
    script: Arc<Mutex<Script>>,
    /// Aborted with the test's runtime.
    _server: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub(super) async fn start(image: &Image, answers: &[(&str, Answer)]) -> Self {
        let blobs = image.blobs();
        let mut bodies: BTreeMap<String, Vec<u8>> =
            blobs.iter().map(|blob| (ImageDigest::of(blob).to_string(), blob.clone())).collect();
        bodies.insert("manifests/1".into(), blobs.last().unwrap().clone());
        let answers = answers.iter().map(|(path, answer)| ((*path).to_owned(), answer.clone())).collect();
        let script = Arc::new(Mutex::new(Script { bodies, answers, requests: Vec::new() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let served = Arc::clone(&script);
        #[expect(clippy::disallowed_methods, reason = "a server of its own")]
        let server = tokio::spawn(async move {
            let mut stalled = Vec::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let mut byte = [0; 1];
                while !request.ends_with(b"\r\n\r\n") && socket.read(&mut byte).await.is_ok_and(|read| read == 1) {
                    request.push(byte[0]);
                }
                let (response, stalls) = respond(&served, &String::from_utf8_lossy(&request));
                let _ = socket.write_all(&response).await;
                match stalls {
                    true => stalled.push(socket),
                    false => drop(socket.shutdown().await),
                }
            }
        });
        Self { host, script, _server: server }
    }

    pub(super) fn requests(&self, of: &str) -> usize {
        self.script.lock().unwrap().requests.iter().filter(|path| path.ends_with(of)).count()
    }
}

/// Returns the bytes of the response, and whether the connection stays open after them.
fn respond(script: &Mutex<Script>, request: &str) -> (Vec<u8>, bool) {
    let mut script = script.lock().unwrap();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    if path == "/v2/" {
        return (response(200, &[], None), false);
    }
    script.requests.push(path.clone());
    let offset = request.lines().find_map(|line| {
        let line = line.to_ascii_lowercase();
        line.strip_prefix("range: bytes=")?.split('-').next()?.parse::<usize>().ok()
    });
    let next = script.answers.iter().position(|(end, _)| path.ends_with(end.as_str()));
    let answer = next.map(|at| script.answers.remove(at).1);
    let body = script.bodies.iter().find(|(name, _)| path.ends_with(name.as_str())).map(|(_, body)| body.clone());
    let Some(body) = body else { return (response(404, br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#, None), false) };
    let stalls = matches!(answer, Some(Answer::Stall(_)));
    let response = match answer {
        Some(Answer::Status(status)) => response(status, b"trouble", None),
        Some(Answer::Instead(other)) => response(200, &other, None),
        Some(Answer::Cut(bytes) | Answer::Stall(bytes)) => {
            let rest = &body[offset.unwrap_or(0)..];
            let mut whole = response(200, rest, offset);
            whole.truncate(whole.len() - rest.len() + bytes.min(rest.len()));
            whole
        }
        None => response(200, &body[offset.unwrap_or(0).min(body.len())..], offset),
    };
    (response, stalls)
}

fn response(status: u16, body: &[u8], offset: Option<usize>) -> Vec<u8> {
    let status = if offset.is_some() { 206 } else { status };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn image() -> Image {
    // Too large for one read, and incompressible.
    let noise: Vec<u8> = (0..400_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layers = vec![Layer::new().file("noise", 0o644, noise).bytes(), Layer::new().file("f", 0o644, "x").bytes()];
    Image { layers, env: vec![] }
}

/// Pulls the image `name` from `fake`.
async fn fetch(fake: &Fake, name: &str, docker_config: &str) -> Result<Base, String> {
    let top = tempfile::tempdir().unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    let mut options = ImageOptions::default();
    options.docker_config = Some(docker_config.into());
    let id_map = if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single };
    let fetched = Images::new(options).fetch(&store, &format!("{}/{name}", fake.host), id_map, &()).await;
    fetched.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}

#[tokio::test]
async fn nested_indexes_are_followed() {
    let fake = Fake::start(&image(), &[]).await;
    let put = |bytes: &[u8], platform: serde_json::Value| {
        let digest = ImageDigest::of(bytes).to_string();
        fake.script.lock().unwrap().bodies.insert(digest.clone(), bytes.to_vec());
        let mut entry = serde_json::json!({ "mediaType": "application/x", "digest": digest, "size": bytes.len() });
        if !platform.is_null() {
            entry["platform"] = platform;
        }
        entry
    };
    let index = |entries: &[serde_json::Value]| {
        serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": entries })).unwrap()
    };
    let none = || serde_json::Value::Null;
    let other = serde_json::json!({ "os": "linux", "architecture": "other" });
    let manifest = image().blobs().pop().unwrap();
    // The manifest for another machine comes first, and its index does not name the platform.
    let mut config: serde_json::Value = serde_json::from_slice(&image().config()).unwrap();
    config["architecture"] = "other".into();
    let config = put(&serde_json::to_vec(&config).unwrap(), none());
    let foreign = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [] });
    let foreign = put(&serde_json::to_vec(&foreign).unwrap(), none());
    let first = index(&[put(&manifest, other)]);
    let second = index(&[foreign, put(&manifest, none())]);
    let top = index(&[put(&first, none()), put(&second, none())]);
    fake.script.lock().unwrap().bodies.insert("manifests/nested".into(), top);
    assert_eq!(fetch(&fake, "it:nested", "/nonexistent").await, Ok(Base::Image(image().digest())));
}

#[tokio::test]
async fn a_missing_credential_helper_is_ignored() {
    let fake = Fake::start(&image(), &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    for helper in [r#""credsStore":"hm-is-missing""#, &format!(r#""credHelpers":{{"{}":"hm-is-missing"}}"#, fake.host)]
    {
        std::fs::write(&config, format!(r#"{{"auths":{{}},{helper}}}"#)).unwrap();
        assert_eq!(fetch(&fake, "it:1", config.to_str().unwrap()).await, Ok(Base::Image(image().digest())));
    }
}

/// Pulls from a registry that gives these answers first.
async fn pull(answers: &[(&str, Answer)]) -> (Result<Base, String>, Fake) {
    let fake = Fake::start(&image(), answers).await;
    let top = tempfile::tempdir().unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    let mut options = ImageOptions::default();
    options.docker_config = Some("/nonexistent".into());
    let id_map = if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single };
    let name = format!("{}/it:1", fake.host);
    let images = Images::new(options);
    let fetched = images.fetch(&store, &name, id_map, &()).await;
    let fetched = fetched.map_err(|error| format!("{:#}", anyhow::Error::new(error)));
    drop(images);
    // Closing the store waits for pending removals.
    let dir = store.dir().to_owned();
    drop(store);
    let store = Store::open(&dir).unwrap();
    let layers = std::fs::read_dir(store.dir().join("layers")).unwrap().flatten();
    for layer in layers {
        let mut names = std::fs::read_dir(layer.path().join("root")).unwrap().flatten();
        assert!(names.next().is_some(), "an empty layer was left");
    }
    let again = Images::new(ImageOptions::default()).fetch(&store, &name, id_map, &()).await;
    assert_eq!(again.unwrap(), Base::Image(image().digest()), "a later run works on what is left");
    (fetched, fake)
}

fn layer() -> String {
    ImageDigest::of(&image().blobs()[0]).to_string()
}

#[tokio::test]
async fn transient_errors_are_retried() {
    let layer = layer();
    let manifest = "manifests/1";
    let cases: Vec<(&str, Vec<(&str, Answer)>)> = vec![
        ("nothing", vec![]),
        ("limits", vec![(manifest, Answer::Status(429)), (&layer, Answer::Status(429))]),
        ("trouble of the server", vec![(manifest, Answer::Status(500)), (&layer, Answer::Status(503))]),
        ("no answer", vec![(manifest, Answer::Cut(0)), (&layer, Answer::Cut(0))]),
        ("an end in the middle", vec![(manifest, Answer::Cut(10)), (&layer, Answer::Cut(700_000))]),
        ("a wrong digest", vec![(&layer, Answer::Instead(vec![b'x'; 1000]))]),
        ("more bytes than promised", vec![(&layer, Answer::Instead(vec![b'x'; 3_000_000]))]),
    ];
    // All at once, because most of the time is spent waiting.
    join_all(cases.into_iter().map(async |(what, answers)| {
        let (pulled, _) = pull(&answers).await;
        assert_eq!(pulled, Ok(Base::Image(image().digest())), "{what}");
    }))
    .await;
}

#[tokio::test]
async fn an_interrupted_download_of_a_blob_resumes() {
    let layer = layer();
    let cuts = vec![(&*layer, Answer::Cut(200_000)); 8];
    let (pulled, fake) = pull(&cuts).await;
    assert_eq!(pulled, Ok(Base::Image(image().digest())));
    // More attempts than if nothing came at all, because every attempt brought some bytes.
    assert_eq!(fake.requests(&layer), 9);
}

#[tokio::test]
async fn permanent_errors_are_reported() {
    let layer = layer();
    let other = serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "digest": ImageDigest::of(b"").to_string(), "size": 1, "platform": { "os": "plan9", "architecture": "amd64" },
    }]}));
    let other = other.unwrap();
    let manifest = "manifests/1";
    let many = |path: &'static str, answer: Answer| vec![(path, answer); 6];
    let layer: &'static str = layer.leak();
    let cases = [
        ("limits", many(manifest, Answer::Status(429)), "limits the rate of requests"),
        ("trouble", many(manifest, Answer::Status(500)), "status 500"),
        ("not allowed", many(manifest, Answer::Status(401)), "docker login"),
        ("missing", many(manifest, Answer::Status(404)), "no image `"),
        ("no manifest", vec![(manifest, Answer::Instead(b"<html>".to_vec()))], "sent an invalid answer"),
        ("another platform", vec![(manifest, Answer::Instead(other))], "plan9/amd64"),
        ("a wrong digest", many(layer, Answer::Instead(vec![b'x'; 1000])), "is corrupt"),
        ("a layer that never ends well", many(layer, Answer::Cut(0)), "failed to reach registry"),
    ];
    join_all(cases.into_iter().map(async |(what, mut answers, expected)| {
        // Some errors are final at once: the remaining answers must not reach the second run.
        if matches!(what, "not allowed" | "missing") {
            answers.truncate(1);
        }
        let (pulled, _) = pull(&answers).await;
        let error = pulled.expect_err(what);
        assert!(error.contains(expected), "{what}: {error}");
    }))
    .await;
}
