//! Decides which names to forget, as a pure function of the store's contents, the limits, and the time.
//!
//! Names are forgotten by the time of their last use until the limits hold. The size of a name is that of
//! what only it holds: a layer is removed with the last stack that contains it, and a file with the last
//! layer that has a hard link to it. What is already doomed is neither held nor counted. Logs of a run that
//! take a large part of the store are removed first, because they are what filled it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::Duration,
};

use super::{Cause, Forget, GcLimits};
use crate::store::{
    LayerId,
    index::inventory::Inventory,
    tree::{Extent, FileId},
};

/// Runs stay, regardless of their age, if there are no more than these.
const MIN_RUNS: usize = 20;

/// A run's files are large if they take more than this, and more than a part of all that is held.
const LARGE_RUN_BYTES: u64 = 1 << 20;
const LARGE_RUN_PART: u64 = 4;

/// Everything that the plan depends on, besides limits.
#[derive(Debug)]
pub(super) struct GcInput<'a> {
    pub(super) inventory: &'a Inventory,
    /// The measured layers. For other layers the index knows a size that is not too small.
    pub(super) extents: &'a HashMap<LayerId, Extent>,
    /// Runs that have ended, newest first.
    pub(super) runs: &'a [RunFiles],
    /// The number of runs that are still going on.
    pub(super) live_runs: usize,
    /// Sizes of the logs of cached steps.
    pub(super) logs: &'a BTreeMap<[u8; 32], u64>,
    /// The size of everything else in the store, in bytes.
    pub(super) fixed_bytes: u64,
    pub(super) free_bytes: u64,
    /// In milliseconds since the Unix epoch.
    pub(super) now: i64,
    /// Whether the clock has just jumped, so that the ages of files are meaningless.
    pub(super) jumped: bool,
}

/// The files of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunFiles {
    pub(super) dir: PathBuf,
    pub(super) bytes: u64,
    /// The time of the last write.
    pub(super) at: i64,
}

/// What to forget: indexes into the input's lists, with the sizes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct GcPlan {
    pub(super) cached: Vec<Victim>,
    pub(super) inspected: Vec<Victim>,
    pub(super) sources: Vec<Victim>,
    pub(super) images: Vec<Victim>,
    pub(super) cache_dirs: Vec<Victim>,
    pub(super) runs: Vec<Victim>,
    /// The size of the store after all of this is removed.
    pub(super) bytes_after: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) index: usize,
    /// The bytes freed by removing it, after everything before it is removed.
    pub(super) bytes: u64,
    pub(super) cause: Cause,
}

impl GcPlan {
    fn list(&mut self, kind: GcKind) -> &mut Vec<Victim> {
        match kind {
            GcKind::Cached => &mut self.cached,
            GcKind::Inspected => &mut self.inspected,
            GcKind::Source => &mut self.sources,
            GcKind::Image => &mut self.images,
            GcKind::CacheDir => &mut self.cache_dirs,
            GcKind::Run => &mut self.runs,
        }
    }
}

/// The order of removal among items that were used at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum GcKind {
    Inspected,
    Cached,
    CacheDir,
    Source,
    Run,
    Image,
}

#[derive(Debug)]
struct GcItem {
    used_at: i64,
    kind: GcKind,
    /// The number of its layers. A child is removed before its parent, because a run that has both uses them
    /// at the same time.
    depth: usize,
    index: usize,
}

/// Decides what to forget.
pub(super) fn plan(input: &GcInput<'_>, limits: &GcLimits, forget: &Forget) -> GcPlan {
    let mut held = Held::new(input);
    let waiting: u64 = input.inventory.layers.values().filter_map(|layer| layer.doomed.map(|_| layer.bytes)).sum();
    let mut free = input.free_bytes.saturating_add(waiting);
    let mut plan = GcPlan::default();
    let mut items = items(input);
    let large = LARGE_RUN_BYTES.max(held.bytes / LARGE_RUN_PART);
    let is_large = |item: &GcItem| item.kind == GcKind::Run && input.runs[item.index].bytes > large;
    items.sort_by_key(|item| (!is_large(item), item.used_at, item.kind, Reverse(item.depth), item.index));
    for item in &items {
        if item.kind == GcKind::Image && held.is_base(item.index) {
            continue;
        }
        let cause = if asked(input, forget, item) {
            Cause::Asked
        } else if expired(input, limits, item) {
            Cause::Age
        } else if held.bytes > limits.max_bytes {
            Cause::Size
        } else if free < limits.min_free_bytes {
            Cause::Space
        } else {
            continue;
        };
        let bytes = held.release(input, item);
        free = free.saturating_add(bytes);
        plan.list(item.kind).push(Victim { index: item.index, bytes, cause });
    }
    plan.bytes_after = held.bytes;
    plan
}

