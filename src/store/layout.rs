//! The store's directory, and which process owns which part of it.
//!
//! ```text
//! format                    the version of this layout
//! index.db                  the layers and their names (SQLite)
//! locks/INSTANCE            locked (flock) by a process while it has the store open; contains its lease
//! tmp/INSTANCE/             files that the process is about to create or to remove
//! layers/LAYER/root/        the changes of a step, a source tree or its changes, a part of an image
//! sources/SOURCE/           the manifest of a frozen source
//! gc.lock                   locked by a process that collects garbage
//! reserve                   deleted when the disk is full, so that garbage can be collected
//! pulling/                  locks for creating layers of images
//! logs/KEY                  the output of a cached step
//! runs/RUN/                 a run's journal and logs
//! secret                    a key for hashes that must not reveal their input
//! workspaces/WORKSPACE/     the process runner's snapshots
//! vm/TEMPLATE/              booted virtual machines, which are copied for each step
//! ```
//!
//! Everything is created in `tmp`, then renamed to its place, and then its rows are written. If the process
//! is killed at any moment, nothing incomplete remains outside of `tmp`. At worst there is a layer without a
//! row, and its name identifies the process that made it (INSTANCE + counter). `recover` finds such layers.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::{
    Filesystem, IdMap, StoreError,
    error::Doing,
    exposure::{self, Exposure},
    index::{self, Index, Opened},
    keep::Intact,
    lease::Leases,
    remover::Remover,
    reserve,
    snapshot::OwnSnapshots,
    tree::{self, BlobFile, UnpackError, UnpackLimits, Unpacked},
};

const FORMAT: &str = "hm-exec store 2\n";
const FORMAT_NAME: &str = "hm-exec store ";
/// The layout before there was an index. The contents of such a store are removed, because there is no record
/// of what they are.
const FORMAT_1: &str = "hm-exec store 1\n";

/// An open store. Several processes may have the same store open.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    instance: String,
    pub(super) lock: PathBuf,
    /// Held until the store is closed.
    pub(super) locked: File,
    /// Identifies this boot of the machine.
    pub(super) boot: String,
    pub(super) index: Index,
    pub(super) own: OwnSnapshots,
    pub(super) intact: Intact,
    pub(super) leases: Leases,
    /// Whether this process has kept anything.
    pub(super) kept_new: AtomicBool,
    next: AtomicU64,
    ops: Arc<RwLock<Arc<dyn TreeOps>>>,
    remover: Mutex<Option<Remover>>,
    exposure: Option<Exposure>,
}

/// Operations on trees whose files may belong to other user ids than the caller's.
///
/// The default performs them directly. If steps run with a range of subordinate user ids, the sandbox
/// installs an implementation that performs them inside the steps' user namespace.
pub trait TreeOps: Send + Sync + std::fmt::Debug {
    /// Removes a tree as [`tree::remove_tree`] does.
    ///
    /// # Errors
    /// Returns the first failure.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;

    /// Renames a file or a directory.
    ///
    /// # Errors
    /// Returns an error if it cannot be renamed. It keeps its old name then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Merges layers as [`tree::flatten`] does.
    ///
    /// # Errors
    /// Returns the first failure.
    fn flatten(&self, layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()>;

    /// Packs a layer as [`tree::layer_tar`] does.
    ///
    /// # Errors
    /// Returns the first failure.
    fn layer_tar(&self, root: &Path, out: File, id_map: IdMap) -> io::Result<()>;

    /// Unpacks a part of a file as [`tree::unpack`] does.
    ///
    /// # Errors
    /// Returns the first problem found.
    fn unpack(&self, blob: BlobFile, into: &Path, id_map: IdMap, limits: UnpackLimits)
    -> Result<Unpacked, UnpackError>;
}

#[derive(Debug)]
struct Direct;

impl TreeOps for Direct {
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        tree::remove_tree(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn flatten(&self, layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()> {
        tree::flatten(layers, into, id_map)
    }

    fn layer_tar(&self, root: &Path, out: File, id_map: IdMap) -> io::Result<()> {
        tree::layer_tar(root, BufWriter::with_capacity(1 << 17, out), id_map)
    }

    fn unpack(
        &self,
        blob: BlobFile,
        into: &Path,
        id_map: IdMap,
        limits: UnpackLimits,
    ) -> Result<Unpacked, UnpackError> {
        tree::unpack(blob.into_reader().map_err(|error| UnpackError::reading(&error))?, into, id_map, limits)
    }
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
            Err(StoreError::Full { .. }) if reserve::release(dir) => Self::open_once(dir),
            opened => opened,
        }
    }

