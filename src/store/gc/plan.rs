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
pub(super) struct Scene<'a> {
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

/// What to forget: indexes into the scene's lists, with the sizes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) cached: Vec<Victim>,
    pub(super) left: Vec<Victim>,
    pub(super) sources: Vec<Victim>,
    pub(super) images: Vec<Victim>,
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

impl Plan {
    fn list(&mut self, kind: Kind) -> &mut Vec<Victim> {
        match kind {
            Kind::Cached => &mut self.cached,
            Kind::Left => &mut self.left,
            Kind::Source => &mut self.sources,
            Kind::Image => &mut self.images,
            Kind::Run => &mut self.runs,
        }
    }
}

/// The order of removal among items that were used at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Left,
    Cached,
    Source,
    Run,
    Image,
}

#[derive(Debug)]
struct Item {
    used_at: i64,
    kind: Kind,
    /// The number of its layers. A child is removed before its parent, because a run that has both uses them
    /// at the same time.
    depth: usize,
    index: usize,
}

/// Decides what to forget.
pub(super) fn plan(scene: &Scene<'_>, limits: &GcLimits, forget: &Forget) -> Plan {
    let mut held = Held::new(scene);
    let waiting: u64 = scene.inventory.layers.values().filter_map(|layer| layer.doomed.map(|_| layer.bytes)).sum();
    let mut free = scene.free_bytes.saturating_add(waiting);
    let mut plan = Plan::default();
    let mut items = items(scene);
    let large = LARGE_RUN_BYTES.max(held.bytes / LARGE_RUN_PART);
    let is_large = |item: &Item| item.kind == Kind::Run && scene.runs[item.index].bytes > large;
    items.sort_by_key(|item| (!is_large(item), item.used_at, item.kind, Reverse(item.depth), item.index));
    for item in &items {
        if item.kind == Kind::Image && held.is_base(item.index) {
            continue;
        }
        let cause = if asked(scene, forget, item) {
            Cause::Asked
        } else if expired(scene, limits, item) {
            Cause::Age
        } else if held.bytes > limits.max_bytes {
            Cause::Size
        } else if free < limits.min_free_bytes {
            Cause::Space
        } else {
            continue;
        };
        let bytes = held.release(scene, item);
        free = free.saturating_add(bytes);
        plan.list(item.kind).push(Victim { index: item.index, bytes, cause });
    }
    plan.bytes_after = held.bytes;
    plan
}

/// Returns everything that may be removed.
fn items(scene: &Scene<'_>) -> Vec<Item> {
    let inventory = scene.inventory;
    let snapshots: HashMap<&str, (usize, &str)> =
        inventory.snapshots.iter().map(|row| (row.id.as_str(), (row.stack.len(), row.base.as_str()))).collect();
    let mut items = Vec::new();
    // An image is used by every snapshot based on it.
    let mut bases: HashMap<&str, i64> = HashMap::new();
    let mut named = |kind, index, snapshot: &str, used_at: i64| {
        let used_at = used_at.min(scene.now);
        let found = snapshots.get(snapshot);
        if let Some((_, base)) = found {
            let last = bases.entry(base).or_insert(used_at);
            *last = used_at.max(*last);
        }
        items.push(Item { used_at, kind, depth: found.map_or(0, |(depth, _)| *depth), index });
    };
    for (index, row) in inventory.cached.iter().enumerate() {
        named(Kind::Cached, index, &row.snapshot, row.used_at);
    }
    for (index, row) in inventory.left.iter().enumerate() {
        named(Kind::Left, index, &row.snapshot, row.created_at);
    }
    let mut item = |kind, index, used_at: i64| {
        items.push(Item { used_at: used_at.min(scene.now), kind, depth: 0, index });
    };
    for (index, row) in inventory.sources.iter().enumerate().filter(|(_, row)| row.doomed.is_none()) {
        item(Kind::Source, index, row.used_at);
    }
    for (index, row) in inventory.images.iter().enumerate().filter(|(_, row)| row.doomed.is_none()) {
        let by_snapshots = bases.get(row.digest.as_str()).copied().unwrap_or(i64::MIN);
        item(Kind::Image, index, row.used_at.max(by_snapshots));
    }
    for (index, run) in scene.runs.iter().enumerate() {
        item(Kind::Run, index, run.at);
    }
    items
}

fn asked(scene: &Scene<'_>, forget: &Forget, item: &Item) -> bool {
    let step = match item.kind {
        Kind::Cached => &scene.inventory.cached[item.index].step,
        Kind::Left => &scene.inventory.left[item.index].step,
        _ => return *forget == Forget::Everything,
    };
    match forget {
        Forget::Nothing => false,
        Forget::Steps(steps) => steps.contains(step),
        Forget::Cached | Forget::Everything => true,
    }
}

fn expired(scene: &Scene<'_>, limits: &GcLimits, item: &Item) -> bool {
    let is_older = |limit: Duration| {
        let age = u128::try_from(scene.now.saturating_sub(item.used_at)).unwrap_or_default();
        age > limit.as_millis()
    };
    match item.kind {
        Kind::Cached | Kind::Source | Kind::Image => is_older(limits.max_age),
        Kind::Left => is_older(limits.max_age_leftovers),
        Kind::Run => {
            let place = item.index + scene.live_runs;
            place >= limits.max_runs || (place >= MIN_RUNS && !scene.jumped && is_older(limits.max_age_runs))
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
    fn new(scene: &Scene<'a>) -> Self {
        let inventory = scene.inventory;
        let mut held = Self { extents: Some(scene.extents), ..Self::default() };
        held.bytes = scene.fixed_bytes + scene.runs.iter().map(|run| run.bytes).sum::<u64>();
        held.bytes += scene.logs.values().sum::<u64>();
        let names = inventory.cached.iter().map(|row| &row.snapshot).chain(inventory.left.iter().map(|r| &r.snapshot));
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
        let stacks: Vec<_> = stacks.chain(sources).chain(images.map(|row| row.stack.as_slice())).collect();
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
    fn release(&mut self, scene: &Scene<'a>, item: &Item) -> u64 {
        let before = self.bytes;
        let inventory = scene.inventory;
        match item.kind {
            Kind::Cached => {
                let row = &inventory.cached[item.index];
                self.bytes -= scene.logs.get(&row.key).copied().unwrap_or_default();
                self.release_name(&row.snapshot);
            }
            Kind::Left => self.release_name(&inventory.left[item.index].snapshot),
            Kind::Source => self.release_stack(&inventory.sources[item.index].stack),
            Kind::Image => self.release_stack(&inventory.images[item.index].stack),
            Kind::Run => self.bytes -= scene.runs[item.index].bytes,
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
