//! Checks whether the sandbox works on this machine, and suggests how to fix it if not.
//!
//! The trial decides: it sets up a jail without a command, and fails if a step would fail. The other
//! checks are information for users.

use std::path::Path;

use super::{
    attempt, cgroup,
    jail::{self, JailSpec, MountApi, Overlay, Root, SetupError, UserNamespace},
    runner::SandboxRunner,
    step_spec::c_string,
};
use crate::{
    runner::{Probe, RunnerError},
    store::StoreError,
    userns::{IdRanges, StartError},
};

/// The suggestion of last resort.
const LAST_RESORT: &str = "or run without isolation: `--runner process`";

/// The `statfs` magic number of overlayfs.
const OVERLAY_MAGIC: i64 = 0x794c_7630;

/// One requirement, or recommendation, of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The subject of the check.
    pub name: &'static str,
    /// The finding, or the problem.
    pub result: Result<String, String>,
    /// How to fix it.
    pub fix: Option<String>,
}

/// Checks this machine for a sandbox with default settings.
pub async fn checks() -> Vec<Check> {
    let runner = SandboxRunner::default();
    let mut checks = vec![kernel(), user_ids(), control_groups()];
    checks.push(match runner.trial().await {
        Ok(user_namespace) => passed("sandbox", format!("a trial run succeeded ({})", describe(user_namespace))),
        Err(failure) => Check { name: "sandbox", result: Err(failure.reason), fix: Some(failure.hint) },
    });
    checks
}

/// Probes the runner, for `hm runners` and the engine.
pub(super) async fn probe(runner: &SandboxRunner) -> Probe {
    match runner.trial().await {
        Ok(user_namespace) => Probe::Usable { note: Some(describe(user_namespace).into()) },
        Err(Failure { reason, hint }) => Probe::Unusable { reason, hint },
    }
}

/// Why a trial failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) hint: String,
}

impl Failure {
    pub(super) fn new(error: impl Into<anyhow::Error>, hint: impl AsRef<str>) -> Self {
        Self { reason: format!("{:#}", error.into()), hint: format!("{}, {LAST_RESORT}", hint.as_ref()) }
    }

    /// Returns the failure of the store, without which no other runner works, either.
    pub(super) fn of_store(error: StoreError) -> Self {
        Self {
            reason: format!("the store cannot be used: {:#}", anyhow::Error::new(error)),
            hint: "set HM_CACHE_DIR to a directory that you can write to".into(),
        }
    }
}

impl SandboxRunner {
    /// Sets up a jail and tears it down.
    async fn trial(&self) -> Result<UserNamespace, Failure> {
        let store = self.store().map_err(Failure::of_store)?;
        let zygote = self.zygote(&store).await.map_err(start_failure)?;
        let (lower, staging) = (store.stage().map_err(Failure::of_store)?, store.stage().map_err(Failure::of_store)?);
        let path = |path: &Path| {
            use std::os::unix::ffi::OsStrExt;
            c_string("the store's path", path.as_os_str().as_bytes())
        };
        let spec = || -> Result<JailSpec, RunnerError> {
            let (lowers, upper) = (vec![path(&lower.upper())?], path(&staging.upper())?);
            let root = Root::Overlay(Overlay { lowers, upper, work: path(staging.work())? });
            Ok(JailSpec { shares_network: true, ..self.jail(&zygote, store.dir(), root)? })
        };
        let again = "try again";
        let spec = spec().map_err(|error| Failure::new(error, "move the store (HM_CACHE_DIR)"))?;
        match attempt::trial(&zygote, &spec).await.map_err(|error| Failure::new(error, again))? {
            Ok(()) => Ok(zygote.user_namespace()),
            Err(error) => Err(setup_failure(error, store.dir())),
        }
    }
}

fn describe(user_namespace: UserNamespace) -> &'static str {
    match user_namespace {
        UserNamespace::None => "as root",
        UserNamespace::Range => "rootless, with a range of ids",
        UserNamespace::Single => "rootless, with a single id: file owners are lost",
    }
}

fn passed(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, result: Ok(found.into()), fix: None }
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match MountApi::of_this_kernel() {
        MountApi::New => passed("kernel", format!("Linux {release}")),
        MountApi::Legacy => {
            passed("kernel", format!("Linux {release}: using the mount API from before Linux 6.7 for overlays"))
        }
    }
}

fn user_ids() -> Check {
    if rustix::process::geteuid().is_root() {
        return passed("subordinate ids", "not needed: hm runs as root");
    }
    match IdRanges::of_this_user() {
        Ok(_) => passed("subordinate ids", "steps can use many user ids"),
        Err(reason) => Check {
            name: "subordinate ids",
            result: Err(format!("{reason}: steps have only root, and file owners are lost")),
            fix: Some(
                "install newuidmap (package `uidmap`) and run `sudo usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 $USER`"
                    .into(),
            ),
        },
    }
}

fn control_groups() -> Check {
    let missing = cgroup::missing();
    if missing.is_empty() {
        return passed("control groups", "the kernel enforces limits on memory, CPUs and processes");
    }
    Check {
        name: "control groups",
        result: Err(format!(
            "failed to make a group for {}: limits are enforced by polling, or not at all",
            missing.join(", ")
        )),
        fix: Some("run hm in a delegated group: `systemd-run --user --scope -p Delegate=yes hm run`".into()),
    }
}

/// Suggests how to fix a helper that does not start.
pub(super) fn start_failure(error: StartError) -> Failure {
    let hint = match &error {
        StartError::NoHelper(_)
        | StartError::Ended { .. }
        | StartError::Silent { .. }
        | StartError::OtherVersion { .. } => "use an `hm` of this version as the helper".to_owned(),
        StartError::Spawn { .. } => "make the helper executable, on a filesystem without `noexec`".to_owned(),
        StartError::Talk(_) => "try again".to_owned(),
        StartError::NoRange(_) | StartError::MapIds { .. } => "check /etc/subuid and /etc/subgid".to_owned(),
        StartError::Setup(error) => jail::user_namespace_hint(error),
    };
    Failure::new(error, hint)
}

/// Suggests how to fix a jail that cannot be set up.
fn setup_failure(error: SetupError, store: &Path) -> Failure {
    let on_overlay = rustix::fs::statfs(store).is_ok_and(|stat| stat.f_type == OVERLAY_MAGIC);
    let hint = if error.doing.contains("overlay") && on_overlay {
        "the store is on an overlay, which does not support nested overlays: set HM_CACHE_DIR to a volume of the container"
    } else if error.doing.contains("overlay") {
        "load the module (`sudo modprobe overlay`), and keep the store (HM_CACHE_DIR) on ext4, xfs, btrfs or tmpfs"
    } else if error.doing.contains("proc") {
        "this container hides parts of /proc: start it with `--privileged`, or `--security-opt systempaths=unconfined`"
    } else {
        "check what the kernel or the container forbids"
    };
    Failure::new(error, hint)
}
