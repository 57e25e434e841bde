//! Look-ups by what steps read, and shadow mode, which predicts whether a step would be found, and compares
//! that with what it does. See `docs/design/trace-cache.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::MemfdFlags;

use super::{
    attempt,
    boot::{Boot, SeenSource, failed},
    clock::{MARGIN, since_1970, was_set},
    jail::{
        Pack, Root,
        trace::{Answer, Reason, Trace, decode_answers},
    },
    own_network::StepNamespace,
    runner::SandboxRunner,
    step_spec::step_spec,
    traced::Once,
    view::Sought,
};
use crate::{
    cache::{Machine, RecordedLayer, StaticParts, StoredRecords, TraceRecord},
    model::{ShadowVerdict, SnapshotRef},
    runner::{Limits, RunnerError, RunnerErrorKind, ShadowMode, StepRunner, image_notes::no_image},
    source::SourceTimes,
    store::{Base, LayerId, Store, StoreError, layer_digest, no_layer_digest},
    tree::FileTime,
};

/// The most paths that are asked for at once, for all records together.
const MAX_ASKED: usize = 500_000;
/// The most bytes of all these paths.
const MAX_ASKED_BYTES: usize = 32 << 20;

/// An attempt in shadow mode.
#[derive(Debug)]
pub(super) struct Shadowed {
    mode: Arc<ShadowMode>,
    /// The static key, and the prediction. `None` if the look-up failed.
    looked_up: Option<LookedUp>,
    started: (SystemTime, Instant),
    /// What the step read, once it passed: a record without its layer, or why there is none.
    read: Option<Confirmed>,
}

/// The paths that a step read, and the answers to them; or why there is no record.
pub(super) type Confirmed = Result<(Trace, Vec<Answer>), BTreeSet<Reason>>;

#[derive(Debug)]
struct LookedUp {
    key: [u8; 32],
    found: Result<Box<FoundRecord>, Option<String>>,
}

/// The records that match, the last used first; and how the first of the others differs.
#[derive(Debug)]
pub(super) struct Matching {
    /// The static key.
    pub(super) key: [u8; 32],
    pub(super) records: Vec<FoundRecord>,
    pub(super) mismatch: Option<String>,
    /// The source that the step would see. `None` if nothing was asked.
    pub(super) seen: Option<SeenSource>,
}

impl LookedUp {
    fn newest(matching: Matching) -> Self {
        let Matching { key, records, mismatch, .. } = matching;
        Self { key, found: records.into_iter().next().map(Box::new).ok_or(mismatch) }
    }
}

/// A record that matches, and its stored form.
#[derive(Debug)]
pub(super) struct FoundRecord {
    pub(super) record: TraceRecord,
    pub(super) bytes: Vec<u8>,
    /// The times of files that it read which have another one now, and those.
    pub(super) changed: Vec<(FileTime, FileTime)>,
}

/// The digest of what a step wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrittenDigest {
    /// It has no snapshot.
    None,
    /// It is no longer a layer of its own.
    Merged,
    Of([u8; 32]),
}

/// What a step wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    Nothing,
    Layer(LayerId),
    /// It is no longer a layer of its own.
    Merged,
}

impl Shadowed {
    /// Records that the step ran untraced, because one of its programs traces others.
    pub(super) fn untraced(&mut self) {
        self.read = Some(Err([Reason::OwnFilter].into()));
    }
}

impl SandboxRunner {
    /// Predicts whether a step that is about to run would be found. A failure is a warning, unless the build
    /// was cancelled: the user knows that.
    pub(super) async fn predict(&self, once: Once<'_>, mode: &Arc<ShadowMode>) -> Box<Shadowed> {
        let looked_up = async {
            let key = self.static_key(once.sought(), &self.base_of(once.sought()).await?, mode.project());
            self.look_up_records(once, key).await
        };
        let looked_up = looked_up
            .await
            .map(LookedUp::newest)
            .inspect_err(|error| {
                let step = &once.input.step.key;
                mode.add_failure();
                if error.kind() != RunnerErrorKind::Cancelled {
                    tracing::warn!("step {step} was not looked up by what it read: {}", error.to_line());
                }
            })
            .ok();
        let started = (SystemTime::now(), Instant::now());
        Box::new(Shadowed { mode: Arc::clone(mode), looked_up, started, read: None })
    }

