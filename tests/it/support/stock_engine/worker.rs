//! Runs an Action: makes its input root, runs its command there, and stores what it wrote.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use hm_exec::remote::reapi;
use rustix::{
    fs::{AtFlags, CWD, Timespec, Timestamps, utimensat},
    process::{Pid, Signal, kill_process_group},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Function, State};

/// An Action to run.
pub(super) struct Work {
    pub(super) name: String,
    pub(super) action: reapi::Action,
    pub(super) function: Function,
    pub(super) limit: Option<Duration>,
}

/// The error of an Action, and what it printed if it was run.
type Failed = (Status, Option<reapi::ActionResult>);

/// Runs an Action to its end, or until it is killed.
pub(super) async fn run(
    state: &Arc<State>,
    work: &Work,
    killed: &CancellationToken,
) -> Result<reapi::ActionResult, Failed> {
    let failed = |status: Status| (status, None);
    let Work { name, action, function, limit } = work;
    let (function, limit) = (*function, *limit);
    let command: reapi::Command = state.blobs.message(function, action.command_digest.as_ref()).map_err(failed)?;
    let dir = state.actions.join(name);
    let (maker, root, at) = (Arc::clone(state), action.input_root_digest.clone(), dir.clone());
    let made = tokio::task::spawn_blocking(move || {
        fs::create_dir(&at).unwrap();
        let made = make(&maker, function, root.as_ref(), &at);
        // A cache of directories has only read-only ones; the Action's own can be written to.
        fs::set_permissions(&at, Permissions::from_mode(0o755)).unwrap();
        made
    });
    made.await.unwrap().map_err(failed)?;
    let log = |stream: &str| state.actions.join(format!("{name}.{stream}"));
    let mut starting = tokio::process::Command::new(&command.arguments[0]);
    starting
        .args(&command.arguments[1..])
        .env_clear()
        .envs(command.environment_variables.iter().map(|it| (&it.name, &it.value)))
        .current_dir(dir.join(&command.working_directory))
        .stdin(Stdio::null())
        .stdout(File::create(log("stdout")).unwrap())
        .stderr(File::create(log("stderr")).unwrap())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = loop {
        match starting.spawn() {
            Ok(child) => break child,
            // Another thread started a process while this one's program was being written.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => tokio::task::yield_now().await,
            Err(error) => {
                return Err(failed(Status::invalid_argument(format!("failed to start the command: {error}"))));
            }
        }
    };
    let group = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    let time_is_up = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        status = child.wait() => Ok(status.unwrap()),
        () = time_is_up => Err(Status::deadline_exceeded(format!("Command timed out after {limit:?}"))),
        () = killed.cancelled() => Err(Status::cancelled("the operation was cancelled")),
    };
    if ended.is_err() {
        let _ = kill_process_group(group, Signal::KILL);
        child.wait().await.unwrap();
    }
    let blobs = &state.blobs;
    let mut result = reapi::ActionResult {
        stdout_digest: Some(blobs.put(function, &fs::read(log("stdout")).unwrap())),
        stderr_digest: Some(blobs.put(function, &fs::read(log("stderr")).unwrap())),
        ..Default::default()
    };
    let ended = ended.map_err(|status| (status, Some(result.clone())));
    if let Ok(status) = &ended {
        result.exit_code = status.code().unwrap_or(-1);
        for path in &command.output_paths {
            let Ok(bytes) = fs::read(dir.join(path)) else { continue };
            let digest = Some(blobs.put(function, &bytes));
            result.output_files.push(reapi::OutputFile { path: path.clone(), digest, ..Default::default() });
        }
    }
    remove(&dir);
    ended.map(|_| result)
}

/// Completes when an Action has printed something.
pub(super) async fn prints(state: &State, name: &str) {
    let log = state.actions.join(format!("{name}.stdout"));
    while !fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Removes what an Action printed before its worker was lost.
pub(super) fn forget_output(state: &State, name: &str) {
    for stream in ["stdout", "stderr"] {
        fs::remove_file(state.actions.join(format!("{name}.{stream}"))).unwrap();
    }
}

/// Makes a directory's entries.
fn make(state: &State, function: Function, digest: Option<&reapi::Digest>, at: &Path) -> Result<(), Status> {
    let habits = &state.habits;
    let directory: reapi::Directory = state.blobs.message(function, digest)?;
    for node in &directory.files {
        let digest = node.digest.as_ref().ok_or_else(|| Status::invalid_argument("a file without a digest"))?;
        let path = at.join(&node.name);
        let properties = node.node_properties.as_ref().filter(|_| habits.node_properties);
        // What NativeLink does with an empty file.
        let is_executable = node.is_executable && digest.size_bytes > 0;
        let mode = match properties.and_then(|properties| properties.unix_mode.as_ref()) {
            Some(mode) => mode.value,
            None if habits.read_only => 0o444 | if is_executable { 0o111 } else { 0 },
            None if habits.node_properties => 0o644 | if node.is_executable { 0o111 } else { 0 },
            None => 0o644 | if is_executable { 0o111 } else { 0 },
        };
        let shared = state.blobs.shared(function, digest, mode)?;
        if habits.read_only {
            fs::hard_link(shared, &path).unwrap();
        } else {
            fs::copy(shared, &path).unwrap();
        }
        set_time(&path, properties);
    }
    for node in &directory.symlinks {
        let path = at.join(&node.name);
        symlink(&node.target, &path).unwrap();
        set_time(&path, node.node_properties.as_ref().filter(|_| habits.node_properties));
    }
    for node in &directory.directories {
        let path = at.join(&node.name);
        fs::create_dir(&path).unwrap();
        make(state, function, node.digest.as_ref(), &path)?;
    }
    set_time(at, directory.node_properties.as_ref().filter(|_| habits.node_properties));
    if habits.read_only {
        fs::set_permissions(at, Permissions::from_mode(0o555)).unwrap();
    }
    Ok(())
}

fn set_time(path: &Path, properties: Option<&reapi::NodeProperties>) {
    let Some(mtime) = properties.and_then(|properties| properties.mtime.as_ref()) else { return };
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Removes the directory of an Action, which may have read-only directories.
fn remove(dir: &Path) {
    let mut left: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        let _ = fs::set_permissions(&dir, Permissions::from_mode(0o755));
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        left.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()));
    }
    fs::remove_dir_all(dir).unwrap();
}
