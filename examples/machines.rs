//! Machines of your own, behind the library's runner for machines: `VmRunner` freezes the source, puts it
//! into a machine, interrupts commands and carries snapshots to children. These machines are a directory
//! and a process namespace each; others could be virtual machines, containers, or boards on a shelf.
//!
//! `cargo run --example machines --features vm`, and its test, the conformance suite:
//! `cargo test --example machines --features conformance`.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::{error::Error, fs, io, os::unix::fs::PermissionsExt, path::PathBuf, process::Stdio};

use hm_exec::{
    BuildEvent, Engine, Plan, RunRequest, RunnerSet,
    event::StdStream,
    plan::Step,
    runner::{
        Limits, Probe, RunnerError,
        vm::{Command, Injection, Output, Vm, VmBackend, VmRunner},
    },
    store::StoreHandle,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin},
    sync::Mutex,
};

/// The first process of a machine, which ends with the command. A line on its standard input is TERM for
/// all others, which are then waited for.
const INIT: &str = r#"exec 3<&0 </dev/null 4>&2 2>/dev/null
trap is_ending=1 USR1
(read -r _ <&3 && kill -USR1 1 && kill -TERM -1) &
/bin/sh -c "$1" 3<&- 2>&4 4>&-
code=$?
[ -z "$is_ending" ] || while kill -0 -1; do sleep 0.02; done
exit $code"#;

/// Makes machines, and keeps their snapshots.
#[derive(Debug)]
struct Machines {
    dir: PathBuf,
}

struct Machine {
    root: tempfile::TempDir,
    snapshots: PathBuf,
    /// The end of a pipe to the first process.
    control: Mutex<Option<ChildStdin>>,
    /// The parent of the first process, while a command runs.
    parent: Mutex<Option<Child>>,
}

impl VmBackend for Machines {
    const NAME: &'static str = "machines";
    type Vm = Machine;

