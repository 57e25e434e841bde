//! Templates: machines that booted once, and are copied for each step. Their memory is in one file, the rest
//! of their state in another.
//!
//! ```text
//! PLACE/BOOT-KEY/memory, state, initrd
//! ```
//!
//! A template is made in a temporary directory and renamed into place, like everything in a store. It is
//! valid until the host reboots: nothing is synced, and another kernel may expose another processor.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::fs::{MemfdFlags, SeekFrom};
use serde_json::json;
use tempfile::TempDir;

use super::{
    accel::Accelerator,
    channel,
    error::{NoMachine, ResultExt},
    initrd,
    launch::{Launch, Launched, Log},
    machine_size::MachineSize,
    programs::Programs,
    qmp::Qmp,
};
use crate::{
    awake, blocking,
    guest::{self, Word},
    runner::sandbox::{ProgramNetwork, SandboxRunner, Serving},
    store::{
        Store,
        files::{create_new, make_dir},
    },
};

/// How long a machine may take to boot with each accelerator. The time must suffice on a busy host, but be
/// bounded.
const BOOT_PATIENCE: [(Accelerator, Duration); 2] =
    [(Accelerator::Kvm, Duration::from_secs(10)), (Accelerator::Tcg, Duration::from_secs(180))];

/// Gets templates: existing ones from a directory, or new ones, which take as long as a machine takes to
/// boot.
#[derive(Debug)]
pub(super) struct Templates<'a> {
    /// The directory with a subdirectory for each template.
    pub(super) place: &'a Path,
    /// The sandbox that runs QEMU.
    pub(super) local: &'a SandboxRunner,
    pub(super) store: &'a Arc<Store>,
    pub(super) programs: &'a Arc<Programs>,
}

/// A machine that booted.
#[derive(Debug, Clone)]
pub(super) struct Template {
    dir: PathBuf,
    pub(super) size: MachineSize,
    pub(super) accelerator: Accelerator,
}

impl Templates<'_> {
    /// Returns the template of a size.
    pub(super) async fn get(&self, size: MachineSize) -> Result<Template, NoMachine> {
        let first = Accelerator::first_choice(self.place, self.store);
        match self.get_with(size, first).await {
            Err(error) if first == Accelerator::Kvm => {
                tracing::info!(error = &error as &dyn std::error::Error, "KVM is not usable here");
                let template = self.get_with(size, Accelerator::Tcg).await?;
                // If both fail, KVM is not the cause.
                Accelerator::avoid_kvm(self.place, self.store);
                Ok(template)
            }
            got => got,
        }
    }

    async fn get_with(&self, size: MachineSize, accelerator: Accelerator) -> Result<Template, NoMachine> {
        let (programs, store) = (Arc::clone(self.programs), Arc::clone(self.store));
        let key = blocking::run("read QEMU's files", move || key(&store, &programs, size, accelerator))
            .await
            .doing("read QEMU's files")?;
        let template = Template { dir: self.place.join(&key), size, accelerator };
        if template.touch() {
            return Ok(template);
        }
        let place = self.place.to_owned();
        let aside = blocking::run("make a template's files", move || {
            make_dir(&place).map_err(io::Error::other)?;
            tempfile::Builder::new().prefix(&format!("{key}.")).tempdir_in(&place).map(Arc::new)
        });
        // The directory is removed with this value unless it is renamed into place, even if the future is
        // dropped.
        let aside = aside.await.doing("make a template's files")?;
        let made = self.make(&template, &aside).await;
        let (dir, store) = (template.dir.clone(), Arc::clone(self.store));
        let placed = blocking::run("put a template in its place", move || {
            let renamed = made.and_then(|()| fs::rename(aside.path(), &dir).doing("put a template in its place"));
            drop(aside);
            if let Some(Err(error)) = dir.parent().map(|place| store.vm_templates().remove_old(place)) {
                tracing::debug!(%error, "failed to remove old templates");
            }
            match renamed {
                // Another process was faster.
                Err(NoMachine::Io { .. }) if dir.is_dir() => Ok(()),
                renamed => renamed,
            }
        });
        placed.await.map(|()| template)
    }

    async fn make(&self, template: &Template, aside: &Arc<TempDir>) -> Result<(), NoMachine> {
        let Template { size, accelerator, .. } = *template;
        // The thread owns the directory, too: a dropped future removes it after the last file is made.
        let (owned, contents, memory_bytes) = (Arc::clone(aside), Arc::clone(self.programs), size.memory_bytes);
        let dir = aside.path();
        let prepared = blocking::run("make a template's files", move || {
            let place = owned.path();
            make_dir(place).map_err(io::Error::other)?;
            initrd::write(&contents, BufWriter::new(create_new(&place.join("initrd"))?))?;
            let memory = create_new(&place.join("memory"))?;
            memory.set_len(memory_bytes)?;
            Ok::<_, io::Error>((memory, create_new(&place.join("state"))?))
        });
        let (memory, state) = prepared.await.doing("make a template's files")?;
        let launch = Launch {
            programs: self.programs,
            accelerator,
            size,
            initrd: &dir.join("initrd"),
            memory: memory.into(),
            state: None,
            files: None,
            network: ProgramNetwork::Loopback,
        };
        let Launched { mut serving, guest, qmp, log, .. } = launch.start(self.local, self.store).await?;
        let patience = BOOT_PATIENCE.iter().find(|(of, _)| *of == accelerator).map_or(Duration::ZERO, |it| it.1);
        let (mut words, _orders) = channel::split(guest);
        let saving = async {
            match words.next().await.map_err(|source| NoMachine::Guest { source, log: log.tail() })? {
                Word::Ready { version: guest::VERSION } => {}
                Word::Ready { version } => return Err(NoMachine::Version { version }),
                _ => return Err(NoMachine::Version { version: 0 }),
            }
            let mut qmp = Qmp::open(qmp).await?;
            qmp.run("stop", json!({})).await?;
            qmp.run("migrate-set-capabilities", capabilities()).await?;
            qmp.hand_over("state", &state).await?;
            qmp.run("migrate", json!({ "uri": "fd:state" })).await?;
            qmp.migrated().await
        };
        let saved = attend(&mut serving, &log, patience, saving).await;
        serving.end().await;
        saved
    }
}