    /// Looks up which records of a step match what it would read now.
    pub(super) async fn look_up_records(&self, once: Once<'_>, key: [u8; 32]) -> Result<Matching, RunnerError> {
        let Once { store, .. } = once;
        let reading = Arc::clone(store);
        let records = RunnerError::blocking("read the records of earlier traces", move || {
            Ok(StoredRecords::decode(reading.traces().of(&key)?, MAX_ASKED, MAX_ASKED_BYTES))
        });
        let StoredRecords { records, asked } = records.await?;
        // The step boots with a delta of the source that the look-up does not.
        if records.is_empty() || !once.limits.caches.is_empty() {
            return Ok(Matching { key, records: Vec::new(), mismatch: None, seen: None });
        }
        let paths: Vec<Vec<u8>> = asked.keys().cloned().collect();
        let boot = self.boot_context(once.store, once.zygote).hiding(once.limits).boot(once.ctx, once.input).await?;
        let seen = Some(boot.seen.clone());
        let answers = self.ask(once, boot, Trace { entries: asked, ..Trace::default() }).await?;
        let answers: BTreeMap<&[u8], &Answer> = paths.iter().map(Vec::as_slice).zip(&answers).collect();
        let (mut matching, mut first) = (Vec::new(), None);
        for (record, bytes) in records {
            let now: Vec<&Answer> =
                record.asked.entries.keys().filter_map(|path| answers.get(&path[..]).copied()).collect();
            match record.mismatch(&now) {
                None => {
                    let changed = record.changed_times(&now);
                    matching.push(FoundRecord { record, bytes, changed });
                }
                Some(mismatch) => first = first.or(Some(mismatch.to_string())),
            }
        }
        Ok(Matching { key, records: matching, mismatch: first, seen })
    }

    /// Returns what the lineage of a step starts from. An image need not be in the store.
    pub(super) async fn base_of(&self, sought: Sought<'_>) -> Result<Base, RunnerError> {
        let Sought { store, input, .. } = sought;
        match (&input.parent_snapshot, &input.step.image) {
            (Some(parent), _) => {
                let parent = store.snapshots().get(parent).map_err(failed("read the parent's snapshot"))?;
                Ok(parent.base.clone())
            }
            (None, Some(image)) => Box::pin(self.images.pin(store, image, &())).await.map_err(no_image),
            (None, None) => Ok(Base::Host),
        }
    }

    /// Returns the key of a step's records.
    pub(super) fn static_key(&self, sought: Sought<'_>, base: &Base, project: &str) -> [u8; 32] {
        let Sought { ctx, input, id_map, .. } = sought;
        let host_dirs: Vec<&[u8]> = self.host_dirs().iter().map(|dir| dir.as_os_str().as_bytes()).collect();
        let secrets: Vec<&str> = ctx.secrets.iter().map(|(name, _)| name).collect();
        let parts = StaticParts {
            project,
            command: &input.step.cmd,
            env: &input.env,
            workdir: &input.workdir,
            runner: (Self::NAME, Self::CACHE_VERSION),
            mode: id_map.as_str(),
            // With cache directories, below which nothing is traced.
            runner_args: &input.step.runner_args.as_ref().map(ToString::to_string).unwrap_or_default(),
            base: &base.to_string(),
            secrets: &secrets,
            host_dirs: &host_dirs,
            machine: &Machine::this(),
        };
        parts.key()
    }

