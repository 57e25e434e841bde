//! The ends of logs that a page has: how much of each, and their lines.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use hm_exec::{
    StepStatus,
    event::{self, LogFile, StdStream, StepRecord},
    plan::StepIndex,
};
use serde::Serialize;

use super::super::Report;
use crate::reporter::text;

/// The most of all logs together, in bytes. A browser still shows that at once.
const MAX_BYTES: u64 = 24 << 20;

/// The most of a log: of an attempt that failed, of another one, and of a step that was cached, in bytes.
const MAX_OF_FAILED: u64 = 256 << 10;
const MAX_OF_RUN: u64 = 64 << 10;
const MAX_OF_CACHED: u64 = 16 << 10;

/// The number of lines of a failed step that are shown among all failures, and their size.
const EXCERPT_LINES: usize = 12;
const EXCERPT_BYTES: u64 = 8 << 10;

/// The most pieces of a log whose streams and times are known.
const MAX_PIECES: usize = 10_000;

/// The number of an attempt of a cached step, whose log is that of another run.
const CACHED: u32 = 0;

/// The ends of all logs of a run.
#[derive(Debug)]
pub(super) struct LogTails {
    tails: Vec<LogTail>,
    pieces: BTreeMap<(StepIndex, u32), Vec<Piece>>,
}

/// The end of the log of an attempt.
#[derive(Debug)]
pub(super) struct LogTail {
    pub(super) step: StepIndex,
    pub(super) attempt: u32,
    path: PathBuf,
    size: u64,
    /// The first byte that is shown.
    from: u64,
}

/// Bytes of one stream in a log, until the next piece.
#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    is_error: bool,
    second: u64,
}

/// Lines of a log, as the page reads them.
#[derive(Debug, Default, Serialize)]
pub(super) struct Lines {
    /// The size of the whole log, and of what is left out at its beginning, in bytes.
    size: u64,
    cut: u64,
    lines: Vec<String>,
    /// The numbers of the lines from stderr, as pairs of the first one and their count.
    err: Vec<usize>,
    /// When lines were written: pairs of a line and the second since the start of the run. It is also that of
    /// the lines until the next pair.
    at: Vec<u64>,
    /// Why the log could not be read, if it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What decides how much of a log is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Failed,
    Ran,
    Cached,
}

impl Kind {
    fn of(step: &StepRecord, attempt: u32) -> Self {
        let failed = step.failed_attempts.iter().any(|(failed, _)| *failed == attempt);
        match step.status {
            Some(StepStatus::CacheHit) => Self::Cached,
            Some(StepStatus::Passed | StepStatus::Flaky | StepStatus::Canceled) if !failed => Self::Ran,
            None if !failed => Self::Ran,
            _ => Self::Failed,
        }
    }

    fn max_bytes(self) -> u64 {
        match self {
            Self::Failed => MAX_OF_FAILED,
            Self::Ran => MAX_OF_RUN,
            Self::Cached => MAX_OF_CACHED,
        }
    }
}

