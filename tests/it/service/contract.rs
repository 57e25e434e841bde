//! Requests and answers are as the service's own description says: `prism`, an independent program, checks
//! them between `hm` and the stand-in. So the stand-in cannot agree with `hm` on something that the service
//! does not do.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use hm_exec::{
    BuildStatus,
    service::{BuildPlace, CloudBackend, Service, api},
};
use tokio_util::sync::CancellationToken;

use super::{Here, ended, quick};
use crate::support::{
    backends::skip,
    project::eventually,
    stand_in::{
        Fault, Job, Script, TOKEN,
        front::{Checked, Front},
    },
};

/// The statuses that the service answers with, but does not describe.
const UNDESCRIBED: [u16; 6] = [401, 429, 500, 502, 503, 504];

/// The operations that must have been seen.
const OPERATIONS: usize = 18;

/// A running prism.
struct Prism(Child);

impl Drop for Prism {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Prism {
    /// Starts to check what is sent to `upstream`.
    fn start(program: &Path, upstream: &str) -> (Self, SocketAddr) {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let node = std::env::var_os("HM_NODE").unwrap_or_else(|| "node".into());
        let description = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/service/openapi.json");
        let child = Command::new(node)
            .arg(program)
            .arg("proxy")
            .arg(description)
            .args([upstream, "--port", &address.port().to_string(), "--verboseLevel", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut prism = Self(child);
        eventually("prism", || {
            assert!(prism.0.try_wait().unwrap().is_none(), "prism has ended");
            TcpStream::connect(address).is_ok()
        });
        (prism, address)
    }
}

fn errors(checked: &[Checked]) -> Vec<String> {
    let of = |it: &Checked| {
        let bad = it
            .violations
            .iter()
            .filter(|violation| violation["severity"] == "Error" || !UNDESCRIBED.contains(&it.status));
        bad.map(|violation| format!("{} ({}): {violation}", it.call, it.status)).collect::<Vec<_>>()
    };
    checked.iter().flat_map(of).collect()
}

#[tokio::test]
async fn every_request_and_answer_is_as_the_service_describes_it() {
    let Some(program) = std::env::var_os("HM_TEST_PRISM") else {
        return skip("prism can't be used here: set HM_TEST_PRISM to the file index.js of @stoplight/prism-cli");
    };
    let here = Here::new();
    let (_prism, address) = Prism::start(Path::new(&program), &here.stand_in.url());
    let front = Front::start(address, here.stand_in.address());
    let service = Service::new(&front.url(), TOKEN).unwrap().pace(quick());
    let backend = CloudBackend::new(service.clone(), here.store(), "acme", "https://app.example");

    // Builds: by repository and by slug, with every end of a job, and cancelled.
    let dead = Job { error: Some(("oom", "no memory")), ..Job::fails("b", 137) };
    let slow = Job::is("c", &["running", "timing_out", "timed_out"]);
    here.stand_in.script(Script::new([Job::passes("a").out("x\n"), dead, slow, Job::is("d", &["pending", "skipped"])]));
    let mut request = here.request(&["a", "b", "c", "d"]);
    request.source.message = Some("why".into());
    let handle = backend.submit(request.clone(), CancellationToken::new()).await.unwrap();
    assert_eq!(ended(handle).await.1.unwrap().status, BuildStatus::Failed);
    here.stand_in.script(Script { stopping: 1, ..Script::new([Job::hangs("a").out("x\n")]) });
    let by_slug = backend.clone().pipeline("acme-app-ci");
    let (_, control) = by_slug.submit(here.request(&["a"]), CancellationToken::new()).await.unwrap().into_parts();
    control.cancel();
    assert_eq!(control.wait().await.unwrap().status, BuildStatus::Canceled);
    let mut unknown = here.request(&["a"]);
    unknown.source.repo_name = Some("other/app".into());
    assert!(backend.submit(unknown, CancellationToken::new()).await.is_err());
    for status in [402, 403, 422, 429, 503] {
        here.stand_in.fault("createBuildBySource", Fault::Status(status, "x", None));
        let _ = backend.submit(here.request(&["a"]), CancellationToken::new()).await;
    }

    // Everything that `hm cloud` asks.
    let place = BuildPlace { org: "acme".into(), pipeline: "acme-app-ci".into(), number: 1 };
    let job = service.jobs(&place).await.unwrap()[0].id.to_string();
    service.job(&place, &job).await.unwrap();
    service.builds("acme", "acme-app-ci", Some(10)).await.unwrap();
    assert!(service.build(&BuildPlace { number: 99, ..place.clone() }).await.is_err());
    service.pipelines("acme").await.unwrap();
    service.pipeline("acme", "acme-app-ci").await.unwrap();
    let (name, repository, default_branch) = ("new".into(), "https://example.com/n.git".into(), "main".into());
    let body = api::CreatePipelineRequest { default_branch, description: None, name, repo_name: None, repository };
    service.create_pipeline("acme", &body).await.unwrap();
    service.organizations().await.unwrap();
    service.user().await.unwrap();
    service.balance("acme").await.unwrap();
    service.transactions("acme", 10).await.unwrap();
    service.usage("acme", "2026-01-01", "2026-01-31").await.unwrap();
    service.checkout("acme", 100).await.unwrap();
    service.redeem_coupon("acme", "CODE").await.unwrap();
    service.revoke_token().await.unwrap();
    let anonymous = Service::anonymous(&front.url()).unwrap().pace(quick());
    anonymous.claim_token("nonce").await.unwrap();
    anonymous.redeem_code("GOOD-CODE").await.unwrap();
    assert!(anonymous.redeem_code("BAD").await.is_err());

    let checked = front.checked();
    assert_eq!(errors(&checked), [] as [String; 0]);
    let is_api = |it: &&Checked| it.call.contains("/api/v0/");
    let mut calls: Vec<_> = checked.iter().filter(is_api).map(|it| it.call.clone()).collect();
    calls.sort();
    calls.dedup();
    assert!(calls.len() >= OPERATIONS, "{calls:#?}");

    // What differs is found: in a request, and in an answer.
    let client = reqwest::Client::new();
    let url = format!("{}/api/v0/organizations/acme/builds", front.url());
    let text = r#"{"repo_name":"acme/app","source_slug":"ci","commit":"c"}"#;
    let request = client.post(url).bearer_auth(TOKEN).header("content-type", "application/json").body(text);
    request.send().await.unwrap();
    assert!(errors(&front.checked()).concat().contains("branch"));
    here.stand_in
        .fault("getBuild", Fault::Body(r#"{"number":1,"pipeline_slug":"p","created_at":"2026-01-01T00:00:00Z"}"#));
    assert!(service.build(&place).await.is_err());
    assert!(errors(&front.checked()).concat().contains("state"));
}
