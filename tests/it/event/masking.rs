//! Secrets reach neither files nor readers.

use std::{fs, path::Path};

use futures_util::StreamExt;
use hm_exec::{
    BuildEvent, BuildStatus, StepStatus,
    event::{self, RunDir, StateEvent, StdStream, StepCommand},
    plan::StepIndex,
    runner::Secrets,
};

use crate::support::events::{end_build, id, kinds, lines, meta, start};

const SECRET: &str = "hunter2";

fn secrets() -> Secrets {
    let mut secrets = Secrets::new();
    secrets.insert("PASSWORD", format!("{SECRET}\n"));
    secrets
}

fn has_secret(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return has_secret(&path);
        }
        let bytes = fs::read(path).unwrap();
        bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
    })
}

#[tokio::test]
async fn a_secret_is_masked_in_output_in_every_text_and_in_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut meta = meta(1);
    meta.steps[0].display_name = format!("curl -u me:{SECRET}").into();
    meta.steps[0].image = Some(format!("registry/{SECRET}").into());
    // It ends where a long command is clipped.
    meta.details.commands = vec![StepCommand::new(format!("echo {}{SECRET} {SECRET}", " ".repeat(4096 - 8)))];
    let (mut writer, bus, events) = event::create(RunDir::Kept(dir.path().into()), meta, &secrets()).unwrap();
    let text = format!("said {SECRET}!");
    start(&mut writer, 0);
    // Each stream has its own state: neither completes the other's secret.
    bus.output(id(0), StdStream::Stdout, b"whole hunter2, split hun").await;
    bus.output(id(0), StdStream::Stderr, b"hunter").await;
    writer.flush().unwrap();
    bus.output(id(0), StdStream::Stdout, b"ter2\n").await;
    bus.output(id(0), StdStream::Stderr, b" 2").await;
    bus.output(id(0), StdStream::Stdout, b"at the end hunter").await;
    let message: std::sync::Arc<str> = text.as_str().into();
    let step = StepIndex(0);
    let retry = StateEvent::StepRetry { step, attempt: 1, backoff_ms: 1, message: message.clone(), exit_code: None };
    writer.emit(1, retry);
    writer.emit(1, StateEvent::StepCacheHit { step, tag: message.clone() });
    writer.emit(1, StateEvent::ChainFailed { step, exit_code: 1, message: message.clone() });
    let (status, snapshot, message) = (StepStatus::Failed, Some(text.as_str().into()), Some(message));
    writer.emit(
        2,
        StateEvent::StepEnd {
            step,
            attempt: 1,
            status,
            exit_code: 1,
            duration_ms: 1,
            snapshot,
            message,
            artifacts: vec![],
            details: Default::default(),
        },
    );
    assert!(!format!("{writer:?} {bus:?}").contains(SECRET));
    writer.emit(3, StateEvent::BuildEnd { status: BuildStatus::Failed, duration_ms: 3 });
    writer.flush().unwrap();

    let events: Vec<BuildEvent> = events.collect().await;
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["whole ***, split ***", "at the end hunter"]);
    assert_eq!(lines(&events, 0, StdStream::Stderr), ["hunter 2"]);
    let json = serde_json::to_string(&events).unwrap();
    assert!(!json.contains(SECRET), "{json}");
    assert_eq!(json.matches("***").count(), 2 + 2 + 5, "{json}");
    assert!(!has_secret(dir.path()));
    let run = event::run_record(dir.path()).unwrap();
    let command = run.steps[0].command.clone().unwrap();
    assert!(command.text.ends_with(" ***") && command.omitted_bytes == 4, "{command:?}");
}

#[tokio::test]
async fn withheld_output_is_shown_when_the_build_stops_and_later_output_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, bus, events) = event::create(RunDir::Kept(dir.path().into()), meta(2), &secrets()).unwrap();
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, b"hunt").await;
    drop(writer);
    bus.output(id(0), StdStream::Stdout, b"late").await;
    bus.output(id(1), StdStream::Stdout, b"late").await;
    let events: Vec<BuildEvent> = events.collect().await;
    assert_eq!(kinds(&events)[4..], ["step_start", "step_log"]);
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["hunt"]);
    assert_eq!(fs::read(dir.path().join("logs/0-1.log")).unwrap(), b"hunt");
    assert!(!dir.path().join("logs/1-1.log").exists());
}

#[tokio::test]
async fn withheld_output_comes_before_the_end_of_its_attempt() {
    let (mut writer, bus, events) = event::create(RunDir::Temporary, meta(1), &secrets()).unwrap();
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, b"hunt").await;
    let (step, message) = (StepIndex(0), "x".into());
    writer.emit(1, StateEvent::StepRetry { step, attempt: 1, backoff_ms: 1, message, exit_code: None });
    end_build(writer);
    let events: Vec<BuildEvent> = events.collect().await;
    assert_eq!(kinds(&events)[3..], ["step_start", "step_log", "step_retry", "build_end"]);
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["hunt"]);
}
