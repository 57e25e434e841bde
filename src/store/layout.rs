//! The store's directory, and who owns what in it.
//!
//! ```text
//! format                    the version of this layout
//! index.db                  which layers there are, and what they are called (SQLite)
//! locks/INSTANCE            held (flock) by a process for as long as it has the store open; its lease is in it
//! tmp/INSTANCE/             what that process is about to make or to remove
//! layers/LAYER/root/        what one step changed, a source tree or how it changed, a part of an image
//! sources/SOURCE/           the manifest of a frozen source
//! gc.lock                   held by a process that collects garbage
//! reserve                   given up where the disk is full, so that garbage can be collected
//! pulling/                  locks on making layers of images
//! logs/KEY                  what a cached step printed
//! runs/RUN/                 a run's journal and logs
//! secret                    a key for hashes of what must not be read off them
//! workspaces/WORKSPACE/     the process runner's snapshots
//! vm/TEMPLATE/              machines that booted, and are copied for each step
//! ```
//!
//! Everything is made in `tmp` and renamed to its place, then its rows are written: a kill at any moment leaves nothing
//! half made outside of `tmp`, and at worst a layer without a row, which carries its maker's name (INSTANCE + counter).
//! `recover` finds those.

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
/// The layout before there was an index. What such a store has is removed, because nothing tells what it is.
const FORMAT_1: &str = "hm-exec store 1\n";

/// A store that is open. Many processes may have the same one open.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    instance: String,
    pub(super) lock: PathBuf,
    /// Held until the store is closed.
    pub(super) locked: File,
    /// Names this boot of the machine.
    pub(super) boot: String,
    pub(super) index: Index,
    pub(super) own: OwnSnapshots,
    pub(super) intact: Intact,
    pub(super) leases: Leases,
    /// Whether this process kept anything.
    pub(super) kept_new: AtomicBool,
    next: AtomicU64,
    ops: Arc<RwLock<Arc<dyn TreeOps>>>,
    remover: Mutex<Option<Remover>>,
    exposure: Option<Exposure>,
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

    /// Renames a file or a directory.
    ///
    /// # Errors
    /// Why it has the old name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Does what [`tree::flatten`] does.
    ///
    /// # Errors
    /// The first failure.
    fn flatten(&self, layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()>;

    /// Does what [`tree::layer_tar`] does.
    ///
    /// # Errors
    /// The first failure.
    fn layer_tar(&self, root: &Path, out: File, id_map: IdMap) -> io::Result<()>;

    /// Does what [`tree::unpack`] does, with a part of a file.
    ///
    /// # Errors
    /// The first thing that is wrong.
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
        // One process at a time opens the store, so that none takes a newcomer for dead.
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

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns whether other users could reach into the store before it was opened. What could be closed to
    /// them was.
    #[must_use]
    pub fn exposure(&self) -> Option<&Exposure> {
        self.exposure.as_ref()
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

    /// Unmounts a directory that is mounted for steps, and removes it, soon.
    #[cfg(feature = "sandbox")]
    pub(super) fn discard_mounted(&self, home: PathBuf) {
        if let Some(remover) = &*self.remover.lock().unwrap_or_else(PoisonError::into_inner) {
            remover.unmount(home);
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

    /// Discards like [`discard_from`](Self::discard_from), but for what can't be moved: a mount point, or
    /// what is immutable. Returns false, after a warning, if it stays.
    pub(super) fn try_discard_from(&self, path: &Path) -> Result<bool, StoreError> {
        match self.discard_from(path) {
            Ok(()) => Ok(true),
            Err(error @ StoreError::Full { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(error = %error.to_line(), "what a killed process left can't be removed");
                Ok(false)
            }
        }
    }

    /// Writes a small file whole or not at all.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let aside = self.new_tmp();
        write_new(&aside, bytes)?;
        fs::rename(&aside, path).doing("make", path)
    }

    /// Names this boot of the machine.
    #[cfg(feature = "qemu")]
    pub(crate) fn boot_name(&self) -> &str {
        &self.boot
    }

    #[cfg(feature = "docker")]
    pub(super) fn instance_name(&self) -> &str {
        &self.instance
    }

    /// Whether this process made the thing of this name.
    pub(super) fn made(&self, name: &str) -> bool {
        name.starts_with(&self.instance)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.remove_all_snapshots() {
            tracing::debug!(%error, "left to the next process that opens the store");
        }
        drop(self.remover.lock().unwrap_or_else(PoisonError::into_inner).take());
        let tmp = self.tmp();
        let removed = self.tree_ops().remove_tree(&tmp).and_then(|()| fs::remove_file(&self.lock));
        if let Err(error) = removed {
            tracing::debug!(%error, path = %tmp.display(), "left to the next process that opens the store");
        }
    }
}

/// The layout of a store's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// What this version writes.
    This,
    /// That of an earlier version, or none yet.
    Older,
    /// The file that said it was damaged. It was this version's: no other has an index.
    Lost,
}

/// Reads which layout the store has. A file that no version wrote is set aside: it must not lock its owner
/// out for good.
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
        return Err(StoreError::Corrupt {
            path,
            reason: format!("it is of version {version}, which a later hm wrote"),
        });
    }
    let aside = dir.join(format!("format-damaged-{}", index::now_ms()));
    fs::rename(&path, &aside).doing("set aside", &path)?;
    tracing::warn!(set_aside = %aside.display(), "the store's file `format` was damaged: a new one is written");
    Ok(if dir.join("index.db").exists() { Format::Lost } else { Format::Older })
}

/// Names this boot of the machine. Where the system does not tell, each process has a boot of its own.
fn boot_id(instance: &str) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.trim().is_empty() { instance.to_owned() } else { boot.trim().to_owned() }
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

/// Writes a file that is not there yet, for its owner alone.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    create_new(path).and_then(|mut file| file.write_all(bytes)).doing("write", path)
}

/// Makes a file that is not there yet, for its owner alone.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).doing("make the directory", path)
}

/// What is at a path itself: `None` where nothing is.
pub(super) fn stat(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(StoreError::io("read", path, error)),
    }
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
