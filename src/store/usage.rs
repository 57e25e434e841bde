//! Disk usage of the store, by kind and by pipeline.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use serde::Serialize;

use super::{
    LayerId, Store, StoreError,
    error::IoContext,
    files::names,
    index::{self, inventory::Inventory},
    tree::{self, Extent, FileId},
};
use crate::size;

/// The directory of packages that render pipelines, which only the command uses.
pub(super) const PACKAGES_DIR: &str = "dsl";

/// The store's disk usage, in bytes of allocated blocks. A file with several hard links counts once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// The total.
    pub bytes: u64,
    /// Usage by kind. A file that belongs to two kinds counts toward the first.
    pub kinds: BTreeMap<UsageKind, u64>,
    /// The layers of cached steps, by pipeline.
    pub pipelines: Vec<PipelineUsage>,
    /// The filesystem that contains the store.
    pub filesystem: Filesystem,
}

/// The purpose of something in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UsageKind {
    /// Layers of cached steps.
    Steps,
    /// Frozen source trees.
    Sources,
    /// Images.
    Images,
    /// Cache directories of steps.
    CacheDirs,
    /// Layers kept only for inspection: those of failed or interrupted steps.
    Leftovers,
    /// Templates of virtual machines that have booted.
    Machines,
    /// Packages that render pipelines.
    Packages,
    /// Journals and logs of runs, and logs of cached steps.
    Journals,
    /// Records of what steps read. They are in the index.
    Traces,
    /// The index and other small files.
    Index,
    /// Layers without a name, until the last run that may use them ends.
    Waiting,
    /// Files that processes are working on, or that dead processes left behind.
    Temporary,
}

/// The layers of the cached steps of one pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PipelineUsage {
    /// The pipeline.
    pub pipeline: String,
    /// The number of cached steps.
    pub steps: usize,
    /// The bytes that would be freed by removing this pipeline.
    pub unique_bytes: u64,
    /// The bytes shared with other pipelines.
    pub shared_bytes: u64,
}

/// A filesystem's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Filesystem {
    /// The total size, in bytes.
    pub bytes: u64,
    /// The bytes that an unprivileged user can still write.
    pub free_bytes: u64,
    /// The bytes in use.
    pub used_bytes: u64,
}

impl Store {
    /// Measures the disk usage of the entire store. Takes about a microsecond for each file.
    ///
    /// # Errors
    /// Returns an error if the index, or a directory that should be readable, cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let inventory = self.index().read(index::inventory::read)?;
        let mut count = Count::default();
        let mut layers = BTreeMap::new();
        let cached = layers_of(&inventory, inventory.cached.iter().map(|row| row.snapshot.as_str()));
        let dir = self.paths().layers();
        for name in names(&dir)? {
            let path = dir.join(&name);
            let extent = tree::measure(&path).doing("measure", &path)?;
            let id = LayerId::parse(&name);
            let kind = match id.as_ref().and_then(|id| inventory.layers.get(id).map(|layer| (id, layer))) {
                None => UsageKind::Temporary,
                Some((_, layer)) if layer.doomed.is_some() => UsageKind::Waiting,
                Some((id, layer)) => match layer.kind.as_str() {
                    "source" => UsageKind::Sources,
                    "image" => UsageKind::Images,
                    "cache_dir" => UsageKind::CacheDirs,
                    _ if cached.contains(id) => UsageKind::Steps,
                    _ => UsageKind::Leftovers,
                },
            };
            layers.extend(id.map(|id| (id, extent.bytes())));
            count.add(kind, extent);
        }
        for name in names(self.dir())?.iter().filter(|name| *name != "layers") {
            let kind = match name.as_str() {
                "sources" | "stat" => UsageKind::Sources,
                "runs" | "logs" | "last-runs" => UsageKind::Journals,
                "tmp" | "workspaces" => UsageKind::Temporary,
                "vm" => UsageKind::Machines,
                PACKAGES_DIR => UsageKind::Packages,
                _ => UsageKind::Index,
            };
            let path = self.dir().join(name);
            count.add(kind, tree::measure(&path).doing("measure", &path)?);
        }
        let traces = self.index().read(index::traces::bytes)?;
        count.split(UsageKind::Index, UsageKind::Traces, traces);
        Ok(Usage {
            bytes: count.kinds.values().sum(),
            kinds: count.kinds,
            pipelines: pipelines(&inventory, &layers),
            filesystem: Filesystem::of(self.dir())?,
        })
    }
}

impl Filesystem {
    /// Returns the free and the total size as text for users: `6.0 MiB free of 6.0 MiB`.
    #[must_use]
    pub fn room(&self) -> String {
        format!("{} free of {}", size::show(self.free_bytes), size::show(self.bytes))
    }

    /// Returns the filesystem that contains `path`.
    ///
    /// # Errors
    /// Returns an error if the system does not report it.
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        let stat = rustix::fs::statvfs(path).doing("look at the filesystem of", path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self {
            bytes: bytes(stat.f_blocks),
            free_bytes: bytes(stat.f_bavail),
            used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        })
    }
}

/// A sum of file sizes that counts each file once.
#[derive(Debug, Default)]
struct Count {
    kinds: BTreeMap<UsageKind, u64>,
    seen: HashSet<FileId>,
}

impl Count {
    fn add(&mut self, kind: UsageKind, extent: Extent) {
        let shared = extent.shared.into_iter().filter(|(file, _)| self.seen.insert(*file)).map(|(_, bytes)| bytes);
        *self.kinds.entry(kind).or_default() += extent.own + shared.sum::<u64>();
    }

    /// Counts some bytes of `whole`, but no more than it has, as `part`.
    fn split(&mut self, whole: UsageKind, part: UsageKind, bytes: u64) {
        let Some(left) = self.kinds.get_mut(&whole) else { return };
        let bytes = bytes.min(*left);
        *left -= bytes;
        *self.kinds.entry(part).or_default() += bytes;
    }
}

/// Returns the layers of some snapshots.
fn layers_of<'a, 'b>(inventory: &'a Inventory, snapshots: impl Iterator<Item = &'b str>) -> BTreeSet<&'a LayerId> {
    let wanted: HashSet<&str> = snapshots.collect();
    inventory.snapshots.iter().filter(|row| wanted.contains(row.id.as_str())).flat_map(|row| &row.stack).collect()
}

fn pipelines(inventory: &Inventory, bytes: &BTreeMap<LayerId, u64>) -> Vec<PipelineUsage> {
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in &inventory.cached {
        by_name.entry(&row.pipeline).or_default().push(&row.snapshot);
    }
    let by_name: Vec<_> = by_name
        .into_iter()
        .map(|(name, snapshots)| (name, snapshots.len(), layers_of(inventory, snapshots.into_iter())))
        .collect();
    let mut owners: BTreeMap<&LayerId, usize> = BTreeMap::new();
    by_name.iter().flat_map(|(.., layers)| layers).for_each(|layer| *owners.entry(*layer).or_default() += 1);
    by_name
        .into_iter()
        .map(|(name, steps, layers)| {
            let (mut unique_bytes, mut shared_bytes) = (0, 0);
            for layer in layers {
                let sum = if owners.get(layer) == Some(&1) { &mut unique_bytes } else { &mut shared_bytes };
                *sum += bytes.get(layer).copied().unwrap_or_default();
            }
            PipelineUsage { pipeline: name.to_owned(), steps, unique_bytes, shared_bytes }
        })
        .collect()
}
