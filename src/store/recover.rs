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
    LayerId, StoreError,
    error::IoContext,
    files::names,
    index::{self, Opened},
    shared::Shared,
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

/// Recovers the store. Called when the store is opened, by one process at a time.
pub(super) fn run(shared: &Shared, opened: Opened) -> Result<(), StoreError> {
    Recovery { shared, reaped: Reaped::default() }.run(opened)
}

/// One recovery, and what it removed so far.
struct Recovery<'a> {
    shared: &'a Shared,
    reaped: Reaped,
}

impl Recovery<'_> {
    fn run(mut self, opened: Opened) -> Result<(), StoreError> {
        let Shared { index, instance, .. } = self.shared;
        let alive = self.reap_dead()?;
        let another_boot = index.read(|connection| index::layers::any_of_another_boot(connection, instance.boot()))?;
        if another_boot {
            let forgotten = index.write(|transaction| {
                let layers = index::layers::forget_unsynced(transaction, instance.boot())?;
                Ok([("unsynced layers", layers), ("snapshots", index::forget_broken(transaction)?)])
            })?;
            forgotten.into_iter().for_each(|(what, count)| self.reaped.add(what, count));
        }
        if alive == 0 && (another_boot || opened == Opened::New || !self.reaped.0.is_empty()) {
            self.reap_unindexed()?;
        }
        if !self.reaped.0.is_empty() {
            index.write(|transaction| index::note_reaped(transaction, &self.reaped.0))?;
        }
        Ok(())
    }

    /// Removes the files of dead processes. Returns how many other processes are alive.
    fn reap_dead(&mut self) -> Result<usize, StoreError> {
        let Shared { instance, paths, trash, .. } = self.shared;
        let mut alive = 0;
        for name in names(&paths.locks())? {
            let path = paths.locks().join(&name);
            let Ok(lock) = File::open(&path) else { continue };
            if instance.made(&name) {
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
            self.reaped.add("killed processes", 1);
            let layers = names(&paths.layers())?.into_iter().filter(|found| found.starts_with(&name));
            self.reaped.add("layers", self.discard_unindexed(layers.filter_map(|layer| LayerId::parse(&layer)))?);
            let workspaces = paths.workspaces();
            for workspace in names(&workspaces)?.iter().filter(|found| found.starts_with(&name)) {
                self.reaped.add("workspaces", usize::from(trash.try_discard_from(&workspaces.join(workspace))?));
            }
            self.discard_dead_tmp(&name)?;
            fs::remove_file(&path).doing("remove", &path)?;
        }
        for name in names(&paths.tmps())? {
            // A lock is created before its directory, and removed after it.
            if !paths.locks().join(&name).exists() {
                let gone = self.discard_dead_tmp(&name)?;
                self.reaped.add("temporary directories", usize::from(gone));
            }
        }
        Ok(alive)
    }

    /// Removes the directory of a dead process, entry by entry. Entries that cannot be deleted then move from
    /// one process to the next without being nested more deeply each time. Returns whether the directory is
    /// gone.
    fn discard_dead_tmp(&self, name: &str) -> Result<bool, StoreError> {
        let dir = self.shared.paths.tmps().join(name);
        if !dir.is_dir() {
            return Ok(true);
        }
        for entry in names(&dir)? {
            if let Err(error @ StoreError::Full { .. }) = self.shared.trash.discard_from(&dir.join(entry)) {
                return Err(error);
            }
        }
        match fs::remove_dir(&dir) {
            Ok(()) => Ok(true),
            Err(_) => self.shared.trash.try_discard_from(&dir),
        }
    }

    /// Removes layers without a row, and rows without a layer. Requires that no other process has the store
    /// open.
    fn reap_unindexed(&mut self) -> Result<(), StoreError> {
        let Shared { index, paths, .. } = self.shared;
        let found: BTreeSet<String> = names(&paths.layers())?.into_iter().collect();
        let gone: Vec<LayerId> = index.read(index::layers::all)?;
        let gone: Vec<LayerId> = gone.into_iter().filter(|layer| !found.contains(layer.as_str())).collect();
        if !gone.is_empty() {
            let broken = index.write(|transaction| {
                gone.iter().try_for_each(|layer| index::layers::remove(transaction, layer))?;
                index::forget_broken(transaction)
            })?;
            self.reaped.add("rows of missing layers", gone.len());
            self.reaped.add("snapshots", broken);
        }
        let unindexed = self.discard_unindexed(found.into_iter().filter_map(|name| LayerId::parse(&name)))?;
        self.reaped.add("layers", unindexed);
        Ok(())
    }

    /// Removes those of some layers that have no row. Returns how many.
    fn discard_unindexed(&self, layers: impl Iterator<Item = LayerId>) -> Result<usize, StoreError> {
        let mut count = 0;
        for layer in layers {
            if self.shared.index.read(|connection| index::layers::seal(connection, &layer))?.is_none() {
                count += usize::from(self.shared.trash.try_discard_from(&self.shared.paths.layer(&layer))?);
            }
        }
        Ok(count)
    }
}
