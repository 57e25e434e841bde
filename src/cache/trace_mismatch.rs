//! How what is there differs from what a record says: answer by answer, and in what several answers have in
//! common, the order of their times and that they are names of one file.

use std::collections::{BTreeSet, HashMap};

use super::trace_records::TraceRecord;
use crate::{
    jail::trace::{Answer, Change, Kinds},
    tree::FileTime,
};

/// The resolution of file times: files that are written within it may get equal or different times, by
/// chance.
const TICK_NANOSECONDS: u128 = 20_000_000;

/// Why a record does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// This path is another one.
    Path(Vec<u8>, Change),
    /// The first file was older than the second, and is newer.
    Order(Vec<u8>, Vec<u8>),
    /// One of these two files is newer now, and none was, or the other way round.
    Tie(Vec<u8>, Vec<u8>),
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::Path(path, change) => {
                let path = text(path);
                match change {
                    Change::Appeared => write!(f, "{path} appeared"),
                    Change::Disappeared => write!(f, "{path} is gone"),
                    Change::Metadata => write!(f, "the mode, owner or attributes of {path} changed"),
                    Change::Names => write!(f, "{path} lists other names"),
                    Change::Unknown => write!(f, "{path} cannot be examined"),
                    _ => write!(f, "{path} changed"),
                }
            }
            Self::Order(older, newer) => write!(f, "{} is now newer than {}", text(older), text(newer)),
            Self::Tie(left, right) => {
                write!(f, "the times of {} and {} are in another order", text(left), text(right))
            }
        }
    }
}

impl TraceRecord {
    /// Compares the record with what is there now: the answers to the same paths, in the same order. Returns
    /// the first difference.
    pub(crate) fn mismatch(&self, now: &[&Answer]) -> Option<Mismatch> {
        let paths = || self.asked.entries.iter().zip(&self.answers).zip(now);
        for (((path, kinds), was), is) in paths() {
            if let Some(change) = is.change_since(was, *kinds) {
                return Some(Mismatch::Path(path.clone(), change));
            }
        }
        if now.len() != self.answers.len() {
            return Some(Mismatch::Path(b"/".to_vec(), Change::Unknown));
        }
        let reads = |kinds: &Kinds| kinds.contains(Kinds::METADATA) || kinds.contains(Kinds::CONTENT);
        let times =
            paths().filter(|(((_, kinds), _), _)| reads(kinds)).filter_map(|(((path, _), was), is)| match (was, *is) {
                (Answer::There(was), Answer::There(is)) => Some((was.modified?, is.modified?, path)),
                _ => None,
            });
        other_order(times.collect()).or_else(|| self.other_names(now))
    }

    /// Returns the first path that was a name of the same file as an earlier one and no longer is, or that
    /// is one now.
    fn other_names(&self, now: &[&Answer]) -> Option<Mismatch> {
        let (was, is) = (firsts(self.answers.iter()), firsts(now.iter().copied()));
        let differs = was.iter().zip(&is).position(|(was, is)| was != is)?;
        let path = self.asked.entries.keys().nth(differs)?;
        Some(Mismatch::Path(path.clone(), Change::Content))
    }

    /// Returns the times that files had which have another one now, or which share theirs with such a
    /// file, and those that they have. Takes the answers to the same paths, in the same order.
    pub(crate) fn changed_times(&self, now: &[&Answer]) -> Vec<(FileTime, FileTime)> {
        let pairs = self.answers.iter().zip(now).filter_map(|(was, is)| match (was, *is) {
            (Answer::There(was), Answer::There(is)) => Some((was.modified?, is.modified?)),
            _ => None,
        });
        let pairs: BTreeSet<(FileTime, FileTime)> = pairs.collect();
        let changed: BTreeSet<FileTime> = pairs.iter().filter(|(was, is)| was != is).map(|(was, _)| *was).collect();
        pairs.into_iter().filter(|(was, _)| changed.contains(was)).collect()
    }
}