    /// Asks what is at the paths of a trace in the filesystem of `boot`, which is the step's own.
    async fn ask(&self, once: Once<'_>, boot: Boot, asked: Trace) -> Result<Vec<Answer>, RunnerError> {
        let Once { store, zygote, ctx, input, limits } = once;
        let doing = "look at the paths of a trace";
        let failed = |error: io::Error| RunnerError::infrastructure(doing, error);
        let limited = self.hold(&Limits::default());
        let jail = self.jail(zygote, store.dir(), Root::Overlay(boot.root.clone()))?;
        let mut spec = step_spec(jail, &boot, (limits, &limited), ctx, input)?;
        spec.pack = Some(Pack::Answers);
        (spec.argv, spec.overlays, spec.watch, spec.memory_bytes) = (Vec::new(), Vec::new(), None, None);
        spec.shares_network = false;
        let count = asked.entries.len();
        let file =
            || rustix::fs::memfd_create(c"hm-answers", MemfdFlags::CLOEXEC).map(File::from).map_err(io::Error::from);
        let mut request = file().map_err(failed)?;
        let answers = file().map_err(failed)?;
        request.write_all(&asked.encode().map_err(failed)?).and_then(|()| request.rewind()).map_err(failed)?;
        let null: OwnedFd = File::options().write(true).open("/dev/null").map_err(failed)?.into();
        let fds = [answers.as_fd(), null.as_fd(), request.as_fd()];
        // Hashing may take long. If the future is dropped, the process is killed.
        let ended = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            ended = attempt::run_on(zygote, &spec, StepNamespace::Loopback, &fds) => ended.map_err(failed)?,
        };
        boot.discard();
        ended.map_err(attempt::setup_error)?;
        let mut bytes = Vec::new();
        let mut answers = answers;
        answers.rewind().and_then(|()| answers.read_to_end(&mut bytes)).map_err(failed)?;
        decode_answers(&bytes, count).map_err(failed)
    }

    /// Takes the trace of the command, which has passed; `None` if it could not be kept. The answers to its
    /// paths are those of the layers below it, which have not changed since.
    pub(super) async fn confirm(&self, once: Once<'_>, shadowed: &mut Shadowed, trace: Option<Trace>) {
        let Some(trace) = trace else { return shadowed.mode.add_failure() };
        let read = self.confirmed(once, shadowed.started, trace).await;
        shadowed.read = read
            .inspect_err(|error| {
                let step = &once.input.step.key;
                shadowed.mode.add_failure();
                if error.kind() != RunnerErrorKind::Cancelled {
                    tracing::warn!("what step {step} read was not kept: {}", error.to_line());
                }
            })
            .ok();
    }

    pub(super) async fn confirmed(
        &self,
        once: Once<'_>,
        started: (SystemTime, Instant),
        trace: Trace,
    ) -> Result<Confirmed, RunnerError> {
        let Once { store, ctx, input, .. } = once;
        let Trace { mut reasons, entries, .. } = trace;
        reasons.extend((!input.inputs().is_empty()).then_some(Reason::OtherSteps));
        let is_real = ctx.archives.source_times() == SourceTimes::Real;
        reasons.extend(is_real.then_some(Reason::RealTimes));
        reasons.extend((!once.limits.caches.is_empty()).then_some(Reason::CacheDirs));
        if !reasons.is_empty() {
            return Ok(Err(reasons));
        }
        let boot = self.boot_context(once.store, once.zygote).hiding(once.limits).boot(once.ctx, once.input).await?;
        let dirs = boot.machine_dirs(store.dir());
        let asked = Trace { entries, ..Trace::default() };
        let answers = self.ask(once, boot, asked.clone()).await?;
        for ((path, kinds), answer) in asked.entries.iter().zip(&answers) {
            if !answer.fits(*kinds) {
                reasons.insert(Reason::Contradiction(path.clone()));
                break;
            }
        }
        // Looked at last, so that no change escapes both.
        let changed = RunnerError::blocking("look for changes of the machine's files", {
            let paths: Vec<Vec<u8>> = asked.entries.keys().cloned().collect();
            move || Ok(changed_since(&dirs, &paths, started.0))
        });
        reasons.extend(changed.await?.map(Reason::Changed));
        reasons.extend(was_set(started).then_some(Reason::Clock));
        Ok(if reasons.is_empty() { Ok((asked, answers)) } else { Err(reasons) })
    }
}