    async fn create(&self, _image: &str, _: &Limits) -> Result<Machine, RunnerError> {
        let root = tempfile::tempdir_in(&self.dir)?;
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Machine { root, snapshots: self.dir.join("snapshots"), control: Mutex::default(), parent: Mutex::default() })
    }

    async fn restore(&self, snapshot: &str, limits: &Limits) -> Result<Option<Machine>, RunnerError> {
        let from = self.dir.join("snapshots").join(snapshot);
        if !from.exists() {
            return Ok(None);
        }
        let machine = self.create("", limits).await?;
        let mut cp = tokio::process::Command::new("cp");
        let copied = cp.arg("-a").arg(from.join(".")).arg(machine.root.path()).kill_on_drop(true).status().await?;
        if copied.success() { Ok(Some(machine)) } else { Err(io::Error::other("`cp` failed").into()) }
    }

    async fn remove(&self, snapshot: &str) -> Result<(), RunnerError> {
        match fs::remove_dir_all(self.dir.join("snapshots").join(snapshot)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn probe(&self) -> Probe {
        let tried = unshare().arg("true").stderr(Stdio::null()).status().await;
        match tried.is_ok_and(|status| status.success()) {
            true => Probe::usable(),
            false => Probe::unusable("`unshare --user --pid` failed", "allow user namespaces for this user"),
        }
    }
}

/// Returns the program that starts a machine's first process. If it is killed, so are all others.
fn unshare() -> tokio::process::Command {
    let mut unshare = tokio::process::Command::new("/usr/bin/unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]).kill_on_drop(true);
    unshare
}

impl Vm for Machine {
    async fn inject(&mut self, files: Injection) -> Result<(), RunnerError> {
        let dir = self.root.path().join(files.dir.strip_prefix("/").unwrap_or(&files.dir));
        for path in files.removed {
            // Directories that are not empty stay.
            let _ = fs::remove_file(dir.join(&path)).or_else(|_| fs::remove_dir(dir.join(&path)));
        }
        let unpack = move || {
            fs::create_dir_all(&dir)?;
            tar::Archive::new(files.archive).unpack(&dir)
        };
        Ok(tokio::task::spawn_blocking(unpack).await.map_err(io::Error::other)??)
    }

    async fn exec(&self, command: &Command<'_>, output: &Output<'_>) -> Result<i32, RunnerError> {
        let mut init = unshare();
        init.args(["/bin/sh", "-c", INIT, "init", command.script]);
        init.env_clear().env("HOME", self.root.path()).env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        init.envs(command.env);
        init.current_dir(self.root.path().join(command.workdir.trim_start_matches('/')));
        let mut child = init.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        *self.control.lock().await = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut parent = self.parent.lock().await;
        let child = parent.insert(child);
        // No process of the machine is left when the first one has ended, so both streams end, too.
        let (stdout, stderr, ended) = tokio::join!(
            forward(stdout, StdStream::Stdout, output),
            forward(stderr, StdStream::Stderr, output),
            child.wait(),
        );
        stdout.and(stderr)?;
        Ok(ended?.code().unwrap_or(128 + 9))
    }

    async fn terminate(&self) {
        if let Some(control) = &mut *self.control.lock().await {
            // An error means that the command has just ended.
            let _ = control.write_all(b"\n").await;
        }
    }

    async fn snapshot(self) -> Result<String, RunnerError> {
        let name = self.root.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::create_dir_all(&self.snapshots)?;
        fs::rename(self.root.path(), self.snapshots.join(&name))?;
        Ok(name)
    }

    async fn destroy(self) {
        let mut parent = self.parent.lock().await;
        let Some(parent) = parent.as_mut() else { return };
        // The parent ends after the first process, which ends after all others.
        if let Some(pid) = parent.id()
            && let Ok(children) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            && let Some(first) = children.trim().parse().ok().and_then(Pid::from_raw)
        {
            // An error means that it has just ended.
            let _ = kill_process(first, Signal::KILL);
            let _ = parent.wait().await;
        }
    }
}

async fn forward(pipe: Option<impl AsyncRead + Unpin>, stream: StdStream, output: &Output<'_>) -> io::Result<()> {
    let (Some(mut pipe), mut bytes) = (pipe, vec![0; 64 << 10]) else { return Ok(()) };
    loop {
        match pipe.read(&mut bytes).await? {
            0 => return Ok(()),
            count => output.write(stream, &bytes[..count]).await,
        }
    }
}

#[derive(Debug, RunnerSet)]
struct Runners {
    #[runner(default)]
    machines: VmRunner<Machines>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let machines = VmRunner::new(Machines { dir: dir.path().into() }, StoreHandle::new(dir.path().join("store")));
    let engine = Engine::builder(Runners { machines }).build()?;
    // `test` and `count` each get a copy of the machine that `make` leaves.
    let plan = Plan::builder()
        .step(Step::new("make", "echo made > made.txt"))
        .step(Step::new("test", "cat made.txt; echo \"first process: $PPID\"").builds_in("make"))
        .step(Step::new("count", "ls | wc -l").builds_in("make").depends_on("test"))
        .build()?;
    let (mut events, control) = engine.start(RunRequest::new(plan, "examples")).await?.into_parts();
    while let Some(event) = events.next().await {
        if let BuildEvent::StepLog { line, .. } = event {
            println!("{line}");
        }
    }
    let outcome = control.wait().await?;
    println!("{:?}", outcome.status);
    std::process::exit(outcome.status.exit_code());
}

// Tests of this repository always have the suite.
#[cfg(feature = "conformance")]
#[tokio::test]
async fn conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let machines = Machines { dir: dir.path().into() };
    if let Probe::Unusable { reason, .. } = machines.probe().await {
        assert!(std::env::var_os("HM_REQUIRE_BACKENDS").is_none(), "{reason}");
        return;
    }
    let runner = VmRunner::new(machines, StoreHandle::new(dir.path().join("store")));
    hm_exec::conformance::Suite::new(&runner, "any").run().await.assert_passed();
}
