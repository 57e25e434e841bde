//! Invariants of a journal of arbitrary bytes, and of output in arbitrary pieces. Property tests and fuzz
//! targets share them.

use std::{fs, path::Path};

use futures_util::FutureExt;
use hm_exec::{
    BuildEvent, BuildStatus,
    event::{self, EventBatch, JournalError, MAX_LINE_BYTES, RunDir, StateEvent, StdStream, step_id},
    plan::StepIndex,
    runner::Secrets,
};
use uuid::Uuid;

use super::run_meta::run_meta;

/// Reads the events up to the first error, and that error.
pub(crate) fn read(dir: &Path) -> (Vec<BuildEvent>, Option<JournalError>) {
    let mut events = Vec::new();
    let reader = match event::open(dir) {
        Ok(reader) => reader,
        Err(error) => return (events, Some(error)),
    };
    for event in reader {
        match event {
            Ok(event) => events.push(event),
            Err(error) => return (events, Some(error)),
        }
    }
    (events, None)
}

/// Checks a journal: it gives events numbered from 0, and possibly a typed error. If it is cut off anywhere,
/// it gives the same events up to the cut. Lines that had begun before the cut are shown, whatever their end
/// would have been.
pub(crate) fn check_journal(journal: &[u8], cut: usize) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("logs")).unwrap();
    for log in ["logs/0-1.log", "logs/0-2.log"] {
        fs::write(dir.path().join(log), "one\ntwo\nthree").unwrap();
    }
    fs::write(dir.path().join("journal"), journal).unwrap();
    let (whole, _) = read(dir.path());
    assert!(whole.iter().map(BuildEvent::seq).eq(0..whole.len() as u64));
    let _ = event::durations(dir.path());
    let _ = event::step_records(dir.path());
    let _ = event::connections(dir.path(), None, |_| true);
    fs::write(dir.path().join("journal"), &journal[..cut.min(journal.len())]).unwrap();
    let (part, error) = read(dir.path());
    let same = part.iter().zip(&whole).take_while(|(part, whole)| part == whole).count();
    let is_line = |event: &BuildEvent| matches!(event, BuildEvent::StepLog { .. } | BuildEvent::StepLogLost { .. });
    assert!(part[same..].iter().all(is_line), "{error:?}: {part:?} of {whole:?}");
}

/// Returns a journal with the header of `journal` and records with these payloads and right checksums.
pub(crate) fn with_records<'a>(journal: &[u8], payloads: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let header = 20 + u32::from_le_bytes(journal[12..16].try_into().unwrap()) as usize;
    let mut made = journal[..header].to_vec();
    payloads.for_each(|payload| made.extend(frame(payload)));
    made
}

pub(crate) fn frame(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&len.to_le_bytes()[..], &crc32fast::hash(payload).to_le_bytes(), payload].concat()
}

/// Checks output that comes in pieces: the log has every byte in order, and readers get each stream as its
/// lines.
pub(crate) fn check_output(pieces: &[(StdStream, &[u8])]) {
    let run = Uuid::from_u128(7);
    let meta = run_meta(run, 1);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("run");
    let (mut writer, bus, mut live) = event::create(RunDir::Kept(dir.clone()), meta, &Secrets::new()).unwrap();
    let step = StepIndex(0);
    writer.emit(0, StateEvent::StepStart { step, attempt: 1 });
    for (stream, piece) in pieces {
        bus.output(step_id(run, step), *stream, piece).now_or_never().expect("nobody is waited for");
    }
    writer.emit(9, StateEvent::BuildEnd { status: BuildStatus::Passed, duration_ms: 9 });
    writer.flush().unwrap();

    let all: Vec<u8> = pieces.iter().flat_map(|(_, piece)| *piece).copied().collect();
    let log = event::last_log(&dir, step).unwrap();
    assert_eq!(log.map_or_else(Vec::new, |log| fs::read(log).unwrap()), all);
    let (events, error) = read(&dir);
    assert!(error.is_none(), "{error:?}");
    let mut batches = Vec::new();
    while let Some(batch) = live.next_batch().now_or_never().expect("the run has ended") {
        match batch {
            EventBatch::Event(event) => batches.push(event),
            EventBatch::Lines(lines) => {
                assert_eq!(lines.events().count() as u64, lines.count);
                batches.extend(lines.events());
            }
            batch => panic!("{batch:?}"),
        }
    }
    assert_eq!(batches, events, "lines in batches are the same events");
    for of in [StdStream::Stdout, StdStream::Stderr] {
        let bytes: Vec<u8> = pieces.iter().filter(|piece| piece.0 == of).flat_map(|piece| piece.1).copied().collect();
        // The text after the last line end is a line only if it is not empty, and it keeps its carriage
        // return.
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let last = lines.pop().filter(|last| !last.is_empty());
        let lines = lines.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).chain(last);
        let expected: Vec<String> = lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        let shown = events.iter().filter_map(|event| match event {
            BuildEvent::StepLog { stream, line, .. } if *stream == of => Some(line.clone()),
            _ => None,
        });
        assert!(bytes.len() <= MAX_LINE_BYTES, "longer lines come in parts");
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }
}
