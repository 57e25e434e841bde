//! Journals of runs that have ended: old ones, damaged ones, hostile ones.
//!
//! Over 500 lines because each kind of damage has a case, and all share how a journal is made.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use hm_exec::{
    BuildEvent, BuildStatus,
    StepStatus::{self, FailedAllowed, Flaky, OutOfMemory, Passed, TimedOut},
    event::{
        self, Activity, ActivityCount, CacheMissReason, Connection, ConnectionEnd, EventWriter, JournalError, Protocol,
        RunDir, StateEvent, StdStream, StepCommand, StepEndDetails,
    },
    plan::StepIndex,
    runner::{ArtifactRef, Secrets},
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::{
    events::{create_in, end, end_build, id, kinds, lines, meta, replay, start},
    journal_oracle::{check_journal, frame, read, with_records},
};

/// Records a run with every kind of record; the bytes are the same every time.
async fn record(dir: &Path) {
    let (mut writer, bus, _events) = create_in(dir, 3);
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, b"compiling\r\n\xc3").await;
    tokio::time::advance(std::time::Duration::from_millis(7)).await;
    bus.output(id(0), StdStream::Stderr, b"warning: \xff\n").await;
    bus.output(id(0), StdStream::Stdout, b"\xa4 is split").await;
    let message = "failed to mount: no such device".into();
    let retry = StateEvent::StepRetry { step: StepIndex(0), attempt: 1, backoff_ms: 250, message, exit_code: None };
    writer.emit(8, retry);
    writer.flush().unwrap();
    writer.emit(258, StateEvent::StepStart { step: StepIndex(0), attempt: 2 });
    bus.for_attempt(2).output(id(0), StdStream::Stdout, b"no newline at the end").await;
    end(&mut writer, 0);
    writer.emit(260, StateEvent::StepCacheHit { step: StepIndex(1), tag: "hm1:abc".into() });
    end(&mut writer, 1);
    writer.emit(261, StateEvent::ChainFailed { step: StepIndex(2), exit_code: 1, message: "nothing works".into() });
    end(&mut writer, 2);
    end_build(writer);
}

/// Returns the directory of a journal, its logs and the events that it stands for, as written by an older
/// version.
fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal/v1")
}

fn json_lines(events: &[BuildEvent]) -> String {
    events.iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect()
}

/// Checks that the journal in `dir` has the bytes and the events of a fixture. Returns the directory of the
/// fixture.
#[track_caller]
fn assert_written_as_kept(dir: &Path, name: &str) -> std::path::PathBuf {
    let kept = fixture().with_file_name(name);
    if std::env::var_os("HM_UPDATE_FIXTURES").is_some() {
        fs::create_dir_all(&kept).unwrap();
        fs::copy(dir.join("journal"), kept.join("journal")).unwrap();
        fs::write(kept.join("events.jsonl"), json_lines(&replay(dir))).unwrap();
    }
    assert_eq!(fs::read(dir.join("journal")).unwrap(), fs::read(kept.join("journal")).unwrap());
    assert_eq!(json_lines(&replay(&kept)), fs::read_to_string(kept.join("events.jsonl")).unwrap());
    kept
}

/// Set `HM_UPDATE_FIXTURES` to regenerate the fixture, and do so only for a new version of the format.
#[tokio::test(start_paused = true)]
async fn the_writer_still_writes_version_1_byte_for_byte() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    record(&dir).await;
    let update = std::env::var_os("HM_UPDATE_FIXTURES").is_some();
    for name in ["journal", "logs/0-1.log", "logs/0-2.log"] {
        let written = fs::read(dir.join(name)).unwrap();
        let kept = fixture().join(name);
        if update {
            fs::create_dir_all(kept.parent().unwrap()).unwrap();
            fs::write(&kept, &written).unwrap();
        }
        assert_eq!(written, fs::read(kept).unwrap(), "{name}");
    }
    if update {
        fs::write(fixture().join("events.jsonl"), json_lines(&replay(&dir))).unwrap();
    }
}

