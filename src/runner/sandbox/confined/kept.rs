//! Outputs of confined programs that are found by what the programs read.
//!
//! ```text
//! find_output ──▶ key of the order ──▶ records ──▶ statuses, else answers, of their paths ──▶ output
//! run_and_keep ──▶ traced run ──▶ answers to what it read of the views, which must not have changed ──▶ record
//! ```
//!
//! A confined program sees files of the machine at their own paths, and a root in memory that its order
//! describes. So this process can ask for everything that the program can have read. The design is in
//! `docs/design/trace-cache.md`, "Rendered pipelines".

use std::{
    ffi::OsStr,
    io::Read,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use rustix::{
    fs::FileType,
    process::{getegid, geteuid, getgroups},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ConfinedCommand, ConfinedEnd, ConfinedError, ConfinedOutput, Order, failed};
use crate::{
    cache::{Machine, RecordedLayer, StaticParts, TraceRecord, sealed},
    ir::Env,
    jail::trace::{Answer, Kinds, Reason, Status, Trace, answer_here, check_support},
    runner::sandbox::{
        clock::{MARGIN, boot_id, since_1970, was_set},
        traced::TraceFile,
    },
    store::{MAX_TRACE_BYTES, Store, StoreError},
};

/// Must be increased whenever confined programs are shown something else that their order does not have.
const VIEW_VERSION: u32 = 1;
/// Must be increased whenever a record has another form or meaning.
const VERSION: u8 = 1;
/// The most bytes of standard error that are kept.
const MAX_STDERR_BYTES: usize = 64 << 10;
/// The most bytes of a record that is not compressed.
const MAX_BODY_BYTES: u64 = 64 << 20;
/// The most bytes of files that are read for one look.
const MAX_HASHED_BYTES: u64 = 1 << 30;

/// The store that keeps outputs, and the project that they belong to.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "a caller says all of it")]
pub struct KeptOutputs<'a> {
    /// The store.
    pub store: &'a Store,
    /// The project's identity, or `None` for a program of the user's alone. Outputs of others are not
    /// found.
    pub project: Option<&'a str>,
}

/// What a program printed in an earlier run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptOutput {
    /// Its output to standard output.
    pub stdout: Vec<u8>,
    /// Its output to standard error.
    pub stderr: Vec<u8>,
    /// When it was started.
    pub started: SystemTime,
}

/// What a program read, and what it printed.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u8,
    /// The paths and answers, in the form of steps' records. In place of a layer's digest, it has that of the
    /// output.
    record: Vec<u8>,
    /// The statuses of what the answers read content of, if they can be trusted.
    statuses: Vec<Option<Status>>,
    /// When they were looked at, since 1970, and in which boot of the machine.
    looked: Duration,
    boot: String,
    started: SystemTime,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// A record, decoded.
#[derive(Debug, Clone)]
struct Kept {
    record: TraceRecord,
    statuses: Vec<Option<Status>>,
    looked: Duration,
    boot: String,
    output: KeptOutput,
}