impl Template {
    /// Returns whether the template exists, and marks it as recently used.
    fn touch(&self) -> bool {
        let used = File::open(&self.dir).and_then(|dir| dir.set_modified(SystemTime::now()));
        used.is_ok() && self.dir.join("state").exists()
    }

    pub(super) fn is_there(&self) -> bool {
        self.dir.join("state").exists()
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// Opens the machine's state, to read from the start.
    pub(super) fn state(&self) -> io::Result<OwnedFd> {
        Ok(File::open(self.dir.join("state"))?.into())
    }

    /// Copies the machine's memory to a memory file. Blocks for some 50 ms.
    pub(super) fn memory(&self) -> io::Result<OwnedFd> {
        let from = File::open(self.dir.join("memory"))?;
        let to = rustix::fs::memfd_create(c"hm-vm", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&to, from.metadata()?.len())?;
        let mut at = 0;
        loop {
            let start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
                // Only a hole is left.
                Err(rustix::io::Errno::NXIO) => return Ok(to),
                start => start?,
            };
            at = rustix::fs::seek(&from, SeekFrom::Hole(start))?;
            rustix::fs::seek(&to, SeekFrom::Start(start))?;
            let mut offset = start;
            while offset < at {
                let left = usize::try_from(at - offset).map_err(io::Error::other)?;
                if rustix::fs::sendfile(&to, &from, Some(&mut offset), left)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

/// Returns the migration capabilities for saving and restoring state. The memory is left out, because it is
/// in a shared file.
pub(super) fn capabilities() -> serde_json::Value {
    let on = |name: &str| json!({ "capability": name, "state": true });
    json!({ "capabilities": [on("x-ignore-shared"), on("events")] })
}

/// Runs an operation on a machine. Fails if the machine ends or the operation takes too long.
pub(super) async fn attend<T>(
    serving: &mut Serving,
    log: &Log,
    patience: Duration,
    work: impl Future<Output = Result<T, NoMachine>>,
) -> Result<T, NoMachine> {
    let work = pin!(work);
    tokio::select! {
        biased;
        how = serving.ended() => Err(NoMachine::Ended { how, log: log.tail() }),
        done = awake::timeout(patience, work) => {
            done.unwrap_or_else(|| Err(NoMachine::Late { after: patience, log: log.tail() }))
        }
    }
}

/// Returns the name of a template, a hash of everything that it depends on.
fn key(store: &Store, programs: &Programs, size: MachineSize, accelerator: Accelerator) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&programs.guest.bytes()?);
    let files = [&programs.qemu, &programs.kernel.image];
    let described = files.into_iter().chain(&programs.kernel.modules).map(|path| {
        let metadata = fs::metadata(path)?;
        Ok((path.clone(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    });
    let described = described.collect::<io::Result<Vec<_>>>()?;
    hasher.update(format!("{} {described:?} {size:?} {accelerator:?}", guest::VERSION).as_bytes());
    Ok(format!("{}-{}", store.vm_templates().name_prefix(), &hasher.finalize().to_hex()[..32]))
}
