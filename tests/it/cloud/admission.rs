//! Certificates and tokens: a step runs with the right ones, a clear error follows without them, and they are
//! stored nowhere.

use std::{fs, path::Path, sync::Arc};

use rcgen::{CertificateParams, Issuer, KeyPair};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::support::{
    buildgrid::BuildGrid,
    images::Image,
    project::{Ended, Project, walk},
    proxy::{Proxy, Rules},
    remote_engine::{TestEngine, step_program},
};

const TOKEN: &str = "s3cret-of-the-engine";

/// Writes PEM files (an authority, a client's certificate and key) to `dir`, and returns the engine's TLS
/// configuration for them.
fn certificates(dir: &Path) -> ServerConfig {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).unwrap();
    fs::write(dir.join("ca.pem"), authority_pem.pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new(vec![name.into()]).unwrap().signed_by(&key, &issuer).unwrap(), key)
    };
    let (client, client_key) = signed("client");
    fs::write(dir.join("cert.pem"), client.pem()).unwrap();
    fs::write(dir.join("key.pem"), client_key.serialize_pem()).unwrap();

    let (server, server_key) = signed("127.0.0.1");
    let mut roots = RootCertStore::empty();
    roots.add(authority_pem.der().clone()).unwrap();
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from_pem_slice(server_key.serialize_pem().as_bytes()).unwrap();
    let mut config =
        config.with_client_cert_verifier(verifier).with_single_cert(vec![server.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[test]
fn certificates_and_tokens_grant_access_and_are_not_disclosed() {
    if step_program().is_none() {
        return;
    }
    let Some(engine) = TestEngine::start() else { return };
    let project = Project::with_steps(&[("step", "echo let in", None)]);
    let top = project.dir.parent().unwrap().to_owned();
    let pems = top.join("pems");
    fs::create_dir(&pems).unwrap();
    let tls = Some(Arc::new(certificates(&pems)));
    let other = top.join("other");
    fs::create_dir(&other).unwrap();
    certificates(&other);
    let authorization = Some(format!("Bearer {TOKEN}"));
    let proxy = Proxy::start(&engine.options().url, Rules { authorization, tls, ..Rules::default() });
    Image::shell().write_oci(&top.join("image"), "it");

    let run = |ca: &Path, client: Option<&Path>, header: Option<&str>| {
        let image = format!("host=oci:{}:it", top.join("image").display());
        let mut hm = project.hm(&["run", "--runner", "cloud", "--format", "human", "--image", &image]);
        hm.args(["--remote", &format!("grpcs://{}", proxy.address())]).arg("--remote-ca").arg(ca.join("ca.pem"));
        for (name, value) in engine.platform() {
            hm.arg("--remote-platform").arg(format!("{name}={value}"));
        }
        if let Some(client) = client {
            hm.arg("--remote-cert").arg(client.join("cert.pem")).arg("--remote-key").arg(client.join("key.pem"));
        }
        if let Some(token) = header {
            hm.env("HM_REMOTE_HEADER", format!("Authorization: Bearer {token}"));
        }
        let ended = Ended::of(&mut hm);
        assert!(!format!("{ended:?}").contains(TOKEN), "{ended:?}");
        ended
    };
    let ended = run(&pems, Some(&pems), Some(TOKEN)).expect(0);
    assert!(ended.stdout.contains("let in"), "{ended:?}");
    for (what, ended) in [
        ("no token", run(&pems, Some(&pems), None)),
        ("a wrong token", run(&pems, Some(&pems), Some("s0mething"))),
        ("no certificate", run(&pems, None, Some(TOKEN))),
        ("somebody else's certificate", run(&pems, Some(&other), Some(TOKEN))),
        ("an engine that nobody vouches for", run(&other, Some(&pems), Some(TOKEN))),
    ] {
        let ended = ended.expect(3);
        let told = ended.stdout + &ended.stderr;
        assert!(told.contains("check the headers and certificates"), "{what}: {told}");
    }
    // The token is neither in the files of the run nor in the engine's storage, Actions included.
    let mut seen = 0;
    let mut look = |path: &Path| {
        if path.is_file() {
            seen += 1;
            let bytes = fs::read(path).unwrap();
            assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()), "{}", path.display());
        }
    };
    walk(&project.store, &mut look);
    if let Some(dir) = engine.dir() {
        walk(dir, &mut look);
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn a_worker_gets_access_by_certificates_and_a_token_and_reports_a_refusal() {
    if step_program().is_none() {
        return;
    }
    let Some(engine) = BuildGrid::start() else { return };
    let project = Project::with_steps(&[("step", "echo run by the worker", None)]);
    let top = project.dir.parent().unwrap().to_owned();
    let tls = Some(Arc::new(certificates(&top)));
    let authorization = Some(format!("Bearer {TOKEN}"));
    let proxy = Proxy::start(&engine.url(), Rules { authorization, tls, ..Rules::default() });
    Image::shell().write_oci(&top.join("image"), "it");
    let url = format!("--remote=grpcs://{}", proxy.address());
    let pems = ["ca", "cert", "key"].map(|name| format!("--remote-{name}={}", top.join(name).display()) + ".pem");
    let header = format!("--remote-header=Authorization: Bearer {TOKEN}");
    let logs = format!("--remote-logs={}", engine.logstream_url());
    let known = [&*url, &*pems[0], &*pems[1], &*pems[2], &*header, &*logs];

    let mut unknown = engine.start_worker(&known[..4], "unknown");
    unknown.says("denied access");
    let mut worker = engine.start_worker(&known, "known");
    worker.says("slot 1: connected");
    let image = format!("host=oci:{}:it", top.join("image").display());
    let mut hm = project.hm(&["run", "--runner", "cloud", "--format", "human", "--image", &image]);
    let ended = Ended::of(hm.args(known)).expect(0);
    assert!(ended.stdout.contains("run by the worker"), "{ended:?}");
    let said = format!("{ended:?} {} {}", worker.log(), unknown.log());
    assert!(!said.contains(TOKEN) && !unknown.log().contains("connected to"), "{said}");
}