impl ConfinedCommand {
    /// Returns what an earlier run of the same command printed, if everything that it read is as it was.
    /// Starts no process. A failure finds nothing.
    #[must_use]
    pub fn find_output(&self, kept: KeptOutputs<'_>) -> Option<KeptOutput> {
        let key = key(&self.order().ok()?, kept.project)?;
        let found = find(kept.store, &key);
        found.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for an earlier output");
            None
        })
    }

    /// Runs the program as [`run`](Self::run) does, but traced, and keeps its output if it passes and
    /// `is_result` takes its standard output. On a machine that cannot trace, or if something that it depends
    /// on cannot be traced, nothing is kept.
    ///
    /// # Errors
    /// Returns an error if the program did not run. A failure to keep its output is none.
    pub fn run_and_keep(
        &self,
        kept: KeptOutputs<'_>,
        is_result: &dyn Fn(&[u8]) -> bool,
        on_stderr: &mut dyn FnMut(&[u8]),
    ) -> Result<ConfinedOutput, ConfinedError> {
        if check_support().is_err() {
            return self.run(on_stderr);
        }
        let order = self.order()?;
        let file = TraceFile::new().map_err(failed("make a file for a trace"))?;
        let started = (SystemTime::now(), Instant::now());
        let views = views(&order);
        let mut stderr = Vec::new();
        let mut both = |bytes: &[u8]| {
            on_stderr(bytes);
            if stderr.len() <= MAX_STDERR_BYTES {
                stderr.extend_from_slice(bytes);
            }
        };
        let output = match self.run_order(&order, Some(file.as_fd()), &mut both) {
            Ok(Some(output)) => output,
            // The tracer may be what this machine does not allow.
            Ok(None) | Err(ConfinedError::NoSandbox { .. }) => return self.run(on_stderr),
            Err(error) => return Err(error),
        };
        let passed = output.end == ConfinedEnd::Exited { code: 0 } && stderr.len() <= MAX_STDERR_BYTES;
        if passed && is_result(&output.stdout) {
            let printed = KeptOutput { stdout: output.stdout.clone(), stderr, started: started.0 };
            let trace = file.read().map_err(|error| error.to_string());
            let record = trace.and_then(|trace| Kept::of_trace(trace, printed, (&order, &views, kept), started));
            match record.map(|record| record.encode()) {
                Ok(Some(record)) => keep(kept, &order, &record),
                Ok(None) => tracing::info!("the output of a confined program is not kept: it is too large"),
                Err(reason) => tracing::info!("the output of a confined program is not kept: {reason}"),
            }
        }
        Ok(output)
    }
}

/// Returns which directories are at the paths that the program is shown, and above them. What the
/// program sees there stays if another one takes the place.
fn views(order: &Order) -> Vec<Option<(u64, u64)>> {
    let paths = order.binds.iter().flat_map(|bind| Path::new(OsStr::from_bytes(bind.target.to_bytes())).ancestors());
    paths.map(|path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))).collect()
}

/// Returns the key of a command's records.
fn key(order: &Order, project: Option<&str>) -> Option<[u8; 32]> {
    let order = blake3::hash(&postcard::to_stdvec(order).ok()?).to_hex();
    let groups: Vec<u32> = getgroups().ok()?.iter().map(|group| group.as_raw()).collect();
    let parts = StaticParts {
        project: project.unwrap_or_default(),
        command: &order,
        env: &Env::new(),
        workdir: "",
        runner: ("confined", VIEW_VERSION),
        mode: &format!("{}:{}:{groups:?}", geteuid().as_raw(), getegid().as_raw()),
        runner_args: "",
        base: "",
        secrets: &[],
        host_dirs: &[],
        machine: &Machine::this(),
    };
    Some(parts.key())
}

fn find(store: &Store, key: &[u8; 32]) -> Result<Option<KeptOutput>, StoreError> {
    let mut left = MAX_HASHED_BYTES;
    let boot = boot_id();
    for bytes in store.traces().of(key)? {
        // What is damaged, or of another version, is as none.
        let Some(kept) = Kept::decode(&bytes) else { continue };
        let now = since_1970(SystemTime::now());
        let Some(statuses) = kept.matches((now, boot), &mut left) else { continue };
        let is_newer = |(known, now): (&Option<Status>, &Option<Status>)| now.is_some() && known != now;
        let is_renewed = kept.statuses.iter().zip(&statuses).any(is_newer);
        let renewed = is_renewed
            .then(|| Kept { statuses, looked: now, boot: boot.to_owned(), ..kept.clone() }.encode())
            .flatten();
        let used = match &renewed {
            Some(renewed) => store.traces().replace(key, &bytes, renewed),
            None => store.traces().touch(key, &bytes),
        };
        if let Err(error) = used {
            // On a full disk, the output is as good.
            tracing::info!(error = &error as &dyn std::error::Error, "the use of an output is not recorded");
        }
        return Ok(Some(kept.output));
    }
    Ok(None)
}

/// Keeps a record. If that fails, the program runs again next time.
fn keep(kept: KeptOutputs<'_>, order: &Order, record: &[u8]) {
    let Some(key) = key(order, kept.project) else { return };
    if let Err(error) = kept.store.traces().keep(&key, record) {
        tracing::info!(error = &error as &dyn std::error::Error, "the output of a confined program is not kept");
    }
}