/// Compares the prediction with the end of the step, and keeps the record of what it read.
pub(super) async fn judge(
    once: Once<'_>,
    shadowed: Box<Shadowed>,
    (code, snapshot): (Option<i32>, Option<&SnapshotRef>),
) {
    let Once { store, input, .. } = once;
    let step = &input.step.key;
    let Shadowed { mode, looked_up: Some(LookedUp { key, found }), read, .. } = *shadowed else { return };
    if let (Some(0), None) = (code, snapshot) {
        // Its layer could not be committed, which was a warning.
        return mode.add_failure();
    }
    let written = match snapshot {
        Some(snapshot) => match digest_of_written(store, input.parent_snapshot.as_ref(), snapshot).await {
            Ok(written) => written,
            Err(error) => {
                mode.add_failure();
                tracing::warn!("step {step} was not compared: {}", error.to_line());
                return;
            }
        },
        None => WrittenDigest::None,
    };
    let mut verdict = ShadowVerdict::default();
    match &found {
        Ok(found) => {
            verdict.found = true;
            verdict.difference = difference(&found.record, code, written);
            if code.is_none() || written == WrittenDigest::Merged {
                mode.add_failure();
                tracing::warn!("step {step} was not compared: it has no end or no layer of its own");
            }
        }
        Err(miss) => verdict.miss.clone_from(miss),
    }
    match read {
        Some(Ok((asked, answers))) if code == Some(0) => match written {
            WrittenDigest::Of(layer) => {
                let known = found.ok().filter(|found| found.record.layer == layer).map(|found| found.bytes);
                let (run, name) = (input.run_id, step.to_string());
                let written = RecordedLayer::Fixed("shadow mode keeps no results".to_owned());
                let record = TraceRecord { asked, answers, layer, parent: None, written, run, step: name };
                match keep(store, key, record, known).await {
                    Ok(true) => {}
                    Ok(false) => verdict.reasons.push(Reason::TooMany.to_string()),
                    Err(error) => {
                        mode.add_failure();
                        tracing::warn!("what step {step} read was not kept: {}", error.to_line());
                    }
                }
            }
            WrittenDigest::Merged => verdict.reasons.push(Reason::Merged.to_string()),
            WrittenDigest::None => {}
        },
        Some(Err(reasons)) => verdict.reasons = reasons.iter().map(ToString::to_string).collect(),
        _ => {}
    }
    tell(once, &verdict);
    mode.add(Arc::clone(step), verdict);
}

/// Records what came of a look-up. A difference is a warning.
pub(super) fn tell(once: Once<'_>, verdict: &ShadowVerdict) {
    let Once { input, ctx, .. } = once;
    if let Some(difference) = &verdict.difference {
        tracing::warn!("step {} would have been found by what it read, but {difference}", input.step.key);
    }
    ctx.event_bus.shadow(input.step_id, verdict);
}

/// Returns how a step differs from its result that did not pass.
pub(super) fn exited_with(code: i32) -> String {
    format!("it exited with {code}")
}

/// Returns how what a step did differs from the record that would have been taken.
fn difference(record: &TraceRecord, code: Option<i32>, written: WrittenDigest) -> Option<String> {
    // Without a code, it was cancelled or could not run.
    match (code?, written) {
        (0, WrittenDigest::Of(layer)) => (layer != record.layer).then(|| "it wrote other files".to_owned()),
        // It cannot be told.
        (0, WrittenDigest::Merged | WrittenDigest::None) => None,
        (code, _) => Some(exited_with(code)),
    }
}

/// Keeps a record, or uses the stored one that says the same. Returns false if it is too large.
async fn keep(
    store: &Arc<Store>,
    key: [u8; 32],
    record: TraceRecord,
    known: Option<Vec<u8>>,
) -> Result<bool, RunnerError> {
    let store = Arc::clone(store);
    RunnerError::blocking("keep what a step read", move || {
        if let Some(bytes) = known {
            store.traces().touch(&key, &bytes)?;
            return Ok(true);
        }
        let encoded = record.encode().map_err(|error| StoreError::io("encode a record for", store.dir(), error))?;
        let Some(bytes) = encoded else { return Ok(false) };
        store.traces().keep(&key, &bytes)?;
        Ok(true)
    })
    .await
}

