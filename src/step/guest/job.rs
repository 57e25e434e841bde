//! The step itself: a process that makes the sandbox's jail over the files that the host serves.

use std::{ffi::CString, fs::File, io, os::fd::OwnedFd, path::PathBuf, time::Duration};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use super::{
    init::{GROUP, ROOT},
    wire::{Ended, Job},
};
use crate::jail::{
    self, Bounds, End, GroupView, JailPlace, JailSpec, MountApi, OneShot, Root, SetupError,
    guest_ops::{self as sys, Cloned},
};

/// A running job.
pub(super) struct Started {
    /// The job's process. TERM to it is forwarded to every process of the step.
    pub(super) process: OwnedFd,
    /// The command's standard output.
    pub(super) stdout: File,
    /// The command's standard error.
    pub(super) stderr: File,
    /// Receives the encoded result when all processes of the job have ended.
    pub(super) end: File,
}

/// The result that the job's process reports.
type Told = Result<Ended, String>;

/// Starts a job. This process must have one thread.
pub(super) fn start(job: &Job) -> Result<Started, String> {
    let failed = |errno: Errno| format!("failed to start the step: {errno}");
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(failed);
    let ((stdout, to_stdout), (stderr, to_stderr), (end, to_end)) = (pipe()?, pipe()?, pipe()?);
    match sys::clone_process(0).map_err(failed)? {
        Cloned::Parent { pidfd, .. } => {
            Ok(Started { process: pidfd, stdout: stdout.into(), stderr: stderr.into(), end: end.into() })
        }
        Cloned::Child => {
            let streams = sys::move_to(&to_stdout, 1).and_then(|()| sys::move_to(&to_stderr, 2));
            let told: Told = match streams {
                Ok(()) => run(job).map_err(|error| format!("failed to {error}")),
                Err(errno) => Err(failed(errno)),
            };
            let told = postcard::to_stdvec(&told).unwrap_or_default();
            let _ = io::Write::write_all(&mut File::from(to_end), &told);
            sys::exit(0)
        }
    }
}

/// Returns the result that the job's process reported. An empty report means that it was killed.
pub(super) fn end(told: &[u8]) -> Result<Ended, String> {
    if told.is_empty() { Ok(Ended::Killed) } else { postcard::from_bytes(told).unwrap_or(Ok(Ended::Killed)) }
}

fn run(job: &Job) -> Result<Ended, SetupError> {
    let oneshot = OneShot::enter()?;
    let spec = JailSpec {
        user_namespace: oneshot.user_namespace(),
        mount_api: MountApi::New,
        mountpoint: c"/tmp".into(),
        root: Root::Dir(c_string(ROOT)?),
        place: JailPlace::Root,
        binds: jail::resolver(&[PathBuf::from(ROOT)]).into_iter().collect(),
        overlays: Vec::new(),
        resolver: None,
        own_names: Vec::new(),
        secrets: Vec::new(),
        shares_network: false,
        cgroups: vec![c_string(&format!("{GROUP}/cgroup.procs"))?],
        group_views: vec![GroupView { dir: c_string(GROUP)?, name: CString::default() }],
        watch: None,
        memory_bytes: Some(job.memory_bytes),
        workdir: job.workdir.clone(),
        argv: vec![c"/bin/sh".into(), c"-c".into(), job.script.clone()],
        pack: None,
        trace: None,
        terminal: false,
        env: job.env.clone(),
    };
    // The host enforces the time limit by ending the machine.
    let bounds = Bounds { timeout: None, grace: Duration::MAX };
    Ok(match oneshot.run(&spec, false, bounds)? {
        End::Exited { code } => Ended::Exited(code),
        End::OutOfMemory => Ended::OutOfMemory,
        // The number of processes is limited by the control group, not by polling.
        End::TooManyProcesses | End::Killed | End::TimedOut | End::Interrupted | End::Untraceable => Ended::Killed,
    })
}

fn c_string(text: &str) -> Result<CString, SetupError> {
    CString::new(text).map_err(|_| SetupError::new("name a path", Errno::INVAL))
}
