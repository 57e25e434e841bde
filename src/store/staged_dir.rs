//! Directories of layers in the making that are mounted separately, and that outlive the step if it did not
//! write to them.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Staging, Store, StoreError,
    error::IoContext,
    staging::{attributes, imitate, is_empty, is_marked},
};
use crate::sync::Mutex;

/// A directory that serves as the upper directory of an overlay, at a path of its own. When dropped, it is
/// unmounted and removed.
#[derive(Debug)]
pub(crate) struct StagedDir {
    store: Arc<Store>,
    home: PathBuf,
    made: Option<Looks>,
    /// The time of its last change when it was last found untouched, if a later change cannot have the same.
    rested: Mutex<Option<(i64, i64)>>,
}

/// How long ago a change must be so that the next one has another time. The kernel takes times of files from
/// its last tick, and ticks are 10 ms apart at most.
const REST: Duration = Duration::from_millis(20);

/// The attributes of an empty directory that are visible to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Looks {
    attributes: (u32, u32, u32),
    mtime: (i64, i64),
}

/// How a step changed a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    /// There is no visible change.
    No,
    /// The step wrote to the directory, but only the time differs afterwards.
    InPassing,
    /// The step wrote to the directory, and its contents are part of the layer.
    Yes,
}

impl StagedDir {
    /// Creates a directory with the attributes of the topmost of `models` that exists.
    ///
    /// # Errors
    /// Returns an error if a directory cannot be created.
    pub(crate) fn new(store: &Arc<Store>, models: &[PathBuf]) -> Result<Self, StoreError> {
        let staged =
            Self { store: Arc::clone(store), home: store.instance().new_tmp(), made: None, rested: Mutex::default() };
        let upper = staged.upper();
        for dir in [&staged.home, &upper, &staged.work(), &staged.mountpoint()] {
            DirBuilder::new().mode(0o700).create(dir).doing("make the directory", dir)?;
        }
        let model = models.iter().find_map(|model| fs::symlink_metadata(model).ok()).filter(fs::Metadata::is_dir);
        imitate(&upper, model.as_ref()).doing("set the attributes of", &upper)?;
        Ok(staged)
    }

    /// Returns the directory that receives writes.
    pub(crate) fn upper(&self) -> PathBuf {
        self.home.join("upper")
    }

    /// Returns an empty directory on the same filesystem, for overlayfs's own use.
    pub(crate) fn work(&self) -> PathBuf {
        self.home.join("work")
    }

    /// Returns the directory to mount the overlay on, in a mount namespace other than this process's.
    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.home.join("on")
    }

    /// Records the directory's attributes after it is mounted and before a step sees it.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be examined.
    pub(crate) fn ready(&mut self) -> Result<(), StoreError> {
        let upper = self.upper();
        self.made = Some(Looks::of(&fs::symlink_metadata(&upper).doing("read", &upper)?));
        Ok(())
    }

    /// Returns how a step changed the directory. All processes of the step must have ended.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be examined.
    pub(crate) fn touched(&self) -> Result<Touched, StoreError> {
        let upper = self.upper();
        let metadata = fs::symlink_metadata(&upper).doing("read", &upper)?;
        let (Some(made), found) = (self.made, Looks::of(&metadata)) else {
            return Ok(Touched::Yes);
        };
        // The kernel sets this time whenever anything about the directory changes, and no call sets another.
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        if found == made && *self.rested.lock() == Some(changed) {
            return Ok(Touched::No);
        }
        if found.attributes != made.attributes || is_marked(&upper) || !is_empty(&upper)? {
            return Ok(Touched::Yes);
        }
        if found.mtime != made.mtime {
            return Ok(Touched::InPassing);
        }
        *self.rested.lock() = is_at_rest(changed, SystemTime::now()).then_some(changed);
        Ok(Touched::No)
    }

    /// Unmounts the overlay everywhere: when a directory is removed that is a mount point only in other mount
    /// namespaces, the kernel unmounts it there.
    fn unmount(&self) -> io::Result<()> {
        unmount(&self.home)
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        self.store.trash().discard_mounted(std::mem::take(&mut self.home));
    }
}

impl Staging {
    /// Makes a separately mounted directory of a step the directory `path` of the step's layer. Parent
    /// directories that the layer lacks get the attributes of the topmost of `lowers` that contains them.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be put in place.
    pub(crate) fn adopt(&self, path: &Path, dir: &StagedDir, lowers: &[PathBuf]) -> Result<(), StoreError> {
        // This must happen before the directory becomes a lower directory of the step's children.
        dir.unmount().doing("unmount", &dir.mountpoint())?;
        if let Some(parent) = path.parent() {
            self.premake(parent, lowers)?;
        }
        let (from, to) = (dir.upper(), self.upper().join(path));
        match fs::rename(&from, &to) {
            // The step gave the directory to another user.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                dir.store.trash().tree_ops().rename(&from, &to)
            }
            renamed => renamed,
        }
        .doing("make a part of the layer", &to)
    }
}

