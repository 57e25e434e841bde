//! A process that outlives a killed engine, to remove what that has at the daemon: a daemon knows nothing of its clients.
//!
//! It is this program again, started with a marker as its first argument, and waits for the end of its standard input: told to
//! go it goes, and else the engine is dead. Where a program never calls [`init`], what its killed runs leave is removed
//! by the next one.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{connection, marks::Marks, sweep};

/// The first argument that makes a program of ours this process; then come the daemon's place, a label, and a process.
const MARKER: &str = "__hm-docker";
/// What an engine says that ends by itself.
const GO: &[u8] = b".";
/// How often it looks, and how long it waits in between: the daemon may be at work on what the engine asked for last.
const LOOKS: usize = 3;
const BETWEEN: Duration = Duration::from_secs(1);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(60);

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// Lets the docker runner start this program again, to remove the containers of this process where it is killed. To be
/// called first thing in `main`, before any thread is started: in that other process it never returns.
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

/// The program that can be started: the given, or this one.
pub(super) fn locate(given: Option<&Path>) -> Option<PathBuf> {
    // Also after an upgrade replaced the file.
    given.map(PathBuf::from).or_else(|| INITIALIZED.load(Ordering::Acquire).then(|| "/proc/self/exe".into()))
}

/// The process, from here. Dropped, it is told to go.
#[derive(Debug)]
pub(super) struct Reaper(Child);

impl Reaper {
    /// Starts it.
    pub(super) fn start(program: &Path, place: &str, marks: &Marks) -> std::io::Result<Self> {
        let child = Command::new(program)
            .arg0("hm-docker")
            .args([MARKER, place, &marks.of_store(), marks.process()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C is for the engine.
            .process_group(0)
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            // Where it is gone already, it has nothing to be told.
            let _ = stdin.write_all(GO);
        }
        if let Err(error) = self.0.wait() {
            tracing::debug!(%error, "failed to wait for the process that watches over containers");
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
            // Nobody is left to be told: the next run does what is not done here.
            let _ = tokio::time::timeout(PATIENCE, sweeping).await;
        }
    });
}
