//! Unpacked layers that outlive a step, in a directory of the worker.
//!
//! Input: a layer's DiffID. Output: the directory with the unpacked layer, which no one changes while the
//! step runs. The client names the directory of all layers, and the worker's administrator creates it: see
//! [`LayerCache::open`].
//!
//! ```text
//! DIR/                    belongs to this user; no other user can write to it
//!   sha256-HEX-IDMAP/     locked: shared by steps that use it, exclusively while it is filled or removed
//!     layer/              the unpacked layer
//!     seal                its boot, seal and size, written last
//! ```
//!
//! Nothing waits for a lock: a step that does not get one unpacks the layer into its own memory, and so does
//! a step that cannot fill an entry. A kill releases the lock and leaves an entry without a seal, which the
//! next step fills again. A seal is compared before each use, so that an entry that was damaged or cleaned up
//! is made again. It names the boot of the machine: after a crash, files may lack what was written to them.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use hm_exec_step::{
    LAYER_CACHE_VARIABLE, Lower,
    tree::{self, IdMap, Seal, UnpackLimits},
};
use rustix::{
    fs::{CWD, FlockOperation, FsWord, Mode, OFlags, flock, fstat, fstatfs, openat, statvfs},
    io::Errno,
    process::geteuid,
};

use super::Failure;

/// The maximum size of all entries. It is less if the disk is nearly full: see [`LayerCache::make_room`].
const MAX_BYTES: u64 = 32 << 30;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Filesystems that other machines may share, as `statfs` names them: NFS, SMB (two versions), FUSE, 9P, AFS,
/// Ceph.
const REMOTE_FILE_SYSTEMS: [FsWord; 7] =
    [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x5346_414f, 0x00c3_6400];
/// The first line of a seal's file.
const SEAL_FORMAT: &str = "hm-exec layer 1";
/// How often an entry is opened that others remove.
const ATTEMPTS: usize = 8;
/// The maximum size of a seal's file.
const SEAL_FILE_BYTES: u64 = 256;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A file that is something else must not block.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// A directory of unpacked layers.
#[derive(Debug)]
pub(crate) struct LayerCache {
    dir: PathBuf,
    id_map: IdMap,
    /// The identity of the machine's boot.
    boot: String,
    max_bytes: u64,
    /// The entries of the step's own layers, for which no room is made.
    wanted: HashSet<PathBuf>,
    /// An entry could not be filled, for example because the disk is full.
    has_failed: AtomicBool,
}

/// An unpacked layer. It stays as it is for as long as this value exists.
#[derive(Debug)]
pub(crate) struct CachedLayer {
    pub(crate) root: PathBuf,
    _lock: OwnedFd,
}

impl LayerCache {
    /// Opens the directory that the environment names, for the layers of `stack`. Returns `None` if it names
    /// none.
    ///
    /// # Errors
    /// Returns the reason why the directory is not used: it does not exist, belongs to another user, or can
    /// be written to by other users.
    pub(crate) fn open(id_map: IdMap, stack: &[Lower]) -> Result<Option<Self>, String> {
        let Some(dir) = std::env::var_os(LAYER_CACHE_VARIABLE).filter(|dir| !dir.is_empty()) else { return Ok(None) };
        let mut cache = Self::at(Path::new(&dir), id_map)?;
        let wanted = stack.iter().filter_map(|lower| match lower {
            Lower::Layer { diff_id, .. } => cache.entry(diff_id),
            Lower::Workspace { .. } => None,
        });
        cache.wanted = wanted.collect();
        Ok(Some(cache))
    }