/// Kinds of records that were added to version 1 later have their own fixture, so that the first fixture
/// never changes.
#[tokio::test(start_paused = true)]
async fn misses_are_written_byte_for_byte_as_when_version_1_got_them() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    let (mut writer, _bus, _events) = create_in(&dir, 2);
    for (step, reason, message) in
        [(0, CacheMissReason::Absent, None), (1, CacheMissReason::Damaged, Some("its layer 12 is gone"))]
    {
        let message = message.map(Into::into);
        writer.emit(1, StateEvent::StepCacheMiss { step: StepIndex(step), reason, message });
        start(&mut writer, step);
        end(&mut writer, step);
    }
    end_build(writer);
    assert_written_as_kept(&dir, "v1-misses");
}

/// The edges of a plan were added to version 1 later, to its header.
#[test]
fn plans_are_written_byte_for_byte_as_when_version_1_got_them() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    let mut meta = meta(3);
    let (without, details) = (meta.clone(), &mut meta.details);
    details.depends_on = vec![(StepIndex(0), StepIndex(2)), (StepIndex(1), StepIndex(2))];
    details.services = vec![(StepIndex(1), vec!["db".into(), "queue".into()])];
    let (mut writer, _bus, _events) = event::create(RunDir::Kept(dir.clone()), meta.clone(), &Secrets::new()).unwrap();
    for step in 0..3 {
        start(&mut writer, step);
        end(&mut writer, step);
    }
    end_build(writer);
    let kept = assert_written_as_kept(&dir, "v1-plans");
    assert_eq!(event::open(&kept).unwrap().meta(), &meta);
    let run = event::run_record(&kept).unwrap();
    assert_eq!(run.end, Some((BuildStatus::Passed, 9)));
    let needs: Vec<_> = run.steps.iter().map(|step| (step.builds_in, &*step.depends_on)).collect();
    let both = [StepIndex(0), StepIndex(1)];
    assert_eq!(needs, [(None, &[][..]), (Some(StepIndex(0)), &[]), (Some(StepIndex(1)), &both)]);
    assert_eq!(run.steps[1].services.iter().map(|name| &**name).collect::<Vec<_>>(), ["db", "queue"]);
    assert_eq!((run.steps[2].started_ms, run.steps[2].ended_ms, run.steps[2].duration_ms), (Some(0), Some(5), Some(7)));
    let times: Vec<_> = run.steps[2].attempt_times.iter().map(|it| (it.attempt, it.started_ms, it.ended_ms)).collect();
    assert_eq!(times, [(1, 0, Some(5))]);

    // An older version ends reading where its fields end, and sees the same events.
    let old = scratch.path().join("old");
    let (mut writer, _bus, _events) = event::create(RunDir::Kept(old.clone()), without, &Secrets::new()).unwrap();
    for step in 0..3 {
        start(&mut writer, step);
        end(&mut writer, step);
    }
    end_build(writer);
    assert_eq!(json_lines(&replay(&old)), json_lines(&replay(&kept)));
    let payload = |dir: &Path| {
        let journal = fs::read(dir.join("journal")).unwrap();
        journal[20..20 + u32::from_le_bytes(journal[12..16].try_into().unwrap()) as usize].to_vec()
    };
    assert!(payload(&kept).starts_with(&payload(&old)));
}

/// Commands were added to version 1 after the edges, to its header.
#[test]
fn commands_are_written_byte_for_byte_as_when_version_1_got_them() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    let mut meta = meta(3);
    let long = "é".repeat(4000);
    meta.details.commands = ["make\ncheck", "", &long].map(StepCommand::new).into();
    let (mut writer, _bus, _events) = event::create(RunDir::Kept(dir.clone()), meta, &Secrets::new()).unwrap();
    for step in 0..3 {
        start(&mut writer, step);
        end(&mut writer, step);
    }
    end_build(writer);
    let kept = assert_written_as_kept(&dir, "v1-commands");
    let run = event::run_record(&kept).unwrap();
    let commands: Vec<_> = run.steps.iter().map(|step| step.command.as_ref().unwrap()).collect();
    assert_eq!((&*commands[0].text, &*commands[1].text), ("make\ncheck", ""));
    // A long one is clipped, and the journal says by how much.
    assert_eq!((&*commands[2].text, commands[2].omitted_bytes), (&*"é".repeat(2048), 8000 - 4096));

    // Journals of earlier versions have none.
    for older in ["v1", "v1-plans"] {
        let run = event::run_record(fixture().with_file_name(older)).unwrap();
        assert!(!run.steps.is_empty() && run.steps.iter().all(|step| step.command.is_none()), "{older}");
    }
}

