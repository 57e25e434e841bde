//! Runs whose logs were compressed: the same events, also for readers that had begun.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::Path,
    thread,
};

use futures_util::FutureExt;
use hm_exec::{
    BuildEvent,
    event::{self, LogFile, StdStream},
    plan::StepIndex,
};
use tempfile::TempDir;

use crate::support::{
    events::{create_in, end, end_build, id, kinds, lines, replay, start},
    journal_oracle::read,
};

const LINES: usize = 60_000;

fn line(n: usize) -> String {
    format!("line {n} of the output of a step\n")
}

/// Records a run of a step that prints more than a megabyte, on both streams, and one that prints little.
fn record(dir: &Path) {
    let (mut writer, bus, _events) = create_in(dir, 2);
    let print = |step, stream, text: &str| bus.output(id(step), stream, text.as_bytes()).now_or_never().unwrap();
    start(&mut writer, 0);
    start(&mut writer, 1);
    for n in 0..LINES {
        print(0, if n % 1000 == 999 { StdStream::Stderr } else { StdStream::Stdout }, &line(n));
        if n % 5000 == 0 {
            print(1, StdStream::Stdout, &line(n));
            writer.flush().unwrap();
        }
    }
    end(&mut writer, 0);
    end(&mut writer, 1);
    end_build(writer);
}

fn text() -> String {
    (0..LINES).map(line).collect()
}

#[test]
fn a_run_is_the_same_after_its_logs_were_compressed() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    record(&dir);
    let before = replay(&dir);
    assert!(event::has_long_logs(&dir));
    let mut begun = event::open(&dir).unwrap();
    let mut seen: Vec<BuildEvent> = begun.by_ref().take(LINES / 2).map(Result::unwrap).collect();
    event::compress_logs(&dir).unwrap();
    assert!(!dir.join("logs/0-1.log").exists() && dir.join("logs/0-1.log.zst").exists());
    assert!(dir.join("logs/1-1.log").exists(), "a short log stays as it is");
    assert!(!event::has_long_logs(&dir));
    assert!(replay(&dir) == before);
    seen.extend(begun.map(Result::unwrap));
    assert!(seen == before, "a reader that had begun");

    let log = event::last_log(&dir, StepIndex(0)).unwrap().unwrap();
    assert_eq!(log, dir.join("logs/0-1.log"));
    let mut log = LogFile::open(log).unwrap();
    let mut found = String::new();
    log.read_to_string(&mut found).unwrap();
    assert!(found == text());
    // A line in the middle.
    let at = found.find(&line(LINES / 2)).unwrap();
    log.seek(SeekFrom::Start(at as u64)).unwrap();
    let mut middle = vec![0; line(LINES / 2).len()];
    log.read_exact(&mut middle).unwrap();
    assert_eq!(String::from_utf8(middle).unwrap(), line(LINES / 2));
}

#[test]
fn a_run_that_is_still_going_on_is_left_alone() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    let (mut writer, bus, _events) = create_in(&dir, 1);
    start(&mut writer, 0);
    bus.output(id(0), StdStream::Stdout, text().as_bytes()).now_or_never().unwrap();
    event::compress_logs(&dir).unwrap();
    assert!(dir.join("logs/0-1.log").exists());
    assert!(event::compress_logs(scratch.path().join("missing")).is_err());
}

#[test]
fn a_damaged_or_truncated_compressed_log_is_reported_once_and_the_rest_is_shown() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    record(&dir);
    let whole = replay(&dir);
    event::compress_logs(&dir).unwrap();
    let path = dir.join("logs/0-1.log.zst");
    let compressed = fs::read(&path).unwrap();
    let mut damaged = compressed.clone();
    damaged[compressed.len() / 2] ^= 1;
    let truncated = compressed[..compressed.len() / 2].to_vec();
    for (file, reason) in [(damaged, "the log is damaged"), (truncated, "the log is truncated")] {
        fs::write(&path, file).unwrap();
        let (events, error) = read(&dir);
        assert!(error.is_none(), "{error:?}");
        let lost: Vec<&str> = events
            .iter()
            .filter_map(|event| match event {
                BuildEvent::StepLogLost { message, .. } => Some(&**message),
                _ => None,
            })
            .collect();
        assert_eq!(lost, [reason]);
        assert_eq!(lines(&events, 1, StdStream::Stdout), lines(&whole, 1, StdStream::Stdout));
        assert_eq!(kinds(&events[events.len() - 3..]), ["step_end", "step_end", "build_end"]);
        let shown = lines(&events, 0, StdStream::Stdout);
        let expected = lines(&whole, 0, StdStream::Stdout);
        // The last line may be one whose end is lost.
        assert!(shown[..shown.len().saturating_sub(1)] == expected[..shown.len().saturating_sub(1)]);
    }
}

#[test]
fn readers_see_a_whole_log_while_it_is_compressed_again_and_again() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    record(&dir);
    let raw = dir.join("logs/0-1.log");
    let content = text();
    let (before, is_over) = (replay(&dir), std::sync::atomic::AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut found = String::new();
                    LogFile::open(&raw).unwrap().read_to_string(&mut found).unwrap();
                    assert!(found == content);
                }
            });
        }
        for _ in 0..5 {
            event::compress_logs(&dir).unwrap();
            // A raw log takes its place, whole, as that of a newer result does.
            let tmp = dir.join("tmp");
            fs::write(&tmp, &content).unwrap();
            fs::rename(&tmp, &raw).unwrap();
            assert!(replay(&dir) == before);
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_log_that_cannot_be_compressed_is_an_error_and_stays() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("run");
    record(&dir);
    let before = replay(&dir);
    // Something that cannot be replaced is in the place of the compressed log.
    fs::create_dir(dir.join("logs/0-1.log.zst")).unwrap();
    assert!(event::compress_logs(&dir).is_err());
    assert!(replay(&dir) == before);
    fs::remove_dir(dir.join("logs/0-1.log.zst")).unwrap();
    // Half of a temporary file of a process that was killed.
    OpenOptions::new().write(true).create_new(true).open(dir.join("logs/0-1.log.zst.new")).unwrap();
    event::compress_logs(&dir).unwrap();
    assert!(replay(&dir) == before);
}
