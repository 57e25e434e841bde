//! What a step costs in the sandbox, from its start to its committed snapshot, beside `bwrap` over the same overlay with
//! the same namespaces. Prints one table.
//!
//! `cargo bench --bench sandbox` (as root, for `bwrap` 0.8 mounts no overlay itself: the bench does, for it)

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench has nobody to report to")]

#[path = "../tests/it/sandbox/harness.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod harness;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use harness::{Ask, Bench};
use hm_exec::runner::sandbox::UserNamespace;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const ROUNDS: usize = 300;
const WARM_UP: usize = 20;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rootfs = shell_rootfs();
    let image = format!("rootfs:{}", rootfs.path().display());
    let ours = Bench::new();
    let single = Bench::with(|builder| builder.user_namespace(UserNamespace::Single));
    let theirs = Bubblewrap::new(rootfs.path());

    let mut times: [Vec<Duration>; 5] = Default::default();
    // Turn by turn, so that whatever else the machine does hits all alike.
    for round in 0..ROUNDS + WARM_UP {
        let took = [
            runtime.block_on(step(&ours, &image, "touch")),
            theirs.as_ref().map_or(Duration::ZERO, |theirs| theirs.step(round)),
            runtime.block_on(step(&ours, &image, "none")),
            runtime.block_on(step(&ours, "host", "none")),
            runtime.block_on(step(&single, &image, "none")),
        ];
        if round >= WARM_UP {
            times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
        }
    }
    let names = [
        "sandbox, rootfs, one file written",
        "bwrap over the same overlay, one file written",
        "sandbox, rootfs, nothing written",
        "sandbox, host image, nothing written",
        "sandbox, rootfs, single-id user namespace",
    ];
    println!("{:<50} {:>9} {:>9} {:>9}", "per step, in ms", "min", "median", "p90");
    for (name, times) in names.into_iter().zip(&mut times) {
        times.sort_unstable();
        let ms = |at: usize| times[at].as_secs_f64() * 1e3;
        println!("{name:<50} {:>9.2} {:>9.2} {:>9.2}", ms(0), ms(times.len() / 2), ms(times.len() * 9 / 10));
    }
    if theirs.is_some() {
        let median = |times: &[Duration]| times[times.len() / 2].as_secs_f64();
        println!("\nsandbox / bwrap: {:.2} (at most 1.00 is the goal)", median(&times[0]) / median(&times[1]));
    } else {
        println!("\nbwrap: skipped, it is not installed or this is not root");
    }
}

/// One step, with its snapshot.
async fn step(bench: &Bench, image: &str, what: &str) -> Duration {
    let mut run = bench.run();
    // Freezing an empty source is no part of a step.
    run.ctx.archives.freeze(&bench.store).await.unwrap();
    let cmd = if what == "touch" { ": > /workspace/f" } else { ":" };
    let ask = Ask::new(cmd).image(image);
    let started = Instant::now();
    let result = bench.step(&mut run, ask).await.unwrap();
    let took = started.elapsed();
    assert!(result.exit_code == 0 && result.committed_snapshot.is_some());
    took
}

/// The same by `bwrap`: mount, run, unmount, rename.
struct Bubblewrap {
    dir: tempfile::TempDir,
    rootfs: PathBuf,
}

impl Bubblewrap {
    fn new(rootfs: &Path) -> Option<Self> {
        let found = Command::new("bwrap").arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success());
        if !found || !rustix::process::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["source/workspace", "merged", "layers"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        Some(Self { dir, rootfs: rootfs.into() })
    }

    fn step(&self, round: usize) -> Duration {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let merged = path("merged");
        let started = Instant::now();
        let (upper, work) = (path(&format!("upper{round}")), path(&format!("work{round}")));
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
            .args(["--die-with-parent", "--chdir", "/workspace", "/bin/sh", "-c", ": > /workspace/f"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        unmount(&merged, UnmountFlags::empty()).unwrap();
        fs::rename(&upper, path(&format!("layers/{round}"))).unwrap();
        started.elapsed()
    }
}

/// A root file system with a shell, its libraries, and the mount points that both want.
fn shell_rootfs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "dev", "proc", "sys", "tmp", "run", "workspace"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let ldd = Command::new("ldd").arg("/bin/sh").output().unwrap();
    let ldd = String::from_utf8_lossy(&ldd.stdout).into_owned();
    let files = ldd.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]);
    for file in files {
        let to = dir.path().join(&file[1..]);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fs::canonicalize(file).unwrap(), to).unwrap();
    }
    dir
}
