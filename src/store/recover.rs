//! Recovery when the store is opened after a process died: its files are removed, and the index is made
//! consistent.
//!
//! A process is dead if its lock is free. Files that it was creating are in its `tmp`. Layers that it put in
//! place and never kept carry its name and have no row. After a reboot, rows that were not synced are
//! forgotten, because their layers may be only partly on disk. Layers without a row whose maker is unknown
//! are removed when no other process has the store open.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::MetadataExt,
};

use rustix::fs::FlockOperation;

use super::{
    LayerId, Store, StoreError,
    error::Doing,
    index::{self, Opened},
    layout::names,
};

/// Counts of what was removed, by kind, for messages to users.
#[derive(Debug, Default)]
struct Reaped(Vec<(&'static str, usize)>);

impl Reaped {
    fn add(&mut self, what: &'static str, count: usize) {
        if count > 0 {
            tracing::debug!(what, count, "reaped");
            self.0.push((what, count));
        }
    }
}

impl Store {
    /// Recovers the store. Called when the store is opened, by one process at a time.
    pub(super) fn recover(&self, opened: Opened) -> Result<(), StoreError> {
        let mut reaped = Reaped::default();
        let alive = self.reap_dead(&mut reaped)?;
        let another_boot = self.index.read(|connection| index::layers::any_of_another_boot(connection, &self.boot))?;
        if another_boot {
            let forgotten = self.index.write(|transaction| {
                let layers = index::layers::forget_unsynced(transaction, &self.boot)?;
                Ok([("unsynced layers", layers), ("snapshots", index::forget_broken(transaction)?)])
            })?;
            forgotten.into_iter().for_each(|(what, count)| reaped.add(what, count));
        }
        if alive == 0 && (another_boot || opened == Opened::New || !reaped.0.is_empty()) {
            self.reap_unindexed(&mut reaped)?;
        }
        if !reaped.0.is_empty() {
            self.index.write(|transaction| index::note_reaped(transaction, &reaped.0))?;
        }
        Ok(())
    }

    /// Removes the files of dead processes. Returns how many other processes are alive.
    fn reap_dead(&self, reaped: &mut Reaped) -> Result<usize, StoreError> {
        let mut alive = 0;
        for name in names(&self.dir().join("locks"))? {
            let path = self.dir().join("locks").join(&name);
            let Ok(lock) = File::open(&path) else { continue };
            if self.made(&name) {
                continue;
            }
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                alive += 1;
                continue;
            }
            if lock.metadata().doing("read", &path)?.nlink() == 0 {
                // The process closed the store just now.
                continue;
            }
            reaped.add("killed processes", 1);
            let layers = names(&self.dir().join("layers"))?.into_iter().filter(|found| found.starts_with(&name));
            reaped.add("layers", self.discard_unindexed(layers.filter_map(|layer| LayerId::parse(&layer)))?);
            let workspaces = self.dir().join("workspaces");
            for workspace in names(&workspaces)?.iter().filter(|found| found.starts_with(&name)) {
                reaped.add("workspaces", usize::from(self.try_discard_from(&workspaces.join(workspace))?));
            }
            self.discard_dead_tmp(&name)?;
            fs::remove_file(&path).doing("remove", &path)?;
        }
        for name in names(&self.dir().join("tmp"))? {
            // A lock is created before its directory, and removed after it.
            if !self.dir().join("locks").join(&name).exists() {
                let gone = self.discard_dead_tmp(&name)?;
                reaped.add("temporary directories", usize::from(gone));
            }
        }
        Ok(alive)
    }

    /// Removes the directory of a dead process, entry by entry. Entries that cannot be deleted then move from
    /// one process to the next without being nested more deeply each time. Returns whether the directory is
    /// gone.
    fn discard_dead_tmp(&self, name: &str) -> Result<bool, StoreError> {
        let dir = self.dir().join("tmp").join(name);
        if !dir.is_dir() {
            return Ok(true);
        }
        for entry in names(&dir)? {
            if let Err(error @ StoreError::Full { .. }) = self.discard_from(&dir.join(entry)) {
                return Err(error);
            }
        }
        match fs::remove_dir(&dir) {
            Ok(()) => Ok(true),
            Err(_) => self.try_discard_from(&dir),
        }
    }

    /// Removes layers without a row, and rows without a layer. Requires that no other process has the store
    /// open.
    fn reap_unindexed(&self, reaped: &mut Reaped) -> Result<(), StoreError> {
        let found: BTreeSet<String> = names(&self.dir().join("layers"))?.into_iter().collect();
        let gone: Vec<LayerId> = self.index.read(index::layers::all)?;
        let gone: Vec<LayerId> = gone.into_iter().filter(|layer| !found.contains(layer.as_str())).collect();
        if !gone.is_empty() {
            let broken = self.index.write(|transaction| {
                gone.iter().try_for_each(|layer| index::layers::remove(transaction, layer))?;
                index::forget_broken(transaction)
            })?;
            reaped.add("rows of missing layers", gone.len());
            reaped.add("snapshots", broken);
        }
        let unindexed = self.discard_unindexed(found.into_iter().filter_map(|name| LayerId::parse(&name)))?;
        reaped.add("layers", unindexed);
        Ok(())
    }

    /// Removes those of some layers that have no row. Returns how many.
    fn discard_unindexed(&self, layers: impl Iterator<Item = LayerId>) -> Result<usize, StoreError> {
        let mut count = 0;
        for layer in layers {
            if self.index.read(|connection| index::layers::seal(connection, &layer))?.is_none() {
                count += usize::from(self.try_discard_from(&self.layer_home(&layer))?);
            }
        }
        Ok(count)
    }

    /// Syncs everything that was kept since the last call to the disk. Data that is not synced may be lost in
    /// a power failure. Blocks until the disk has written all pending data, including that of other
    /// processes.
    ///
    /// # Errors
    /// Returns an error if the disk reports one, or if the index cannot be written.
    pub fn sync(&self) -> Result<(), StoreError> {
        let layers = self.index.read(index::layers::unsynced)?;
        if layers.is_empty() {
            return Ok(());
        }
        let dir = File::open(self.dir()).doing("open", self.dir())?;
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&dir).doing("sync the filesystem of", self.dir())?;
        #[cfg(not(target_os = "linux"))]
        dir.sync_all().doing("sync", self.dir())?;
        self.index.write(|transaction| index::layers::mark_synced(transaction, &layers))
    }
}
