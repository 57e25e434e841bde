//! The runner of virtual machines, over a backend whose machines are directories: tests the runner, not the
//! backend.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command as Program, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use hm_exec::{
    SnapshotRef,
    conformance::Suite,
    event::StdStream,
    runner::{
        ArgsSchema, Limits, RunnerError, StepRunner,
        vm::{Command, Injection, Output, Vm, VmBackend, VmRunner},
    },
    store::StoreHandle,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The environment variable that identifies a machine's processes.
const MARK: &str = "TOY_MACHINE";

#[derive(Debug)]
struct Directories(PathBuf);

/// A machine. On drop, its directory is removed and its processes are killed.
#[derive(Debug)]
struct Directory {
    root: tempfile::TempDir,
    saved: PathBuf,
    /// Whether the machine was asked to end.
    is_ending: AtomicBool,
}

fn failed(error: std::io::Error) -> RunnerError {
    RunnerError::infrastructure("use a directory", error)
}

impl Directory {
    fn mark(&self) -> String {
        format!("{MARK}={}", self.root.path().display())
    }

    fn signal(&self, signal: Signal) -> usize {
        self.processes().into_iter().filter(|pid| kill_process(*pid, signal).is_ok()).count()
    }

    fn processes(&self) -> Vec<Pid> {
        let mark = self.mark();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = pids.filter(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        });
        ours.filter_map(Pid::from_raw).collect()
    }

    fn kill(&self) {
        while self.signal(Signal::KILL) > 0 {}
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<ExitStatus> {
    Program::new("cp").arg("-a").arg(from.join(".")).arg(to).stderr(Stdio::null()).status()
}

impl VmBackend for Directories {
    const NAME: &'static str = "directories";
    type Vm = Directory;

    async fn create(&self, _: &str, _: &Limits) -> Result<Directory, RunnerError> {
        let root = tempfile::tempdir_in(&self.0).map_err(failed)?;
        fs::create_dir(root.path().join("tmp")).map_err(failed)?;
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(Directory { root, saved: self.0.join("saved"), is_ending: AtomicBool::new(false) })
    }

    async fn restore(&self, snapshot: &str, limits: &Limits) -> Result<Option<Directory>, RunnerError> {
        let vm = self.create("", limits).await?;
        let copied = copy(&vm.saved.join(snapshot), vm.root.path()).map_err(failed)?;
        Ok(copied.success().then_some(vm))
    }

    async fn remove(&self, snapshot: &str) -> Result<(), RunnerError> {
        match fs::remove_dir_all(self.0.join("saved").join(snapshot)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

impl Vm for Directory {
    async fn inject(&mut self, files: Injection) -> Result<(), RunnerError> {
        let dir = self.root.path().join(files.dir.strip_prefix("/").unwrap());
        for path in files.removed {
            let path = dir.join(path);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        }
        fs::create_dir_all(&dir).map_err(failed)?;
        tar::Archive::new(files.archive).unpack(&dir).map_err(failed)
    }

    async fn exec(&self, command: &Command<'_>, output: &Output<'_>) -> Result<i32, RunnerError> {
        let mut shell = tokio::process::Command::new("/bin/sh");
        shell.arg("-c").arg(command.script).env_clear().envs(command.env).env(MARK, self.root.path());
        shell.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/root");
        shell.current_dir(self.root.path().join(command.workdir.trim_start_matches('/')));
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = shell.spawn().map_err(failed)?;
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let ended = async {
            let status = child.wait().await;
            // After TERM, the last process is waited for.
            while self.is_ending.load(Relaxed) && !self.processes().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            // A process that is left holds the pipes open.
            self.kill();
            status
        };
        let (status, (), ()) =
            tokio::join!(ended, pump(stdout, StdStream::Stdout, output), pump(stderr, StdStream::Stderr, output));
        let status = status.map_err(failed)?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        Ok(status.code().unwrap_or_else(|| 128 + signal.unwrap()))
    }

    async fn terminate(&self) {
        self.is_ending.store(true, Relaxed);
        self.signal(Signal::TERM);
    }

    async fn snapshot(self) -> Result<String, RunnerError> {
        self.kill();
        let name = self.root.path().file_name().unwrap().to_str().unwrap().to_owned();
        fs::create_dir_all(&self.saved).map_err(failed)?;
        fs::rename(self.root.path(), self.saved.join(&name)).map_err(failed)?;
        Ok(name)
    }

    async fn destroy(self) {}
}

async fn pump(mut from: impl AsyncRead + Unpin, stream: StdStream, output: &Output<'_>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        output.write(stream, &buffer[..length]).await;
    }
}

#[tokio::test]
async fn a_runner_on_a_backend_conforms() {
    // Children inherit that this process ignores a signal, but not that it handles one.
    let _interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let runner = VmRunner::new(Directories(dir.path().into()), StoreHandle::new(dir.path().join("store")));
    let report = Suite::new(&runner, "any").run().await;
    println!("{report}");
    report.assert_passed();
    let lacks = ["exchange", "secrets", "memory", "network-none", "lineage-ownership", "host-files"];
    assert!(lacks.iter().all(|case| report.not_promised().any(|name| name == *case)), "{report}");
    // Machines are removed with their steps, and snapshots when they are reaped.
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "store" || name == "saved"), "{left:?}");
}

#[tokio::test]
async fn arguments_that_a_backend_does_not_support_are_refused_at_binding() {
    let dir = tempfile::tempdir().unwrap();
    let runner = VmRunner::new(Directories(dir.path().into()), StoreHandle::new(dir.path().join("store")));
    let refuses = |schema: ArgsSchema| schema.check(&json!({ "memory": "1g" })).is_err();
    assert!(refuses(runner.args_schema()));
    runner.reap_snapshots(vec![SnapshotRef::from("directories:no-source"), SnapshotRef::from("other:x")]).await;
    assert!(!dir.path().join("store").exists(), "an unused runner opens nothing");
}
