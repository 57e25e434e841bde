//! Starts QEMU, and next to it the program that serves a step's files to the machine.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStringExt,
            net::{UnixListener, UnixStream as StdUnixStream},
        },
    },
    path::Path,
    sync::Arc,
};

use tokio::net::UnixStream;

use super::{
    accel::Accelerator,
    error::{NoMachine, ResultExt},
    machine_size::MachineSize,
    programs::Programs,
};
use crate::{
    guest,
    jail::FIRST_FD,
    runner::sandbox::{Files, Program, ProgramNetwork, SandboxRunner, Serving},
    store::Store,
};

/// The QEMU id of the connection to `virtiofsd`.
pub(super) const FILES_CHARDEV: &str = "files";

/// The most output of the programs to quote in an error, in bytes.
const LOG_TAIL_BYTES: u64 = 2000;

/// Runs `virtiofsd` over the working directory, and QEMU, which is killed when `virtiofsd` ends. The
/// directory is passed as a descriptor: a path may contain commas, and the program leaves its working
/// directory before it opens the path.
const SCRIPT: &str = r#"ulimit -n "$(ulimit -H -n)"; virtiofsd=$1 socket=$2; shift 2; exec 9<.
options=source=/proc/self/fd/9/.,xattr,announce_submounts,sandbox=chroot,cache=always
{ "$virtiofsd" "--fd=$socket" --rlimit-nofile=0 -o "$options"; kill -KILL $$; } &
exec 9<&-; exec "$@""#;

/// The parts of a machine.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) programs: &'a Programs,
    pub(super) accelerator: Accelerator,
    pub(super) size: MachineSize,
    pub(super) initrd: &'a Path,
    /// A file of the size of the machine's memory, which the machine writes to.
    pub(super) memory: OwnedFd,
    /// The source of the machine's state; if it is `None`, the machine boots.
    pub(super) state: Option<OwnedFd>,
    /// The files that the machine sees.
    pub(super) files: Option<&'a Files>,
    /// The network of QEMU, which is that of the machine's network card.
    pub(super) network: ProgramNetwork,
}

/// The running programs, and our ends of their channels.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) serving: Serving,
    pub(super) guest: UnixStream,
    pub(super) qmp: UnixStream,
    pub(super) log: Log,
    /// The source of the state, as QEMU names it.
    pub(super) state: Option<String>,
}

/// The output of the programs.
#[derive(Debug)]
pub(super) struct Log(File);

impl Log {
    /// Returns the end of the output.
    pub(super) fn tail(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = &self.0;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut tail = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
            Ok(tail)
        };
        read().map_or_else(|error| error.to_string(), |tail| String::from_utf8_lossy(&tail).trim().to_owned())
    }
}

/// The descriptors for the programs. They are numbered from [`FIRST_FD`] there.
#[derive(Debug, Default)]
struct Fds(Vec<OwnedFd>);

impl Fds {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> u32 {
        self.0.push(fd.into());
        FIRST_FD + u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX)
    }
}

/// Where machines run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host<'a> {
    /// The sandbox that runs QEMU.
    pub(super) local: &'a SandboxRunner,
    pub(super) store: &'a Arc<Store>,
    pub(super) programs: &'a Arc<Programs>,
}

impl Launch<'_> {
    /// Starts the programs.
    pub(super) async fn start(self, local: &SandboxRunner, store: &Arc<Store>) -> Result<Launched, NoMachine> {
        let failed = "make a channel to the machine";
        let (guest, its_guest) = StdUnixStream::pair().doing(failed)?;
        let (qmp, its_qmp) = StdUnixStream::pair().doing(failed)?;
        let log = tempfile::tempfile().doing("make a file for what QEMU prints")?;
        let its_log = log.try_clone().doing("make a file for what QEMU prints")?;
        let mut fds = Fds::default();
        let (guest_fd, qmp_fd, memory_fd) = (fds.add(its_guest), fds.add(its_qmp), fds.add(self.memory));
        let MachineSize { memory_bytes, cpus, network } = self.size;
        let (accelerator, cpu) = self.accelerator.names();
        let mut argv: Vec<OsString> = Vec::new();
        if self.files.is_some() {
            let (listener, connected) = connected_listener().doing(failed)?;
            let (listener, connected) = (fds.add(listener), fds.add(connected));
            argv.extend(["/bin/sh", "-c", SCRIPT, "vm"].map(Into::into));
            argv.push(self.programs.virtiofsd.clone().into());
            argv.push(listener.to_string().into());
            argv.push(self.programs.qemu.clone().into());
            argv.extend(["-chardev".into(), format!("socket,id={FILES_CHARDEV},fd={connected}").into()]);
        } else {
            argv.push(self.programs.qemu.clone().into());
        }
        argv.extend(
            [
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                "-chardev",
                "stdio,id=log,signal=off",
                "-serial",
                "chardev:log",
                "-device",
                "virtio-serial-pci",
                "-device",
                "virtserialport,chardev=guest,name=hm",
                "-mon",
                "chardev=qmp,mode=control",
                "-cpu",
                cpu,
            ]
            .map(Into::into),
        );
        for (name, value) in [
            ("-machine", format!("pc,accel={accelerator},memory-backend=memory")),
            ("-m", format!("{}M", memory_bytes >> 20)),
            ("-smp", cpus.to_string()),
            (
                "-object",
                format!(
                    "memory-backend-file,id=memory,size={memory_bytes},mem-path=/proc/self/fd/{memory_fd},share=on"
                ),
            ),
            ("-chardev", format!("socket,id=guest,fd={guest_fd}")),
            ("-chardev", format!("socket,id=qmp,fd={qmp_fd}")),
            ("-append", format!("console=ttyS0 quiet loglevel=3 panic=-1 -- {}", guest::MARKER)),
        ] {
            argv.extend([name.into(), value.into()]);
        }
        argv.extend(["-kernel".into(), self.programs.kernel.image.clone().into()]);
        argv.extend(["-initrd".into(), self.initrd.into()]);
        if network {
            argv.extend(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="].map(Into::into));
        }
        let state = self.state.map(|state| format!("fd:{}", fds.add(state)));
        if state.is_some() {
            argv.extend(["-incoming", "defer"].map(Into::into));
        }
        let argv = argv.into_iter().map(|argument| CString::new(argument.into_vec()));
        let argv = argv.collect::<Result<_, _>>().map_err(io::Error::other).doing("name QEMU's files")?;
        let program = Program { argv, fds: fds.0, log: its_log.into(), network: self.network };
        let serving = local.serve(store, self.files, program).await?;
        let ours = |stream: StdUnixStream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        let (guest, qmp) = (ours(guest).doing(failed)?, ours(qmp).doing(failed)?);
        Ok(Launched { serving, guest, qmp, log: Log(log), state })
    }
}

/// Returns a listening socket, and the only connection that it will ever have: no other process can reach it.
fn connected_listener() -> io::Result<(UnixListener, StdUnixStream)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path)?;
    let connected = StdUnixStream::connect(&path)?;
    dir.close()?;
    Ok((listener, connected))
}
