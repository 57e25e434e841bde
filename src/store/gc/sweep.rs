//! Removes from the disk what no longer has a name.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rusqlite::Transaction;
use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::{Forget, plan::RunFiles};
use crate::{
    log_file::compressed_path,
    store::{
        LayerId, Store, StoreError,
        error::IoContext,
        files::names,
        index::{self, LayerKind, LayerRow, collect, inventory::Inventory},
        tree::{self, FileId},
        usage::PACKAGES_DIR,
    },
};

/// A younger file may be about to get its row.
const SETTLED: Duration = Duration::from_secs(60 * 60);

/// A younger run directory without a journal may be about to get one.
const RUN_SETTLED: Duration = Duration::from_secs(2);

/// The logs of cached steps.
#[derive(Debug, Default)]
pub(super) struct CachedLogs {
    /// Sizes in bytes, by key.
    pub(super) sizes: BTreeMap<[u8; 32], u64>,
    /// The log files that have other hard links.
    files: HashSet<FileId>,
}

/// Reads and removes what is on the disk of a store.
pub(super) struct Sweep<'a> {
    pub(super) store: &'a Store,
}

impl Sweep<'_> {
    /// Returns the runs that have ended, newest first, and the number of those still going on. Logs that are
    /// also logs of cached steps are counted with those.
    pub(super) fn old_runs(&self, logs: &CachedLogs) -> Result<(Vec<RunFiles>, usize), StoreError> {
        let dir = self.store.paths().runs();
        let (mut old, mut live) = (Vec::new(), 0);
        for name in names_if_any(&dir)? {
            let dir = dir.join(name);
            if is_live(&dir) {
                live += 1;
                continue;
            }
            let written = |path: PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
            let at = written(dir.join("journal")).or_else(|| written(dir.clone())).map_or(0, to_ms);
            let mut extent = tree::measure(&dir).doing("measure", &dir)?;
            extent.shared.retain(|file, _| !logs.files.contains(file));
            let bytes = extent.bytes();
            old.push(RunFiles { dir, bytes, at });
        }
        old.sort_by(|a, b| (b.at, &b.dir).cmp(&(a.at, &a.dir)));
        Ok((old, live))
    }

    /// Returns the logs of cached steps.
    pub(super) fn cached_logs(&self, inventory: &Inventory) -> Result<CachedLogs, StoreError> {
        let mut logs = CachedLogs::default();
        if self.store.paths().logs().is_dir() {
            for row in &inventory.cached {
                let path = self.store.steps().log(&row.key);
                for path in [compressed_path(&path), path] {
                    let extent = tree::measure(&path).doing("measure", &path)?;
                    *logs.sizes.entry(row.key).or_default() += extent.bytes();
                    logs.files.extend(extent.shared.into_keys());
                }
            }
        }
        Ok(logs)
    }

    /// Adds rows for deltas that were not kept with any snapshot, and for layers of images that were never
    /// completed, so that they are removed like everything else without a name. They are named after their
    /// content, not after the process that made them, and so that process does not remove them.
    pub(super) fn give_rows_to_unnamed(&self, inventory: &Inventory) -> Result<(), StoreError> {
        let found = names(&self.store.paths().layers())?;
        let layers = found.iter().filter_map(|name| LayerId::parse(name)).filter(LayerId::is_of_content);
        for id in layers.filter(|id| !inventory.layers.contains_key(id)) {
            match tree::seal(&self.store.layers().dir(&id)) {
                Ok(seal) => {
                    let row = LayerRow { id, kind: LayerKind::Step, seal };
                    self.store
                        .index()
                        .write(|transaction| index::layers::insert(transaction, self.store.instance().boot(), &row))?;
                }
                Err(error) => tracing::debug!(%error, layer = %id, "failed to read a layer"),
            }
        }
        Ok(())
    }

    /// Forgets layers that were removed from the disk by other means, and every name that needs one of them.
    pub(super) fn forget_missing(
        &self,
        transaction: &Transaction<'_>,
        inventory: Inventory,
    ) -> rusqlite::Result<Inventory> {
        // A layer with a row was in its place before.
        let missing: Vec<&LayerId> =
            inventory.layers.keys().filter(|id| !self.store.layers().home(id).is_dir()).collect();
        if missing.is_empty() {
            return Ok(inventory);
        }
        missing.iter().try_for_each(|id| index::layers::remove(transaction, id))?;
        index::forget_broken(transaction)?;
        index::note_reaped(transaction, &[("rows of missing layers", missing.len())])?;
        index::inventory::read(transaction)
    }

    /// Removes what was doomed up to `epoch` and before the oldest lease. Returns the freed bytes, as the
    /// other functions here do.
    pub(super) fn remove_doomed(&self, epoch: u64) -> Result<u64, StoreError> {
        let end = self.store.instance().oldest_epoch()?.map_or(epoch + 1, |oldest| oldest.min(epoch + 1));
        let mut removed = Vec::new();
        let mut trouble = None;
        let done = self.store.index().write(|transaction| {
            let inventory = index::inventory::read(transaction)?;
            collect::reconcile(transaction, &inventory)?;
            for layer in collect::doomed_layers(transaction, end)? {
                match self.store.trash().take(&self.store.layers().home(&layer)) {
                    Ok(taken) => {
                        removed.extend(taken);
                        index::layers::remove(transaction, &layer)?;
                    }
                    Err(error) => trouble = trouble.take().or_else(|| stays(error)),
                }
            }
            collect::forget_doomed(transaction, end)
        });
        let freed = self.store.trash().delete(removed);
        done?;
        trouble.map_or(Ok(freed), Err)
    }

    /// Removes runs that have ended.
    pub(super) fn remove_runs(&self, runs: &[RunFiles]) -> Result<u64, StoreError> {
        let mut removed = Vec::new();
        for run in runs {
            if is_live(&run.dir) {
                continue;
            }
            match self.store.trash().take(&run.dir) {
                Ok(taken) => removed.extend(taken),
                Err(error) => match stays(error) {
                    None => continue,
                    Some(full) => {
                        self.store.trash().delete(removed);
                        return Err(full);
                    }
                },
            }
            if let Some(id) = run.dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) {
                let id: Uuid = id;
                self.store.index().write(|transaction| index::runs::remove(transaction, id))?;
            }
        }
        Ok(self.store.trash().delete(removed))
    }

    /// Removes files that no row names: logs, manifests, and indexes that were set aside long ago.
    pub(super) fn remove_unnamed(&self, before: &Inventory) -> Result<u64, StoreError> {
        let hex = |key: &[u8; 32]| blake3::Hash::from_bytes(*key).to_hex().to_string();
        let forgotten: BTreeSet<String> = before.cached.iter().map(|row| hex(&row.key)).collect();
        let mut removed = Vec::new();
        // A process that is about to write a row either waits and then finds the file gone, or writes the row
        // first.
        let done = self.store.index().write(|transaction| {
            let cached = index::inventory::read(transaction)?.cached;
            let cached: BTreeSet<String> = cached.iter().map(|row| hex(&row.key)).collect();
            let sources = collect::sources_with_manifests(transaction)?;
            let unnamed = |dir: &Path, keep: &dyn Fn(&str) -> bool| {
                let found = names_if_any(dir)?.into_iter().filter(|name| !keep(name));
                found.map(|name| dir.join(name)).try_for_each(|path| {
                    match self.store.trash().take(&path) {
                        Ok(taken) => removed.extend(taken),
                        Err(error) => return stays(error).map_or(Ok(()), Err),
                    }
                    Ok::<_, StoreError>(())
                })
            };
            let mut unnamed = unnamed;
            let logs = self.store.paths().logs();
            let is_young = |dir: &Path, name: &str| !is_older(&dir.join(name), SETTLED);
            let keep_log = |name: &str| {
                let key = name.strip_suffix(".zst").unwrap_or(name);
                cached.contains(key) || (!forgotten.contains(key) && is_young(&logs, name))
            };
            let manifests = self.store.paths().sources();
            let keep_manifest = |name: &str| sources.contains(name) || is_young(&manifests, name);
            let aside = |name: &str| !name.starts_with("index.db-damaged-") || is_young(self.store.dir(), name);
            Ok(unnamed(&logs, &keep_log)
                .and_then(|()| unnamed(&manifests, &keep_manifest))
                .and_then(|()| unnamed(self.store.dir(), &aside)))
        });
        let freed = self.store.trash().delete(removed);
        done??;
        Ok(freed)
    }

    /// Removes the virtual machines that are due. Returns the freed bytes.
    pub(super) fn remove_machines(&self, forget: &Forget) -> Result<u64, StoreError> {
        let machines = self.store.vm_templates();
        match forget {
            Forget::Everything => machines.remove_all(),
            _ => machines.remove_old(&machines.dir()),
        }
    }

    /// Removes packages that render pipelines, if everything is to be removed. Returns the freed bytes.
    pub(super) fn remove_packages(&self, forget: &Forget) -> Result<u64, StoreError> {
        let dir = self.store.dir().join(PACKAGES_DIR);
        if *forget != Forget::Everything || !dir.exists() {
            return Ok(0);
        }
        let bytes = tree::measure(&dir).doing("measure", &dir)?.bytes();
        tree::remove_tree(&dir).doing("remove", &dir)?;
        Ok(bytes)
    }
}

