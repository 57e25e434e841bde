//! Freezing a source tree: read it by the rules of git-ignore, name it by its content, copy it once.
//!
//! Two passes: the first one makes the manifest, and so the name; a tree that is in the store already costs no more than
//! that. The second one copies, and checks every byte against the manifest, so that what was edited meanwhile is noticed.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use ignore::{DirEntry, ParallelVisitor, ParallelVisitorBuilder, WalkBuilder, WalkState};

use super::{
    LayerId, SourceId, Store, StoreError,
    error::Doing,
    layout::make_dir,
    manifest::{Entry, Kind, Manifest},
    tree,
};

/// How often a file, and then the whole tree, is read again where something changed meanwhile.
const ATTEMPTS: usize = 3;

const CHUNK_BYTES: usize = 128 << 10;

/// A source tree in the store: a stack of layers, which nobody writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrozenSource {
    /// Its name: equal content, modes and times give equal ids.
    pub id: SourceId,
    /// The layers that it is made of, topmost first: what changed since, over a whole tree.
    pub layers: Vec<LayerId>,
    /// Where these layers are. Each has its part of the tree at `workspace`, and marks what it removes as overlayfs does
    /// (whiteouts, never opaque directories): fit to be an overlay's lower directories, whatever the steps' user ids.
    pub roots: Vec<PathBuf>,
}

impl FrozenSource {
    /// Where a file of this source lies; `path` is relative to the tree.
    pub(super) fn locate(&self, path: &Path) -> PathBuf {
        let within = Path::new("workspace").join(path);
        let has_it = |root: &&PathBuf| root.join(&within).symlink_metadata().is_ok();
        let root = self.roots.iter().find(has_it).or(self.roots.last());
        root.map_or_else(|| within.clone(), |root| root.join(&within))
    }
}