/// Returns everything that may be removed.
fn items(input: &GcInput<'_>) -> Vec<GcItem> {
    let inventory = input.inventory;
    let snapshots: HashMap<&str, (usize, &str)> =
        inventory.snapshots.iter().map(|row| (row.id.as_str(), (row.stack.len(), row.base.as_str()))).collect();
    let mut items = Vec::new();
    // An image is used by every snapshot based on it.
    let mut bases: HashMap<&str, i64> = HashMap::new();
    let mut named = |kind, index, snapshot: &str, used_at: i64| {
        let used_at = used_at.min(input.now);
        let found = snapshots.get(snapshot);
        if let Some((_, base)) = found {
            let last = bases.entry(base).or_insert(used_at);
            *last = used_at.max(*last);
        }
        items.push(GcItem { used_at, kind, depth: found.map_or(0, |(depth, _)| *depth), index });
    };
    for (index, row) in inventory.cached.iter().enumerate() {
        named(GcKind::Cached, index, &row.snapshot, row.used_at);
    }
    for (index, row) in inventory.inspected.iter().enumerate() {
        named(GcKind::Inspected, index, &row.snapshot, row.created_at);
    }
    let mut item = |kind, index, used_at: i64| {
        items.push(GcItem { used_at: used_at.min(input.now), kind, depth: 0, index });
    };
    for (index, row) in inventory.sources.iter().enumerate().filter(|(_, row)| row.doomed.is_none()) {
        item(GcKind::Source, index, row.used_at);
    }
    for (index, row) in inventory.cache_dirs.iter().enumerate().filter(|(_, row)| row.doomed.is_none()) {
        item(GcKind::CacheDir, index, row.used_at);
    }
    for (index, row) in inventory.images.iter().enumerate().filter(|(_, row)| row.doomed.is_none()) {
        let by_snapshots = bases.get(row.digest.as_str()).copied().unwrap_or(i64::MIN);
        item(GcKind::Image, index, row.used_at.max(by_snapshots));
    }
    for (index, run) in input.runs.iter().enumerate() {
        item(GcKind::Run, index, run.at);
    }
    items
}

fn asked(input: &GcInput<'_>, forget: &Forget, item: &GcItem) -> bool {
    let step = match item.kind {
        GcKind::Cached => &input.inventory.cached[item.index].step,
        GcKind::Inspected => &input.inventory.inspected[item.index].step,
        GcKind::CacheDir => return matches!(forget, Forget::Cached | Forget::Everything),
        _ => return *forget == Forget::Everything,
    };
    match forget {
        Forget::Nothing => false,
        Forget::Steps(steps) => steps.contains(step),
        Forget::Cached | Forget::Everything => true,
    }
}

fn expired(input: &GcInput<'_>, limits: &GcLimits, item: &GcItem) -> bool {
    let is_older = |limit: Duration| {
        let age = u128::try_from(input.now.saturating_sub(item.used_at)).unwrap_or_default();
        age > limit.as_millis()
    };
    match item.kind {
        GcKind::Cached | GcKind::CacheDir | GcKind::Source | GcKind::Image => is_older(limits.max_age),
        GcKind::Inspected => is_older(limits.max_age_leftovers),
        GcKind::Run => {
            let place = item.index + input.live_runs;
            place >= limits.max_runs || (place >= MIN_RUNS && !input.jumped && is_older(limits.max_age_runs))
        }
    }
}

/// What is held, with reference counts.
#[derive(Debug, Default)]
struct Held<'a> {
    /// The number of names of each snapshot.
    names: HashMap<&'a str, usize>,
    /// The number of snapshots based on each image.
    bases: HashMap<&'a str, usize>,
    snapshots: HashMap<&'a str, (&'a str, &'a [LayerId])>,
    images: Vec<&'a str>,
    /// For each layer, the number of stacks that contain it, and its size without hard-linked files.
    layers: HashMap<&'a LayerId, (usize, u64)>,
    extents: Option<&'a HashMap<LayerId, Extent>>,
    /// For each hard-linked file, the number of held layers that contain it, and its size.
    files: HashMap<FileId, (usize, u64)>,
    bytes: u64,
}