/// Connections were added to version 1 later.
#[tokio::test(start_paused = true)]
async fn connections_are_written_byte_for_byte_as_when_version_1_got_them() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    let (mut writer, bus, _events) = create_in(&dir, 2);
    let mut connection = Connection::new(Protocol::Tcp, ConnectionEnd::Closed);
    connection.host = Some("crates.io".into());
    connection.address = Some("192.0.2.1".parse().unwrap());
    (connection.port, connection.sent, connection.received, connection.duration_ms) = (Some(443), 1, 2, 3);
    start(&mut writer, 0);
    bus.connection(id(0), &connection);
    (connection.address, connection.count) = (Some("2001:db8::1".parse().unwrap()), 70_000);
    bus.connection(id(1), &connection);
    let mut blocked = Connection::new(Protocol::Dns, ConnectionEnd::Blocked);
    blocked.reason = Some("no rule".into());
    bus.connection(id(0), &blocked);
    end(&mut writer, 0);
    // The attempt has ended.
    bus.connection(id(0), &blocked);
    end_build(writer);
    let kept = assert_written_as_kept(&dir, "v1-connections");
    let found = |step: Option<u32>| {
        let mut all = Vec::new();
        let push = |record: event::ConnectionRecord| {
            all.push(record.connection);
            true
        };
        event::connections(&kept, step.map(StepIndex), push).unwrap();
        all
    };
    let first: Vec<_> = found(Some(0)).iter().map(Connection::destination).collect();
    assert_eq!(first, ["crates.io:443", "other destinations"]);
    assert_eq!((found(Some(1)).len(), found(Some(1))[0].count, found(None).len()), (1, 70_000, 3));
}

/// What a run waits for was added to version 1 later.
#[tokio::test(start_paused = true)]
async fn activities_are_written_byte_for_byte_as_when_version_1_got_them() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    let (mut writer, bus, _events) = create_in(&dir, 2);
    bus.progress(None, Activity::ReadingSource, None);
    bus.want_progress(true);
    bus.progress(None, Activity::ReadingSource, Some(ActivityCount::new(1, 50_000)));
    bus.progress(None, Activity::CopyingSource, Some(ActivityCount::new(49_999, 50_000)));
    start(&mut writer, 1);
    let image = Some(ActivityCount::new(u64::MAX, 0));
    bus.progress(Some(id(1)), Activity::PullingImage, image);
    bus.progress(Some(id(1)), Activity::UnpackingImage, image);
    bus.progress(Some(id(1)), Activity::Booting, None);
    bus.progress(Some(id(1)), Activity::StartingServices, None);
    bus.progress(None, Activity::ResolvingImage, None);
    bus.progress(Some(id(1)), Activity::WaitingForImage, None);
    end(&mut writer, 1);
    end_build(writer);
    let kept = assert_written_as_kept(&dir, "v1-progress");
    let count = |event: &&BuildEvent| matches!(event, BuildEvent::Progress { .. });
    assert_eq!(replay(&kept).iter().filter(count).count(), 8);
}

/// A reader that is older than the kind shows an unknown event, and everything else.
#[test]
fn a_connection_with_later_codes_is_an_unknown_event() {
    let journal = fs::read(fixture().with_file_name("v1-connections").join("journal")).unwrap();
    let header = 20 + u32::from_le_bytes(journal[12..16].try_into().unwrap()) as usize;
    let (mut rest, mut payloads) = (&journal[header..], Vec::new());
    while let Some((len, _)) = rest.split_first_chunk::<4>() {
        let end = 8 + u32::from_le_bytes(*len) as usize;
        let mut payload = rest[8..end].to_vec();
        if payload[0] == 8 {
            // The protocol comes after the kind, the time, the step and the attempt, of one byte each.
            payload[4] = 99;
        }
        payloads.push(payload);
        rest = &rest[end..];
    }
    let later = with_journal(&with_records(&journal, payloads.iter().map(|payload| &**payload)));
    let events = replay(later.path());
    assert_eq!(events.iter().filter(|event| matches!(event, BuildEvent::Unknown(_))).count(), 3);
    assert!(events.last().unwrap().is_build_end());
}

