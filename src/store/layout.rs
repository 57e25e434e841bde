//! The store's directory, and who owns what in it.
//!
//! ```text
//! format                    the version of this layout
//! boot                      which boot of the machine the rest was written in
//! locks/INSTANCE            held (flock) by a process for as long as it has the store open
//! tmp/INSTANCE/             what that process is about to make or to remove
//! sources/SOURCE/           a frozen source: its `manifest`, and the `stack` of layers that it is made of
//! layers/LAYER/root/        what one step changed, or (a part of) a frozen source: `workspace/...`
//! snapshots/SNAPSHOT.json   which layers, over which source and image
//! workspaces/WORKSPACE/     the process runner's snapshots
//! ```
//!
//! Everything is made in `tmp` and renamed to its place, so that a kill at any moment leaves nothing half made outside of
//! `tmp`. Layers and snapshots are named INSTANCE + counter: of a process that ended without handing its snapshots back
//! (its lock is free, and still there) they are found by name, and removed by the next process that opens the store.
//!
//! Nothing is synced to the disk: after a reboot a file may be empty that was whole before. So what was written in another
//! boot is dropped.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::{IdMap, StoreError, error::Doing, host::HostImages, remover::Remover, snapshot, tree};

const FORMAT: &str = "hm-exec store 1\n";

/// A store that is open. Many processes may have the same one open.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    instance: String,
    lock: PathBuf,
    /// Held until the store is closed.
    _locked: File,
    next: AtomicU64,
    ops: Arc<RwLock<Arc<dyn TreeOps>>>,
    remover: Mutex<Option<Remover>>,
    pub(super) hosts: HostImages,
}

/// Work on trees whose files may belong to other user ids than the caller's.
///
/// The default does it directly. Where steps run with a range of subordinate user ids, the sandbox installs one that does
/// it inside of the steps' user namespace.
pub trait TreeOps: Send + Sync + std::fmt::Debug {
    /// Does what [`tree::remove_tree`] does.
    ///
    /// # Errors
    /// The first failure.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;

    /// Does what [`tree::flatten`] does.
    ///
    /// # Errors
    /// The first failure.
    fn flatten(&self, layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()>;
}

#[derive(Debug)]
struct Direct;

impl TreeOps for Direct {
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        tree::remove_tree(path)
    }

    fn flatten(&self, layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()> {
        tree::flatten(layers, into, id_map)
    }
}

impl Store {
    /// Where the store is unless somebody says otherwise: `$HM_CACHE_DIR`, or `hm` in the user's cache directory.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] where no environment variable tells.
    pub fn default_dir() -> Result<PathBuf, StoreError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let absolute = |path: &PathBuf| path.is_absolute();
        variable("HM_CACHE_DIR")
            .or_else(|| variable("XDG_CACHE_HOME").filter(absolute).map(|dir| dir.join("hm")))
            .or_else(|| variable("HOME").filter(absolute).map(|dir| dir.join(".cache/hm")))
            .ok_or(StoreError::NoHome)
    }

    /// Opens the store in `dir`, which is made where it is missing, readable for its owner alone. What processes that
    /// were killed left behind goes.
    ///
    /// # Errors
    /// Where a directory can't be made, or another version of the store lies there.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        make_dir(dir)?;
        let dir = dir.canonicalize().doing("resolve", dir)?;
        for name in ["locks", "tmp", "sources", "layers", "snapshots", "workspaces"] {
            make_dir(&dir.join(name))?;
        }
        // One process at a time opens the store, so that none takes a newcomer for dead.
        let locks = dir.join("locks");
        let opening = File::open(&locks).doing("open", &locks)?;
        rustix::fs::flock(&opening, FlockOperation::LockExclusive).doing("lock", &locks)?;
        let (instance, lock, locked) = register(&dir)?;
        let ops: Arc<RwLock<Arc<dyn TreeOps>>> = Arc::new(RwLock::new(Arc::new(Direct)));
        let store = Self {
            remover: Mutex::new(Some(Remover::start(Arc::clone(&ops)))),
            instance,
            lock,
            _locked: locked,
            next: AtomicU64::new(0),
            ops,
            hosts: HostImages::default(),
            dir,
        };
        store.check_format()?;
        if store.reap()? == 0 {
            store.drop_other_boot()?;
        }
        Ok(Arc::new(store))
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets `ops` do all further work on trees that steps wrote.
    pub fn set_tree_ops(&self, ops: Arc<dyn TreeOps>) {
        *self.ops.write().unwrap_or_else(PoisonError::into_inner) = ops;
        if let Some(remover) = &*self.remover.lock().unwrap_or_else(PoisonError::into_inner) {
            remover.retry();
        }
    }

