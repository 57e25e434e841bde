//! Output that arrives over connections that break.

use std::time::Duration;

use hm_exec::BuildStatus;
use proptest::prelude::*;

use super::{Here, output};
use crate::support::stand_in::{Job, LogFault, Script};

/// A job with parts that split lines and letters.
fn chatty(key: &str) -> (Job, Vec<String>) {
    let text: String = (0..40).map(|n| format!("line {n} \u{e4}\u{1F600}\n")).collect();
    let chars: Vec<char> = text.chars().collect();
    let mut job = Job::passes(key);
    for part in chars.chunks(7) {
        job = job.out(&part.iter().collect::<String>());
    }
    (job, text.lines().map(Into::into).collect())
}

#[tokio::test]
async fn no_line_is_lost_or_repeated_however_connections_break() {
    let faults = [
        vec![],
        vec![LogFault::CloseAfter(0), LogFault::CloseAfter(3), LogFault::CloseAfter(5)],
        vec![LogFault::HalfPart, LogFault::EndAfter(1), LogFault::EndAfter(2)],
        vec![LogFault::HistoryTwice, LogFault::CloseAfter(9), LogFault::HistoryTwice],
        vec![LogFault::EndAfter(4), LogFault::Malformed, LogFault::EndAfter(1), LogFault::Malformed],
        vec![LogFault::Status(401), LogFault::Status(503), LogFault::Status(404), LogFault::Status(429)],
        vec![LogFault::EndAfter(3), LogFault::Silent],
    ];
    let here = Here::new();
    for (faults, first_seq) in faults.into_iter().zip([0, 7, 0, i64::MAX - 500, 0, -5, 0]) {
        let (mut job, lines) = chatty("a");
        (job.log_faults, job.first_seq) = (faults.clone().into(), first_seq);
        here.stand_in.script(Script::new([job]));
        let (events, outcome) = here.run(&["a"]).await;
        assert_eq!(outcome.unwrap().status, BuildStatus::Passed);
        assert_eq!(output(&events, "a"), lines, "{faults:?}");
    }
}

#[test]
fn no_line_is_lost_or_repeated_over_any_breaks_and_pieces() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let here = Here::new();
    let fault = prop_oneof![
        (0_usize..12).prop_map(LogFault::CloseAfter),
        (1_usize..12).prop_map(LogFault::EndAfter),
        Just(LogFault::HistoryTwice),
        Just(LogFault::HalfPart),
    ];
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) };
    proptest!(config, |(faults in prop::collection::vec(fault, 0..5), piece in 1_usize..40)| {
        let (mut job, lines) = chatty("a");
        job.log_faults = faults.into();
        here.stand_in.pieces(piece).script(Script::new([job]));
        let (events, _) = runtime.block_on(here.run(&["a"]));
        prop_assert_eq!(output(&events, "a"), lines);
    });
}

#[tokio::test]
async fn many_logs_and_tokens_that_expire_are_read_whole() {
    let here = Here::new();
    here.stand_in.log_tokens_live(1);
    let jobs: Vec<Job> = (0..100).map(|n| chatty(&format!("step-{n}")).0).collect();
    let keys: Vec<String> = jobs.iter().map(|job| job.key.clone()).collect();
    here.stand_in.script(Script::new(jobs));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let handle = here.submit(&keys).await.unwrap();
    here.stand_in.expire_log_tokens();
    let (events, outcome) = super::ended(handle).await;
    assert_eq!(outcome.unwrap().status, BuildStatus::Passed);
    let lines = chatty("a").1;
    for key in keys {
        assert_eq!(output(&events, key), lines, "{key}");
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_had_is_named_and_does_not_fail_the_build() {
    let here = Here::new();
    for (fault, why) in [
        (LogFault::Status(404), "no log of it"),
        (LogFault::Status(401), "log tokens"),
        (LogFault::Malformed, "malformed"),
        (LogFault::Status(503), "503"),
    ] {
        let mut job = Job::passes("a").out("x\n");
        job.log_faults = vec![fault; 50].into();
        here.stand_in.script(Script::new([job]));
        let (events, outcome) = here.run(&["a"]).await;
        assert_eq!(outcome.unwrap().status, BuildStatus::Passed);
        let message = events.iter().find_map(|event| match event {
            hm_exec::BuildEvent::StepEnd { message, .. } => message.clone(),
            _ => None,
        });
        let message = message.unwrap();
        assert!(message.contains("its output is incomplete") && message.contains(why), "{message}");
    }
}

#[tokio::test]
async fn the_history_of_a_long_log_is_read_whole() {
    let mut here = Here::new();
    here.pace.log_end = Duration::from_secs(60);
    let text = "0123456789abcdef\n".repeat(1 << 15);
    let mut job = Job::passes("a");
    for _ in 0..8 {
        job = job.out(&text);
    }
    // The second connection has nearly everything in one line of 4 MB.
    here.stand_in.pieces(1400).script(Script::new([job.log_fault(LogFault::EndAfter(7))]));
    let (events, outcome) = here.run(&["a"]).await;
    assert_eq!(outcome.unwrap().status, BuildStatus::Passed);
    assert_eq!(output(&events, "a").len(), 8 << 15);
}