/// Emits the end of a step with a status that refines another.
fn end_refined(writer: &mut EventWriter, step: u32, status: StepStatus, allowed: Option<StepStatus>) {
    let mut details = StepEndDetails::default();
    details.allowed = allowed;
    let size = u64::from(step);
    let artifacts = vec![ArtifactRef { key: "out/a.txt".into(), mime: "text/plain".into(), size_bytes: size }];
    let end = StateEvent::StepEnd {
        step: StepIndex(step),
        attempt: 2,
        status,
        exit_code: step.cast_signed(),
        duration_ms: 5,
        snapshot: None,
        message: None,
        artifacts: if step == 1 { artifacts } else { vec![] },
        details,
    };
    writer.emit(6, end);
}

/// Records a run with a flaky step, three failures that are allowed, and a passed step.
fn record_refined(dir: &Path) {
    let (mut writer, _bus, _events) = create_in(dir, 5);
    start(&mut writer, 0);
    let (step, message) = (StepIndex(0), "the command exited with 7; retry 1 of 2".into());
    writer.emit(1, StateEvent::StepRetry { step, attempt: 1, backoff_ms: 0, message, exit_code: Some(7) });
    writer.emit(1, StateEvent::StepStart { step, attempt: 2 });
    end_refined(&mut writer, 0, Flaky, None);
    end_refined(&mut writer, 1, FailedAllowed, None);
    end_refined(&mut writer, 2, FailedAllowed, Some(TimedOut));
    end_refined(&mut writer, 3, FailedAllowed, Some(OutOfMemory));
    end(&mut writer, 4);
    end_build(writer);
}

#[test]
fn refined_statuses_are_written_byte_for_byte_as_when_version_1_got_them() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    record_refined(&dir);
    let kept = assert_written_as_kept(&dir, "v1-outcomes");
    let records = event::step_records(&kept).unwrap();
    let statuses: Vec<_> = records.iter().map(|step| step.status.unwrap()).collect();
    assert_eq!(statuses, [Flaky, FailedAllowed, FailedAllowed, FailedAllowed, Passed]);
    assert_eq!((records[0].attempts, &*records[0].failed_attempts), (2, &[(1, 7)][..]));
    let durations: Vec<_> = event::durations(&kept).unwrap().into_keys().collect();
    assert_eq!(durations.iter().map(|key| &**key).collect::<Vec<_>>(), ["step-4"], "without the failed attempts");
}

/// Older versions ignore what follows the fields that they know.
#[test]
fn older_readers_read_flaky_as_passed_and_an_allowed_failure_as_one() {
    let dir = TempDir::new().unwrap();
    record_refined(&dir.path().join("run"));
    let journal = fs::read(dir.path().join("run/journal")).unwrap();
    let header = 20 + u32::from_le_bytes(journal[12..16].try_into().unwrap()) as usize;
    let (mut rest, mut payloads) = (&journal[header..], Vec::new());
    while let Some((len, _)) = rest.split_first_chunk::<4>() {
        let end = 8 + u32::from_le_bytes(*len) as usize;
        let payload = &rest[8..end];
        // The empty list of artifacts and the refinement are the last two bytes of a step's end.
        let known =
            if payload[0] == 4 { payload.strip_suffix(&[0, 1]).or(payload.strip_suffix(&[0, 2])) } else { None };
        payloads.push(known.unwrap_or(payload));
        rest = &rest[end..];
    }
    let old = with_journal(&with_records(&journal, payloads.into_iter()));
    let statuses: Vec<_> = event::step_records(old.path()).unwrap().iter().map(|step| step.status.unwrap()).collect();
    assert_eq!(statuses, [Passed, FailedAllowed, TimedOut, OutOfMemory, Passed], "step-1 has an artifact");
}

#[test]
fn a_journal_of_version_1_still_gives_the_same_events() {
    let events = replay(&fixture());
    assert_eq!(json_lines(&events), fs::read_to_string(fixture().join("events.jsonl")).unwrap());
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["compiling", "ä is split", "no newline at the end"]);
    assert_eq!(lines(&events, 0, StdStream::Stderr), ["warning: \u{fffd}"]);
}

