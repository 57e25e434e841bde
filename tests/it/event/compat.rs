//! Events as JSON against the ecosystem's own types.

use hm_exec::{
    BuildEvent, BuildRef, BuildStatus, StepStatus,
    event::{
        self, Activity, ActivityCount, CacheMissReason, EVENT_SCHEMA_VERSION, PlanSummary, RunDir, ShadowVerdict,
        StateEvent, StdStream, step_id,
    },
    plan::StepIndex,
    runner::{ArtifactRef, Secrets, StepUsage},
};
use hm_plugin_protocol::BuildEvent as Theirs;
use serde_json::Value;
use uuid::Uuid;

use crate::support::{
    events::{RUN, id, meta},
    run_meta::run_meta,
};

/// Returns one event of every variant that the ecosystem has, with all optional fields set.
fn shared() -> Vec<BuildEvent> {
    let ts = meta(0).started_at;
    vec![
        BuildEvent::BuildStart {
            seq: 1,
            schema_version: EVENT_SCHEMA_VERSION,
            run_id: RUN,
            plan: PlanSummary { step_count: 3, chain_count: 2, default_runner: "sandbox".into() },
            started_at: ts,
        },
        BuildEvent::BuildAccepted {
            seq: 2,
            build: BuildRef { run_id: RUN, number: Some(42), org: Some("acme".into()), pipeline: "ci".into() },
            watch_url: Some("https://example.org/42".into()),
        },
        BuildEvent::StepQueued {
            seq: 3,
            step_id: id(0),
            key: "test".into(),
            chain_idx: 1,
            parent_key: Some("build".into()),
            display_name: "Test".into(),
        },
        BuildEvent::StepStart {
            seq: 4,
            step_id: id(0),
            runner: "sandbox".into(),
            image: Some("host".into()),
            attempt: 2,
        },
        BuildEvent::StepLog {
            seq: 5,
            step_id: id(0),
            stream: StdStream::Stderr,
            line: "ä \u{fffd}".into(),
            ts,
            attempt: 2,
            partial: true,
        },
        BuildEvent::StepCacheHit { seq: 6, step_id: id(0), key: "test".into(), tag: "hm1:abc".into() },
        BuildEvent::StepEnd {
            seq: 7,
            step_id: id(0),
            exit_code: 1,
            duration_ms: 12,
            snapshot: Some("hm1:abc".into()),
            status: StepStatus::Failed,
            attempt: 2,
            message: Some("no".into()),
            artifacts: vec![ArtifactRef { key: "out/a".into(), mime: "text/plain".into(), size_bytes: 3 }],
            usage: Some(StepUsage::new(1 << 30, 1200)),
            tests: Some(Box::default()),
        },
        BuildEvent::ChainFailed {
            seq: 8,
            chain_idx: 1,
            failed_step_id: id(0),
            failed_step_key: "test".into(),
            exit_code: 1,
            message: "no".into(),
            ts,
        },
        BuildEvent::BuildEnd { seq: 9, exit_code: 1, duration_ms: 99, status: BuildStatus::Failed },
    ]
}

#[test]
fn the_published_crate_reads_our_events_and_loses_only_our_additions() {
    let added = ["seq", "schema_version", "attempt", "partial", "status", "message", "artifacts", "usage", "tests"];
    for event in shared() {
        let ours = serde_json::to_value(&event).unwrap();
        let theirs = serde_json::to_value(serde_json::from_value::<Theirs>(ours.clone()).unwrap()).unwrap();
        for (name, value) in ours.as_object().unwrap() {
            match theirs.get(name) {
                Some(known) => assert_eq!(known, value, "{name} of {ours}"),
                None => assert!(added.contains(&name.as_str()), "{name} of {ours}"),
            }
        }
        assert!(theirs.as_object().unwrap().keys().all(|name| ours.get(name).is_some()));
    }
}