/// Returns for each answer the place of the first one whose path is a name of the same file.
fn firsts<'a>(answers: impl Iterator<Item = &'a Answer>) -> Vec<usize> {
    let mut first = HashMap::new();
    let place = |(at, answer): (usize, &Answer)| match answer {
        Answer::There(node) => node.names_of.map_or(at, |file| *first.entry(file).or_insert(at)),
        _ => at,
    };
    answers.enumerate().map(place).collect()
}

/// A time of a file, in seconds and nanoseconds.
type Time = (i64, u32);

/// Returns the first two files whose times are in another order than they were. Each has the time that it
/// had, and the one that it has.
fn other_order(mut times: Vec<(Time, Time, &Vec<u8>)>) -> Option<Mismatch> {
    times.sort_unstable();
    // Those that were older than the current group and are the newest of them now. If there are several: the
    // one that was the oldest, and the one whose time was a whole second.
    let mut newest: Vec<(Time, Time, &Vec<u8>)> = Vec::new();
    for group in times.chunk_by(|left, right| left.0 == right.0) {
        let (first, last) = (group.first()?, group.last()?);
        for before in &newest {
            if before.1 > first.1 {
                return Some(Mismatch::Order(before.2.clone(), first.2.clone()));
            }
            if before.1 == first.1 && !is_one_tick(before, first) {
                return Some(Mismatch::Tie(before.2.clone(), first.2.clone()));
            }
        }
        let whole = group.iter().find(|it| is_whole(it.1)).unwrap_or(last);
        for other in [last, whole] {
            if first.1 != other.1 && !is_one_tick(first, other) {
                return Some(Mismatch::Tie(first.2.clone(), other.2.clone()));
            }
        }
        if newest.first().is_none_or(|before| before.1 < last.1) {
            newest = vec![*last];
        } else if is_whole(last.0) {
            newest.push(*last);
        }
    }
    None
}

fn is_whole(time: Time) -> bool {
    time.1 == 0
}

/// Returns whether two files may have got their times at the same tick or at different ones, by chance.
fn is_one_tick(left: &(Time, Time, &Vec<u8>), right: &(Time, Time, &Vec<u8>)) -> bool {
    // A time that is set has often no fraction: sources, archives, `touch -d`.
    let is_set = [left.0, left.1, right.0, right.1].into_iter().any(is_whole);
    let nanoseconds = |time: Time| i128::from(time.0) * 1_000_000_000 + i128::from(time.1);
    let is_close = |a: Time, b: Time| nanoseconds(a).abs_diff(nanoseconds(b)) <= TICK_NANOSECONDS;
    !is_set && is_close(left.0, right.0) && is_close(left.1, right.1)
}