#[test]
fn durations_are_those_of_passed_steps() {
    let durations = event::durations(fixture()).unwrap();
    let expected = [("step-0", 5), ("step-1", 6), ("step-2", 7)];
    let durations: Vec<_> = durations.iter().map(|(key, duration)| (&**key, duration.as_millis())).collect();
    assert_eq!(durations, expected);
}

#[test]
fn only_the_owner_may_see_a_kept_run_and_no_run_takes_the_place_of_another() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("runs/1");
    let (mut writer, bus, _events) = create_in(&dir, 1);
    start(&mut writer, 0);
    futures_util::FutureExt::now_or_never(bus.output(id(0), StdStream::Stdout, b"x")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("logs")), 0o700);
    assert_eq!(mode(&dir.join("journal")), 0o600);
    assert_eq!(mode(&dir.join("logs/0-1.log")), 0o600);
    let again = event::create(event::RunDir::Kept(dir), meta(1), &Secrets::new());
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

/// Returns a copy of the fixture with another journal.
fn with_journal(journal: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("logs")).unwrap();
    for log in ["logs/0-1.log", "logs/0-2.log"] {
        fs::copy(fixture().join(log), dir.path().join(log)).unwrap();
    }
    fs::write(dir.path().join("journal"), journal).unwrap();
    dir
}

#[test]
fn a_truncated_journal_gives_whole_events_and_reports_a_torn_record() {
    let journal = fs::read(fixture().join("journal")).unwrap();
    let whole = replay(&fixture());
    let dir = with_journal(&journal);
    let mut clean_ends = 0;
    for len in (0..journal.len()).rev() {
        fs::OpenOptions::new().write(true).open(dir.path().join("journal")).unwrap().set_len(len as u64).unwrap();
        let (events, error) = read(dir.path());
        let same = events.iter().zip(&whole).take_while(|(event, whole)| event == whole).count();
        match error {
            None => {
                clean_ends += 1;
                // Lines that had begun are shown, whatever their end would have been.
                assert!(kinds(&events[same..]).iter().all(|kind| kind == "step_log"), "{len}: {events:?}");
                assert!(!event::open(dir.path()).unwrap().is_complete());
            }
            Some(JournalError::Truncated { .. } | JournalError::NotAJournal { .. }) => assert_eq!(same, events.len()),
            Some(error) => panic!("{len}: {error:?}"),
        }
    }
    assert_eq!(clean_ends, 13, "one behind the header and one behind each of 13 records but the last");
}

#[test]
fn a_record_of_a_newer_version_is_kept_as_an_unknown_event() {
    let mut journal = fs::read(fixture().join("journal")).unwrap();
    let payload = [99, 1, 2, 3];
    let first_record = 20 + u32::from_le_bytes(journal[12..16].try_into().unwrap()) as usize;
    journal.splice(first_record..first_record, frame(&payload));
    let (events, error) = read(with_journal(&journal).path());
    assert!(error.is_none());
    let whole = replay(&fixture());
    assert_eq!(events.len(), whole.len() + 1);
    assert_eq!(
        serde_json::to_value(&events[5]).unwrap(),
        serde_json::json!({"kind": "unknown_record", "record": 99, "seq": 5})
    );
    assert_eq!(kinds(&events[6..]), kinds(&whole[5..]));
    assert!(events.iter().map(BuildEvent::seq).eq(0..events.len() as u64));
}

#[test]
fn a_journal_of_a_newer_format_is_refused_with_both_versions() {
    let mut journal = fs::read(fixture().join("journal")).unwrap();
    journal[8] = 2;
    let (_, error) = read(with_journal(&journal).path());
    assert!(matches!(error, Some(JournalError::UnsupportedVersion { found: 2, supported: 1 })), "{error:?}");
}