#[test]
fn events_of_the_published_crate_are_read_with_defaults_for_our_additions() {
    for event in shared() {
        let theirs: Theirs = serde_json::from_value(serde_json::to_value(&event).unwrap()).unwrap();
        let theirs = serde_json::to_value(theirs).unwrap();
        let ours: BuildEvent = serde_json::from_value(theirs.clone()).unwrap();
        assert_eq!(ours.seq(), 0);
        let ours = serde_json::to_value(ours).unwrap();
        for (name, value) in theirs.as_object().unwrap() {
            assert_eq!(&ours[name], value, "{name} of {theirs}");
        }
        for (name, default) in [("attempt", Value::from(1)), ("status", "failed".into()), ("schema_version", 0.into())]
        {
            assert!(ours.get(name).is_none_or(|value| *value == default), "{name} of {ours}");
        }
    }
}

#[test]
fn events_round_trip_through_json() {
    let own = [
        BuildEvent::StepRetry {
            seq: 1,
            step_id: id(1),
            attempt: 3,
            backoff_ms: 250,
            message: "lost".into(),
            exit_code: None,
        },
        BuildEvent::StepRetry {
            seq: 1,
            step_id: id(1),
            attempt: 1,
            backoff_ms: 0,
            message: "no".into(),
            exit_code: Some(9),
        },
        BuildEvent::StepCacheMiss {
            seq: 1,
            step_id: id(1),
            key: "test".into(),
            reason: CacheMissReason::Damaged,
            message: Some("its layer is gone".into()),
        },
        BuildEvent::Progress {
            seq: 3,
            step_id: None,
            ts: meta(0).started_at,
            activity: Activity::PullingImage,
            count: Some(ActivityCount::new(1, 2)),
        },
        BuildEvent::Progress {
            seq: 4,
            step_id: Some(id(1)),
            ts: meta(0).started_at,
            activity: Activity::Booting,
            count: None,
        },
        BuildEvent::StepLogLost { seq: 2, step_id: id(1), attempt: 3, message: "gone".into() },
        BuildEvent::StepShadow { seq: 3, step_id: id(1), attempt: 1, verdict: Box::new(shadow_verdict()) },
        BuildEvent::StepShadow { seq: 4, step_id: id(1), attempt: 2, verdict: Box::default() },
    ];
    for event in shared().into_iter().chain(own) {
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<BuildEvent>(&json).unwrap(), event, "{json}");
    }
}

fn shadow_verdict() -> ShadowVerdict {
    let mut verdict = ShadowVerdict::default();
    verdict.miss = Some("/workspace/F changed".to_owned());
    verdict.difference = Some("it wrote other files".to_owned());
    verdict.reasons = vec!["it read /proc/uptime".to_owned(), "it read /proc/a\\nb".to_owned()];
    verdict
}

#[test]
fn a_look_up_in_shadow_mode_is_in_the_journal_with_secrets_masked() {
    let run = Uuid::from_u128(7);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("run");
    let mut secrets = Secrets::new();
    secrets.insert("TOKEN", "s3cr3t-value");
    let (mut writer, bus, _) = event::create(RunDir::Kept(dir.clone()), run_meta(run, 1), &secrets).unwrap();
    let step = StepIndex(0);
    writer.emit(0, StateEvent::StepStart { step, attempt: 1 });
    bus.shadow(step_id(run, step), &shadow_verdict());
    let mut secret = ShadowVerdict::default();
    secret.miss = Some("/workspace/s3cr3t-value changed".to_owned());
    secret.reasons = vec!["it read /proc/s3cr3t-value".to_owned()];
    bus.shadow(step_id(run, step), &secret);
    let message = "again".into();
    writer.emit(1, StateEvent::StepRetry { step, attempt: 1, backoff_ms: 0, message, exit_code: None });
    bus.shadow(step_id(run, step), &shadow_verdict());
    writer.flush().unwrap();
    let events: Vec<_> = event::open(&dir).unwrap().map(Result::unwrap).collect();
    let found = events.iter().filter_map(|event| match event {
        BuildEvent::StepShadow { attempt: 1, verdict, .. } => Some(verdict),
        _ => None,
    });
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 2, "none after the attempt ended: {events:?}");
    assert_eq!(**found[0], shadow_verdict());
    assert!(!format!("{:?}", found[1]).contains("s3cr3t"), "{found:?}");
    assert_eq!(found[1].reasons.len(), 1);
    assert!(found[1].miss.as_deref().is_some_and(|miss| miss.contains("***")), "{found:?}");
}
