//! Garbage collection: keeps the store within its limits, and never removes what a process is using.
//!
//! ```text
//!   look      sizes, runs, the time                       no lock but gc.lock: one collection at a time
//!   forget    names, by `plan`; doom what has none left   one transaction, then a new epoch
//!   remove    what was doomed before the oldest lease     one transaction: moved to tmp, rows deleted
//!   delete    what is in tmp; files that nothing names    no lock
//! ```
//!
//! A kill at any point leaves names whose layers are present, or layers and rows that the next collection
//! removes. Doomed layers are checked again in the transaction that removes them, because another process may
//! have kept something that uses one in the meantime, which cancels the doom. See [`super::lease`] for what a
//! living process may still be using.

mod compress;
mod due;
mod limits;
mod plan;
mod sweep;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
};

pub use limits::GcLimits;
use plan::{GcInput, GcPlan, RunFiles, Victim};
use rustix::fs::FlockOperation;
use serde::Serialize;
use sweep::{CachedLogs, Sweep};

use super::{
    Filesystem, LayerId, Store, StoreError,
    error::IoContext,
    files::open_lock,
    index::{self, collect, inventory::Inventory},
    reserved_space,
    tree::{self, Extent},
    usage::PACKAGES_DIR,
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The longest time between two collections that counts. If it is longer, the store was not used, or the
/// clock jumped.
const MAX_GAP_MS: i64 = 2 * DAY_MS;

/// The most bytes of records of what steps read, and the part of the store's limit that they may take.
const MAX_TRACES_BYTES: u64 = 512 << 20;
const TRACE_PART: u64 = 8;

/// How long a record of removed entries is kept.
const HISTORY_MS: i64 = 90 * DAY_MS;

/// A request for garbage collection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcRequest {
    /// The limits that must hold in the end.
    pub limits: GcLimits,
    /// What to forget regardless of the limits.
    pub forget: Forget,
    /// Whether to only report what would be done.
    pub dry_run: bool,
    /// Whether to wait for another process that is collecting. If not, nothing is done while there is one.
    pub wait: bool,
}

impl GcRequest {
    /// Creates a request to remove everything beyond these limits.
    #[must_use]
    pub fn new(limits: GcLimits) -> Self {
        Self { limits, forget: Forget::Nothing, dry_run: false, wait: true }
    }
}

/// What to forget regardless of the limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Forget {
    /// Nothing.
    #[default]
    Nothing,
    /// Everything kept of these steps, by their keys.
    Steps(Vec<String>),
    /// Everything kept of every step, and cache directories.
    Cached,
    /// Everything kept of every step, cache directories, and sources, images, journals, logs and packages
    /// that render pipelines.
    Everything,
}

/// The reason why something was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Size,
    Space,
    Age,
    Asked,
}

impl Cause {
    /// Returns the cause as it is stored in rows.
    fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Space => "space",
            Self::Age => "age",
            Self::Asked => "asked",
        }
    }
}

/// The result of a garbage collection, or of a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GcReport {
    /// The numbers of things that were removed after processes were killed, since they were last shown to the
    /// user, by kind.
    pub reaped: BTreeMap<String, u64>,
    /// Cached steps that were forgotten.
    pub cached: Forgotten,
    /// Leftovers of failed steps.
    pub leftovers: Forgotten,
    /// Source trees.
    pub sources: Forgotten,
    /// Images.
    pub images: Forgotten,
    /// Cache directories of steps.
    pub cache_dirs: Forgotten,
    /// Journals and logs of runs.
    pub runs: Forgotten,
    /// The bytes that compressing logs freed on disk. They are part of `freed_bytes`.
    pub compressed_bytes: u64,
    /// The bytes freed on disk.
    pub freed_bytes: u64,
    /// The bytes that will be freed when the last run that may use them ends.
    pub waiting_bytes: u64,
    /// The number of layers with these bytes.
    pub waiting_layers: usize,
    /// The current size of the store without what is waiting, in bytes. An estimate that is not too small.
    pub bytes: u64,
}

/// The forgotten entries of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Forgotten {
    /// The number of entries.
    pub count: usize,
    /// The bytes that are removed with them.
    pub bytes: u64,
}

impl Forgotten {
    fn of(victims: &[Victim]) -> Self {
        Self { count: victims.len(), bytes: victims.iter().map(|victim| victim.bytes).sum() }
    }
}

/// Sizes that were measured before anything is locked.
#[derive(Debug)]
struct Measured {
    extents: HashMap<LayerId, Extent>,
    runs: Vec<RunFiles>,
    live_runs: usize,
    logs: CachedLogs,
    fixed_bytes: u64,
    free_bytes: u64,
}

