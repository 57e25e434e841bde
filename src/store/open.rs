//! An open store: its parts, and how it is opened and closed.
//!
//! Each part owns a piece of the state and what can be done with it alone. The methods of [`Store`] are those
//! that need several parts.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::digests::Digests;
use super::traces::Traces;
use super::tracing_costs::TracingCosts;
use super::{
    Filesystem, KeepAs, Lease, Staging, StoreError, TreeOps,
    error::IoContext,
    exposure::{self, Exposure},
    files::make_dir,
    format::{FORMAT, Format},
    index::{Index, Opened},
    instance::Instance,
    layers::Layers,
    lease::Leases,
    paths::Paths,
    recover, reserved_space,
    runs::Runs,
    shared::Shared,
    snapshots::Snapshots,
    stacks::Stacks,
    steps::{self, Steps},
    trash::Trash,
    vm_templates::VmTemplates,
};
use crate::model::SnapshotRef;

/// An open store. Several processes may have the same store open.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    layers: Arc<Layers>,
    leases: Leases,
    stacks: Stacks,
    snapshots: Snapshots,
    steps: Steps,
    runs: Runs,
    digests: Digests,
    traces: Traces,
    tracing_costs: TracingCosts,
    vm_templates: VmTemplates,
    exposure: Option<Exposure>,
}

