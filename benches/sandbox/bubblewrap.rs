//! A step by `bwrap`: mount, run, unmount, rename.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

pub(crate) struct Bubblewrap {
    dir: tempfile::TempDir,
    rootfs: PathBuf,
    steps: Cell<usize>,
}

impl Bubblewrap {
    /// Returns `None` if `bwrap` is not installed, or if no overlay can be mounted for it.
    pub(crate) fn new(rootfs: &Path) -> Option<Self> {
        let found = Command::new("bwrap").arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success());
        if !found || !rustix::process::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["source/workspace", "merged", "layers"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        Some(Self { dir, rootfs: rootfs.into(), steps: Cell::new(0) })
    }

    /// Returns how long a step takes, including the move of its layer to its final place.
    pub(crate) fn step(&self, cmd: &str) -> Duration {
        let step = self.steps.replace(self.steps.get() + 1);
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let merged = path("merged");
        let started = Instant::now();
        let (upper, work) = (path(&format!("upper{step}")), path(&format!("work{step}")));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let options = format!(
            "lowerdir={}:{},upperdir={upper},workdir={work},redirect_dir=nofollow,metacopy=off,index=off,xino=off,volatile",
            path("source"),
            self.rootfs.display(),
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount("overlay", &merged, "overlay", MountFlags::NODEV, options.as_c_str()).unwrap();
        let output = Command::new("bwrap")
            .args(["--bind", &merged, "/", "--proc", "/proc", "--dev", "/dev", "--ro-bind", "/sys", "/sys"])
            .args(["--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-cgroup", "--new-session"])
            .args(["--die-with-parent", "--chdir", "/workspace", "/bin/sh", "-c", cmd])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        unmount(&merged, UnmountFlags::empty()).unwrap();
        fs::rename(&upper, path(&format!("layers/{step}"))).unwrap();
        started.elapsed()
    }
}