impl Store {
    /// Copies the tree at `dir` into the store, unless it is there already. Blocks for as long as reading the tree takes.
    ///
    /// Left out: what git would ignore, `.git`, sockets, pipes, devices, and the store itself. Hidden files, empty
    /// directories, symbolic links, modes and times are kept.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] and [`StoreError::SourceChanged`] name the file; [`StoreError::Abandoned`] where
    /// `abandoned` was set meanwhile.
    pub fn freeze(&self, dir: &Path, abandoned: &AtomicBool) -> Result<FrozenSource, StoreError> {
        let no_source = || StoreError::NoSource { path: dir.into() };
        let source = dir.canonicalize().map_err(|_| no_source())?;
        if !source.is_dir() {
            return Err(no_source());
        }
        let mut attempt = 1;
        loop {
            let freeze = Freeze { source: &source, store: self.dir(), abandoned };
            match self.freeze_once(&freeze) {
                Err(StoreError::SourceChanged { path }) if attempt < ATTEMPTS => {
                    tracing::debug!(path = %path.display(), attempt, "the source changed while it was copied");
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn freeze_once(&self, freeze: &Freeze<'_>) -> Result<FrozenSource, StoreError> {
        let manifest = freeze.scan()?;
        let encoding =
            |error: postcard::Error| StoreError::Corrupt { path: freeze.source.into(), reason: error.to_string() };
        let id = manifest.id().map_err(encoding)?;
        if let Some(frozen) = self.frozen_source(&id)? {
            return Ok(frozen);
        }
        let aside = self.new_tmp();
        let copied = self.copy_whole(freeze, &manifest, &aside).and_then(|()| self.place(&aside));
        let layer = match copied {
            Ok(layer) => layer,
            Err(error) => {
                self.discard(aside);
                return Err(error);
            }
        };
        self.record_source(&id, &manifest.encode().map_err(encoding)?, &[layer])
    }

    fn copy_whole(&self, freeze: &Freeze<'_>, manifest: &Manifest, aside: &Path) -> Result<(), StoreError> {
        let root = aside.join("root");
        make_dir(&root)?;
        let workspace = root.join("workspace");
        let mut files = Vec::new();
        for entry in &manifest.entries {
            let path = workspace.join(entry.as_path());
            match &entry.kind {
                Kind::Directory => {
                    fs::DirBuilder::new().mode(0o700).create(&path).doing("make the directory", &path)?;
                }
                Kind::Symlink { target } => put_symlink(entry, target, &path)?,
                Kind::File { .. } => files.push(entry),
            }
        }
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| {
                    let mut buffer = vec![0; CHUNK_BYTES];
                    while let Some(entry) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = freeze.copy(entry, &workspace.join(entry.as_path()), &mut buffer) {
                            next.store(files.len(), Ordering::Relaxed);
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        for entry in manifest.entries.iter().rev().filter(|entry| entry.is_dir()) {
            entry.put_attributes(&workspace.join(entry.as_path()))?;
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).doing("set the mode of", &root)
    }
}

impl Entry {
    pub(super) fn as_path(&self) -> &Path {
        Path::new(std::ffi::OsStr::from_bytes(&self.path))
    }

    /// Sets mode and time.
    pub(super) fn put_attributes(&self, path: &Path) -> Result<(), StoreError> {
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode)).doing("set the mode of", path)?;
        self.put_mtime(path)
    }

    fn put_mtime(&self, path: &Path) -> Result<(), StoreError> {
        let times = tree::mtime(self.mtime.0, self.mtime.1.into());
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .doing("set the time of", path)
    }
}

pub(super) fn put_symlink(entry: &Entry, target: &[u8], path: &Path) -> Result<(), StoreError> {
    std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path).doing("make the link", path)?;
    entry.put_mtime(path)
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// One attempt at a tree.
struct Freeze<'a> {
    /// Canonical.
    source: &'a Path,
    store: &'a Path,
    abandoned: &'a AtomicBool,
}

impl Freeze<'_> {
    /// Reads and hashes the whole tree.
    fn scan(&self) -> Result<Manifest, StoreError> {
        let in_git = self.source.ancestors().any(|dir| dir.join(".git").exists());
        let store = self.store.to_path_buf();
        let mut walk = WalkBuilder::new(self.source);
        walk.current_dir(self.source)
            .hidden(false)
            .ignore(false)
            .git_ignore(true)
            .git_exclude(true)
            .git_global(true)
            // Within a repository the rules from its top down hold; elsewhere those of the tree itself.
            .parents(in_git)
            .require_git(in_git)
            .follow_links(false)
            .threads(threads())
            .filter_entry(move |entry| entry.file_name() != ".git" && entry.path() != store);
        let scan = Mutex::new(Ok(Vec::new()));
        walk.build_parallel().visit(&mut Scanners { freeze: self, scan: &scan });
        Ok(Manifest::new(scan.into_inner().unwrap_or_else(PoisonError::into_inner)?))
    }

    /// The entry for one path; `None` where it is not of a kind that is kept, or gone by now.
    fn read(&self, path: &Path, buffer: &mut [u8]) -> Result<Option<Entry>, StoreError> {
        self.check()?;
        let unreadable = |source| StoreError::Unreadable { path: path.into(), source };
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let kind = metadata.file_type();
        let (metadata, kind) = if kind.is_file() {
            match self.read_file(path, buffer)? {
                Some((metadata, hash)) => {
                    let size_bytes = metadata.len();
                    (metadata, Kind::File { size_bytes, hash })
                }
                None => return Ok(None),
            }
        } else if kind.is_dir() {
            (metadata, Kind::Directory)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(unreadable)?.into_os_string().into_vec();
            (metadata, Kind::Symlink { target })
        } else {
            tracing::warn!(path = %path.display(), "left out of the source: neither file, directory nor symbolic link");
            return Ok(None);
        };
        let relative = path.strip_prefix(self.source).unwrap_or(path).as_os_str().as_bytes().to_vec();
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        let mode = if metadata.is_symlink() { 0o777 } else { metadata.mode() & 0o7777 };
        Ok(Some(Entry { path: relative, mode, mtime: (metadata.mtime(), nanoseconds), kind }))
    }

    /// Hashes a file that nobody writes to meanwhile.
    fn read_file(&self, path: &Path, buffer: &mut [u8]) -> Result<Option<(Metadata, [u8; 32])>, StoreError> {
        let unreadable = |source| StoreError::Unreadable { path: path.into(), source };
        for _ in 0..ATTEMPTS {
            let mut file = match open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(unreadable(error)),
            };
            let before = file.metadata().map_err(unreadable)?;
            let mut hasher = blake3::Hasher::new();
            let mut size_bytes = 0;
            loop {
                let length = file.read(buffer).map_err(unreadable)?;
                if length == 0 {
                    break;
                }
                self.check()?;
                hasher.update(&buffer[..length]);
                size_bytes += length as u64;
            }
            let after = file.metadata().map_err(unreadable)?;
            if version(&before) == version(&after) && size_bytes == after.len() {
                return Ok(Some((after, *hasher.finalize().as_bytes())));
            }
        }
        Err(StoreError::SourceChanged { path: path.into() })
    }

    /// Copies one file, and makes sure that it is the one of the manifest.
    fn copy(&self, entry: &Entry, target: &Path, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.check()?;
        let path = self.source.join(entry.as_path());
        let changed = || StoreError::SourceChanged { path: path.clone() };
        let Kind::File { size_bytes, hash } = entry.kind else { return Ok(()) };
        let unreadable = |source| StoreError::Unreadable { path: path.clone(), source };
        let mut source = match open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(changed()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut copy = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target)
            .doing("make", target)?;
        let mut hasher = blake3::Hasher::new();
        let shared = size_bytes >= CHUNK_BYTES as u64 && tree::reflink(&source, &copy);
        loop {
            let length = if shared {
                copy.read(buffer).doing("read", target)?
            } else {
                source.read(buffer).map_err(unreadable)?
            };
            if length == 0 {
                break;
            }
            self.check()?;
            hasher.update(&buffer[..length]);
            if !shared {
                copy.write_all(&buffer[..length]).doing("write", target)?;
            }
        }
        if *hasher.finalize().as_bytes() != hash {
            return Err(changed());
        }
        copy.set_permissions(fs::Permissions::from_mode(entry.mode)).doing("set the mode of", target)?;
        rustix::fs::futimens(&copy, &tree::mtime(entry.mtime.0, entry.mtime.1.into())).doing("set the time of", target)
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.abandoned.load(Ordering::Relaxed) { Err(StoreError::Abandoned) } else { Ok(()) }
    }
}

/// Opens a file to read it, without waiting should it have become a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// What changes when somebody writes to a file.
fn version(metadata: &Metadata) -> (u64, i64, i64, i64, i64) {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
}

type Scan = Mutex<Result<Vec<Entry>, StoreError>>;

struct Scanners<'a> {
    freeze: &'a Freeze<'a>,
    scan: &'a Scan,
}