/// Returns the digest of what a step wrote to its own layer.
pub(super) async fn digest_of_written(
    store: &Arc<Store>,
    parent: Option<&SnapshotRef>,
    snapshot: &SnapshotRef,
) -> Result<WrittenDigest, RunnerError> {
    let (store, parent, snapshot) = (Arc::clone(store), parent.cloned(), snapshot.clone());
    RunnerError::blocking("read what a step wrote", move || {
        let snapshot = store.snapshots().get(&snapshot)?;
        let parent = parent.map(|parent| store.snapshots().get(&parent)).transpose()?;
        let below = parent.as_deref().map_or(&[][..], |parent| &parent.layers);
        Ok(match written(&store, below, &snapshot.layers) {
            Written::Nothing => WrittenDigest::Of(no_layer_digest()),
            Written::Layer(layer) => {
                WrittenDigest::Of(layer_digest(&store, &store.layers().dir(&layer), snapshot.id_map, |_, _| ())?)
            }
            Written::Merged => WrittenDigest::Merged,
        })
    })
    .await
}

/// Returns which of a snapshot's layers its step wrote. `below` are those of its parent.
pub(super) fn written(store: &Store, below: &[LayerId], layers: &[LayerId]) -> Written {
    if !layers.ends_with(below) {
        return Written::Merged;
    }
    // Between the two there may be a delta of the source, which is named by its content.
    let own = layers[..layers.len() - below.len()].first().filter(|layer| store.instance().made(layer.as_str()));
    own.map_or(Written::Nothing, |layer| Written::Layer(layer.clone()))
}

/// Returns the first of some paths whose file on the machine changed since a time. `dirs` are the machine's
/// directories, by the paths at which a step sees them.
fn changed_since(dirs: &[(PathBuf, PathBuf)], paths: &[Vec<u8>], since: SystemTime) -> Option<Vec<u8>> {
    let since = since_1970(since).saturating_sub(MARGIN);
    let is_newer = |path: &Path| -> Option<bool> {
        let metadata = path.symlink_metadata().ok()?;
        let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
        let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or_default();
        Some(Duration::new(seconds, nanoseconds) >= since)
    };
    let changed = |path: &&Vec<u8>| {
        let path = Path::new(OsStr::from_bytes(path));
        dirs.iter().any(|(shown, dir)| {
            let Ok(rest) = path.strip_prefix(shown) else { return false };
            let place = dir.join(rest);
            // If it is not there, the directory above changed when it went.
            place.ancestors().take_while(|it| it.starts_with(dir)).find_map(is_newer).unwrap_or(false)
        })
    };
    paths.iter().find(changed).cloned()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::UNIX_EPOCH};

    use super::*;

    #[test]
    fn files_of_the_machine_that_changed_are_found_also_if_they_went() {
        let dir = tempfile::tempdir().unwrap();
        let (usr, other) = (dir.path().join("usr"), dir.path().join("other"));
        fs::create_dir_all(usr.join("lib")).unwrap();
        fs::create_dir(&other).unwrap();
        let dirs = [(PathBuf::from("/usr"), usr.clone())];
        let ask = |path: &str, since| changed_since(&dirs, &[path.as_bytes().to_vec()], since);
        let later = SystemTime::now() + Duration::from_secs(100);
        for path in ["/usr/lib", "/usr/lib/absent", "/usr/lib/absent/below", "/usr"] {
            assert_eq!(ask(path, later), None, "{path}");
            assert_eq!(ask(path, SystemTime::now()).as_deref(), Some(path.as_bytes()), "{path}");
        }
        assert_eq!(ask("/workspace/x", UNIX_EPOCH), None, "it is not the machine's");
        assert_eq!(ask("/usrx", UNIX_EPOCH), None);
    }
}