impl Kept {
    /// Returns the record of a program's trace, or why there is none.
    fn of_trace(
        trace: Trace,
        output: KeptOutput,
        (order, views, of): (&Order, &[Option<(u64, u64)>], KeptOutputs<'_>),
        started: (SystemTime, Instant),
    ) -> Result<Self, String> {
        let Trace { mut reasons, mut entries, .. } = trace;
        // Without `/sys`, the C library counts processors here. Their number is in the key, and the rest are
        // clocks.
        reasons.remove(&Reason::KernelFile(b"/proc/stat".to_vec()));
        if !reasons.is_empty() {
            return Err(reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; "));
        }
        // Everything else is in the key: the root in memory, and which files are shown empty.
        entries.retain(|path, _| is_shown(order, path));
        let (looked, mut left) = (since_1970(SystemTime::now()), MAX_HASHED_BYTES);
        let looks = entries.iter().map(|(path, kinds)| {
            let (answer, status) = look(path, *kinds, None, &mut left);
            let status = status.filter(|status| is_settled(&answer, status, looked));
            (answer, status)
        });
        let (answers, statuses): (Vec<_>, Vec<_>) = looks.unzip();
        let asked = || entries.iter().zip(&answers);
        let unfit = asked().find(|((_, kinds), answer)| !answer.fits(**kinds) || is_from_others(answer, **kinds));
        // Looked at last, so that no change escapes both.
        let since = since_1970(started.0).saturating_sub(MARGIN);
        let changed = || asked().find(|((path, kinds), answer)| has_changed(path, **kinds, answer, since, of));
        let reason = match unfit {
            Some(((path, _), _)) => Some(Reason::Contradiction(path.clone())),
            None => changed().map(|((path, _), _)| Reason::Changed(path.clone())),
        };
        if let Some(reason) = reason.or_else(|| was_set(started).then_some(Reason::Clock)) {
            return Err(reason.to_string());
        }
        if self::views(order) != views {
            return Err("a directory that it was shown was replaced while it ran".to_owned());
        }
        let asked = Trace { entries, ..Trace::default() };
        let layer = output.digest();
        let (written, run, step) = (RecordedLayer::Nothing, Uuid::nil(), String::new());
        let record = TraceRecord { asked, answers, layer, parent: None, written, run, step };
        Ok(Self { record, statuses, looked, boot: boot_id().to_owned(), output })
    }

    /// Returns the statuses of its paths now, in this boot, if everything is as it was. `left` is how
    /// many bytes of files may still be read.
    fn matches(&self, (now, boot): (Duration, &str), left: &mut u64) -> Option<Vec<Option<Status>>> {
        // What changed before a clock was set back may have any status.
        let is_later = self.looked <= now && self.boot == boot;
        let (mut answers, mut statuses) = (Vec::new(), Vec::new());
        let paths = self.record.asked.entries.iter().zip(&self.record.answers).zip(&self.statuses);
        for (((path, kinds), was), known) in paths {
            let earlier = known.as_ref().filter(|_| is_later).map(|known| (was, known));
            let (is, status) = look(path, *kinds, earlier, left);
            if is.change_since(was, *kinds).is_some() || time_of(&is) != time_of(was) {
                return None;
            }
            statuses.push(status.filter(|status| is_settled(&is, status, now)));
            answers.push(is);
        }
        let answers: Vec<&Answer> = answers.iter().collect();
        self.record.mismatch(&answers).is_none().then_some(statuses)
    }

    /// Returns the stored form, or `None` if it is too large.
    fn encode(&self) -> Option<Vec<u8>> {
        let stored = Stored {
            version: VERSION,
            record: self.record.encode().ok()??,
            statuses: self.statuses.clone(),
            looked: self.looked,
            boot: self.boot.clone(),
            started: self.output.started,
            stdout: self.output.stdout.clone(),
            stderr: self.output.stderr.clone(),
        };
        let body = postcard::to_stdvec(&stored).ok().filter(|body| body.len() as u64 <= MAX_BODY_BYTES)?;
        let body = zstd::stream::encode_all(&body[..], 3).ok()?;
        let bytes = sealed::seal(&body);
        (bytes.len() <= MAX_TRACE_BYTES).then_some(bytes)
    }

    /// Decodes the stored form. Returns `None` if it is damaged or of another version.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let packed = sealed::open(bytes)?;
        let mut body = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
        decoder.take(MAX_BODY_BYTES + 1).read_to_end(&mut body).ok()?;
        let (Stored { version, record, statuses, looked, boot, started, stdout, stderr }, rest) =
            postcard::take_from_bytes(&body).ok()?;
        let (record, output) = (TraceRecord::decode(&record)?, KeptOutput { stdout, stderr, started });
        let is_whole = version == VERSION && rest.is_empty() && statuses.len() == record.answers.len();
        (is_whole && record.layer == output.digest()).then_some(Self { record, statuses, looked, boot, output })
    }
}

impl KeptOutput {
    fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.stdout.len() as u64).to_le_bytes()).update(&self.stdout).update(&self.stderr);
        *hasher.finalize().as_bytes()
    }
}

