//! Records of what steps read and wrote: how they are keyed, stored and compared.
//!
//! The design is in `docs/design/trace-cache.md`. Nothing here asks a filesystem, and nothing decides what is
//! reused.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ir::Env,
    jail::trace::{Answer, Change, Kinds, Trace},
    store::MAX_TRACE_BYTES,
};

/// Must be increased whenever the same parts produce another key, or a record has another form or meaning.
const VERSION: u8 = 1;
/// The most bytes of a record that is not compressed.
const MAX_BODY_BYTES: u64 = 64 << 20;

/// What is known of a step before it runs, and is no file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StaticParts<'a> {
    pub(crate) project: &'a str,
    pub(crate) command: &'a str,
    pub(crate) env: &'a Env,
    pub(crate) workdir: &'a str,
    /// The runner's name, and its version.
    pub(crate) runner: (&'a str, u32),
    /// How ids are mapped.
    pub(crate) mode: &'a str,
    pub(crate) runner_args: &'a str,
    /// What the lineage starts from.
    pub(crate) base: &'a str,
    /// The names of secrets, and directories of the machine that are shown.
    pub(crate) secrets: &'a [&'a str],
    pub(crate) host_dirs: &'a [&'a [u8]],
    /// What can be asked of the machine by calls that name no path.
    pub(crate) machine: &'a Machine,
}

/// What programs can ask of the machine by calls that name no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) kernel: Vec<u8>,
    pub(crate) name: Vec<u8>,
    pub(crate) processors: u64,
}

impl Machine {
    /// Returns this machine's.
    pub(crate) fn this() -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_bytes().to_vec();
        let kernel = [text(uname.sysname()), text(uname.release()), text(uname.version()), text(uname.machine())];
        let processors = std::thread::available_parallelism().map_or(0, |count| count.get() as u64);
        Self { kernel: kernel.join(&0), name: text(uname.nodename()), processors }
    }
}

impl StaticParts<'_> {
    /// Returns the key under which the step's records are kept.
    pub(crate) fn key(&self) -> [u8; 32] {
        let Self { project, command, env, workdir, runner, mode, runner_args, base, .. } = self;
        let Self { secrets, host_dirs, machine, .. } = self;
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        let version = runner.1.to_le_bytes();
        part(b"hm-exec traced step");
        part(&[VERSION]);
        part(env!("CARGO_PKG_VERSION").as_bytes());
        for text in [project, command, workdir, &runner.0, mode, runner_args, base] {
            part(text.as_bytes());
        }
        part(&version);
        part(std::env::consts::OS.as_bytes());
        part(std::env::consts::ARCH.as_bytes());
        part(&machine.kernel);
        part(&machine.name);
        part(&machine.processors.to_le_bytes());
        part(&(env.len() as u64).to_le_bytes());
        for (name, value) in *env {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(&(secrets.len() as u64).to_le_bytes());
        secrets.iter().for_each(|name| part(name.as_bytes()));
        part(&(host_dirs.len() as u64).to_le_bytes());
        host_dirs.iter().for_each(|dir| part(dir));
        *hasher.finalize().as_bytes()
    }
}

/// A record: what a step found at each path that it read, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceRecord {
    /// The paths, and what the step did with them.
    pub(crate) asked: Trace,
    /// The answers, in the order of the paths.
    pub(crate) answers: Vec<Answer>,
    /// The digest of the layer that it wrote.
    pub(crate) layer: [u8; 32],
    /// The run that made it, and the step there.
    pub(crate) run: Uuid,
    pub(crate) step: String,
}

/// The parts of a stored record.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u8,
    trace: Vec<u8>,
    answers: Vec<Answer>,
    layer: [u8; 32],
    run: Uuid,
    step: String,
}

/// Why a record does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// This path is another one.
    Path(Vec<u8>, Change),
    /// The first file was older than the second, and is newer.
    Order(Vec<u8>, Vec<u8>),
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
        }
    }
}

impl TraceRecord {
    /// Returns the record in its stored form, or `None` if it is too large.
    ///
    /// # Errors
    /// Returns an error if it cannot be encoded.
    pub(crate) fn encode(&self) -> io::Result<Option<Vec<u8>>> {
        let stored = Stored {
            version: VERSION,
            trace: self.asked.encode()?,
            answers: self.answers.clone(),
            layer: self.layer,
            run: self.run,
            step: self.step.clone(),
        };
        let body = postcard::to_stdvec(&stored).map_err(io::Error::other)?;
        let bytes = zstd::stream::encode_all(&body[..], 3)?;
        Ok((bytes.len() <= MAX_TRACE_BYTES && body.len() as u64 <= MAX_BODY_BYTES).then_some(bytes))
    }

    /// Decodes a stored record. Returns `None` if it is damaged or of another version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut body = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(bytes).ok()?;
        decoder.take(MAX_BODY_BYTES + 1).read_to_end(&mut body).ok()?;
        let (Stored { version, trace, answers, layer, run, step }, rest) = postcard::take_from_bytes(&body).ok()?;
        let asked = Trace::decode(&trace).ok()?;
        let is_whole = version == VERSION && rest.is_empty() && answers.len() == asked.entries.len();
        (is_whole && asked.reasons.is_empty()).then_some(Self { asked, answers, layer, run, step })
    }

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
        let (older, newer) = inversion(times.collect())?;
        Some(Mismatch::Order(older.clone(), newer.clone()))
    }
}

