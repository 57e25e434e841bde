//! BuildGrid on free ports: PostgreSQL, `hm logstream`, `bgd`, and workers of this build.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{
    backends::{skip_optional, usable},
    database::{Database, programs},
    programs::hm,
};

/// The time that a service may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const CONFIG: &str = include_str!("../../fixtures/reapi/buildgrid.yml");

/// A process in its own process group, which ends on drop.
pub(crate) struct Group(Child);

impl Group {
    /// Starts a process whose output goes to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().append(true).create(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self(child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.0), signal);
    }

    /// Sends SIGKILL to the process alone, as `kill -9 PID` does.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn terminate(&self) {
        rustix::process::kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
    }

    /// Waits for the process to end, and returns its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}

/// An engine that runs until it is dropped. Fields are dropped in this order.
pub(crate) struct BuildGrid {
    server: Option<Group>,
    logstream: LogService,
    _database: Database,
    bgd: PathBuf,
    port: u16,
    dir: tempfile::TempDir,
}

/// A running `hm logstream` and its address.
struct LogService {
    child: Child,
    address: String,
}

impl Drop for LogService {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl BuildGrid {
    /// Starts the engine. Returns `None` if the test is skipped because the engine is unavailable.
    pub(crate) fn start() -> Option<Self> {
        let venv = std::env::var_os("HM_TEST_BUILDGRID").map(PathBuf::from);
        if venv.as_deref() == Some(Path::new("none")) {
            skip_optional("BuildGrid", "its packages are known to work with CPython 3.11");
            return None;
        }
        let bgd = venv.map(|venv| venv.join("bin/bgd")).filter(|bgd| bgd.exists());
        if !usable("BuildGrid", bgd.is_some(), "set HM_TEST_BUILDGRID to a virtual environment with it: see .ci/run") {
            return None;
        }
        let programs = programs();
        if !usable("PostgreSQL", programs.is_some(), "install the package postgresql") {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("hm-buildgrid-").tempdir().unwrap();
        let bgd = bgd?;
        let database = Database::start(&programs?, &bgd, dir.path());
        let logstream = start_logstream();
        let port = free_port();
        let config = CONFIG
            .replace("PORT", &port.to_string())
            .replace("ROOT", dir.path().to_str().unwrap())
            .replace("DATABASE", &database.url())
            .replace("LOGSTREAM", &logstream.address);
        fs::write(dir.path().join("buildgrid.yml"), config).unwrap();
        let mut engine = Self { server: None, logstream, _database: database, bgd, port, dir };
        engine.serve();
        Some(engine)
    }

    pub(crate) fn url(&self) -> String {
        format!("grpc://127.0.0.1:{}", self.port)
    }

    pub(crate) fn logstream_url(&self) -> String {
        format!("grpc://{}", self.logstream.address)
    }

    /// Returns the directory of the engine's blobs.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.path().join("cas")
    }

    /// Starts the server, and waits until it answers.
    pub(crate) fn serve(&mut self) {
        let mut command = Command::new(&self.bgd);
        command.args(["server", "start"]).arg(self.dir.path().join("buildgrid.yml"));
        let log = self.dir.path().join("log");
        let mut server = Group::start(&mut command, &log);
        let is_up = until(|| server.has_ended() || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
        assert!(is_up && !server.has_ended(), "{}", fs::read_to_string(log).unwrap_or_default());
        self.server = Some(server);
    }

    /// Sends SIGKILL to the server.
    pub(crate) fn kill_server(&mut self) {
        drop(self.server.take());
    }

    /// Sends SIGKILL to the log service.
    pub(crate) fn kill_logstream(&mut self) {
        self.logstream.child.kill().unwrap();
        self.logstream.child.wait().unwrap();
    }

    /// Starts `hm worker` with its own store, and waits until it is connected.
    pub(crate) fn worker(&self, name: &str) -> TestWorker {
        self.worker_at(&self.url(), name)
    }

    /// Starts a worker like `worker`, which reaches the engine at `url`.
    pub(crate) fn worker_at(&self, url: &str, name: &str) -> TestWorker {
        let mut worker = self.start_worker(&["--remote", url, "--remote-logs", &self.logstream_url()], name);
        worker.says("slot 1: connected");
        worker
    }

    /// Starts a worker with these arguments, and waits for nothing.
    pub(crate) fn start_worker(&self, arguments: &[&str], name: &str) -> TestWorker {
        let log = self.dir.path().join(format!("{name}.log"));
        let _ = fs::remove_file(&log);
        let mut command = Command::new(hm());
        command
            .args(["worker", "--name", name])
            .args(arguments)
            .env("HM_CACHE_DIR", self.dir.path().join(format!("{name}.store")))
            .env("HM_CACHE_GC", "off");
        TestWorker { group: Group::start(&mut command, &log), log }
    }
}

/// A running `hm worker`.
pub(crate) struct TestWorker {
    pub(crate) group: Group,
    log: PathBuf,
}

impl TestWorker {
    /// Waits until the worker has printed `text`.
    #[track_caller]
    pub(crate) fn says(&mut self, text: &str) {
        let said = until(|| self.group.has_ended() || self.log().contains(text));
        assert!(said && !self.group.has_ended(), "{}", self.log());
    }

    /// Returns the worker's output.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Waits for `condition`, and returns whether it came to hold.
pub(crate) fn until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Returns a port that is free at the time of the call.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start_logstream() -> LogService {
    let mut child = Command::new(hm())
        .args(["logstream", "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("log streams at grpc://").unwrap_or_else(|| panic!("{line}"));
    LogService { address: address.to_owned(), child }
}
