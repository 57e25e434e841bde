//! Builds that are watched: their events, their outcomes, and how they are cancelled.

use std::time::Duration;

use hm_exec::{
    BackendError, BuildEvent, BuildStatus, ExecutionBackend, StepStatus, event,
    service::{self, BuildPlace, ServiceError},
};
use tokio_util::sync::CancellationToken;

use super::{Here, ended, output};
use crate::support::stand_in::{Fault, Job, Script};

/// Returns the kinds of events, without output.
fn kinds(events: &[BuildEvent]) -> Vec<String> {
    let kind = |event: &BuildEvent| serde_json::to_value(event).unwrap()["kind"].as_str().unwrap().to_owned();
    events.iter().map(kind).filter(|kind| kind != "step_log").collect()
}

#[tokio::test]
async fn a_build_has_the_events_and_the_outcome_of_a_local_one() {
    let here = Here::new();
    let soft = Job { soft_failed: true, ..Job::fails("soft", 3) };
    let dead = Job { error: Some(("oom", "no memory")), ..Job::fails("dead", 137) };
    here.stand_in.script(Script::new([
        Job::passes("good").out("one\ntw").err("oops\n").out("o\n"),
        soft,
        dead,
        Job::is("slow", &["running", "timing_out", "timed_out"]),
        Job::is("after", &["pending", "skipped"]),
    ]));
    let (events, outcome) = here.run(&["good", "soft", "dead", "slow", "after"]).await;
    let outcome = outcome.unwrap();
    assert_eq!((outcome.status, outcome.build.number), (BuildStatus::Failed, Some(1)));
    let url = "https://app.example/acme/pipelines/acme-app-ci/builds/1";
    assert_eq!(outcome.watch_url.as_deref(), Some(url));
    let steps: Vec<_> = outcome.steps.iter().map(|it| (&*it.key, it.status, it.exit_code, it.duration_ms)).collect();
    assert_eq!(
        steps,
        [
            ("good", StepStatus::Passed, Some(0), 1500),
            ("soft", StepStatus::FailedAllowed, Some(3), 1500),
            ("dead", StepStatus::Failed, Some(137), 1500),
            ("slow", StepStatus::TimedOut, None, 1500),
            ("after", StepStatus::Skipped, None, 0),
        ]
    );
    assert_eq!(output(&events, "good"), ["one", "oops", "two"]);
    let BuildEvent::BuildAccepted { build, watch_url, .. } = &events[1] else { panic!("{:?}", events[1]) };
    assert_eq!((build.number, watch_url.as_deref()), (Some(1), Some(url)));
    assert!(matches!(&events[0], BuildEvent::BuildStart { plan, .. } if plan.step_count == 5 && plan.chain_count == 5));
    let kinds = kinds(&events);
    let count = |kind: &str| kinds.iter().filter(|it| *it == kind).count();
    let counts = ["step_queued", "step_start", "step_end", "chain_failed", "build_end"].map(count);
    assert_eq!(counts, [5, 4, 5, 2, 1], "{kinds:?}");
    let messages = events.iter().filter_map(|event| match event {
        BuildEvent::StepEnd { message, .. } => message.clone(),
        _ => None,
    });
    assert_eq!(messages.map(|it| it.to_string()).collect::<Vec<_>>(), ["[oom] no memory"]);
}

