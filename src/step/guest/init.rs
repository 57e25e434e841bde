//! The machine's init process: it sets up the machine, runs one job, and reports its result.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Mode,
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_move, unmount},
    process::{Signal, pidfd_send_signal},
    time::{ClockId, Timespec, clock_settime},
};

use super::{
    FILES, MODULES, VERSION, job, network,
    wire::{self, Ended, Job, Order, Word},
};
use crate::{jail::guest_ops as sys, streams::Streams};

/// The mount point of the step's files.
pub(super) const ROOT: &str = "/root";
/// The step's control group.
pub(super) const GROUP: &str = "/cgroup/step";
/// The number of bytes that are read from a pipe at a time.
const READ_BYTES: usize = 1 << 16;
/// The maximum time until a plugged-in device appears.
const PATIENCE: Duration = Duration::from_secs(60);

/// The result of an operation, with an error text for the host.
type Outcome<T> = Result<T, String>;

trait ResultExt<T> {
    fn doing(self, what: &str) -> Outcome<T>;
}

impl<T, E: Into<io::Error>> ResultExt<T> for Result<T, E> {
    fn doing(self, what: &str) -> Outcome<T> {
        self.map_err(|error| format!("failed to {what}: {}", error.into()))
    }
}

/// Runs the one job of this machine. Returns an error if the machine cannot be used. The host ends the
/// machine in every case.
///
/// # Errors
/// Returns an error text if the kernel refuses an operation.
pub fn run() -> Result<(), String> {
    load_modules()?;
    enter_memory()?;
    network::up().doing("bring up the network")?;
    let port = open_port()?;
    wire::write(&port, &Word::Ready { version: VERSION }).doing("report that this machine is ready")?;
    let order = wire::read(&port).doing("read an order")?;
    let Order::Run(job) = order else { return Err("no step is running yet".into()) };
    let last = match attempt(&job, &port) {
        Ok(ended) => Word::Ended(ended),
        Err(why) => Word::Failed(why),
    };
    wire::write(&port, &last).doing("report the step's end")?;
    // The host no longer listens, and ends the machine.
    wire::read::<Order>(&port).map(drop).doing("wait for the end")
}

fn load_modules() -> Outcome<()> {
    let dir = Path::new("/").join(MODULES);
    let mut modules: Vec<PathBuf> =
        fs::read_dir(dir).doing("list modules")?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    modules.sort();
    for path in modules {
        let file = File::open(&path).doing("open a module")?;
        let compressed = path.extension().is_none_or(|extension| extension != "ko");
        match sys::load_module(&file, compressed) {
            // Another module needed it before.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("failed to load {}: {error}", path.display())),
        }
    }
    Ok(())
}

/// Moves to a tmpfs, because the file system that the kernel unpacked cannot be replaced as the root, and a
/// jail replaces its root.
fn enter_memory() -> Outcome<()> {
    let make = |dir: &str| rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)).doing(dir);
    let mount_at = |source: &str, target: &str, kind: &str| {
        let none: Option<&std::ffi::CStr> = None;
        mount(source, target, kind, MountFlags::empty(), none).doing(&format!("mount {target}"))
    };
    make("/new")?;
    mount_at("tmpfs", "/new", "tmpfs")?;
    rustix::process::chdir("/new").doing("enter the new root")?;
    mount_move(".", "/").doing("move the new root")?;
    rustix::process::chroot(".").doing("enter the new root")?;
    for dir in ["/proc", "/sys", "/dev", "/cgroup", "/etc", "/tmp", ROOT] {
        make(dir)?;
    }
    for (target, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs"), ("/cgroup", "cgroup2")] {
        mount_at(kind, target, kind)?;
    }
    fs::write("/cgroup/cgroup.subtree_control", "+memory +pids +cpu").doing("turn on control groups")?;
    make(GROUP)
}

/// Opens the port to the host. It exists as soon as its driver is loaded.
fn open_port() -> Outcome<File> {
    let found = within_patience("find the port to the host", || {
        let names = fs::read_dir("/dev")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let name = names.into_iter().find(|name| name.starts_with("vport"));
        name.ok_or(io::ErrorKind::NotFound.into())
    })?;
    OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(found)).doing("open the port to the host")
}

