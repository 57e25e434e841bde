//! A process that outlives a killed engine, to remove the engine's objects at the daemon, which does not
//! track its clients.
//!
//! It is this program again, started with a marker as its first argument. It waits for the end of its
//! standard input. If it reads a message first, the engine ended normally, and it exits. Otherwise the engine
//! is dead. If a program never calls [`init`], the next run removes what a killed run left.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{connection, labels::Owner, sweep};

/// The first argument that turns a program with this library into this process. The daemon's address, a
/// label, and a process follow.
const MARKER: &str = "__hm-docker";
/// The message of an engine that ends normally.
const GO: &[u8] = b".";
/// The number of sweeps, and the pause between them: the daemon may still be working on the engine's last
/// request.
const LOOKS: usize = 3;
const BETWEEN: Duration = Duration::from_secs(1);
/// How long one sweep may take.
const PATIENCE: Duration = Duration::from_secs(60);

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// Lets the docker runner start this program again, to remove the containers of this process if it is killed.
/// Must be called first thing in `main`, before any thread is started. In that other process it never
/// returns.
pub fn init() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == MARKER) {
        let mut text = || args.next()?.into_string().ok();
        if let (Some(place), Some(label), Some(process)) = (text(), text(), text()) {
            watch(&place, &label, &process);
        }
        std::process::exit(0);
    }
    INITIALIZED.store(true, Ordering::Release);
}

/// Returns the program to start: the given one, or this one.
pub(super) fn locate(given: Option<&Path>) -> Option<PathBuf> {
    // This path also works after an upgrade replaced the file.
    given.map(PathBuf::from).or_else(|| INITIALIZED.load(Ordering::Acquire).then(|| "/proc/self/exe".into()))
}

/// A handle to the process. Dropping it tells the process to exit.
#[derive(Debug)]
pub(super) struct Reaper(Child);

impl Reaper {
    /// Starts the process.
    pub(super) fn start(program: &Path, place: &str, owner: &Owner) -> std::io::Result<Self> {
        let child = Command::new(program)
            .arg0("hm-docker")
            .args([MARKER, place, &owner.of_store(), owner.process()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal is for the engine.
            .process_group(0)
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            // If the process is already gone, it does not need the message.
            let _ = stdin.write_all(GO);
        }
        if let Err(error) = self.0.wait() {
            tracing::debug!(%error, "failed to wait for the process that watches containers");
        }
    }
}

fn watch(place: &str, label: &str, process: &str) {
    let mut told = Vec::new();
    let read = std::io::stdin().lock().take(1).read_to_end(&mut told);
    if read.is_err() || told == GO {
        return;
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(BETWEEN).await;
            }
            let sweeping = async {
                let client = connection::connect(place).await?;
                sweep::remove(&client, label, |of| of == process).await
            };
            // No caller is left to report an error to. The next run removes what is left.
            let _ = tokio::time::timeout(PATIENCE, sweeping).await;
        }
    });
}