impl<'a> Held<'a> {
    fn new(input: &GcInput<'a>) -> Self {
        let inventory = input.inventory;
        let mut held = Self { extents: Some(input.extents), ..Self::default() };
        held.bytes = input.fixed_bytes + input.runs.iter().map(|run| run.bytes).sum::<u64>();
        held.bytes += input.logs.values().sum::<u64>();
        let names =
            inventory.cached.iter().map(|row| &row.snapshot).chain(inventory.inspected.iter().map(|r| &r.snapshot));
        names.for_each(|snapshot| *held.names.entry(snapshot).or_default() += 1);
        for row in inventory.snapshots.iter().filter(|row| held.names.contains_key(row.id.as_str())) {
            held.snapshots.insert(&row.id, (&row.base, &row.stack));
            *held.bases.entry(&row.base).or_default() += 1;
        }
        held.images = inventory.images.iter().map(|row| row.digest.as_str()).collect();
        let stacks = held.snapshots.values().map(|(_, stack)| *stack);
        let sources = inventory.sources.iter().filter(|row| row.doomed.is_none()).map(|row| row.stack.as_slice());
        let bases = &held.bases;
        let images = inventory.images.iter().filter(|row| row.doomed.is_none() || bases.contains_key(&*row.digest));
        let images = images.map(|row| row.stack.as_slice());
        let cache_dirs = inventory.cache_dirs.iter().filter(|row| row.doomed.is_none());
        let cache_dirs = cache_dirs.map(|row| row.stack.as_slice());
        let stacks: Vec<_> = stacks.chain(sources).chain(images).chain(cache_dirs).collect();
        stacks.into_iter().flatten().for_each(|layer| held.hold(inventory, layer));
        held
    }

    /// Returns whether a snapshot is based on this image.
    fn is_base(&self, image: usize) -> bool {
        self.images.get(image).is_some_and(|digest| self.bases.contains_key(digest))
    }

    fn hold(&mut self, inventory: &Inventory, layer: &'a LayerId) {
        let Some(row) = inventory.layers.get(layer) else { return };
        let extent = self.extents.and_then(|extents| extents.get(layer));
        let own = extent.map_or(row.bytes, |extent| extent.own);
        let (uses, _) = self.layers.entry(layer).or_insert((0, own));
        *uses += 1;
        if *uses > 1 {
            return;
        }
        self.bytes += own;
        for (file, bytes) in extent.iter().flat_map(|extent| &extent.shared) {
            let (uses, _) = self.files.entry(*file).or_insert((0, *bytes));
            *uses += 1;
            if *uses == 1 {
                self.bytes += bytes;
            }
        }
    }

    /// Releases an item. Returns the bytes that this frees.
    fn release(&mut self, input: &GcInput<'a>, item: &GcItem) -> u64 {
        let before = self.bytes;
        let inventory = input.inventory;
        match item.kind {
            GcKind::Cached => {
                let row = &inventory.cached[item.index];
                self.bytes -= input.logs.get(&row.key).copied().unwrap_or_default();
                self.release_name(&row.snapshot);
            }
            GcKind::Inspected => self.release_name(&inventory.inspected[item.index].snapshot),
            GcKind::Source => self.release_stack(&inventory.sources[item.index].stack),
            GcKind::Image => self.release_stack(&inventory.images[item.index].stack),
            GcKind::CacheDir => self.release_stack(&inventory.cache_dirs[item.index].stack),
            GcKind::Run => self.bytes -= input.runs[item.index].bytes,
        }
        before - self.bytes
    }

    fn release_name(&mut self, snapshot: &'a str) {
        let Some(names) = self.names.get_mut(snapshot) else { return };
        *names -= 1;
        if *names > 0 {
            return;
        }
        self.names.remove(snapshot);
        let Some((base, stack)) = self.snapshots.remove(snapshot) else { return };
        if let Some(count) = self.bases.get_mut(base) {
            *count -= 1;
            if *count == 0 {
                self.bases.remove(base);
            }
        }
        self.release_stack(stack);
    }

    fn release_stack(&mut self, stack: &'a [LayerId]) {
        for layer in stack {
            let Some((uses, own)) = self.layers.get_mut(layer) else { continue };
            *uses -= 1;
            if *uses > 0 {
                continue;
            }
            self.bytes -= *own;
            self.layers.remove(layer);
            for file in self.extents.and_then(|extents| extents.get(layer)).iter().flat_map(|e| e.shared.keys()) {
                if let Some((uses, bytes)) = self.files.get_mut(file) {
                    *uses -= 1;
                    if *uses == 0 {
                        self.bytes -= *bytes;
                        self.files.remove(file);
                    }
                }
            }
        }
    }
}