#[test]
fn a_missing_or_truncated_log_is_reported_once_and_the_rest_is_shown() {
    let journal = fs::read(fixture().join("journal")).unwrap();
    let dir = with_journal(&journal);
    fs::remove_file(dir.path().join("logs/0-1.log")).unwrap();
    let cut = dir.path().join("logs/0-2.log");
    fs::OpenOptions::new().write(true).open(cut).unwrap().set_len(5).unwrap();
    let (events, error) = read(dir.path());
    assert!(error.is_none());
    let expected = [
        "step_start",
        "step_log_lost",
        "step_retry",
        "step_start",
        "step_log_lost",
        "step_log",
        "step_end",
        "step_cache_hit",
        "step_end",
        "chain_failed",
        "step_end",
        "build_end",
    ];
    assert_eq!(kinds(&events[5..]), expected);
    assert_eq!(lines(&events, 0, StdStream::Stdout), ["no ne"]);
}

/// The writer is this same test in a child process, which an environment variable tells to write.
#[test]
fn a_writer_killed_at_any_moment_loses_nothing_that_was_shown() {
    const DIR: &str = "HM_TEST_KILLED_WRITER";
    if let Some(dir) = std::env::var_os(DIR) {
        let (mut writer, bus, _events) = create_in(Path::new(&dir), 1);
        start(&mut writer, 0);
        for line in 0.. {
            futures_util::FutureExt::now_or_never(bus.output(id(0), StdStream::Stdout, format!("{line}\n").as_bytes()))
                .unwrap();
            writer.flush().unwrap();
        }
    }
    for round in 1..=3 {
        let scratch = TempDir::new().unwrap();
        let dir = scratch.path().join("run");
        let mut writer = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "event::journal::a_writer_killed_at_any_moment_loses_nothing_that_was_shown"])
            .env(DIR, &dir)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while fs::metadata(dir.join("journal")).map_or(0, |journal| journal.len()) < round * 10_000 {
            assert!(writer.try_wait().unwrap().is_none(), "the writer ended by itself");
            std::thread::yield_now();
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        let (events, error) = read(&dir);
        assert!(matches!(error, None | Some(JournalError::Truncated { .. })), "{error:?}");
        let lines = lines(&events, 0, StdStream::Stdout);
        assert!(lines.len() > 100);
        assert!(lines.iter().enumerate().all(|(number, line)| *line == number.to_string()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_byte_is_reported_and_the_events_before_it_are_shown(at: prop::sample::Index, flip in 1u8..) {
        let mut journal = fs::read(fixture().join("journal")).unwrap();
        let at = at.index(journal.len());
        journal[at] ^= flip;
        let (events, error) = read(with_journal(&journal).path());
        prop_assert!(error.is_some());
        prop_assert_eq!(&events[..], &replay(&fixture())[..events.len()]);
    }

    /// The checksums are right, the contents are wrong.
    #[test]
    fn hostile_records_give_events_or_a_typed_error(
        payloads in prop::collection::vec((0u8..9, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        cut: prop::sample::Index,
    ) {
        let payloads: Vec<Vec<u8>> = payloads.into_iter().map(|(kind, rest)| [&[kind], &rest[..]].concat()).collect();
        let journal = fs::read(fixture().join("journal")).unwrap();
        let journal = with_records(&journal, payloads.iter().map(Vec::as_slice));
        check_journal(&journal, cut.index(journal.len()));
    }

    #[test]
    fn a_hostile_header_gives_a_typed_error(header in prop::collection::vec(any::<u8>(), 0..200)) {
        let journal = fs::read(fixture().join("journal")).unwrap();
        let journal = [&journal[..12], &frame(&header)].concat();
        let (events, error) = read(with_journal(&journal).path());
        prop_assert!(error.is_some() && events.is_empty());
    }

    #[test]
    fn a_hostile_length_allocates_no_memory(len: u32, crc: u32, rest in prop::collection::vec(any::<u8>(), 0..50)) {
        let whole = fs::read(fixture().join("journal")).unwrap();
        let header_end = 20 + u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
        for before in [12, header_end] {
            let journal = [&whole[..before], &len.to_le_bytes(), &crc.to_le_bytes(), &rest].concat();
            let (_, error) = read(with_journal(&journal).path());
            let is_typed = matches!(error, Some(JournalError::Truncated { .. } | JournalError::Corrupt { .. }));
            prop_assert!(is_typed, "{:?}", error);
        }
    }
}