impl<'s> ParallelVisitorBuilder<'s> for Scanners<'s> {
    fn build(&mut self) -> Box<dyn ParallelVisitor + 's> {
        Box::new(Scanner { freeze: self.freeze, scan: self.scan, found: Vec::new(), buffer: vec![0; CHUNK_BYTES] })
    }
}

/// One thread of the scan.
struct Scanner<'a> {
    freeze: &'a Freeze<'a>,
    scan: &'a Scan,
    found: Vec<Entry>,
    buffer: Vec<u8>,
}

impl ParallelVisitor for Scanner<'_> {
    fn visit(&mut self, entry: Result<DirEntry, ignore::Error>) -> WalkState {
        let entry = match entry {
            Ok(entry) => entry,
            // Gone since its directory was listed.
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => {
                return WalkState::Continue;
            }
            Err(error) => return self.fail(walk_error(self.freeze.source, error)),
        };
        if let Some(error) = entry.error() {
            tracing::warn!(%error, "a rule of an ignore file is wrong and has no effect");
        }
        match self.freeze.read(entry.path(), &mut self.buffer) {
            Ok(entry) => {
                self.found.extend(entry);
                WalkState::Continue
            }
            Err(error) => self.fail(error),
        }
    }
}

impl Scanner<'_> {
    fn fail(&self, error: StoreError) -> WalkState {
        let mut scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        if scan.is_ok() {
            *scan = Err(error);
        }
        WalkState::Quit
    }
}

impl Drop for Scanner<'_> {
    fn drop(&mut self) {
        if let Ok(all) = &mut *self.scan.lock().unwrap_or_else(PoisonError::into_inner) {
            all.append(&mut self.found);
        }
    }
}

fn walk_error(source: &Path, error: ignore::Error) -> StoreError {
    let path = path_of(&error).unwrap_or(source).to_path_buf();
    let text = error.to_string();
    StoreError::Unreadable { path, source: error.into_io_error().unwrap_or_else(|| io::Error::other(text)) }
}

fn path_of(error: &ignore::Error) -> Option<&Path> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => path_of(err),
        _ => None,
    }
}