/// Retries until `attempt` succeeds. The kernel has other notifications of devices, but none is worth its
/// code here.
fn within_patience<T>(what: &str, mut attempt: impl FnMut() -> io::Result<T>) -> Outcome<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if Instant::now() > until => return Err(error).doing(what),
            Err(_) => thread::sleep(Duration::from_millis(2)),
            done => return done.doing(what),
        }
    }
}

/// Runs a job, and streams its output to the port.
fn attempt(job: &Job, port: &File) -> Outcome<Ended> {
    let since_epoch = Duration::from_nanos(job.now_nanos);
    let now = Timespec::try_from(since_epoch).map_err(io::Error::other).doing("read the time")?;
    clock_settime(ClockId::Realtime, now).doing("set the clock")?;
    fs::write("/dev/urandom", job.seed).doing("seed the random generator")?;
    sys::reseed(File::open("/dev/urandom").doing("open the random generator")?).doing("seed the random generator")?;
    let group = |file: &str, value: &str| fs::write(Path::new(GROUP).join(file), value).doing("limit the step");
    group("memory.max", &job.memory_bytes.to_string())?;
    if let Some(pids) = job.pids {
        group("pids.max", &pids.to_string())?;
    }
    if let Some(micro_cpus) = job.micro_cpus {
        // The quota per tenth of a second, in microseconds.
        group("cpu.max", &format!("{} 100000", (micro_cpus / 10).max(1000)))?;
    }
    let none: Option<&std::ffi::CStr> = None;
    within_patience("mount the step's files", || Ok(mount(FILES, ROOT, "virtiofs", MountFlags::empty(), none)?))?;
    let ended = pass_on(job, port)?;
    // This sends the step's writes through memory maps to the host. The file systems below are flushed
    // separately when they are unmounted.
    rustix::fs::sync();
    unmount(ROOT, UnmountFlags::empty()).doing("hand over the step's files")?;
    let has_counted = |file: &str, event: &str| -> Outcome<bool> {
        let events = fs::read_to_string(Path::new(GROUP).join(file)).doing("read the step's limits")?;
        let counts = events.lines().filter_map(|line| line.strip_prefix(event)?.parse::<u64>().ok());
        Ok(counts.sum::<u64>() > 0)
    };
    if ended != Ended::Exited(0) && has_counted("memory.events", "oom_kill ")? {
        return Ok(Ended::OutOfMemory);
    }
    Ok(match ended {
        Ended::Exited(code) if code != 0 && job.pids.is_some() && has_counted("pids.events", "max ")? => {
            Ended::TooManyProcesses(code)
        }
        ended => ended,
    })
}

/// Forwards the command's output to the host, and TERM from the host to the command, until all processes of
/// the job have ended: the job holds the pipes open until then.
fn pass_on(job: &Job, port: &File) -> Outcome<Ended> {
    let job::Started { process, stdout, stderr, mut end } = job::start(job)?;
    let mut outputs = Streams::new(stdout.into(), stderr.into(), READ_BYTES).doing("watch the step's output")?;
    while !outputs.is_over() {
        let mut fds = [PollFd::new(port, PollFlags::IN), PollFd::new(&outputs, PollFlags::IN)];
        // Output left over from a large burst is available even if the descriptor is not ready.
        let limit = outputs.is_unfinished().then(Timespec::default);
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).doing("wait for the step"),
        }
        let has_order = !fds[0].revents().is_empty();
        outputs.look().doing("watch the step's output")?;
        while let Some(piece) = outputs.read().doing("read the step's output")? {
            let word = Word::Output { stderr: piece.stderr, bytes: outputs.bytes(piece).to_vec() };
            wire::write(port, &word).doing("send the step's output")?;
        }
        if has_order {
            match wire::read(port).doing("read an order")? {
                // If the process has ended, it needs no signal.
                Order::Terminate => drop(pidfd_send_signal(&process, Signal::TERM)),
                Order::Run(_) => return Err("this machine is already running a step".into()),
            }
        }
    }
    let mut told = Vec::new();
    end.read_to_end(&mut told).doing("read the step's end")?;
    job::end(&told)
}
