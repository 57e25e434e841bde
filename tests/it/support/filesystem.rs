//! Small filesystems of one test, if this machine lets it mount any.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::backends::skip_optional;

/// A mounted filesystem, unmounted when it is dropped.
pub(crate) struct Filesystem {
    _top: TempDir,
    dir: PathBuf,
}

impl Filesystem {
    /// Mounts one in memory. Returns `None` if this process may not mount: the test is then skipped.
    pub(crate) fn tmpfs(megabytes: u64) -> Option<Self> {
        Self::mount("tmpfs", |dir| {
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0755"), "tmpfs"])
                .arg(dir)
                .output()
        })
    }

    /// Mounts one in a file.
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
        // Only root can mount, and not in every container, so the suite cannot require it.
        skip_optional(what, &why);
        None
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes all the remaining space except `spare` bytes.
    pub(crate) fn fill(&self, spare: u64) {
        let mut file = fs::File::create(self.dir.join("filler")).unwrap();
        for block in [1 << 20, 4096] {
            while file.write_all(&vec![b'x'; block]).is_ok() {}
        }
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(spare)).unwrap();
    }

    /// Frees the space that [`fill`](Self::fill) took.
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
