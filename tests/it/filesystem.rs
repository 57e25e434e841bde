//! Small filesystems of a test's own, where this machine lets it mount some.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// A mounted filesystem, gone with the value.
pub(crate) struct Filesystem {
    _top: TempDir,
    dir: PathBuf,
}

impl Filesystem {
    /// One in memory. `None` where this process may not mount: a test then skips.
    pub(crate) fn tmpfs(megabytes: u64) -> Option<Self> {
        Self::mount("tmpfs", |dir| {
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0755"), "tmpfs"])
                .arg(dir)
                .output()
        })
    }

    /// One in a file.
    pub(crate) fn ext4(megabytes: u64) -> Option<Self> {
        Self::mount("ext4 in a file", |dir| {
            let image = dir.with_file_name("image");
            fs::File::create(&image)?.set_len(megabytes << 20)?;
            let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).output()?;
            if !made.status.success() {
                return Ok(made);
            }
            Command::new("mount").args(["-o", "loop"]).arg(image).arg(dir).output()
        })
    }

    fn mount(what: &str, mount: impl FnOnce(&Path) -> std::io::Result<std::process::Output>) -> Option<Self> {
        let top = TempDir::new().unwrap();
        let dir = top.path().canonicalize().unwrap().join("mounted");
        fs::create_dir(&dir).unwrap();
        let why = match mount(&dir) {
            Ok(output) if output.status.success() => return Some(Self { _top: top, dir }),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        // Only root mounts, and not in every container: nothing that the suite can require.
        crate::backends::told_skip(what, &why);
        None
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes all the space that is left, but for `spare` bytes.
    pub(crate) fn fill(&self, spare: u64) {
        let mut file = fs::File::create(self.dir.join("filler")).unwrap();
        for block in [1 << 20, 4096] {
            while file.write_all(&vec![b'x'; block]).is_ok() {}
        }
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(spare)).unwrap();
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub(crate) fn free(&self) {
        fs::remove_file(self.dir.join("filler")).unwrap();
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.dir).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
    }
}
