//! The cost of a step in the sandbox, from its start to its committed snapshot, compared with `bwrap` over
//! the same overlay with the same namespaces, and with `docker run` and `docker commit` if a daemon is
//! available.
//!
//! `cargo bench --bench sandbox` (as root, because `bwrap` 0.8 cannot mount overlays: the bench mounts them
//! for it)

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

#[path = "../tests/it/support/backends.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod backends;
#[path = "sandbox/bubblewrap.rs"]
mod bubblewrap;
mod common;
#[path = "sandbox/containers.rs"]
mod containers;
#[path = "../tests/it/support/docker_daemon.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod docker_daemon;
#[path = "../tests/it/support/programs.rs"]
mod programs;
#[path = "../tests/it/support/run_meta.rs"]
mod run_meta;
#[path = "../tests/it/support/sandbox.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod sandbox;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use bubblewrap::Bubblewrap;
use common::{Effort, Figure, Table, median, spread};
use containers::Containers;
use hm_exec::runner::sandbox::UserNamespace;
use sandbox::{Ask, Bench, Run};
use tokio::runtime::Runtime;

/// The work of a step.
struct Work {
    what: String,
    cmd: String,
    rounds: usize,
    container_rounds: usize,
    /// Whether it writes so much that the other contenders would be slowed down by writeback.
    is_large: bool,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rootfs = shell_rootfs();
    let image = format!("rootfs:{}", rootfs.path().display());
    let containers = Containers::new(rootfs.path());
    let table = Table::new("sandbox");
    for work in work(rootfs.path()) {
        let mut ours = warm(&runtime, &image);
        let mut theirs = Bubblewrap::new(rootfs.path());
        let [mut ours, mut theirs] = by_turns(
            work.rounds,
            work.is_large,
            [
                &mut || {
                    let took = ours.step(&runtime, &work.cmd);
                    if work.is_large {
                        // Removes everything that the step left.
                        ours = warm(&runtime, &image);
                    }
                    took
                },
                &mut || {
                    let took = theirs.as_ref().map_or(Duration::ZERO, |theirs| theirs.step(&work.cmd));
                    if work.is_large {
                        theirs = Bubblewrap::new(rootfs.path());
                    }
                    took
                },
            ],
        );
        let (figure, besides) = (Figure::ms(median(&mut ours)), spread(&mut ours));
        match median(&mut theirs) {
            Duration::ZERO => table.alone(&work.what, &figure, "bwrap: not installed, or this is not root", besides),
            theirs => table.against(&work.what, &figure, &Figure::ms(theirs).of("bwrap"), besides),
        }
        let Some(containers) = &containers else {
            table.alone(&work.what, &figure, "docker run, commit: no daemon", "");
            continue;
        };
        let [mut theirs] = by_turns(work.container_rounds, work.is_large, [&mut || containers.step(&work.cmd)]);
        let (theirs, besides) = (Figure::ms(median(&mut theirs)), format!("theirs: {}", spread(&mut theirs)));
        table.against(&work.what, &figure, &theirs.of("docker run, commit"), besides);
    }

    let (mut plain, mut host) = (warm(&runtime, &image), warm(&runtime, "host"));
    let single = Bench::with(|builder| builder.user_namespace(UserNamespace::Single));
    let mut single = Build::of(&runtime, single, &image);
    let [mut plain, mut host, mut single] = by_turns(
        Effort::asked().pick(300, 2),
        false,
        [&mut || plain.step(&runtime, ":"), &mut || host.step(&runtime, ":"), &mut || single.step(&runtime, ":")],
    );
    let rootfs = Figure::ms(median(&mut plain)).of("image `rootfs:`, as root");
    for (what, times) in
        [("no-op step, image `host`", &mut host), ("no-op step, single-id user namespace", &mut single)]
    {
        table.against(what, &Figure::ms(median(times)), &rootfs, spread(times));
    }
}

/// Returns the steps, from no output to a gigabyte.
fn work(dir: &Path) -> [Work; 3] {
    let effort = Effort::asked();
    let disk = rustix::fs::statvfs(dir).unwrap();
    // Up to three copies of the data are on the disk while a container's image is created.
    let mib = (disk.f_bavail * disk.f_frsize / 6 / (1 << 20)).min(effort.pick(1024, 16));
    [
        Work {
            what: "no-op step".into(),
            cmd: ":".into(),
            rounds: effort.pick(300, 2),
            container_rounds: effort.pick(20, 1),
            is_large: false,
        },
        Work {
            what: "step that writes 100 files".into(),
            cmd: "i=0; while [ $i -lt 100 ]; do echo $i > /workspace/$i; i=$((i+1)); done".into(),
            rounds: effort.pick(300, 2),
            container_rounds: effort.pick(20, 1),
            is_large: false,
        },
        Work {
            what: format!("step that writes {mib} MiB"),
            cmd: format!("dd if=/dev/zero of=/workspace/big bs=1M count={mib} 2>/dev/null"),
            rounds: effort.pick(7, 1),
            container_rounds: effort.pick(5, 1),
            is_large: true,
        },
    ]
}

/// Returns how long each contender took in each round. The contenders take turns, so that other activity of
/// the machine affects all alike. If what is written `is_large`, the disk is idle before each turn.
fn by_turns<const N: usize>(
    rounds: usize,
    is_large: bool,
    mut contenders: [&mut dyn FnMut() -> Duration; N],
) -> [Vec<Duration>; N] {
    let mut times: [Vec<Duration>; N] = std::array::from_fn(|_| vec![]);
    let warm_up = rounds.div_ceil(15);
    for round in 0..warm_up + rounds {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            if is_large {
                rustix::fs::sync();
            }
            let took = contender();
            if round >= warm_up {
                times.push(took);
            }
        }
    }
    times
}

/// A build on a sandbox with a store of its own, in which the first step has run.
struct Build {
    bench: Bench,
    run: Run,
    image: String,
}

fn warm(runtime: &Runtime, image: &str) -> Build {
    Build::of(runtime, Bench::new(), image)
}

impl Build {
    fn of(runtime: &Runtime, bench: Bench, image: &str) -> Self {
        let mut build = Self { run: bench.run(), bench, image: image.into() };
        build.step(runtime, ":");
        build
    }

    /// Runs one step, including its snapshot.
    fn step(&mut self, runtime: &Runtime, cmd: &str) -> Duration {
        let ask = Ask::new(cmd).image(&*self.image);
        runtime.block_on(async {
            let started = Instant::now();
            let result = self.bench.step(&mut self.run, ask).await.unwrap();
            let took = started.elapsed();
            assert!(result.exit_code == 0 && result.committed_snapshot.is_some());
            took
        })
    }
}

/// Creates a root filesystem with a shell, `dd`, their libraries, and the mount points that every contender
/// needs.
fn shell_rootfs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "dev", "proc", "sys", "tmp", "run", "workspace"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    for program in ["/bin/sh", "/bin/dd"] {
        let ldd = Command::new("ldd").arg(program).output().unwrap();
        let ldd = String::from_utf8_lossy(&ldd.stdout).into_owned();
        for file in ldd.split_whitespace().filter(|word| word.starts_with('/')).chain([program]) {
            let to = dir.path().join(&file[1..]);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(fs::canonicalize(file).unwrap(), to).unwrap();
        }
    }
    dir
}
