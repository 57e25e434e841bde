//! Garbage collection and compression of logs after a run, in a background process that `hm` does not wait
//! for.

use std::process::{Command, Stdio};

use hm_exec::{event, store::StoreHandle};
use uuid::Uuid;

use super::limits::LimitArgs;
use crate::reporter::to_stderr;

/// Starts `hm cache gc --auto` if it is due, unless HM_CACHE_GC is `off`. If it is not due, that process only
/// compresses the logs of `run`, if they are long. A run that opened no store has nothing to collect.
pub(crate) fn collect_if_due(store: &StoreHandle, run: Option<Uuid>) {
    if std::env::var_os("HM_CACHE_GC").is_some_and(|value| value == "off") {
        return;
    }
    let Some(store) = store.get_opened() else { return };
    let limits = match LimitArgs::from_env() {
        Ok(limits) => limits,
        Err(error) => return to_stderr(&format!("warning: skipping garbage collection: {error}")),
    };
    let is_due = match limits.of(&store).map(|limits| store.gc_is_due(&limits)) {
        Ok(Ok(is_due)) => is_due,
        Ok(Err(error)) => return tracing::warn!(%error, "skipping garbage collection"),
        Err(error) => return tracing::warn!(%error, "skipping garbage collection"),
    };
    if !is_due && !run.is_some_and(|run| event::has_long_logs(store.runs().dir(run))) {
        return;
    }
    let started = std::env::current_exe().and_then(|hm| {
        Command::new(hm)
            .args(["cache", "gc", "--auto"])
            .args((!is_due).then_some("--only-logs"))
            .env("HM_CACHE_DIR", store.dir())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    });
    if let Err(error) = started {
        tracing::warn!(%error, "failed to start garbage collection");
    }
}

/// Moves this process to the background: into a session of its own, with a low priority.
pub(super) fn detach() {
    // Best effort: both only matter if the terminal closes or the machine is busy.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "failed to create a session");
    }
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!(%error, "failed to lower the priority");
    }
}