impl Store {
    /// Forgets what is beyond the limits, least recently used first, and removes from the disk what no
    /// process can be using. Returns `None` if another process is collecting and the request does not wait.
    ///
    /// Takes as long as removing files, plus a walk over all layers if something has to be removed because of
    /// the size limit.
    ///
    /// # Errors
    /// Returns an error if the index cannot be written, or if the disk cannot be read. What was removed by
    /// then stays removed.
    pub fn gc(&self, request: &GcRequest) -> Result<Option<GcReport>, StoreError> {
        let Some(_lock) = lock(self, request.wait)? else { return Ok(None) };
        // Freeing space needs some space itself. The reserve is released before anything is removed, so that
        // the report includes all of it.
        if !request.dry_run && Filesystem::of(self.dir())?.free_bytes < reserved_space::MIN_BYTES {
            reserved_space::release(self.dir());
        }
        match collect_garbage(self, request) {
            Err(StoreError::Full { .. }) if reserved_space::release(self.dir()) => collect_garbage(self, request),
            collected => collected,
        }
        .map(Some)
    }

    /// Returns whether garbage should be collected now: something new was kept and the limit is exceeded, the
    /// filesystem is nearly full, something was waiting for a run to end, or a day has passed. Takes
    /// microseconds if nothing was kept.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read, or if the system does not report the free space.
    pub fn gc_is_due(&self, limits: &GcLimits) -> Result<bool, StoreError> {
        due::is_due(self, limits)
    }

    /// Returns [`GcLimits::for_filesystem`] for the store's filesystem.
    ///
    /// # Errors
    /// Returns an error if the system does not report the filesystem's size.
    pub fn default_limits(&self) -> Result<GcLimits, StoreError> {
        Ok(GcLimits::for_filesystem(&Filesystem::of(self.dir())?))
    }

    /// Records that [`GcReport::reaped`] was shown to the user.
    ///
    /// # Errors
    /// Returns an error if the index cannot be written.
    #[doc(hidden)]
    pub fn mark_reaped_shown(&self) -> Result<(), StoreError> {
        self.index().write(collect::mark_reaped_shown)
    }
}

/// Locks garbage collection. Returns `None` if another process is collecting, unless it is to be waited for.
fn lock(store: &Store, wait: bool) -> Result<Option<File>, StoreError> {
    let path = store.paths().gc_lock();
    let lock = open_lock(&path)?;
    let operation = if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
    match rustix::fs::flock(&lock, operation) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(StoreError::io("lock", path, error)),
    }
}

/// Compresses logs. On a full disk, there may be room for that only after the collection.
fn compress_logs(store: &Store) -> Result<u64, StoreError> {
    match compress::compress_logs(store) {
        Err(error @ StoreError::Full { .. }) => {
            tracing::debug!(%error, "failed to compress logs");
            Ok(0)
        }
        done => done,
    }
}

fn collect_garbage(store: &Store, request: &GcRequest) -> Result<GcReport, StoreError> {
    let sweep = Sweep { store };
    // Before anything is measured, so that less has to be removed.
    let compressed_bytes = if request.dry_run { 0 } else { compress_logs(store)? };
    let inventory = store.index().read(index::inventory::read)?;
    let measured = measure(store, &inventory, &request.limits)?;
    let now = index::now_ms();
    let gap = now.saturating_sub(store.index().read(collect::collected_at)?);
    let jumped = !(0..=MAX_GAP_MS).contains(&gap);
    if request.dry_run {
        let (plan, _) = measured.plan(&inventory, request, now, jumped);
        let mut report = report(&plan);
        report.reaped = store.index().read(collect::reaped)?;
        (report.waiting_layers, report.waiting_bytes) = store.index().read(collect::doomed)?;
        return Ok(report);
    }
    sweep.give_rows_to_unnamed(&inventory)?;
    let (mut report, runs, epoch) = store.index().write(|transaction| {
        let shift = (gap > MAX_GAP_MS).then(|| (now - gap + DAY_MS, gap - MAX_GAP_MS));
        collect::shift_times(transaction, now, shift)?;
        collect::set_collected_at(transaction, now)?;
        collect::forget_history(transaction, now - HISTORY_MS)?;
        let inventory = sweep.forget_missing(transaction, index::inventory::read(transaction)?)?;
        let (plan, runs) = measured.plan(&inventory, request, now, jumped);
        forget(transaction, &inventory, &plan, now)?;
        forget_traces(transaction, request, now)?;
        collect::reconcile(transaction, &index::inventory::read(transaction)?)?;
        let mut report = report(&plan);
        report.reaped = collect::reaped(transaction)?;
        Ok((report, runs, collect::next_epoch(transaction)?))
    })?;
    report.compressed_bytes = compressed_bytes;
    report.freed_bytes += compressed_bytes + sweep.remove_runs(&runs)?;
    report.freed_bytes += sweep.remove_doomed(epoch)?;
    report.freed_bytes += sweep.remove_unnamed(&inventory)?;
    report.freed_bytes += sweep.remove_machines(&request.forget)?;
    report.freed_bytes += sweep.remove_packages(&request.forget)?;
    (report.waiting_layers, report.waiting_bytes) = store.index().read(collect::doomed)?;
    store.index().read(collect::shrink)?;
    reserved_space::fill(store.dir(), &Filesystem::of(store.dir())?);
    Ok(report)
}