    pub(super) fn tree_ops(&self) -> Arc<dyn TreeOps> {
        Arc::clone(&self.ops.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A name that nothing in any store has: 32 hexadecimal digits, of which the first 24 are this process's.
    pub(crate) fn new_id(&self) -> String {
        format!("{}{:08x}", self.instance, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A free path for something to be made, on the store's filesystem. Nothing is there yet.
    pub(crate) fn new_tmp(&self) -> PathBuf {
        self.tmp().join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp").join(&self.instance)
    }

    /// Removes a tree below this process's `tmp`, soon, on a thread of its own.
    pub(crate) fn discard(&self, path: PathBuf) {
        if let Some(remover) = &*self.remover.lock().unwrap_or_else(PoisonError::into_inner) {
            remover.remove(path);
        }
    }

    /// Moves a tree of the store to this process's `tmp` at once, and removes it soon. Nothing there is success.
    pub(crate) fn discard_from(&self, path: &Path) -> Result<(), StoreError> {
        let trash = self.new_tmp();
        match fs::rename(path, &trash) {
            Ok(()) => {
                self.discard(trash);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("remove", path, error)),
        }
    }

    /// Writes a small file whole or not at all.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let aside = self.new_tmp();
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside).doing("make", &aside)?;
        file.write_all(bytes).doing("write", &aside)?;
        fs::rename(&aside, path).doing("make", path)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.dir.join("format");
        match fs::read_to_string(&path) {
            Ok(format) if format == FORMAT => Ok(()),
            Ok(format) => Err(StoreError::Corrupt { path, reason: format!("its format is {:?}", format.trim()) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write_file(&path, FORMAT.as_bytes()),
            Err(error) => Err(StoreError::io("read", path, error)),
        }
    }

    /// Removes what dead processes left. Tells how many others are alive.
    fn reap(&self) -> Result<usize, StoreError> {
        let mut alive = 0;
        for name in names(&self.dir.join("locks"))? {
            let path = self.dir.join("locks").join(&name);
            let Ok(lock) = File::open(&path) else { continue };
            if name == self.instance {
                continue;
            }
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                alive += 1;
                continue;
            }
            if lock.metadata().doing("read", &path)?.nlink() == 0 {
                // It closed the store just now.
                continue;
            }
            tracing::debug!(instance = name, "removing what a killed process left in the store");
            snapshot::remove_all_of(self, &name)?;
            for workspace in names(&self.dir.join("workspaces"))?.iter().filter(|found| found.starts_with(&name)) {
                self.discard_from(&self.dir.join("workspaces").join(workspace))?;
            }
            self.discard_from(&self.dir.join("tmp").join(&name))?;
            fs::remove_file(&path).doing("remove", &path)?;
        }
        for name in names(&self.dir.join("tmp"))? {
            // A lock is made before its directory, and removed after it.
            if !self.dir.join("locks").join(&name).exists() {
                self.discard_from(&self.dir.join("tmp").join(&name))?;
            }
        }
        Ok(alive)
    }

    /// Drops everything if it was written in another boot, or the system does not tell.
    fn drop_other_boot(&self) -> Result<(), StoreError> {
        let path = self.dir.join("boot");
        let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        if !boot.is_empty() && fs::read(&path).is_ok_and(|written| written == boot) {
            return Ok(());
        }
        for kept in ["snapshots", "layers", "workspaces", "sources"].map(|name| self.dir.join(name)) {
            for name in names(&kept)? {
                self.discard_from(&kept.join(name))?;
            }
        }
        self.write_file(&path, &boot)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.remover.lock().unwrap_or_else(PoisonError::into_inner).take());
        let tmp = self.tmp();
        let removed = self.tree_ops().remove_tree(&tmp).and_then(|()| fs::remove_file(&self.lock));
        if let Err(error) = removed {
            tracing::debug!(%error, path = %tmp.display(), "left to the next process that opens the store");
        }
    }
}

/// Makes this process known: a locked file, then a directory for what it makes.
fn register(dir: &Path) -> Result<(String, PathBuf, File), StoreError> {
    let instance = Uuid::new_v4().simple().to_string()[..24].to_owned();
    let path = dir.join("locks").join(&instance);
    let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).doing("make", &path)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).doing("lock", &path)?;
    make_dir(&dir.join("tmp").join(&instance))?;
    Ok((instance, path, lock))
}

pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).doing("make the directory", path)
}

/// The names in a directory that are ours (all are UTF-8), sorted.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).doing("list", dir)? {
        found.extend(entry.doing("list", dir)?.file_name().into_string());
    }
    found.sort_unstable();
    Ok(found)
}