    fn at(dir: &Path, id_map: IdMap) -> Result<Self, String> {
        let unused = |why: &str| format!("the layer cache {} is not used: {why}", dir.display());
        if !dir.is_absolute() {
            return Err(unused("its path is not absolute"));
        }
        let opened =
            openat(CWD, dir, DIR, Mode::empty()).map_err(|error| unused(&io::Error::from(error).to_string()))?;
        if !is_ours(opened.as_fd()).map_err(|error| unused(&error.to_string()))? {
            return Err(unused("it must belong to the worker's user, and no other user may write to it"));
        }
        let kind = fstatfs(&opened).map_err(|error| unused(&io::Error::from(error).to_string()))?.f_type;
        if REMOTE_FILE_SYSTEMS.contains(&kind) {
            return Err(unused("it must be on a local filesystem, because locks hold on one machine only"));
        }
        let dir = dir.canonicalize().map_err(|error| unused(&error.to_string()))?;
        let boot = fs::read_to_string(BOOT_ID).map_err(|error| unused(&format!("{BOOT_ID}: {error}")))?;
        Ok(Self {
            dir,
            id_map,
            boot: boot.trim().to_owned(),
            max_bytes: MAX_BYTES,
            wanted: HashSet::new(),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Returns the directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the layer with a DiffID. If it is not there, room is made for about `wanted` bytes, and
    /// `unpack` unpacks it into an empty directory, within the limits that it is given. Returns `None` if
    /// another step is filling the entry, or if that failed: then no other entry is filled for this step.
    pub(crate) fn get(
        &self,
        diff_id: &str,
        wanted: u64,
        unpack: impl FnOnce(&Path, UnpackLimits) -> Result<(), Failure>,
    ) -> Option<CachedLayer> {
        let path = self.entry(diff_id)?;
        let mut unpack = Some(unpack);
        // Another step that makes room may remove the entry before it is locked here.
        for _ in 0..ATTEMPTS {
            let entry = enter(&path).ok().flatten()?;
            match self.use_if_whole(&entry, &path) {
                Found::Whole(root) => return Some(CachedLayer { root, _lock: entry }),
                Found::Damaged => {}
                Found::Gone => continue,
                Found::Busy => return None,
            }
            match lock(&entry, &path, FlockOperation::NonBlockingLockExclusive) {
                Lock::Held => {}
                Lock::Gone => continue,
                Lock::Busy => return None,
            }
            // Another step may have filled it between the locks.
            if self.read_whole(&path).is_none() && !self.fill(&path, wanted, unpack.take()?) {
                return None;
            }
            if let Found::Whole(root) = self.use_if_whole(&entry, &path) {
                return Some(CachedLayer { root, _lock: entry });
            }
        }
        None
    }

    /// Returns the path of the entry of a layer, or `None` if `diff_id` is none.
    fn entry(&self, diff_id: &str) -> Option<PathBuf> {
        let hex = diff_id.strip_prefix("sha256:").filter(|hex| hex.len() == 64)?;
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then(|| self.dir.join(format!("sha256-{hex}-{}", self.id_map.as_str())))
    }

    /// Removes entries that no step can use any more, and then those that were not used for longest, until
    /// `wanted` bytes may be added. Entries in use stay. Returns how many bytes may be added.
    fn make_room(&self, except: &Path, wanted: u64) -> u64 {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut whole: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for path in entries.filter(|path| path != except && is_entry(path)) {
            match read_seal(&path).filter(|seal| seal.boot == self.boot) {
                Some(seal) => {
                    let used = fs::symlink_metadata(path.join("seal")).and_then(|seal| seal.modified());
                    whole.push((used.unwrap_or(SystemTime::UNIX_EPOCH), seal.bytes, path));
                }
                // A killed step left it, or an earlier boot. One that is being filled is locked.
                None if !self.wanted.contains(&path) => drop(remove(&path)),
                None => {}
            }
        }
        whole.sort_unstable();
        let mut bytes: u64 = whole.iter().map(|(_, bytes, _)| bytes).sum();
        // Half of what is free without the cache.
        let limit = |bytes: u64| {
            let free = statvfs(&self.dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            self.max_bytes.min(free.saturating_add(bytes) / 2)
        };
        for (_, size, path) in whole {
            if bytes.saturating_add(wanted) <= limit(bytes) {
                break;
            }
            if !self.wanted.contains(&path) && remove(&path) {
                bytes = bytes.saturating_sub(size);
            }
        }
        limit(bytes).saturating_sub(bytes)
    }

    /// Locks an entry and returns its layer, if it is whole.
    fn use_if_whole(&self, entry: &OwnedFd, path: &Path) -> Found {
        match lock(entry, path, FlockOperation::NonBlockingLockShared) {
            Lock::Held => {}
            Lock::Gone => return Found::Gone,
            Lock::Busy => return Found::Busy,
        }
        let Some(layer) = self.read_whole(path) else { return Found::Damaged };
        // Only the order of removal depends on it.
        if let Ok(seal) = openat(CWD, path.join("seal"), FILE, Mode::empty()) {
            let _ = File::from(seal).set_modified(SystemTime::now());
        }
        Found::Whole(layer)
    }

    /// Returns the layer of an entry if it is as it was sealed.
    fn read_whole(&self, path: &Path) -> Option<PathBuf> {
        let layer = path.join("layer");
        let seal = read_seal(path).filter(|seal| seal.boot == self.boot)?;
        let found = tree::seal(&layer).ok()?;
        (super::layer::hex(&found.hash) == seal.hash).then_some(layer)
    }

    /// Fills a locked entry, and returns whether it is whole then.
    fn fill(&self, path: &Path, wanted: u64, unpack: impl FnOnce(&Path, UnpackLimits) -> Result<(), Failure>) -> bool {
        let room = if self.has_failed.load(Ordering::Relaxed) { 0 } else { self.make_room(path, wanted) };
        let limits = UnpackLimits { bytes: room.min(UnpackLimits::default().bytes), ..UnpackLimits::default() };
        let is_filled = room > 0 && self.unpack_into(path, |layer| unpack(layer, limits)).is_ok();
        if !is_filled {
            self.has_failed.store(true, Ordering::Relaxed);
            // Best effort: the next step that fills an entry removes what is left of this one.
            if clear(path).is_ok() {
                let _ = fs::remove_dir(path);
            }
        }
        is_filled
    }

    /// Unpacks a layer into a locked entry, and seals it.
    fn unpack_into(&self, path: &Path, unpack: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
        let failed = |error: &io::Error| Failure::io("fill the layer cache", error);
        // What a killed step began, or what was damaged.
        clear(path).map_err(|error| failed(&error))?;
        let layer = path.join("layer");
        DirBuilder::new().mode(0o755).create(&layer).map_err(|error| failed(&error))?;
        fs::set_permissions(&layer, Permissions::from_mode(0o755)).map_err(|error| failed(&error))?;
        unpack(&layer)?;
        let finish = || {
            let Seal { hash, bytes, .. } = tree::seal(&layer)?;
            let aside = path.join("seal.new");
            let text = format!("{SEAL_FORMAT}\n{}\n{}\n{bytes}\n", self.boot, super::layer::hex(&hash));
            fs::write(&aside, text)?;
            fs::rename(aside, path.join("seal"))
        };
        finish().map_err(|error| failed(&error))
    }
}

/// Returns whether a directory belongs to this user, and no other user can write to it.
fn is_ours(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = fstat(dir)?;
    Ok(stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o022 == 0)
}

fn is_entry(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"sha256-"))
}

/// Opens an entry, which is created if it does not exist. Returns `None` if it cannot be trusted.
fn enter(path: &Path) -> io::Result<Option<OwnedFd>> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let entry = openat(CWD, path, DIR, Mode::empty())?;
    Ok(is_ours(entry.as_fd())?.then_some(entry))
}

/// What is in an entry.
enum Found {
    Whole(PathBuf),
    Damaged,
    Busy,
    Gone,
}

/// What came of locking an entry.
#[derive(PartialEq, Eq)]
enum Lock {
    Held,
    /// Another process holds a lock that conflicts, or locks do not work here.
    Busy,
    /// Another process removed the entry.
    Gone,
}

/// Locks an entry, without waiting.
fn lock(entry: &OwnedFd, path: &Path, how: FlockOperation) -> Lock {
    let is_there = || {
        let (opened, found) = (fstat(entry).ok()?, rustix::fs::lstat(path).ok()?);
        Some((opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino))
    };
    loop {
        match flock(entry, how) {
            Ok(()) if is_there() == Some(true) => return Lock::Held,
            Ok(()) => return Lock::Gone,
            Err(Errno::INTR) => {}
            Err(_) => return Lock::Busy,
        }
    }
}

/// The content of a seal's file.
struct SealFile {
    boot: String,
    hash: String,
    bytes: u64,
}

fn read_seal(path: &Path) -> Option<SealFile> {
    let file = openat(CWD, path.join("seal"), FILE, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(file).take(SEAL_FILE_BYTES).read_to_string(&mut text).ok()?;
    let [SEAL_FORMAT, boot, hash, bytes] = text.lines().collect::<Vec<_>>()[..] else { return None };
    Some(SealFile { boot: boot.to_owned(), hash: hash.to_owned(), bytes: bytes.parse().ok()? })
}

/// Removes an entry that no step uses. Best effort: returns whether it is gone.
fn remove(path: &Path) -> bool {
    let Ok(Some(entry)) = enter(path) else { return false };
    lock(&entry, path, FlockOperation::NonBlockingLockExclusive) == Lock::Held
        && clear(path).is_ok()
        && fs::remove_dir(path).is_ok()
}

/// Removes everything in a locked entry, beginning with the seal.
fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join("seal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tree::remove_tree(&path.join("seal"))?,
        _ => {}
    }
    for entry in fs::read_dir(path)? {
        tree::remove_tree(&entry?.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path, max_bytes: u64) -> LayerCache {
        fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
        LayerCache { max_bytes, ..LayerCache::at(dir, IdMap::Single).unwrap() }
    }

    fn id(number: u8) -> String {
        format!("sha256:{number:064x}")
    }

    fn content(root: &Path, _: UnpackLimits) -> Result<(), Failure> {
        fs::write(root.join("file"), vec![1; 100_000]).map_err(|error| Failure::io("write", &error))
    }

    fn never(_: &Path, _: UnpackLimits) -> Result<(), Failure> {
        panic!("it is there")
    }

    #[test]
    fn the_entries_that_were_not_used_for_longest_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 250_000);
        let first = cache.get(&id(1), 0, content).unwrap();
        for number in 2..4 {
            cache.get(&id(number), 0, content).unwrap();
        }
        // It is in use. So the second one is removed.
        cache.get(&id(4), 0, content).unwrap();
        assert!(first.root.join("file").exists());
        cache.get(&id(1), 0, never).unwrap();
        cache.get(&id(3), 0, never).unwrap();
        let mut is_unpacked = false;
        cache
            .get(&id(2), 0, |root, limits| {
                is_unpacked = true;
                content(root, limits)
            })
            .unwrap();
        assert!(is_unpacked);
    }