    fn open_once(dir: &Path) -> Result<Arc<Self>, StoreError> {
        make_dir(dir)?;
        let dir = dir.canonicalize().doing("resolve", dir)?;
        let exposure = exposure::close(&dir)?;
        for name in ["locks", "tmp", "sources", "layers", "logs", "workspaces"] {
            make_dir(&dir.join(name))?;
        }
        // One process at a time opens the store, so that a process that is just starting is not mistaken for
        // a dead one.
        let locks = dir.join("locks");
        let opening = File::open(&locks).doing("open", &locks)?;
        rustix::fs::flock(&opening, FlockOperation::LockExclusive).doing("lock", &locks)?;
        let format = check_format(&dir)?;
        let (index, opened) = Index::open(&dir)?;
        let (instance, lock, locked) = register(&dir)?;
        let ops: Arc<RwLock<Arc<dyn TreeOps>>> = Arc::new(RwLock::new(Arc::new(Direct)));
        let mut store = Self {
            remover: Mutex::new(Some(Remover::start(Arc::clone(&ops)))),
            boot: boot_id(&instance),
            instance,
            lock,
            locked,
            index,
            own: OwnSnapshots::default(),
            intact: Intact::default(),
            leases: Leases::default(),
            kept_new: AtomicBool::new(false),
            next: AtomicU64::new(0),
            ops,
            exposure,
            dir,
        };
        if format == Format::Older {
            for name in ["snapshots", "sources", "last-runs", "boot"] {
                store.discard_from(&store.dir.join(name))?;
            }
            make_dir(&store.dir.join("sources"))?;
        }
        if format != Format::This {
            store.write_file(&store.dir.join("format"), FORMAT.as_bytes())?;
        }
        if let Err(error) = store.recover(opened) {
            if !store.index.is_damaged() {
                return Err(error);
            }
            store.index = Index::open(&store.dir)?.0;
            store.recover(Opened::New)?;
        }
        if opened == Opened::New {
            reserve::fill(&store.dir, &Filesystem::of(&store.dir)?);
        }
        Ok(Arc::new(store))
    }

    /// Returns the store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns whether other users could access the store before it was opened. It was closed to them as far
    /// as possible.
    #[must_use]
    pub fn exposure(&self) -> Option<&Exposure> {
        self.exposure.as_ref()
    }

    /// Uses `ops` for all further operations on trees that steps wrote.
    pub fn set_tree_ops(&self, ops: Arc<dyn TreeOps>) {
        *self.ops.write().unwrap_or_else(PoisonError::into_inner) = ops;
        if let Some(remover) = &*self.remover.lock().unwrap_or_else(PoisonError::into_inner) {
            remover.retry();
        }
    }