impl Looks {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { attributes: attributes(metadata), mtime: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// Returns whether a change at `now`, or later, has another time than one at `changed`, in seconds and
/// nanoseconds.
fn is_at_rest((seconds, nanoseconds): (i64, i64), now: SystemTime) -> bool {
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else { return false };
    let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
    changed.is_some_and(|changed| now.duration_since(changed).is_ok_and(|age| age >= REST))
}

/// Unmounts the staged directory at `home`. Succeeds if it was never mounted or is no longer mounted.
pub(super) fn unmount(home: &Path) -> io::Result<()> {
    match fs::remove_dir(home.join("on")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_step_did_to_a_directory_is_seen() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let model = top.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::set_permissions(&model, fs::Permissions::from_mode(0o751)).unwrap();
        let models = [top.path().join("none"), model.clone()];
        let check = |act: fn(&Path), touched: Touched| {
            let mut dir = StagedDir::new(&store, &models).unwrap();
            let looks = |dir: &Path| Looks::of(&fs::symlink_metadata(dir).unwrap());
            assert_eq!(looks(&dir.upper()), looks(&model));
            assert_eq!(dir.touched().unwrap(), Touched::Yes, "nobody said what it looks like");
            dir.ready().unwrap();
            act(&dir.upper());
            assert_eq!(dir.touched().unwrap(), touched);

            // The same if it was found untouched before, and a look at its time is enough.
            let mut dir = StagedDir::new(&store, &models).unwrap();
            dir.ready().unwrap();
            while dir.rested.lock().is_none() {
                assert_eq!(dir.touched().unwrap(), Touched::No);
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(dir.touched().unwrap(), Touched::No);
            act(&dir.upper());
            assert_eq!(dir.touched().unwrap(), touched);
        };
        check(|_| {}, Touched::No);
        check(|upper| fs::write(upper.join("f"), "text").unwrap(), Touched::Yes);
        check(
            |upper| fs::create_dir(upper.join("d")).and_then(|()| fs::remove_dir(upper.join("d"))).unwrap(),
            Touched::InPassing,
        );
        check(|upper| fs::set_permissions(upper, fs::Permissions::from_mode(0o700)).unwrap(), Touched::Yes);
        // The step hides its changes behind the time that was there before.
        check(
            |upper| {
                let before = fs::symlink_metadata(upper).unwrap();
                fs::write(upper.join("f"), "text").unwrap();
                let times = super::super::tree::mtime(before.mtime(), before.mtime_nsec());
                rustix::fs::utimensat(rustix::fs::CWD, upper, &times, rustix::fs::AtFlags::empty()).unwrap();
            },
            Touched::Yes,
        );
        let note = |dir: &Path| rustix::fs::setxattr(dir, "user.note", b"x", rustix::fs::XattrFlags::empty());
        if note(&model) == Err(rustix::io::Errno::OPNOTSUPP) {
            assert!(std::env::var_os("HM_REQUIRE_BACKENDS").is_none(), "no user's attributes here");
            eprintln!("skipped: no user's attributes here");
            return;
        }
        check(|upper| rustix::fs::setxattr(upper, "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap(), {
            Touched::Yes
        });
    }

    #[test]
    fn a_change_is_at_rest_when_the_next_one_must_have_another_time() {
        let at = |millis| UNIX_EPOCH + Duration::from_secs(5) + Duration::from_millis(millis);
        assert!(is_at_rest((5, 0), at(20)) && !is_at_rest((5, 0), at(19)));
        assert!(!is_at_rest((5, 0), UNIX_EPOCH), "the clock was set back");
        assert!(!is_at_rest((-1, 0), at(0)));
    }

    #[test]
    fn what_a_step_wrote_becomes_a_part_of_its_layer_and_nothing_else_is_left() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        let (staging, dir) = (store.stage().unwrap(), StagedDir::new(&store, &[]).unwrap());
        fs::write(dir.upper().join("f"), "text").unwrap();
        staging.adopt(Path::new("var/lib/it"), &dir, &[]).unwrap();
        assert_eq!(fs::read_to_string(staging.upper().join("var/lib/it/f")).unwrap(), "text");
        assert!(!staging.prune().unwrap());
        let home = dir.home.clone();
        drop((staging, dir));
        let tmp = store.instance().tmp();
        drop(store);
        assert!(!home.exists() && !tmp.exists());
    }
}