/// Reports what cannot be moved out of its place, such as a mount point or an immutable directory. The next
/// collection tries again. Returns an error that ends the collection if the disk is full, because the caller
/// can handle that.
fn stays(error: StoreError) -> Option<StoreError> {
    if matches!(error, StoreError::Full { .. }) {
        return Some(error);
    }
    tracing::warn!(error = %error.to_line(), "failed to remove some garbage");
    None
}

/// Returns whether the run in `dir` is still going on. Its journal is locked as soon as it exists.
fn is_live(dir: &Path) -> bool {
    match File::open(dir.join("journal")) {
        Ok(journal) => rustix::fs::flock(&journal, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => !is_older(dir, RUN_SETTLED),
        Err(_) => true,
    }
}

/// Returns whether the file at `path` was changed longer ago than `limit`, or, if the clock jumped, by more
/// than that in the future.
fn is_older(path: &Path, limit: Duration) -> bool {
    let Ok(changed) = fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) else { return false };
    let now = SystemTime::now();
    now.duration_since(changed).or_else(|_| changed.duration_since(now)).is_ok_and(|age| age > limit)
}

pub(super) fn names_if_any(dir: &Path) -> Result<Vec<String>, StoreError> {
    if dir.is_dir() { names(dir) } else { Ok(Vec::new()) }
}

fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
