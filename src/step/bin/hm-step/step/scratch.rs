//! A scratch directory for the parts of a step's filesystem.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use hm_exec_step::{jail::OneShot, tree};

use super::Failure;

/// Directories that a machine has and a step does not need. The in-memory filesystem is mounted over one of
/// them.
const PLACES: [&str; 5] = ["/mnt", "/media", "/srv", "/tmp", "/var/tmp"];

/// The directory that is created if none of [`PLACES`] can be used.
const OWN: &str = ".hm-step";

/// A directory on an in-memory filesystem that no other process sees, and that disappears with this process
/// and its step. If such a filesystem cannot be mounted, a directory next to the input, which is removed when
/// this value is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    made: bool,
}

impl Scratch {
    /// Creates a scratch directory for the step in the directory `dir`. It hides none of `inputs`, which are
    /// canonical paths.
    pub(crate) fn new(oneshot: &OneShot, dir: &Path, inputs: &[&Path]) -> Result<Self, Failure> {
        let free = |place: &&Path| {
            let is_dir = place.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            is_dir && !inputs.iter().copied().chain([dir]).any(|input| input.starts_with(place))
        };
        if let Some(place) = PLACES.iter().map(Path::new).find(free)
            && oneshot.mount_memory_over(place).is_ok()
        {
            return Ok(Self { path: place.into(), made: false });
        }
        let path = dir.join(OWN);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::io(format_args!("create {}", path.display()), &error))?;
        let scratch = Self { path, made: true };
        // If it cannot be in memory, the directory is on the disk, which is only slower.
        let _ = oneshot.mount_memory_over(&scratch.path);
        Ok(scratch)
    }

    /// Returns an existing directory as a scratch directory.
    #[cfg(test)]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, made: false }
    }

    /// Creates a directory with the permissions of a root directory.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        let make = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))
        };
        make().map_err(|error| Failure::io(format_args!("create {}", path.display()), &error))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.made {
            // Best effort: what remains is an empty directory, or files in the directory of an action that is
            // over.
            let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
            let _ = tree::remove_tree(&self.path);
        }
    }
}