/// Returns whether a path is below one that is shown, and not shown empty.
fn is_shown(order: &Order, path: &[u8]) -> bool {
    let is_below = |view: &[u8]| path.strip_prefix(view).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
    order.binds.iter().any(|bind| is_below(bind.target.to_bytes()))
        && !order.root.hidden.iter().any(|hidden| hidden.to_bytes() == path)
}

/// Returns whether what was read of a path is no content that it has, but what another process wrote there.
fn is_from_others(answer: &Answer, kinds: Kinds) -> bool {
    let is_file = |file_type| matches!(file_type, FileType::RegularFile | FileType::Directory | FileType::Symlink);
    kinds.contains(Kinds::CONTENT) && matches!(answer, Answer::There(node) if !is_file(node.file_type()))
}

/// Returns whether something that a program read may have been another one when it read it.
fn has_changed(path: &[u8], kinds: Kinds, answer: &Answer, since: Duration, of: KeptOutputs<'_>) -> bool {
    // What is absent was absent then, too: otherwise the answer would not fit.
    let Answer::There(node) = answer else { return false };
    let Ok(Some(status)) = Status::at(path) else { return true };
    // Also of a directory that was only passed through: another one may have taken its place. A program
    // of the user's alone passes through `/tmp` and home directories, in which entries come and go all
    // the time.
    let is_passed_through = node.file_type() == FileType::Directory && !kinds.contains(Kinds::LISTING);
    status.is_since(since) && !(of.project.is_none() && is_passed_through && status.is_of_content())
}

/// Answers for a path, without the times of directories and links. Python asks for those of the
/// directories that it imports from, to know whether the names that it remembers are theirs.
fn look(path: &[u8], kinds: Kinds, earlier: Option<(&Answer, &Status)>, left: &mut u64) -> (Answer, Option<Status>) {
    let (mut answer, status) = answer_here(path, kinds, earlier, left);
    if let Answer::There(node) = &mut answer
        && node.file_type() != FileType::RegularFile
    {
        node.modified = None;
    }
    (answer, status)
}

/// Returns the time of a file, which the program may have compared with one that it has written down,
/// as Python does. Unlike steps, it sees the real ones.
fn time_of(answer: &Answer) -> Option<(i64, u32)> {
    match answer {
        Answer::There(node) => node.modified,
        _ => None,
    }
}

