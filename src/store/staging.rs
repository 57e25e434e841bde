//! Layers that are being written: the directory where a step makes its changes.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Gid, Uid};

use super::{Store, StoreError, error::IoContext, files::make_dir};
use crate::sync::Mutex;

/// The mode of a new upper directory, which a step sees as the mode of `/`.
const ROOT_MODE: u32 = 0o755;

/// A layer that is being written, at a path of its own. It is removed if it is dropped without a commit.
#[derive(Debug)]
pub struct Staging {
    store: Arc<Store>,
    /// Contains the layer's tree in `root`.
    dir: PathBuf,
    work: PathBuf,
    premade: Mutex<Vec<Premade>>,
    /// The attributes of the upper directory before the step ran, if they are not those of a new one.
    root: Mutex<Option<Attributes>>,
}

/// The mode, the owner and the group.
type Attributes = (u32, u32, u32);

/// A directory that was created before the step ran, and its original attributes.
#[derive(Debug)]
struct Premade {
    path: PathBuf,
    attributes: Attributes,
}

impl Staging {
    /// Creates an empty layer.
    pub(super) fn new(store: &Arc<Store>) -> Result<Self, StoreError> {
        let dir = store.instance().new_tmp();
        let work = dir.with_extension("work");
        make_dir(&dir)?;
        let staging = Self { store: Arc::clone(store), dir, work, premade: Mutex::default(), root: Mutex::default() };
        let upper = staging.upper();
        make_dir(&upper)?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(ROOT_MODE)).doing("set the mode of", &upper)?;
        make_dir(&staging.work)?;
        Ok(staging)
    }

    /// Returns the directory that becomes the layer. It corresponds to the root of the step's filesystem.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Returns an empty directory on the same filesystem, for overlayfs's own use.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Creates the directory `path` in the layer, and its parents, with the attributes that a step would see
    /// there: those of the topmost of `lowers` that contains it. A directory that stays untouched and empty
    /// does not become part of the layer.
    ///
    /// # Errors
    /// Returns an error if a directory cannot be created.
    pub fn premake(&self, path: &Path, lowers: &[PathBuf]) -> Result<PathBuf, StoreError> {
        let mut premade = self.premade.lock();
        let upper = self.upper();
        let mut relative = PathBuf::new();
        for part in path.components() {
            relative.push(part);
            let made = upper.join(&relative);
            match DirBuilder::new().mode(0o700).create(&made) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(StoreError::io("make the directory", made, error)),
            }
            let model = lowers.iter().find_map(|lower| fs::symlink_metadata(lower.join(&relative)).ok());
            let model = model.filter(fs::Metadata::is_dir);
            imitate(&made, model.as_ref()).doing("set the attributes of", &made)?;
            let attributes = attributes(&fs::symlink_metadata(&made).doing("read", &made)?);
            premade.push(Premade { path: relative.clone(), attributes });
        }
        Ok(upper.join(relative))
    }

    /// Gives the upper directory the attributes of `model`, which a step sees.
    ///
    /// # Errors
    /// Returns an error if an attribute cannot be read or set.
    pub(crate) fn imitate_root(&self, model: &Path) -> Result<(), StoreError> {
        let upper = self.upper();
        let model = fs::symlink_metadata(model).doing("read", model)?;
        imitate(&upper, Some(&model)).doing("set the attributes of", &upper)?;
        *self.root.lock() = Some(attributes(&fs::symlink_metadata(&upper).doing("read", &upper)?));
        Ok(())
    }

    /// Returns the path of the layer before it is in place, for [`Store::commit`].
    pub(crate) fn home(&self) -> &Path {
        &self.dir
    }

    /// Removes premade directories that are unchanged. Returns true if nothing is left, which means that the
    /// step changed nothing.
    pub(crate) fn prune(&self) -> Result<bool, StoreError> {
        let upper = self.upper();
        let premade = self.premade.lock();
        for made in premade.iter().rev() {
            let path = upper.join(&made.path);
            let is_as_made = fs::symlink_metadata(&path).is_ok_and(|found| attributes(&found) == made.attributes);
            if is_as_made && !is_marked(&path) {
                // Fails if the directory is not empty, which is exactly the check needed here.
                let _ = fs::remove_dir(&path);
            }
        }
        let metadata = fs::symlink_metadata(&upper).doing("read", &upper)?;
        let made = match *self.root.lock() {
            Some(made) => made,
            // A new directory belongs to whom its parent belongs to, which no step sees.
            None => {
                let parent = fs::symlink_metadata(&self.dir).doing("read", &self.dir)?;
                (metadata.mode() & !0o7777 | ROOT_MODE, parent.uid(), parent.gid())
            }
        };
        if attributes(&metadata) != made || is_marked(&upper) {
            return Ok(false);
        }
        is_empty(&upper)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.store.trash().discard_staging(std::mem::take(&mut self.dir), std::mem::take(&mut self.work));
    }
}

/// Returns the mode, the owner and the group.
pub(super) fn attributes(metadata: &fs::Metadata) -> Attributes {
    (metadata.mode(), metadata.uid(), metadata.gid())
}

/// Returns whether a directory that a step wrote to is empty.
pub(super) fn is_empty(dir: &Path) -> Result<bool, StoreError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        // The step gave the directory to another user on purpose.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(StoreError::io("list", dir, error)),
    }
}

/// Returns whether a directory has extended attributes that a step set, or that change what it shows.
pub(super) fn is_marked(path: &Path) -> bool {
    let mut names = [0_u8; 1024];
    // A directory with so many attributes, or whose attributes cannot be read, is not as it was created.
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return true };
    let harmless = [
        &b"trusted.overlay.impure"[..],
        b"user.overlay.impure",
        b"trusted.overlay.origin",
        b"user.overlay.origin",
        b"security.selinux",
        b"trusted.overlay.uuid",
        b"user.overlay.uuid",
    ];
    names[..length].split(|byte| *byte == 0).any(|name| !name.is_empty() && !harmless.contains(&name))
}

/// Gives a new directory the mode, the time and, if permitted, the owner of another one.
pub(crate) fn imitate(path: &Path, model: Option<&fs::Metadata>) -> io::Result<()> {
    let Some(model) = model else {
        return fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    };
    if rustix::process::geteuid().is_root() {
        rustix::fs::chown(path, Some(Uid::from_raw(model.uid())), Some(Gid::from_raw(model.gid())))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(model.mode() & 0o7777))?;
    let times = super::tree::mtime(model.mtime(), model.mtime_nsec());
    Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}