impl Store {
    /// Returns the default directory of the store: `$HM_CACHE_DIR`, or `hm` in the user's cache directory.
    ///
    /// # Errors
    /// Returns [`StoreError::NoHome`] if no environment variable specifies a directory.
    pub fn default_dir() -> Result<PathBuf, StoreError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let absolute = |path: &PathBuf| path.is_absolute();
        variable("HM_CACHE_DIR")
            .or_else(|| variable("XDG_CACHE_HOME").filter(absolute).map(|dir| dir.join("hm")))
            .or_else(|| variable("HOME").filter(absolute).map(|dir| dir.join(".cache/hm")))
            .ok_or(StoreError::NoHome)
    }

    /// Opens the store in `dir`. The directory is created if it is missing, accessible to its owner only.
    /// Files that killed processes left behind are removed.
    ///
    /// # Errors
    /// Returns an error if a directory cannot be created, or if the directory contains another version of the
    /// store.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        match Self::open_once(dir) {
            Err(StoreError::Full { .. }) if reserved_space::release(dir) => Self::open_once(dir),
            opened => opened,
        }
    }

    fn open_once(dir: &Path) -> Result<Arc<Self>, StoreError> {
        make_dir(dir)?;
        let paths = Paths::new(dir.canonicalize().doing("resolve", dir)?);
        let exposure = exposure::close(paths.dir())?;
        for dir in [paths.locks(), paths.tmps(), paths.sources(), paths.layers(), paths.logs(), paths.workspaces()] {
            make_dir(&dir)?;
        }
        // One process at a time opens the store, so that a process that is just starting is not mistaken for
        // a dead one.
        let locks = paths.locks();
        let opening = File::open(&locks).doing("open", &locks)?;
        rustix::fs::flock(&opening, FlockOperation::LockExclusive).doing("lock", &locks)?;
        let format = Format::read(&paths)?;
        let (index, opened) = Index::open(paths.dir())?;
        let instance = Arc::new(Instance::register(&paths)?);
        let mut shared = Shared { trash: Trash::new(Arc::clone(&instance)), index, instance, paths };
        let Shared { trash, instance, paths, .. } = &shared;
        if format == Format::Older {
            for name in ["snapshots", "sources", "last-runs", "boot"] {
                trash.discard_from(&paths.dir().join(name))?;
            }
            make_dir(&paths.sources())?;
        }
        if format != Format::This {
            instance.write_file(&paths.format(), FORMAT.as_bytes())?;
        }
        if let Err(error) = recover::run(&shared, opened) {
            if !shared.index.is_damaged() {
                return Err(error);
            }
            shared.index = Index::open(shared.paths.dir())?.0;
            recover::run(&shared, Opened::New)?;
        }
        if opened == Opened::New {
            reserved_space::fill(shared.paths.dir(), &Filesystem::of(shared.paths.dir())?);
        }
        Ok(Arc::new(Self::of(Arc::new(shared), exposure)))
    }

    fn of(shared: Arc<Shared>, exposure: Option<Exposure>) -> Self {
        let layers = Arc::new(Layers::new(Arc::clone(&shared)));
        Self {
            leases: Leases::new(Arc::clone(&shared)),
            stacks: Stacks::new(Arc::clone(&shared), Arc::clone(&layers)),
            snapshots: Snapshots::new(Arc::clone(&shared), Arc::clone(&layers)),
            steps: Steps::new(Arc::clone(&shared), Arc::clone(&layers)),
            runs: Runs::new(Arc::clone(&shared)),
            digests: Digests::new(Arc::clone(&shared)),
            traces: Traces::new(Arc::clone(&shared)),
            tracing_costs: TracingCosts::new(Arc::clone(&shared)),
            vm_templates: VmTemplates::new(Arc::clone(&shared)),
            layers,
            exposure,
            shared,
        }
    }

    /// Returns the store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.shared.paths.dir()
    }

    /// Returns whether other users could access the store before it was opened. It was closed to them as far
    /// as possible.
    #[must_use]
    #[doc(hidden)]
    pub fn exposure(&self) -> Option<&Exposure> {
        self.exposure.as_ref()
    }

    /// Returns the layers on disk.
    #[must_use]
    #[doc(hidden)]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Returns the snapshots that this process made, and those that are kept.
    #[must_use]
    #[doc(hidden)]
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Returns the results of steps that are kept.
    #[must_use]
    #[doc(hidden)]
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Returns the history of runs.
    #[must_use]
    #[doc(hidden)]
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.shared.paths
    }

    pub(crate) fn instance(&self) -> &Instance {
        &self.shared.instance
    }

    pub(crate) fn trash(&self) -> &Trash {
        &self.shared.trash
    }

    pub(super) fn index(&self) -> &Index {
        &self.shared.index
    }

    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    pub(crate) fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Returns what tracing steps took and saved.
    pub(crate) fn tracing_costs(&self) -> &TracingCosts {
        &self.tracing_costs
    }

    pub(crate) fn digests(&self) -> &Digests {
        &self.digests
    }

    pub(crate) fn vm_templates(&self) -> &VmTemplates {
        &self.vm_templates
    }

    /// Uses `ops` for all further operations on trees that steps wrote.
    #[doc(hidden)]
    pub fn set_tree_ops(&self, ops: Arc<dyn TreeOps>) {
        self.trash().set_tree_ops(ops);
    }

    /// Protects everything that can be found from now on from removal, until the lease is dropped. Take the
    /// lease first, then look things up.
    ///
    /// # Errors
    /// Returns an error if the lock file cannot be written, or if the index cannot be read.
    #[doc(hidden)]
    pub fn lease(self: &Arc<Self>) -> Result<Lease, StoreError> {
        Lease::take(self)
    }

    /// Creates an empty layer to write to.
    ///
    /// # Errors
    /// Returns an error if a directory cannot be created.
    #[doc(hidden)]
    pub fn stage(self: &Arc<Self>) -> Result<Staging, StoreError> {
        Staging::new(self)
    }

    /// Keeps a snapshot of this process, or one that is already kept, under a name. From then on only
    /// [garbage collection](Store::gc) removes it. Takes as long as walking the layers that were not kept
    /// before.
    ///
    /// # Errors
    /// Returns an error if there is no such snapshot, or if the index cannot be written. Nothing is kept
    /// then.
    #[doc(hidden)]
    pub fn keep(&self, snapshot: &SnapshotRef, name: KeepAs<'_>) -> Result<(), StoreError> {
        self.snapshots.keep(snapshot, |transaction, id| steps::name(transaction, id, name))
    }

    /// Returns how many bytes can be written and still leave what removing files needs.
    ///
    /// # Errors
    /// Returns an error if the system does not report it.
    pub(crate) fn room(&self) -> Result<u64, StoreError> {
        Ok(reserved_space::room(&Filesystem::of(self.dir())?))
    }

    /// Returns a random key that only this store has, for hashes that must not reveal their input. It is
    /// created by the first call.
    ///
    /// # Errors
    /// Returns an error if the key can be neither read nor created.
    #[doc(hidden)]
    pub fn secret(&self) -> Result<[u8; 32], StoreError> {
        let path = self.paths().secret();
        let read = || fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok());
        if let Some(secret) = read() {
            return Ok(secret);
        }
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let secret = *blake3::hash(&[one.into_bytes(), other.into_bytes()].concat()).as_bytes();
        self.instance().write_file(&path, &secret)?;
        // Another process may have created a key at the same time. The last one written stays.
        Ok(read().unwrap_or(secret))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.snapshots.remove_all() {
            tracing::debug!(%error, "leaving a file to the next process that opens the store");
        }
    }
}