    pub(super) fn tree_ops(&self) -> Arc<dyn TreeOps> {
        Arc::clone(&self.ops.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns a name that is unique across all stores: 32 hexadecimal digits, of which the first 24 identify
    /// this process.
    pub(crate) fn new_id(&self) -> String {
        format!("{}{:08x}", self.instance, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns a free path on the store's filesystem for something to be created. Nothing exists there yet.
    pub(crate) fn new_tmp(&self) -> PathBuf {
        self.tmp().join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp").join(&self.instance)
    }

    /// Removes a tree below this process's `tmp` soon, on a separate thread.
    pub(crate) fn discard(&self, path: PathBuf) {
        if let Some(remover) = &*self.remover.lock().unwrap_or_else(PoisonError::into_inner) {
            remover.remove(path);
        }
    }

    /// Unmounts a directory that is mounted for steps and removes it soon.
    #[cfg(feature = "sandbox")]
    pub(super) fn discard_mounted(&self, home: PathBuf) {
        if let Some(remover) = &*self.remover.lock().unwrap_or_else(PoisonError::into_inner) {
            remover.unmount(home);
        }
    }

    /// Moves a tree of the store to this process's `tmp` immediately, and removes it soon. Succeeds if there
    /// is nothing at `path`.
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

    /// Discards like [`discard_from`](Self::discard_from), but also handles what cannot be moved: a mount
    /// point or an immutable file. Returns false, after a warning, if it stays.
    pub(super) fn try_discard_from(&self, path: &Path) -> Result<bool, StoreError> {
        match self.discard_from(path) {
            Ok(()) => Ok(true),
            Err(error @ StoreError::Full { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(error = %error.to_line(), "failed to remove leftovers of a killed process");
                Ok(false)
            }
        }
    }

    /// Writes a small file atomically.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let aside = self.new_tmp();
        write_new(&aside, bytes)?;
        fs::rename(&aside, path).doing("make", path)
    }

    /// Returns the name of this boot of the machine.
    #[cfg(feature = "qemu")]
    pub(crate) fn boot_name(&self) -> &str {
        &self.boot
    }

    #[cfg(feature = "docker")]
    pub(super) fn instance_name(&self) -> &str {
        &self.instance
    }

    /// Returns whether this process made the layer or file with this name.
    pub(super) fn made(&self, name: &str) -> bool {
        name.starts_with(&self.instance)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.remove_all_snapshots() {
            tracing::debug!(%error, "leaving a file to the next process that opens the store");
        }
        drop(self.remover.lock().unwrap_or_else(PoisonError::into_inner).take());
        let tmp = self.tmp();
        let removed = self.tree_ops().remove_tree(&tmp).and_then(|()| fs::remove_file(&self.lock));
        if let Err(error) = removed {
            tracing::debug!(%error, path = %tmp.display(), "leaving a file to the next process that opens the store");
        }
    }
}

/// The layout of a store's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// The layout that this version writes.
    This,
    /// The layout of an earlier version, or no layout yet.
    Older,
    /// The format file was damaged. The store has an index, so it was written by this version.
    Lost,
}

/// Reads the layout version of the store. A file that no version wrote is set aside, because it must not lock
/// its owner out permanently.
fn check_format(dir: &Path) -> Result<Format, StoreError> {
    let path = dir.join("format");
    let found = match fs::read(&path) {
        Ok(found) if found == FORMAT.as_bytes() => return Ok(Format::This),
        Ok(found) if found == FORMAT_1.as_bytes() => return Ok(Format::Older),
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Format::Older),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Vec::new(),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    let text = String::from_utf8_lossy(&found);
    let version = text.strip_suffix('\n').and_then(|text| text.strip_prefix(FORMAT_NAME)).map(str::parse::<u64>);
    if let Some(Ok(version)) = version {
        return Err(StoreError::Corrupt { path, reason: format!("it has version {version}, written by a newer hm") });
    }
    let aside = dir.join(format!("format-damaged-{}", index::now_ms()));
    fs::rename(&path, &aside).doing("set aside", &path)?;
    tracing::warn!(set_aside = %aside.display(), "the store's file `format` was damaged; writing a new one");
    Ok(if dir.join("index.db").exists() { Format::Lost } else { Format::Older })
}

/// Returns the name of this boot of the machine. If the system does not report one, each process counts as a
/// boot of its own.
fn boot_id(instance: &str) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.trim().is_empty() { instance.to_owned() } else { boot.trim().to_owned() }
}

/// Registers this process: creates a locked file, then a directory for what the process makes.
fn register(dir: &Path) -> Result<(String, PathBuf, File), StoreError> {
    let instance = Uuid::new_v4().simple().to_string()[..24].to_owned();
    let path = dir.join("locks").join(&instance);
    let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).doing("make", &path)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).doing("lock", &path)?;
    make_dir(&dir.join("tmp").join(&instance))?;
    Ok((instance, path, lock))
}

/// Writes a new file, accessible to its owner only. Fails if the file exists.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    create_new(path).and_then(|mut file| file.write_all(bytes)).doing("write", path)
}

/// Creates a new file, accessible to its owner only. Fails if the file exists.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).doing("make the directory", path)
}

/// Returns the metadata at a path without following links, or `None` if there is nothing.
pub(super) fn stat(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(StoreError::io("read", path, error)),
    }
}

/// Returns the names in a directory that belong to the store (all are UTF-8), sorted.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).doing("list", dir)? {
        found.extend(entry.doing("list", dir)?.file_name().into_string());
    }
    found.sort_unstable();
    Ok(found)
}
