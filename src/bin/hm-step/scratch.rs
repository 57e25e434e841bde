//! A place for what a step is made of.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use hm_exec::{jail::Solo, tree};

use crate::failure::Failure;

/// Directories that a machine has and a step does not need, for the file system in memory to be mounted over.
const PLACES: [&str; 5] = ["/mnt", "/media", "/srv", "/tmp", "/var/tmp"];

/// Made where none of these will do.
const OWN: &str = ".hm-step";

/// A directory on a file system in memory that nobody else sees, and that goes with this process and its step. Where it may
/// not be mounted, a directory beside the input, which goes with this value.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    made: bool,
}

impl Scratch {
    /// Makes one for the step in the directory `dir`. None of `inputs`, which are canonical paths, is hidden by it.
    pub(crate) fn new(solo: &Solo, dir: &Path, inputs: &[PathBuf]) -> Result<Self, Failure> {
        let free = |place: &&Path| {
            let is_dir = place.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            is_dir && !inputs.iter().map(PathBuf::as_path).chain([dir]).any(|input| input.starts_with(place))
        };
        if let Some(place) = PLACES.iter().map(Path::new).find(free)
            && solo.mount_memory_over(place).is_ok()
        {
            return Ok(Self { path: place.into(), made: false });
        }
        let path = dir.join(OWN);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::io(format_args!("make {}", path.display()), &error))?;
        let scratch = Self { path, made: true };
        // What can't be in memory is on the disk: slower, and nothing else.
        let _ = solo.mount_memory_over(&scratch.path);
        Ok(scratch)
    }

    /// Makes a directory, as a root directory is.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        let make = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))
        };
        make().map_err(|error| Failure::io(format_args!("make {}", path.display()), &error))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.made {
            // Best effort: what stays is an empty directory, or files in the directory of an action that is over.
            let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
            let _ = tree::remove_tree(&self.path);
        }
    }
}