/// Measures what the plan depends on, before anything is locked.
fn measure(store: &Store, inventory: &Inventory, limits: &GcLimits) -> Result<Measured, StoreError> {
    let logs = Sweep { store }.cached_logs(inventory)?;
    let (runs, live_runs) = Sweep { store }.old_runs(&logs)?;
    let mut fixed_bytes = 0;
    for name in ["sources", "stat", "index.db", "last-runs", PACKAGES_DIR] {
        let path = store.dir().join(name);
        fixed_bytes += tree::measure(&path).doing("measure", &path)?.bytes();
    }
    let free_bytes = Filesystem::of(store.dir())?.free_bytes;
    let layers = inventory.layers.values().filter(|layer| layer.doomed.is_none()).map(|layer| layer.bytes);
    let most = layers.sum::<u64>()
        + fixed_bytes
        + runs.iter().map(|run| run.bytes).sum::<u64>()
        + logs.sizes.values().sum::<u64>();
    let mut extents = HashMap::new();
    if most > limits.max_bytes || free_bytes < limits.min_free_bytes {
        for id in inventory.layers.keys() {
            let path = store.layers().dir(id);
            extents.insert(id.clone(), tree::measure(&path).doing("measure", &path)?);
        }
    }
    Ok(Measured { extents, runs, live_runs, logs, fixed_bytes, free_bytes })
}

impl Measured {
    /// Returns the plan, and the runs that it refers to.
    fn plan(&self, inventory: &Inventory, request: &GcRequest, now: i64, jumped: bool) -> (GcPlan, Vec<RunFiles>) {
        let input = GcInput {
            inventory,
            extents: &self.extents,
            runs: &self.runs,
            live_runs: self.live_runs,
            logs: &self.logs.sizes,
            fixed_bytes: self.fixed_bytes,
            free_bytes: self.free_bytes,
            now,
            jumped,
        };
        let plan = plan::plan(&input, &request.limits, &request.forget);
        let runs = plan.runs.iter().map(|victim| self.runs[victim.index].clone()).collect();
        (plan, runs)
    }
}

fn report(plan: &GcPlan) -> GcReport {
    GcReport {
        cached: Forgotten::of(&plan.cached),
        leftovers: Forgotten::of(&plan.inspected),
        sources: Forgotten::of(&plan.sources),
        images: Forgotten::of(&plan.images),
        cache_dirs: Forgotten::of(&plan.cache_dirs),
        runs: Forgotten::of(&plan.runs),
        bytes: plan.bytes_after,
        ..GcReport::default()
    }
}

/// Records the plan in the index.
fn forget(
    transaction: &rusqlite::Transaction<'_>,
    inventory: &Inventory,
    plan: &GcPlan,
    now: i64,
) -> rusqlite::Result<()> {
    for victim in &plan.cached {
        let row = &inventory.cached[victim.index];
        let (bytes, cause) = (victim.bytes, victim.cause.as_str());
        collect::evict(transaction, now, collect::Eviction { key: &row.key, step: &row.step, bytes, cause })?;
    }
    for victim in &plan.inspected {
        let row = &inventory.inspected[victim.index];
        index::inspection::remove(transaction, row.run, &row.step)?;
    }
    for victim in &plan.sources {
        collect::doom_source(transaction, &inventory.sources[victim.index].id)?;
    }
    for victim in &plan.images {
        let row = &inventory.images[victim.index];
        collect::doom_image(transaction, &row.digest, &row.id_map)?;
    }
    for victim in &plan.cache_dirs {
        collect::doom_cache_dir(transaction, &inventory.cache_dirs[victim.index].key)?;
    }
    Ok(())
}

/// Forgets what tracing steps took, and records of what steps read, that were not used for long, or are too many.
fn forget_traces(transaction: &rusqlite::Transaction<'_>, request: &GcRequest, now: i64) -> rusqlite::Result<()> {
    let GcLimits { max_bytes, max_age, .. } = request.limits;
    let most = match request.forget {
        Forget::Cached | Forget::Everything => 0,
        Forget::Nothing | Forget::Steps(_) => MAX_TRACES_BYTES.min(max_bytes / TRACE_PART),
    };
    let age = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
    index::tracing_costs::expire(transaction, now.saturating_sub(age))?;
    index::traces::expire(transaction, now.saturating_sub(age), most)
}