#[tokio::test]
async fn a_run_is_in_the_store_as_a_local_one_with_the_ids_of_the_service() {
    let here = Here::new();
    here.stand_in.script(Script::new([Job::passes("a").out("x\n"), Job::passes("b")]));
    let (events, outcome) = here.run(&["a", "b"]).await;
    let outcome = outcome.unwrap();
    let store = here.store().get().unwrap();
    let run = store.runs().last(&here.source().canonicalize().unwrap(), Some("ci")).unwrap().unwrap();
    assert_eq!((run.id, run.exit_code), (outcome.build.run_id, Some(0)));
    let again: Vec<_> = event::open(store.runs().dir(run.id)).unwrap().map(Result::unwrap).collect();
    assert_eq!(again, events);
    let ids = events.iter().filter_map(|event| match event {
        BuildEvent::StepQueued { step_id, .. } => Some(step_id.to_string()),
        _ => None,
    });
    let place = BuildPlace { org: "acme".into(), pipeline: "acme-app-ci".into(), number: 1 };
    let jobs = here.service().jobs(&place).await.unwrap();
    assert_eq!(ids.collect::<Vec<_>>(), jobs.iter().map(|job| job.id.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_build_that_is_not_watched_is_only_submitted() {
    let here = Here::new();
    let mut request = here.request(&["a"]);
    request.options.watch = false;
    let (events, outcome) = ended(here.backend().start(request).await.unwrap()).await;
    assert_eq!(outcome.unwrap().status, BuildStatus::Passed);
    assert_eq!(kinds(&events), ["build_start", "build_accepted"]);
    assert_eq!(here.stand_in.calls(), ["POST /api/v0/organizations/acme/builds"]);
    assert!(here.backend().capabilities().supports_no_watch);
}

#[tokio::test]
async fn a_build_whose_jobs_appear_late_is_watched_whole() {
    let here = Here::new();
    here.stand_in.script(Script { planning: 3, ..Script::new([Job::passes("a"), Job::passes("b")]) });
    let (_, outcome) = here.run(&["a", "b"]).await;
    assert_eq!(outcome.unwrap().steps.len(), 2);
}

#[tokio::test]
async fn a_build_that_ends_without_jobs_has_no_steps() {
    let here = Here::new();
    here.stand_in.script(Script { state: Some("failed"), ..Script::default() });
    let (events, outcome) = here.run(&["a"]).await;
    assert_eq!(outcome.unwrap().status, BuildStatus::Failed);
    assert_eq!(kinds(&events), ["build_start", "build_accepted", "build_end"]);
}

#[tokio::test]
async fn a_build_that_the_user_cancels_ends_there_and_its_steps_have_their_real_ends() {
    let here = Here::new();
    let script = Script::new([Job::passes("done").out("x\n"), Job::hangs("long"), Job::is("later", &["pending"])]);
    here.stand_in.script(Script { stopping: 2, ..script });
    let cancel = CancellationToken::new();
    let request = here.request(&["done", "long", "later"]);
    let (mut events, control) = here.backend().submit(request, cancel.clone()).await.unwrap().into_parts();
    while !matches!(events.next().await, Some(BuildEvent::StepEnd { .. })) {}
    cancel.cancel();
    let outcome = control.wait().await.unwrap();
    assert_eq!((outcome.status, outcome.message), (BuildStatus::Canceled, None));
    let steps: Vec<_> = outcome.steps.iter().map(|step| (&*step.key, step.status)).collect();
    let canceled = StepStatus::Canceled;
    assert_eq!(steps, [("done", StepStatus::Passed), ("long", canceled), ("later", canceled)]);
    assert_eq!(here.stand_in.count("PUT /api/v0/organizations/acme/pipelines/acme-app-ci/builds/1/cancel"), 1);
}

#[tokio::test]
async fn a_build_that_the_service_does_not_stop_is_given_up() {
    let mut here = Here::new();
    here.pace.cancel = Duration::from_millis(500);
    here.stand_in.script(Script { stopping: usize::MAX - 9, ..Script::new([Job::hangs("a").out("x\n")]) });
    let handle = here.submit(&["a"]).await.unwrap();
    let (_, control) = handle.into_parts();
    control.cancel();
    let outcome = control.wait().await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Canceled);
    assert_eq!(outcome.message.as_deref(), Some("the service may still be stopping it"));
}

#[tokio::test]
async fn a_build_that_is_cancelled_while_it_is_submitted_does_not_stay() {
    let here = Here::new();
    here.stand_in.script(Script::new([Job::hangs("a")]));
    let cancel = CancellationToken::new();
    let backend = here.backend();
    here.stand_in.fault("createBuildBySource", Fault::Status(503, "busy", Some(1)));
    let submitted = backend.submit(here.request(&["a"]), cancel.clone());
    let cancels = async {
        while here.stand_in.calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let (handle, ()) = tokio::join!(submitted, cancels);
    let (_, outcome) = ended(handle.unwrap()).await;
    assert_eq!(outcome.unwrap().status, BuildStatus::Canceled);
    assert!(here.stand_in.is_canceled(1));

    let submitted = backend.submit(here.request(&["a"]), cancel).await;
    assert!(matches!(submitted, Err(ServiceError::Canceled)));
    assert_eq!(here.stand_in.builds(), 1);
}

#[tokio::test]
async fn a_caller_that_stops_to_wait_leaves_no_build() {
    let here = Here::new();
    here.stand_in.script(Script { planning: usize::MAX, ..Script::new([Job::hangs("a")]) });
    {
        let submitted = here.submit(&["a"]);
        tokio::pin!(submitted);
        while here.stand_in.builds() == 0 {
            assert!(tokio::time::timeout(Duration::from_millis(5), &mut submitted).await.is_err());
        }
    }
    while !here.stand_in.is_canceled(1) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_token_that_is_revoked_ends_the_watch_and_not_the_build() {
    let here = Here::new();
    here.stand_in.script(Script::new([Job::hangs("a").out("x\n")]));
    let (mut events, control) = here.submit(&["a"]).await.unwrap().into_parts();
    while !matches!(events.next().await, Some(BuildEvent::StepLog { .. })) {}
    here.stand_in.revoke();
    assert!(matches!(control.wait().await, Err(BackendError::Unauthorized)));
    assert!(!here.stand_in.is_canceled(1));
}

#[tokio::test]
async fn an_answer_of_a_later_version_is_an_error_without_its_content() {
    let here = Here::new();
    here.stand_in.script(Script::new([Job::hangs("a")]));
    let (_, control) = here.submit(&["a"]).await.unwrap().into_parts();
    here.stand_in.fault("listJobs", Fault::Body(r#"{"data":[{"id":"hunter2","state":"danced"}]}"#));
    let Err(BackendError::Other(error)) = control.wait().await else { panic!("no error") };
    let text = error.to_string();
    assert!(text.contains("too old") && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_asked_again_and_given_up_at_last() {
    let mut here = Here::new();
    here.stand_in.script(Script::new([Job::passes("a").out("x\n")]));
    for fault in [Fault::Close, Fault::Status(500, "x", None), Fault::Status(429, "x", None)] {
        here.stand_in.fault("getBuild", fault.clone()).fault("listJobs", fault);
    }
    let (events, outcome) = here.run(&["a"]).await;
    assert_eq!(outcome.unwrap().status, BuildStatus::Passed);
    assert_eq!(output(&events, "a"), ["x"]);

    here.pace.lost = Duration::from_millis(200);
    here.stand_in.script(Script::new([Job::hangs("a")]));
    let (_, control) = here.submit(&["a"]).await.unwrap().into_parts();
    for _ in 0..100_000 {
        here.stand_in.fault("getBuild", Fault::Close);
    }
    let Err(BackendError::Transport(why)) = control.wait().await else { panic!("no error") };
    assert!(why.starts_with("127.0.0.1 "), "{why}");
    assert!(!here.stand_in.is_canceled(2));
}

#[tokio::test]
async fn a_build_that_exists_is_watched_and_one_job_of_it_alone() {
    let here = Here::new();
    here.stand_in.script(Script::new([Job::passes("a").out("x\n"), Job::fails("b", 4).out("y\n")]));
    let mut request = here.request(&["a", "b"]);
    request.options.watch = false;
    ended(here.backend().start(request).await.unwrap()).await.1.unwrap();
    let place = BuildPlace { org: "acme".into(), pipeline: "acme-app-ci".into(), number: 1 };
    let (service, app) = (here.service(), "https://app.example");
    let watch = |place: BuildPlace, job| service::watch(&service, place, app, job, CancellationToken::new());
    let (events, outcome) = ended(watch(place.clone(), None).await.unwrap()).await;
    assert_eq!(outcome.unwrap().status, BuildStatus::Failed);
    assert_eq!([output(&events, "a"), output(&events, "b")].concat(), ["x", "y"]);

    let job = service.jobs(&place).await.unwrap()[1].id;
    let (events, outcome) = ended(watch(place.clone(), Some(job)).await.unwrap()).await;
    assert_eq!(outcome.unwrap().steps.len(), 1);
    assert_eq!([output(&events, "a"), output(&events, "b")].concat(), ["y"]);

    let missing = watch(BuildPlace { number: 9, ..place.clone() }, None).await;
    assert!(matches!(missing, Err(ServiceError::NotFound { .. })));
    let odd = watch(BuildPlace { pipeline: "../x".into(), ..place }, None).await;
    assert!(matches!(odd, Err(ServiceError::Unsupported(_))));
}
