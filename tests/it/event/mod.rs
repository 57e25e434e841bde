//! Events from the writer and the runners to the readers, on virtual input.

mod compat;
mod compressed;
mod journal;
mod masking;

use std::{fs, time::Duration};

use futures_util::{FutureExt, StreamExt};
use hm_exec::{
    BuildEvent, BuildStatus, StepStatus,
    event::{MAX_LINE_BYTES, StateEvent, StdStream},
    plan::StepIndex,
    runner::ArtifactRef,
};
use proptest::prelude::*;
use uuid::Uuid;

use crate::support::{
    events::{create, create_in, end, end_build, id, kinds, lines, replay, start},
    journal_oracle,
};

#[tokio::test]
async fn every_reader_gets_the_same_events_from_start_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, bus, early) = create_in(dir.path(), 2);
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, b"one\r\ntw").await;
    bus.output(id(0), StdStream::Stderr, b"oops").await;
    bus.output(id(0), StdStream::Stdout, b"o\nthree").await;
    end(&mut writer, 0);
    writer.flush().unwrap();
    let late = writer.subscribe();
    writer.emit(6, StateEvent::StepCacheHit { step: StepIndex(1), tag: "hm1:abc".into() });
    let skipped = StateEvent::StepEnd {
        step: StepIndex(1),
        attempt: 0,
        status: StepStatus::CacheHit,
        exit_code: 0,
        duration_ms: 0,
        snapshot: Some("hm1:abc".into()),
        message: Some("as before".into()),
        artifacts: vec![ArtifactRef { key: "out/report.html".into(), mime: "text/html".into(), size_bytes: 9 }],
        details: Default::default(),
    };
    writer.emit(6, skipped);
    writer.emit(7, StateEvent::ChainFailed { step: StepIndex(1), exit_code: 1, message: "no".into() });
    end_build(writer);

    let events: Vec<BuildEvent> = early.collect().await;
    let expected = [
        "build_start",
        "build_accepted",
        "step_queued",
        "step_queued",
        "step_start",
        "step_log",
        "step_log",
        "step_log",
        "step_log",
        "step_end",
        "step_cache_hit",
        "step_end",
        "chain_failed",
        "build_end",
    ];
    assert_eq!(kinds(&events), expected);
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["one", "two", "three"]);
    assert_eq!(lines(&events, 0, StdStream::Stderr), ["oops"]);
    assert!(events.iter().map(BuildEvent::seq).eq(0..events.len() as u64));
    assert_eq!(late.collect::<Vec<_>>().await, events);
    assert_eq!(replay(dir.path()), events);
    let BuildEvent::StepQueued { parent_key, .. } = &events[3] else { panic!("{:?}", events[3]) };
    assert_eq!(parent_key.as_deref(), Some("step-0"));
}

#[tokio::test]
async fn two_hundred_thousand_lines_arrive_in_order_beside_an_idle_reader() {
    let (mut writer, bus, events) = create(1);
    let unread = writer.subscribe();
    start(&mut writer, 0);
    let build = async move {
        let mut chunk = Vec::new();
        for line in 0..200_000 {
            chunk.extend_from_slice(format!("line {line}\n").as_bytes());
            if chunk.len() > 5000 {
                bus.output(id(0), StdStream::Stdout, &chunk).await;
                chunk.clear();
                writer.flush().unwrap();
                tokio::task::yield_now().await;
            }
        }
        bus.output(id(0), StdStream::Stdout, &chunk).await;
        end(&mut writer, 0);
        end_build(writer);
    };
    let (events, ()) = tokio::join!(events.collect::<Vec<_>>(), build);
    let lines = lines(&events, 0, StdStream::Stdout);
    assert_eq!(lines.len(), 200_000);
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {number}"));
    }
    drop(unread);
}

#[tokio::test]
async fn output_from_other_threads_wakes_the_dispatcher_and_comes_between_start_and_end() {
    let (mut writer, bus, events) = create(4);
    (0..4).for_each(|step| start(&mut writer, step));
    let threads: Vec<_> = (0..4)
        .map(|step| {
            let bus = bus.clone();
            std::thread::spawn(move || {
                for line in 0..1000 {
                    bus.output(id(step), StdStream::Stdout, format!("{step}:{line}\n").as_bytes())
                        .now_or_never()
                        .unwrap();
                }
            })
        })
        .collect();
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        // Every wake is followed by output or by the end of the threads.
        let _ = tokio::time::timeout(Duration::from_millis(20), writer.dirty()).await;
        writer.flush().unwrap();
    }
    (0..4).for_each(|step| end(&mut writer, step));
    end_build(writer);
    let events: Vec<BuildEvent> = events.collect().await;
    for step in 0..4 {
        let expected: Vec<String> = (0..1000).map(|line| format!("{step}:{line}")).collect();
        assert_eq!(lines(&events, step, StdStream::Stdout), expected);
        let at = |kind: &str| {
            let is_it = |event: &BuildEvent| {
                let json = serde_json::to_value(event).unwrap();
                json["kind"] == kind && json["step_id"] == id(step).to_string()
            };
            (events.iter().position(is_it).unwrap(), events.iter().rposition(is_it).unwrap())
        };
        assert!(at("step_start").1 < at("step_log").0 && at("step_log").1 < at("step_end").0);
    }
}

