//! Requests that fail: what is repeated, what is not, and what the errors say.

use hm_exec::{
    BackendError,
    runner::Secrets,
    service::{BuildPlace, Service, ServiceError},
};
use tokio_util::sync::CancellationToken;

use super::{Here, quick};
use crate::support::{
    project::walk,
    stand_in::{Fault, Job, Script, TOKEN},
};

const POST: &str = "POST /api/v0/organizations/acme/builds";

#[tokio::test]
async fn a_build_is_never_created_twice() {
    let here = Here::new();
    for (fault, tries, builds) in [
        // The service surely did not take it.
        (Fault::Status(429, "busy", Some(0)), 2, 1),
        (Fault::Status(503, "busy", None), 2, 1),
        // It may have taken it.
        (Fault::Status(500, "broken", None), 1, 0),
        (Fault::Status(502, "gateway", None), 1, 0),
        (Fault::Close, 1, 0),
        (Fault::CloseAfter, 1, 1),
        (Fault::Body("{}"), 1, 0),
    ] {
        let (before, had) = (here.stand_in.count(POST), here.stand_in.builds());
        here.stand_in.fault("createBuildBySource", fault.clone());
        let submitted = here.submit(&["a"]).await;
        let found = (here.stand_in.count(POST) - before, here.stand_in.builds() - had);
        assert_eq!(found, (tries, builds), "{fault:?}");
        match submitted {
            Ok(_) => assert_eq!(tries, 2),
            Err(error) => assert!(error.may_be_done(), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_refusal_has_the_code_and_the_message_of_the_service() {
    let here = Here::new();
    for (status, code) in [(402, "no_credit"), (403, "manual_builds_off"), (404, "gone"), (409, "x"), (422, "bad_ir")] {
        here.stand_in.fault("createBuildBySource", Fault::Status(status, code, None));
        let Err(error) = here.submit(&["a"]).await else { panic!("submitted") };
        assert!(!error.may_be_done());
        let text = error.to_string();
        assert!(matches!(&error, ServiceError::Rejected { status: found, .. } if *found == status), "{error:?}");
        assert!(text.contains(code) && text.contains("by request"), "{text}");
        assert!(matches!(BackendError::from(error), BackendError::Rejected { .. }));
    }
    let mut request = here.request(&["a"]);
    request.source.repo_name = Some("other/repo".into());
    let refused = here.backend().submit(request, CancellationToken::new()).await;
    assert_eq!(refused.err().unwrap().code(), Some("pipeline_not_found"));
}

#[tokio::test]
async fn errors_of_the_network_show_neither_url_nor_token() {
    let here = Here::new();
    let place = BuildPlace { org: "acme".into(), pipeline: "acme-app-ci".into(), number: 1 };
    let wrong = Service::new(&here.stand_in.url(), "wrong-token").unwrap().pace(quick());
    assert!(matches!(wrong.build(&place).await, Err(ServiceError::Unauthorized)));
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nowhere = Service::new(&format!("http://127.0.0.1:{port}"), TOKEN).unwrap().pace(quick());
    let error = nowhere.build(&place).await.unwrap_err();
    let text = format!("{error} {error:?} {nowhere:?}");
    assert!(text.contains("127.0.0.1") && text.contains("refused"), "{text}");
    assert!(!text.contains(TOKEN) && !text.contains("/builds"), "{text}");
    for odd in ["", "ftp://host", "host", "https://user:pw@host", "https://host/?q=1"] {
        assert!(matches!(Service::new(odd, TOKEN), Err(ServiceError::Unsupported(_))), "{odd}");
    }
    assert!(matches!(Service::new(&here.stand_in.url(), "a\nb"), Err(ServiceError::Unsupported(_))));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (here, other) = (Here::new(), Here::new());
    here.stand_in.fault("createBuildBySource", Fault::Redirect(format!("{}/api/v0/user", other.stand_in.url())));
    let Err(ServiceError::Answer(text)) = here.submit(&["a"]).await else { panic!("followed") };
    assert!(text.contains("redirect"), "{text}");
    assert!(other.stand_in.calls().is_empty());
}

#[tokio::test]
async fn a_source_that_is_too_large_is_refused_before_anything_is_sent() {
    let here = Here::new();
    let mut random = 1_u64;
    let bytes = (0..7 << 17).flat_map(|_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random ^ (random >> 29)).to_le_bytes()
    });
    std::fs::write(here.source().join("big.bin"), bytes.collect::<Vec<u8>>()).unwrap();
    let Err(ServiceError::TooLarge { largest, .. }) = here.submit(&["a"]).await else { panic!("submitted") };
    assert_eq!(largest[0], ("big.bin".into(), 7 << 20));
    assert!(here.stand_in.calls().is_empty());
}

#[tokio::test]
async fn secrets_are_not_sent_because_the_service_has_no_place_for_them() {
    let here = Here::new();
    let mut request = here.request(&["a"]);
    request.secrets = Secrets::new();
    request.secrets.insert("TOKEN", "hunter2");
    let refused = here.backend().submit(request, CancellationToken::new()).await;
    assert!(matches!(refused, Err(ServiceError::Unsupported(_))));
    assert!(here.stand_in.calls().is_empty());
}

#[tokio::test]
async fn tokens_are_in_no_file_even_if_a_step_prints_them() {
    let here = Here::new();
    here.stand_in.script(Script::new([Job::passes("a").out(&format!("see {TOKEN} and log-token-0\n"))]));
    let (events, _) = here.run(&["a"]).await;
    let lines = super::output(&events, "a");
    assert!(
        lines[0].starts_with("see ") && !lines[0].contains(TOKEN) && !lines[0].contains("log-token-0"),
        "{lines:?}"
    );
    walk(here.top.path(), &mut |path| {
        let Ok(bytes) = std::fs::read(path) else { return };
        for secret in [TOKEN, "log-token-0"] {
            assert!(memchr::memmem::find(&bytes, secret.as_bytes()).is_none(), "{}", path.display());
        }
    });
}
