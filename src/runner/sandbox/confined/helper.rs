//! The helper's side: a single-threaded process that sets up the jail, enforces the limits, and ends with its
//! caller.

use std::{ffi::OsStr, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::RecvFlags,
    process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit},
};

use super::{Answer, ConfinedEnd, Order, files};
use crate::runner::{
    Limits, MemorySize,
    sandbox::{
        cgroup::Limited,
        jail::{
            Bounds, End, JailPlace, JailSpec, MountApi, OneShot, Root, SetupError, TraceSpec, UserNamespace,
            close_from, wire,
        },
    },
};

/// The first argument that turns a program with this library into the helper.
pub(super) const MARKER: &str = "__hm-confined";

/// The longest error text that fits into the answer, in bytes.
const MAX_DOING_BYTES: usize = 2048;

/// Becomes the helper if the process was started as one. In that case it never returns.
pub(in crate::runner::sandbox) fn run_if_marked() {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == OsStr::new(MARKER)) {
        let code = match serve() {
            Ok(()) => 0,
            Err(_) => 1,
        };
        std::process::exit(code);
    }
}

/// Serves the one order that arrives on standard input.
fn serve() -> Result<(), Errno> {
    close_from(3)?;
    // When the caller dies, this process gets SIGTERM, and ends the command.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let socket = std::io::stdin();
    if hung_up(&socket)? {
        return Ok(());
    }
    // This must happen before the order is received: it executes the program again, and the order's
    // descriptor would be lost.
    let oneshot = OneShot::enter_unseeing();
    let Some((_, fds)) = wire::receive(&socket, RecvFlags::empty())? else { return Ok(()) };
    let mut fds = fds.into_iter();
    let answer = match fds.next() {
        Some(order) => answer(oneshot, order, fds.next()),
        None => return Err(Errno::INVAL),
    };
    wire::send_value(&socket, &answer, &[])
}

fn hung_up(socket: &std::io::Stdin) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default()))?;
    Ok(fds[0].revents().contains(PollFlags::HUP))
}

fn answer(oneshot: Result<OneShot, SetupError>, order: OwnedFd, trace: Option<OwnedFd>) -> Answer {
    let cut = |mut error: SetupError| {
        while error.doing.len() > MAX_DOING_BYTES {
            error.doing.pop();
        }
        error
    };
    let (oneshot, order) = match oneshot.and_then(|oneshot| Ok((oneshot, wire::from_memory_file::<Order>(order)?))) {
        Ok(both) => both,
        Err(error) => return Answer::NoSandbox(cut(error)),
    };
    let running = order.argv.first().map(|program| format!("run {}", program.to_string_lossy()));
    match run(&oneshot, order, trace) {
        Ok(Some(end)) => Answer::Ended(end),
        Ok(None) => Answer::Untraceable,
        Err(error) if Some(&error.doing) == running.as_ref() => Answer::Program(cut(error)),
        Err(error) => Answer::NoSandbox(cut(error)),
    }
}

/// Runs the command. Returns `None` if it must run untraced.
fn run(oneshot: &OneShot, mut order: Order, trace: Option<OwnedFd>) -> Result<Option<ConfinedEnd>, SetupError> {
    if oneshot.user_namespace() != UserNamespace::None {
        // Only the user who started this process exists.
        order.root.run_as = None;
    }
    limit_files()
        .map_err(|errno| SetupError { doing: "limit the command's files".into(), errno: errno.raw_os_error() })?;
    let limits = Limits {
        memory: Some(MemorySize { bytes: order.memory_bytes }),
        pids: std::num::NonZeroU64::new(order.processes),
        ..Limits::default()
    };
    // Limits that no control group enforces are enforced by polling.
    let (limited, _) = Limited::new(&limits);
    let spec = JailSpec {
        user_namespace: oneshot.user_namespace(),
        mount_api: MountApi::of_this_kernel(),
        mountpoint: c"/usr".into(),
        root: Root::Memory(order.root),
        place: JailPlace::Root,
        shares_network: false,
        binds: order.binds,
        overlays: Vec::new(),
        resolver: None,
        own_names: Vec::new(),
        secrets: Vec::new(),
        cgroups: limited.procs(),
        group_views: Vec::new(),
        watch: limited.watch(),
        memory_bytes: Some(order.memory_bytes),
        workdir: order.workdir,
        argv: order.argv,
        pack: None,
        // Nothing that is shown can be written, so no layer has to be told from it.
        trace: trace.is_some().then(|| TraceSpec { uppers: Vec::new() }),
        terminal: false,
        env: order.env,
    };
    let bounds = Bounds { timeout: Some(order.time), grace: std::time::Duration::ZERO };
    let end = oneshot.run_traced(&spec, true, bounds, trace)?;
    Ok(Some(match end {
        End::Exited { code: 0 } => ConfinedEnd::Exited { code: 0 },
        End::Exited { .. } | End::Killed if limited.oom_killed().is_some() => ConfinedEnd::OutOfMemory,
        End::Exited { .. } if limited.too_many_processes().is_some() => ConfinedEnd::TooManyProcesses,
        End::Exited { code } => ConfinedEnd::Exited { code },
        End::OutOfMemory => ConfinedEnd::OutOfMemory,
        End::TooManyProcesses => ConfinedEnd::TooManyProcesses,
        End::TimedOut => ConfinedEnd::TimedOut,
        End::Untraceable => return Ok(None),
        End::Killed | End::Interrupted => ConfinedEnd::Killed,
    }))
}

/// Forbids core dumps, which would be passed to a handler outside, and large files in memory.
fn limit_files() -> Result<(), Errno> {
    for (resource, limit) in [(Resource::Core, 0), (Resource::Fsize, files::MAX_BYTES)] {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    Ok(())
}