#[tokio::test]
async fn dirty_waits_only_for_output_and_is_not_lost_when_dropped() {
    let (mut writer, bus, _events) = create(1);
    assert!(writer.dirty().now_or_never().is_none());
    start(&mut writer, 0);
    assert!(writer.dirty().now_or_never().is_none());
    bus.output(id(0), StdStream::Stdout, b"x").await;
    drop(writer.dirty());
    assert!(writer.dirty().now_or_never().is_some());
    writer.flush().unwrap();
    assert!(writer.dirty().now_or_never().is_none());
}

#[tokio::test]
async fn events_are_shown_only_after_they_were_written() {
    let (mut writer, bus, mut events) = create(1);
    for _ in 0..3 {
        events.next().await.unwrap();
    }
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, b"line\n").await;
    assert!(events.next().now_or_never().is_none());
    writer.flush().unwrap();
    assert_eq!(kinds(&[events.next().await.unwrap(), events.next().await.unwrap()]), ["step_start", "step_log"]);
    assert!(events.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_stream_ends_when_the_writer_is_dropped_before_the_end() {
    let (mut writer, bus, events) = create(1);
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, b"whole\nbegun").await;
    let reader = async { events.collect::<Vec<_>>().await };
    let (events, ()) = tokio::join!(reader, async { drop(writer) });
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["whole", "begun"]);
    assert_eq!(kinds(&events).last().unwrap(), "step_log");
}

#[tokio::test]
async fn output_of_ended_attempts_and_of_unknown_steps_is_ignored() {
    let (mut writer, bus, events) = create(1);
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, b"first").await;
    let (step, message) = (StepIndex(0), "lost".into());
    let retry = StateEvent::StepRetry { step, attempt: 1, backoff_ms: 3, message, exit_code: None };
    writer.emit(1, retry);
    bus.output(id(0), StdStream::Stdout, b"late").await;
    writer.emit(2, StateEvent::StepStart { step: StepIndex(0), attempt: 2 });
    bus.for_attempt(2).output(id(0), StdStream::Stdout, b"second").await;
    end(&mut writer, 0);
    bus.for_attempt(2).output(id(0), StdStream::Stdout, b"late").await;
    bus.for_attempt(3).output(id(0), StdStream::Stdout, b"late").await;
    bus.output(id(7), StdStream::Stdout, b"no such step").await;
    bus.output(Uuid::nil(), StdStream::Stdout, b"no such run").await;
    end_build(writer);
    let events: Vec<BuildEvent> = events.collect().await;
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["first", "second"]);
    let expected = ["step_start", "step_log", "step_retry", "step_start", "step_log", "step_end", "build_end"];
    assert_eq!(kinds(&events)[3..], expected);
}

#[tokio::test]
async fn a_line_over_the_limit_is_split_into_parts() {
    let (mut writer, bus, events) = create(1);
    start(&mut writer, 0);
    let text = vec![b'x'; 2 * MAX_LINE_BYTES + 10];
    for chunk in text.chunks(100_000) {
        bus.output(id(0), StdStream::Stderr, chunk).await;
    }
    bus.output(id(0), StdStream::Stderr, b"\nnext\n").await;
    end(&mut writer, 0);
    end_build(writer);
    let parts = |event| match event {
        BuildEvent::StepLog { line, partial, .. } => Some((line.len(), partial)),
        _ => None,
    };
    let parts: Vec<_> = events.filter_map(async |event| parts(event)).collect().await;
    assert_eq!(parts, [(MAX_LINE_BYTES, true), (MAX_LINE_BYTES, true), (10, false), (4, false)]);
}

#[tokio::test]
async fn a_reader_that_is_far_behind_yields_to_other_tasks() {
    let (mut writer, _bus, mut events) = create(10_000);
    for step in 0..10_000 {
        start(&mut writer, step);
        end(&mut writer, step);
    }
    end_build(writer);
    let mut turns = 0;
    let others = async {
        loop {
            turns += 1;
            tokio::task::yield_now().await;
        }
    };
    let reader = async { while events.next().await.is_some() {} };
    tokio::select! { biased; () = reader => {} () = others => {} }
    assert!(turns > 100, "{turns}");
}

#[tokio::test]
async fn output_that_cannot_be_written_wakes_the_dispatcher_with_an_error_and_states_still_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, bus, mut events) = create_in(dir.path(), 1);
    start(&mut writer, 0);
    writer.flush().unwrap();
    fs::remove_dir(dir.path().join("logs")).unwrap();
    bus.output(id(0), StdStream::Stdout, b"lost").await;
    writer.dirty().await;
    let error = writer.flush().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert!(error.to_string().contains("logs/0-1.log"), "{error}");
    writer.emit(9, StateEvent::BuildEnd { status: BuildStatus::Infrastructure, duration_ms: 9 });
    assert!(writer.flush().is_err());
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(event);
    }
    assert_eq!(kinds(&seen)[3..], ["step_start", "build_end"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_output_in_any_chunks_is_kept_unchanged_and_shown_as_lines(
        chunks in prop::collection::vec((any::<bool>(), prop::collection::vec(
            prop_oneof![4 => Just(b'\n'), 2 => Just(b'\r'), 10 => any::<u8>()], 0..60)), 0..20),
    ) {
        let stream = |is_stderr| if is_stderr { StdStream::Stderr } else { StdStream::Stdout };
        let chunks: Vec<_> = chunks.iter().map(|(is_stderr, chunk)| (stream(*is_stderr), &chunk[..])).collect();
        journal_oracle::check_output(&chunks);
    }
}