#[cfg(test)]
pub(super) mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        cache::RecordedLayer,
        jail::trace::{Node, Trace},
    };

    fn node(content: u8, at: i64) -> Node {
        Node {
            mode: 0o10_0644,
            owner: (0, 0),
            device: 0,
            attributes: [0; 32],
            value: Some([content; 32]),
            size: 1,
            modified: Some((at, 0)),
            names_of: None,
        }
    }

    pub(in crate::cache) fn file(content: u8, at: i64) -> Answer {
        Answer::There(node(content, at))
    }

    pub(in crate::cache) fn record(entries: &[(&str, Kinds, Answer)]) -> TraceRecord {
        let paths = entries.iter().map(|(path, kinds, _)| (path.as_bytes().to_vec(), *kinds)).collect();
        TraceRecord {
            asked: Trace { entries: paths, ..Trace::default() },
            answers: entries.iter().map(|(.., answer)| answer.clone()).collect(),
            layer: [7; 32],
            parent: Some("hm1:parent".into()),
            written: RecordedLayer::Nothing,
            run: Uuid::nil(),
            step: "s".into(),
        }
    }

    fn mismatch(record: &TraceRecord, now: &[Answer]) -> Option<String> {
        record.mismatch(&now.iter().collect::<Vec<_>>()).map(|mismatch| mismatch.to_string())
    }

    #[test]
    fn a_record_matches_only_the_same_answers() {
        let it = record(&[("/a", Kinds::CONTENT, file(1, 5)), ("/b", Kinds::ABSENT, Answer::Absent)]);
        assert_eq!(mismatch(&it, &[file(1, 99), Answer::Absent]), None, "times alone are no difference");
        assert_eq!(mismatch(&it, &[file(2, 5), Answer::Absent]).unwrap(), "/a changed");
        assert_eq!(mismatch(&it, &[Answer::Absent, Answer::Absent]).unwrap(), "/a is gone");
        assert_eq!(mismatch(&it, &[file(1, 5), file(1, 5)]).unwrap(), "/b appeared");
        assert_eq!(mismatch(&it, &[file(1, 5), Answer::Unknown(5)]).unwrap(), "/b cannot be examined");
        assert!(mismatch(&it, &[file(1, 5)]).is_some(), "an answer is missing");
    }

    #[test]
    fn a_file_that_became_newer_than_another_is_a_difference() {
        let kinds = Kinds::METADATA;
        let it = record(&[("/a", kinds, file(1, 1)), ("/b", kinds, file(2, 2)), ("/c", kinds, file(3, 2))]);
        let now = |a, b, c| mismatch(&it, &[file(1, a), file(2, b), file(3, c)]);
        for (a, b, c) in [(1, 2, 2), (10, 20, 20)] {
            assert_eq!(now(a, b, c), None, "{a} {b} {c}");
        }
        for (a, b, c) in [(10, 20, 21), (10, 21, 20), (10, 10, 10), (10, 10, 20)] {
            let mismatch = now(a, b, c).unwrap();
            assert!(mismatch.contains("in another order"), "{a} {b} {c}: {mismatch}");
        }
        assert_eq!(now(11, 10, 12).unwrap(), "/a is now newer than /b");
        assert_eq!(now(11, 12, 10).unwrap(), "/a is now newer than /c");
        let at = |times: [(Time, Time); 2]| {
            let path = [b"/a".to_vec(), b"/b".to_vec()];
            other_order(times.iter().zip(&path).map(|((was, is), path)| (*was, *is, path)).collect())
        };
        let (one, next, late) = ((5, 1_000_000), (5, 5_000_000), (5, 900_000_000));
        assert_eq!(at([(one, one), (one, next)]), None, "within a tick of the clock");
        assert_eq!(at([(one, one), (next, one)]), None);
        assert!(at([(one, one), (one, late)]).is_some() && at([(one, one), (late, one)]).is_some());
        assert!(at([(one, next), (next, one)]).is_some(), "the other way round");
        let unread = record(&[("/a", Kinds::LINK, file(1, 1)), ("/b", kinds, file(2, 2))]);
        assert_eq!(mismatch(&unread, &[file(1, 3), file(2, 2)]), None);
    }

    #[test]
    fn names_of_one_file_that_no_longer_are_is_a_difference() {
        let named = |file| Answer::There(Node { names_of: file, ..node(1, 5) });
        let kinds = Kinds::CONTENT;
        let linked = record(&[("/a", kinds, named(Some((1, 2)))), ("/b", kinds, named(Some((1, 2))))]);
        let apart = record(&[("/a", kinds, named(None)), ("/b", kinds, named(Some((1, 2))))]);
        let now = [[None, None], [Some((7, 8)), Some((7, 9))], [Some((7, 8)), Some((7, 8))]];
        for (at, names) in now.into_iter().enumerate() {
            let (differs, now) = (Some("/b changed".to_owned()), names.map(named));
            assert_eq!(mismatch(&linked, &now), differs.clone().filter(|_| at < 2), "{names:?}");
            assert_eq!(mismatch(&apart, &now), differs.filter(|_| at == 2), "{names:?}");
        }
    }
}