    #[test]
    fn an_entry_that_another_step_fills_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), MAX_BYTES);
        let filled = cache.get(&id(1), 0, |root, limits| {
            assert!(cache.get(&id(1), 0, never).is_none());
            content(root, limits)
        });
        assert!(filled.is_some());
        // A failure leaves nothing, and another step can fill the entry.
        assert!(cache.get(&id(2), 0, |_, _| Err(Failure::passing("no"))).is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(cache.get(&id(2), 0, never).is_none());
        assert!(self::cache(dir.path(), MAX_BYTES).get(&id(2), 0, content).is_some());
        assert!(cache.get("sha256:../../etc", 0, content).is_none() && cache.get("", 0, content).is_none());
    }

    #[test]
    fn what_no_step_can_use_is_removed_and_what_is_added_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 250_000);
        for (number, boot) in [(1, None), (2, Some("another"))] {
            let left = dir.path().join(format!("sha256-{number:064x}-single"));
            fs::create_dir_all(left.join("layer")).unwrap();
            fs::write(left.join("layer/file"), "left").unwrap();
            if let Some(boot) = boot {
                fs::write(left.join("seal"), format!("{SEAL_FORMAT}\n{boot}\n00\n4\n")).unwrap();
            }
        }
        let mut room = 0;
        cache
            .get(&id(3), 0, |root, limits| {
                room = limits.bytes;
                content(root, limits)
            })
            .unwrap();
        assert_eq!(room, 250_000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        cache
            .get(&id(4), 60_000, |root, limits| {
                room = limits.bytes;
                content(root, limits)
            })
            .unwrap();
        assert!((60_000..=150_000).contains(&room), "{room}");
        // An entry that was not used for longest makes room for what would not fit.
        cache
            .get(&id(5), 100_000, |root, limits| {
                room = limits.bytes;
                content(root, limits)
            })
            .unwrap();
        assert!((100_000..=150_000).contains(&room), "{room}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, is_used) in [(0o700, true), (0o755, true), (0o770, false), (0o1777, false)] {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(LayerCache::at(dir.path(), IdMap::Single).is_ok(), is_used, "{mode:o}");
        }
        let link = dir.path().join("link");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        for path in [&*link, &dir.path().join("missing"), Path::new("relative")] {
            assert!(LayerCache::at(path, IdMap::Single).unwrap_err().contains("is not used"));
        }
    }
}