/// Returns whether the status of what was looked at stands for the answer: only if any later change has
/// another one. The other answers are as quick as a status.
fn is_settled(answer: &Answer, status: &Status, looked: Duration) -> bool {
    let has_content = matches!(answer, Answer::There(node) if node.value.is_some());
    has_content && !status.is_since(looked.saturating_sub(MARGIN))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, time::UNIX_EPOCH};

    use super::*;

    /// Returns the record of a program that read the files of a directory, as of a time.
    fn kept(dir: &Path, names: &[&str], looked: Duration) -> Kept {
        let path = |name: &&str| dir.join(name).as_os_str().as_bytes().to_vec();
        let entries: BTreeMap<_, _> = names.iter().map(|name| (path(name), Kinds::CONTENT)).collect();
        let looks = entries.iter().map(|(path, kinds)| {
            let (answer, status) = look(path, *kinds, None, &mut MAX_HASHED_BYTES.clone());
            let status = status.filter(|status| is_settled(&answer, status, looked));
            (answer, status)
        });
        let (answers, statuses): (Vec<_>, Vec<_>) = looks.unzip();
        let output = KeptOutput { stdout: b"out".to_vec(), stderr: b"err".to_vec(), started: UNIX_EPOCH };
        let asked = Trace { entries, ..Trace::default() };
        let record = TraceRecord {
            asked,
            answers,
            layer: output.digest(),
            parent: None,
            written: RecordedLayer::Nothing,
            run: Uuid::nil(),
            step: String::new(),
        };
        Kept { record, statuses, looked, boot: "this".to_owned(), output }
    }

    fn matches(kept: &Kept, now: Duration) -> bool {
        kept.matches((now, "this"), &mut MAX_HASHED_BYTES.clone()).is_some()
    }

    fn dir() -> (tempfile::TempDir, std::path::PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().canonicalize().unwrap();
        fs::write(dir.join("a"), "1").unwrap();
        fs::write(dir.join("b"), "1").unwrap();
        (top, dir)
    }

    #[test]
    fn each_damaged_byte_is_no_record() {
        let (_top, dir) = dir();
        let bytes = kept(&dir, &["a", "b", "absent"], Duration::ZERO).encode().unwrap();
        assert_eq!(Kept::decode(&bytes).unwrap().output.stdout, b"out");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Kept::decode(&damaged).is_none(), "byte {at}");
            assert!(Kept::decode(&bytes[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_status_counts_only_if_it_is_old_and_the_clock_was_not_set_back() {
        let (_top, dir) = dir();
        let now = since_1970(SystemTime::now());
        let young = kept(&dir, &["a", "b"], now);
        assert!(young.statuses.iter().all(Option::is_none), "{:?}", young.statuses);
        let later = now + Duration::from_secs(10);
        let mut old = kept(&dir, &["a", "b"], later);
        assert!(old.statuses.iter().all(Option::is_some));
        // Only what is read again can differ from the answers.
        old.record.answers.iter_mut().for_each(|answer| {
            if let Answer::There(node) = answer {
                node.value = Some([9; 32]);
            }
        });
        assert!(matches(&old, later), "nothing was read");
        assert!(!matches(&old, now), "the clock is before the look");
        let other = old.matches((later, "other"), &mut MAX_HASHED_BYTES.clone());
        assert!(other.is_none(), "the machine has booted since");
    }

    #[test]
    fn where_changes_give_no_time_no_status_counts() {
        let (answer, status) = answer_here(b"/proc/uptime", Kinds::CONTENT, None, &mut MAX_HASHED_BYTES.clone());
        assert!(matches!(answer, Answer::There(_)) && status.is_none(), "{answer:?} {status:?}");
    }

    #[test]
    fn an_edit_that_keeps_size_and_time_is_seen() {
        let (_top, dir) = dir();
        let later = since_1970(SystemTime::now()) + Duration::from_secs(10);
        let it = kept(&dir, &["a", "b"], later);
        let time = fs::metadata(dir.join("a")).unwrap().modified().unwrap();
        assert!(matches(&it, later));
        fs::write(dir.join("a"), "2").unwrap();
        fs::File::options().write(true).open(dir.join("a")).unwrap().set_modified(time).unwrap();
        assert!(!matches(&it, later));
        fs::write(dir.join("a"), "1").unwrap();
        fs::File::options().write(true).open(dir.join("a")).unwrap().set_modified(time).unwrap();
        assert!(matches(&it, later), "the content counts");
        let earlier = time - Duration::from_secs(10);
        fs::File::options().write(true).open(dir.join("a")).unwrap().set_modified(earlier).unwrap();
        assert!(!matches(&it, later), "Python compares the time with one that it has written down");
    }
}
