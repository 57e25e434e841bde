//! The request that creates a build.

use std::{collections::BTreeMap, io::Read};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Here, ended};
use crate::support::stand_in::TOKEN;

#[tokio::test]
async fn the_request_has_the_plan_the_source_and_the_environment() {
    let here = Here::new();
    let mut request = here.request(&["a"]);
    request.env.insert("NAME".into(), "value".into());
    request.source.message = Some("a message".into());
    let plan = request.plan.ir_json().to_owned();
    for target in [None, Some("acme-app-ci")] {
        let mut backend = here.backend();
        if let Some(slug) = target {
            backend = backend.pipeline(slug);
        }
        ended(backend.submit(request.clone(), CancellationToken::new()).await.unwrap()).await.1.unwrap();
    }
    let requests = here.stand_in.state().requests.clone();
    let posts: Vec<_> = requests.iter().filter(|request| request.method == "POST").collect();
    let [by_repository, by_slug] = posts[..] else { panic!("{posts:?}") };
    assert_eq!(by_repository.path, "/api/v0/organizations/acme/builds");
    assert_eq!(by_slug.path, "/api/v0/organizations/acme/pipelines/acme-app-ci/builds");
    let mut body = by_repository.body.clone();
    let source = body.as_object_mut().unwrap().remove("source_b64").unwrap();
    let expected = json!({"branch": "main", "commit": "0123456789012345678901234567890123456789", "env": {"NAME": "value"},
        "message": "a message", "pipeline_ir": plan, "repo_name": "acme/app", "source": "api", "source_slug": "ci"});
    assert_eq!(body, expected);
    let packed = STANDARD.decode(source.as_str().unwrap()).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*packed));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        entry.read_to_string(&mut text).unwrap();
        files.insert(path, text);
    }
    assert_eq!(files["file.txt"], "content");
    assert_eq!(by_slug.body["source_b64"], source);
    let bearer = format!("Bearer {TOKEN}");
    for request in &requests {
        // The log token is enough for a log.
        let expected = if request.path.starts_with("/v0/jobs/") { None } else { Some(&*bearer) };
        assert_eq!(request.authorization.as_deref(), expected, "{}", request.path);
    }
}
