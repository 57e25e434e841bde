//! Records of what steps read and wrote: how they are keyed, stored and compared.
//!
//! The design is in `docs/design/trace-cache.md`. Nothing here asks a filesystem, and nothing decides what is
//! reused.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ir::Env,
    jail::trace::{Answer, Kinds, Trace},
    model::SnapshotRef,
    store::{LayerId, MAX_TRACE_BYTES},
    tree::FileTime,
};

/// Must be increased whenever the same parts produce another key, or a record has another form or meaning.
const VERSION: u8 = 5;
/// Must be increased whenever the sandbox shows steps something else, or gives them another variable, that is
/// neither in a key nor at a path that can be asked for.
const VIEW_VERSION: u8 = 2;
/// The most bytes of a record that is not compressed.
const MAX_BODY_BYTES: u64 = 64 << 20;

/// The inputs of a step that are known before it runs and are not files.
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
    /// Returns the description of this machine.
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
        part(&[VERSION, VIEW_VERSION]);
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
    /// The parent's snapshot, if there was one, and what to put over another one.
    pub(crate) parent: Option<SnapshotRef>,
    pub(crate) written: RecordedLayer,
    /// The run that made it, and the step there.
    pub(crate) run: Uuid,
    pub(crate) step: String,
}

/// What a step wrote, for a place over another parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RecordedLayer {
    /// It is found over the same parent only, because of this.
    Fixed(String),
    /// It wrote nothing.
    Nothing,
    /// The layer, and when the step started and had ended.
    Layer(LayerId, FileTime, FileTime),
}

/// Stored records of a step, decoded.
#[derive(Debug, Default)]
pub(crate) struct StoredRecords {
    /// The records, in their order, and their stored forms.
    pub(crate) records: Vec<(TraceRecord, Vec<u8>)>,
    /// All of their paths, with everything that is asked about them.
    pub(crate) asked: BTreeMap<Vec<u8>, Kinds>,
}

impl StoredRecords {
    /// Decodes stored records one after the other, until they have more than `most_paths` paths, or paths of
    /// more than `most_bytes`: the rest is left out, as is what is damaged or of another version.
    pub(crate) fn decode(stored: Vec<Vec<u8>>, most_paths: usize, most_bytes: usize) -> Self {
        let mut decoded = Self::default();
        let (mut paths, mut bytes) = (0, 0);
        for stored in stored {
            let Some(record) = TraceRecord::decode(&stored) else { continue };
            let entries = &record.asked.entries;
            // Paths that several records have count for each: each record takes memory of its own.
            paths += entries.len();
            bytes += entries.keys().map(Vec::len).sum::<usize>();
            if paths > most_paths || bytes > most_bytes {
                break;
            }
            for (path, kinds) in entries {
                let known = decoded.asked.entry(path.clone()).or_default();
                *known = known.and(*kinds);
            }
            decoded.records.push((record, stored));
        }
        decoded
    }
}

/// The parts of a stored record.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u8,
    trace: Vec<u8>,
    answers: Vec<Answer>,
    layer: [u8; 32],
    parent: Option<String>,
    written: RecordedLayer,
    run: Uuid,
    step: String,
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
            parent: self.parent.as_ref().map(|parent| (*parent.0).to_owned()),
            written: self.written.clone(),
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
        let (stored, rest) = postcard::take_from_bytes::<Stored>(&body).ok()?;
        let Stored { version, trace, answers, layer, parent, written, run, step } = stored;
        let asked = Trace::decode(&trace).ok()?;
        let is_whole = version == VERSION && rest.is_empty() && answers.len() == asked.entries.len();
        (is_whole && asked.reasons.is_empty()).then(|| {
            let parent = parent.map(SnapshotRef::from);
            Self { asked, answers, layer, parent, written, run, step }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::trace_mismatch::tests::{file, record},
        *,
    };

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
    fn times_that_changed_are_told_with_those_that_were_the_same() {
        let it = record(&[
            ("/a", Kinds::CONTENT, file(1, 5)),
            ("/b", Kinds::CONTENT, file(1, 6)),
            ("/c", Kinds::WRITTEN, file(1, 6)),
            ("/d", Kinds::ABSENT, Answer::Absent),
        ]);
        let now = [file(1, 5), file(1, 7), file(1, 6), Answer::Absent];
        assert_eq!(it.changed_times(&now.iter().collect::<Vec<_>>()), [((6, 0), (6, 0)), ((6, 0), (7, 0))]);
    }

    #[test]
    fn records_are_decoded_until_they_are_too_many_and_what_is_damaged_is_left_out() {
        let one = record(&[("/a", Kinds::CONTENT, file(1, 5)), ("/b", Kinds::METADATA, file(1, 5))]);
        let two = record(&[("/a", Kinds::LISTING, file(1, 5)), ("/cc", Kinds::CONTENT, file(1, 5))]);
        let stored: Vec<Vec<u8>> = vec![
            one.encode().unwrap().unwrap(),
            b"damaged".to_vec(),
            two.encode().unwrap().unwrap(),
            one.encode().unwrap().unwrap(),
        ];
        let decode = |most_paths, most_bytes| {
            let decoded = StoredRecords::decode(stored.clone(), most_paths, most_bytes);
            let records: Vec<_> = decoded.records.into_iter().map(|(record, _)| record).collect();
            (records, decoded.asked.len())
        };
        assert_eq!(decode(100, 100), (vec![one.clone(), two.clone(), one.clone()], 3));
        assert_eq!(decode(6, 13), (vec![one.clone(), two.clone(), one.clone()], 3));
        assert_eq!(decode(5, 100), (vec![one.clone(), two.clone()], 3), "paths");
        assert_eq!(decode(100, 9), (vec![one.clone(), two], 3), "their bytes");
        assert_eq!(decode(3, 100), (vec![one], 2));
        assert_eq!(decode(1, 100), (vec![], 0));
        let asked = StoredRecords::decode(stored.clone(), 100, 100).asked;
        assert_eq!(asked[&b"/a"[..]], Kinds::CONTENT.and(Kinds::LISTING));
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