/// A time of a file, in seconds and nanoseconds.
type Time = (i64, u32);

/// Returns two paths of which the first was older than the second, and is newer now.
fn inversion(mut times: Vec<(Time, Time, &Vec<u8>)>) -> Option<(&Vec<u8>, &Vec<u8>)> {
    times.sort_unstable();
    // The newest of those that were older than the current group.
    let mut newest: Option<(Time, &Vec<u8>)> = None;
    for group in times.chunk_by(|left, right| left.0 == right.0) {
        for (_, is, path) in group {
            if let Some((before, older)) = newest
                && before > *is
            {
                return Some((older, path));
            }
        }
        let last = group.iter().map(|(_, is, path)| (*is, *path)).max();
        newest = newest.max(last);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::trace::Node;

    fn file(content: u8, at: i64) -> Answer {
        Answer::There(Node {
            mode: 0o10_0644,
            owner: (0, 0),
            device: 0,
            attributes: [0; 32],
            value: Some([content; 32]),
            modified: Some((at, 0)),
        })
    }

    fn record(entries: &[(&str, Kinds, Answer)]) -> TraceRecord {
        let paths = entries.iter().map(|(path, kinds, _)| (path.as_bytes().to_vec(), *kinds)).collect();
        TraceRecord {
            asked: Trace { entries: paths, ..Trace::default() },
            answers: entries.iter().map(|(.., answer)| answer.clone()).collect(),
            layer: [7; 32],
            run: Uuid::nil(),
            step: "s".into(),
        }
    }

    fn mismatch(record: &TraceRecord, now: &[Answer]) -> Option<String> {
        record.mismatch(&now.iter().collect::<Vec<_>>()).map(|mismatch| mismatch.to_string())
    }

    #[test]
    fn a_record_survives_a_round_trip_and_damage_is_no_record() {
        let it = record(&[("/a", Kinds::CONTENT, file(1, 5)), ("/b", Kinds::ABSENT, Answer::Absent)]);
        let encoded = it.encode().unwrap().unwrap();
        assert_eq!(TraceRecord::decode(&encoded), Some(it.clone()));
        for length in 0..encoded.len() {
            assert_eq!(TraceRecord::decode(&encoded[..length]), None, "{length}");
        }
        assert_eq!(TraceRecord::decode(b""), None);
        let short = TraceRecord { answers: vec![Answer::Absent], ..it };
        assert_eq!(TraceRecord::decode(&short.encode().unwrap().unwrap()), None, "an answer is missing");
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
        for (a, b, c) in [(1, 2, 2), (10, 20, 21), (10, 21, 20), (10, 10, 10)] {
            assert_eq!(now(a, b, c), None, "{a} {b} {c}");
        }
        assert_eq!(now(11, 10, 12).unwrap(), "/a is now newer than /b");
        assert_eq!(now(11, 12, 10).unwrap(), "/a is now newer than /c");
        let unread = record(&[("/a", Kinds::LINK, file(1, 1)), ("/b", kinds, file(2, 2))]);
        assert_eq!(mismatch(&unread, &[file(1, 3), file(2, 2)]), None);
    }

    #[test]
    fn each_static_part_changes_the_key() {
        let env = Env::from([("A".to_owned(), "1".to_owned())]);
        let other_env = Env::from([("A".to_owned(), "2".to_owned())]);
        let machine = Machine { kernel: b"6.1".to_vec(), name: b"box".to_vec(), processors: 2 };
        let other = Machine { processors: 3, ..machine.clone() };
        let renamed = Machine { name: b"box2".to_vec(), ..machine.clone() };
        let updated = Machine { kernel: b"6.2".to_vec(), ..machine.clone() };
        let parts = StaticParts {
            project: "path:/p",
            command: "make",
            env: &env,
            workdir: "/workspace",
            runner: ("sandbox", 2),
            mode: "root",
            runner_args: "",
            base: "host",
            secrets: &[],
            host_dirs: &[],
            machine: &machine,
        };
        let keys = [
            parts,
            StaticParts { project: "path:/q", ..parts },
            StaticParts { command: "make -j", ..parts },
            StaticParts { env: &other_env, ..parts },
            StaticParts { workdir: "/", ..parts },
            StaticParts { runner: ("sandbox", 3), ..parts },
            StaticParts { mode: "single", ..parts },
            StaticParts { runner_args: "{}", ..parts },
            StaticParts { base: "sha256:1", ..parts },
            StaticParts { secrets: &["TOKEN"], ..parts },
            StaticParts { host_dirs: &[b"/opt/x"], ..parts },
            StaticParts { machine: &other, ..parts },
            StaticParts { machine: &renamed, ..parts },
            StaticParts { machine: &updated, ..parts },
        ]
        .map(|parts| parts.key());
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(parts.key(), keys[0]);
    }
}