impl LogTails {
    /// Returns what the page has of each log. Logs that cannot be found are left out.
    pub(super) fn of(report: &Report<'_>) -> Self {
        let mut files: Vec<((StepIndex, u32), PathBuf)> = report.logs.clone().into_iter().collect();
        let steps = report.record.steps.iter().zip(0..);
        for (step, index) in steps.filter(|(step, _)| step.status == Some(StepStatus::CacheHit)) {
            if let Some(key) = report.explainer.as_ref().and_then(|explainer| explainer.key(&step.key)) {
                files.push(((StepIndex(index), CACHED), report.store.steps().log(&key.0)));
            }
        }
        files.sort();
        let mut sized = Vec::new();
        for ((step, attempt), path) in files {
            let Some(record) = report.record.steps.get(step.get()) else { continue };
            let Ok(size) = LogFile::open(&path).and_then(|log| log.size()) else { continue };
            if size > 0 {
                sized.push((Kind::of(record, attempt), LogTail { step, attempt, path, size, from: 0 }));
            }
        }
        let mut left = MAX_BYTES;
        for kind in [Kind::Failed, Kind::Ran, Kind::Cached] {
            let sizes = sized.iter().filter(|(of, _)| *of == kind).map(|(_, tail)| tail.size.min(kind.max_bytes()));
            // Failures leave something for the others.
            let share = fair_share(sizes.collect(), if kind == Kind::Failed { left / 4 * 3 } else { left });
            for (_, tail) in sized.iter_mut().filter(|(of, _)| *of == kind) {
                let shown = tail.size.min(kind.max_bytes()).min(share);
                tail.from = tail.size - shown;
                left = left.saturating_sub(shown);
            }
        }
        let tails: Vec<LogTail> = sized.into_iter().map(|(_, tail)| tail).collect();
        let pieces = pieces(report, &tails);
        Self { tails, pieces }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LogTail> {
        self.tails.iter()
    }

    /// Returns the attempts of a step whose logs are shown.
    pub(super) fn attempts(&self, step: StepIndex) -> Vec<u32> {
        self.of_step(step).map(|tail| tail.attempt).collect()
    }

    fn of_step(&self, step: StepIndex) -> impl Iterator<Item = &LogTail> {
        let first = self.tails.partition_point(|tail| tail.step < step);
        self.tails[first..].iter().take_while(move |tail| tail.step == step)
    }

    /// Reads the lines of a log.
    pub(super) fn read(&self, tail: &LogTail) -> Lines {
        let pieces = self.pieces.get(&(tail.step, tail.attempt)).map_or(&[][..], Vec::as_slice);
        lines(tail, tail.from, pieces)
            .unwrap_or_else(|error| Lines { error: Some(error.to_string()), ..Lines::default() })
    }

    /// Reads the last lines of a step's last attempt.
    pub(super) fn excerpt(&self, step: StepIndex) -> Option<Lines> {
        let tail = self.of_step(step).last()?;
        let pieces = self.pieces.get(&(tail.step, tail.attempt)).map_or(&[][..], Vec::as_slice);
        let mut lines = lines(tail, tail.from.max(tail.size.saturating_sub(EXCERPT_BYTES)), pieces).ok()?;
        let more = lines.lines.len().saturating_sub(EXCERPT_LINES);
        lines.lines.drain(..more);
        let errors: Vec<usize> = lines
            .err
            .chunks_exact(2)
            .flat_map(|pair| pair[0]..pair[0] + pair[1])
            .filter(|line| *line >= more)
            .collect();
        lines.err = errors.into_iter().flat_map(|line| [line - more, 1]).collect();
        lines.at.clear();
        Some(lines)
    }
}

/// Returns the largest size to which all sizes can be cut so that their sum is at most `total`.
fn fair_share(mut sizes: Vec<u64>, total: u64) -> u64 {
    sizes.sort_unstable();
    let (mut left, mut count) = (total, sizes.len() as u64);
    for size in sizes {
        if size > left / count {
            return left / count;
        }
        left -= size;
        count -= 1;
    }
    u64::MAX
}

/// Returns the streams and times of what is shown of logs.
fn pieces(report: &Report<'_>, tails: &[LogTail]) -> BTreeMap<(StepIndex, u32), Vec<Piece>> {
    let shown: BTreeMap<(StepIndex, u32), u64> =
        tails.iter().map(|tail| ((tail.step, tail.attempt), tail.from)).collect();
    let mut pieces: BTreeMap<(StepIndex, u32), Vec<Piece>> = BTreeMap::new();
    let read = event::log_pieces(report.store.runs().dir(report.run.id), |piece| {
        let key = (piece.step, piece.attempt);
        if shown.get(&key).is_none_or(|from| piece.offset.saturating_add(piece.len) <= *from) {
            return;
        }
        let known = pieces.entry(key).or_default();
        let is_error = piece.stream == StdStream::Stderr;
        let new = Piece { offset: piece.offset, is_error, second: piece.at_ms / 1000 };
        let is_news = known.last().is_none_or(|last| (last.is_error, last.second) != (new.is_error, new.second));
        if is_news && known.len() < MAX_PIECES {
            known.push(new);
        }
    });
    if let Err(error) = read {
        // The page has the logs all the same.
        tracing::debug!(%error, "failed to read the streams of logs");
    }
    pieces
}

/// Reads the lines of a log from the byte `from`, or from the first line after it.
fn lines(tail: &LogTail, from: u64, pieces: &[Piece]) -> io::Result<Lines> {
    let mut file = LogFile::open(&tail.path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(tail.size - from).read_to_end(&mut bytes)?;
    let mut start = 0;
    if from > 0 {
        // A line that begins before is shown from its middle only if it is the only one.
        start = memchr::memchr(b'\n', &bytes).filter(|end| end + 1 < bytes.len()).map_or(0, |end| end + 1);
    }
    let mut lines = Lines { size: tail.size, cut: from + start as u64, ..Lines::default() };
    let mut piece = 0;
    for line in bytes[start..].split_inclusive(|byte| *byte == b'\n') {
        let offset = from + start as u64;
        start += line.len();
        while pieces.get(piece + 1).is_some_and(|next| next.offset <= offset) {
            piece += 1;
        }
        let number = lines.lines.len();
        if let Some(piece) = pieces.get(piece).filter(|piece| piece.offset <= offset) {
            if piece.is_error {
                match lines.err.as_mut_slice() {
                    [.., first, count] if *first + *count == number => *count += 1,
                    _ => lines.err.extend([number, 1]),
                }
            }
            if lines.at.last() != Some(&piece.second) {
                lines.at.extend([number as u64, piece.second]);
            }
        }
        let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
        let mut shown = String::with_capacity(line.len());
        text::push_clean(&mut shown, &line, true);
        lines.lines.push(shown);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_cut_fairly() {
        assert_eq!(fair_share(vec![], 10), u64::MAX);
        assert_eq!(fair_share(vec![3, 3, 4], 10), u64::MAX);
        assert_eq!(fair_share(vec![9, 1, 9], 10), 4);
        for (sizes, total) in [(vec![5, 7, 100, 2], 50), (vec![1, 1, 1], 2), (vec![8; 9], 0)] {
            let share = fair_share(sizes.clone(), total);
            assert!(sizes.iter().map(|size| size.min(&share)).sum::<u64>() <= total, "{sizes:?}");
        }
    }

    #[test]
    fn lines_have_their_streams_and_times_and_control_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, b"first\n\x1b[31mred\x1b[2J\nslow\rfast\n\xff").unwrap();
        let tail = LogTail { step: StepIndex(0), attempt: 1, path, size: 32, from: 0 };
        let piece = |offset, is_error, second| Piece { offset, is_error, second };
        let pieces = [piece(0, false, 0), piece(6, true, 0), piece(20, false, 2)];
        let all = lines(&tail, 0, &pieces).unwrap();
        assert_eq!(all.lines[..3], ["first", "\u{1b}[31mred\u{1b}[0m", "fast"]);
        assert_eq!((&all.err[..], &all.at[..], all.cut), (&[1, 1][..], &[0, 0, 2, 2][..], 0));
        let end = lines(&tail, 2, &pieces).unwrap();
        assert_eq!((end.cut, end.lines.len()), (6, all.lines.len() - 1));
    }
}
