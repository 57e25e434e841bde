//! Credentials of one registry are sent to no other, whatever a registry answers.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hm_exec::image::{ImageOptions, Images};
use hm_exec::store::{IdMap, Store};
use sha2::{Digest, Sha256};

/// The requests that a server received: the first line of each, and its authorization header.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// An answer: the status, a header, and the body.
type Answer = (u16, String, String);

/// A server on its own port, which listens until the test's process ends.
struct Server {
    listener: TcpListener,
    host: String,
    asked: Asked,
}

impl Server {
    fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        Self { listener, host, asked: Asked::default() }
    }

    /// Answers each request with the result of `answer` for its path and authorization.
    fn serve(&self, answer: impl Fn(&str, Option<&str>) -> Answer + Send + 'static) {
        let (listener, asked) = (self.listener.try_clone().unwrap(), Arc::clone(&self.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Some(head) = head_of(&mut stream) else { continue };
                let line = head.lines().next().unwrap_or_default().to_owned();
                let authorization = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("authorization").then(|| value.trim().to_owned())
                });
                let path = line.split(' ').nth(1).unwrap_or_default();
                let (status, header, body) = answer(path, authorization.as_deref());
                asked.lock().unwrap().push((line, authorization));
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} x\r\n{header}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                // A client that disconnected needs no answer.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
    }

    fn take(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn head_of(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn digest(bytes: &str) -> String {
    use std::fmt::Write;

    Sha256::digest(bytes).iter().fold("sha256:".into(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_for_one_registry_are_sent_to_no_other() {
    let (ours, theirs) = (Server::bind(), Server::bind());
    let basic = format!("Basic {}", STANDARD.encode("ann:s3same"));
    let challenge = format!("www-authenticate: Bearer realm=\"http://{}/token\",service=\"it\"", ours.host);
    let config = "{}";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}},"layers":[]}}"#,
        digest(config)
    );
    // Our registry wants credentials, gives a token for them, and redirects requests for blobs to their
    // registry.
    let (known, there, own_challenge) = (basic.clone(), theirs.host.clone(), challenge.clone());
    ours.serve(move |path, authorization| match path {
        path if path.starts_with("/token") && authorization == Some(&known) => {
            (200, "x-a: b".into(), r#"{"token":"t0ken-of-ours"}"#.into())
        }
        path if path.starts_with("/token") => (200, "x-a: b".into(), r#"{"token":"for-anyone"}"#.into()),
        _ if authorization != Some("Bearer t0ken-of-ours") => (401, own_challenge.clone(), String::new()),
        path if path.contains("/manifests/") => {
            (200, "content-type: application/vnd.oci.image.manifest.v1+json".into(), manifest.clone())
        }
        path => (307, format!("location: http://{there}{path}"), String::new()),
    });
    // Their registry says that our registry issues tokens for it.
    theirs.serve(move |path, _| match path {
        path if path.contains("/blobs/") => (200, "x-a: b".into(), "{}".into()),
        _ => (401, challenge.clone(), String::new()),
    });

    let top = tempfile::tempdir().unwrap();
    let docker_config = top.path().join("config.json");
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"{}"}}}}}}"#, ours.host, STANDARD.encode("ann:s3same"));
    fs::write(&docker_config, auths).unwrap();
    let store = Store::open(&top.path().join("store")).unwrap();
    let pull = async |host: &str| {
        let mut options = ImageOptions::default();
        options.docker_config = Some(docker_config.clone());
        Images::new(options).fetch(&store, &format!("{host}/it:latest"), IdMap::Root, &()).await
    };
    let is_secret = |authorization: &Option<String>| {
        authorization.as_ref().is_some_and(|sent| *sent == basic || sent.contains("t0ken-of-ours"))
    };

    // The missing parts of the image do not matter here: its blob was requested, and the request to the other
    // registry had no authorization.
    let _ = pull(&ours.host).await;
    assert!(ours.take().iter().any(|(line, sent)| line.contains("/token") && sent.as_deref() == Some(&*basic)));
    let asked = theirs.take();
    assert!(asked.iter().any(|(line, _)| line.contains("/blobs/")), "{asked:?}");
    assert!(!asked.iter().any(|(_, sent)| sent.is_some()), "{asked:?}");

    assert!(pull(&theirs.host).await.is_err());
    let (of_ours, of_theirs) = (ours.take(), theirs.take());
    assert!(of_ours.iter().any(|(line, _)| line.contains("/token")), "{of_ours:?}");
    assert!(!of_ours.iter().chain(&of_theirs).any(|(_, sent)| is_secret(sent)), "{of_ours:?} {of_theirs:?}");
}
