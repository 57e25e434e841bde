//! Checks whether this machine has what runners need. Each check examines one thing, and names the fix if it
//! is missing.
//!
//! The checks read what the kernel reports. Whether a runner actually works is determined by its own probe,
//! which tries it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use hm_exec::{
    cache::{CacheMode, check_traces},
    store::Exposure,
};
use serde::Serialize;

use crate::{
    config::{Shown, Sourced},
    pipelines::{
        Source, harmont_wheel,
        interpreter::{self, Interpreter, Program},
        rendering::trial,
    },
    store,
};

/// The name of the check of the configuration.
pub(super) const CONFIGURATION: &str = "configuration";

/// The result of one check.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) finding: Finding,
}

/// The finding of a check.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "found")]
pub(super) enum Finding {
    /// Present.
    Good(String),
    /// Missing, but runs work without it.
    Lacking { what: String, fix: String },
    /// Missing, and a runner needs it.
    Bad { what: String, fix: String },
}

/// Runs all checks.
pub(super) fn all() -> Vec<Check> {
    vec![
        Check { name: "user namespaces".into(), finding: user_namespaces() },
        Check { name: "overlay".into(), finding: overlay() },
        Check { name: "store".into(), finding: store_dir() },
        Check { name: CONFIGURATION.into(), finding: configuration() },
        Check { name: "uid ranges".into(), finding: uid_ranges() },
        Check { name: "cgroups".into(), finding: cgroups() },
        Check { name: "kvm".into(), finding: kvm() },
        Check { name: "python".into(), finding: python() },
        Check { name: "rendering".into(), finding: rendering() },
        Check { name: "hm-step".into(), finding: hm_step() },
    ]
}

/// Checks the program that runs steps on other machines.
fn hm_step() -> Finding {
    let needed_for = "the runners cloud and vm need a static one: install hm with --release, or set HM_STEP";
    match hm_exec::step::locate(None) {
        Ok(program) if program.is_static() => good(format!("{program}, static")),
        Ok(program) => lacking(format!("{program} is not static, it needs this machine's libraries"), needed_for),
        Err(error) => lacking(format!("{:#}", anyhow::Error::new(error)), needed_for),
    }
}

pub(super) fn good(what: impl Into<String>) -> Finding {
    Finding::Good(what.into())
}

pub(super) fn lacking(what: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding::Lacking { what: what.into(), fix: fix.into() }
}

fn bad(what: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding::Bad { what: what.into(), fix: fix.into() }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reads a number from a file of the kernel, if it exists.
fn sysctl(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn user_namespaces() -> Finding {
    if !Path::new("/proc/self/ns/user").exists() {
        return bad("not supported (needs Linux with CONFIG_USER_NS)", "use `--runner process`, or another kernel");
    }
    if is_root() {
        return good("not needed: hm runs as root");
    }
    if sysctl("user/max_user_namespaces") == Some(0) {
        return bad("disabled by user.max_user_namespaces", "sudo sysctl user.max_user_namespaces=15000");
    }
    if sysctl("kernel/unprivileged_userns_clone") == Some(0) {
        return bad("disabled for unprivileged users", "sudo sysctl kernel.unprivileged_userns_clone=1");
    }
    if sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return bad(
            "disabled by AppArmor for unprivileged users",
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for hm with `userns,`",
        );
    }
    good("enabled for unprivileged users")
}

fn overlay() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        good("supported")
    } else {
        bad("not supported by the kernel, or not loaded", "sudo modprobe overlay")
    }
}

fn store_dir() -> Finding {
    const CHOOSE: &str = "put the store on a local disk: export HM_CACHE_DIR=DIR";
    // Filesystems that cannot hold an overlay's upper layer, by the magic number of statfs(2).
    const UNFIT: [(u64, &str); 5] =
        [(0x794c_7630, "overlay"), (0x6969, "nfs"), (0xff53_4d42, "cifs"), (0x6573_5546, "fuse"), (0x0102_1997, "9p")];
    let dir = match store::dir() {
        Ok(dir) => dir,
        Err(failure) => return bad(failure.to_string(), CHOOSE),
    };
    let shown = dir.display();
    let Some(existing) = dir.ancestors().find(|ancestor| ancestor.is_dir()) else {
        return bad(format!("{shown} does not exist"), CHOOSE);
    };
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        return bad(format!("{shown} is not writable"), CHOOSE);
    }
    let Ok(stat) = rustix::fs::statfs(existing) else {
        return bad(format!("failed to examine {shown}"), CHOOSE);
    };
    match Exposure::of(&dir) {
        Ok(Some(exposure)) => return lacking(exposure.to_string(), exposure.mended_by().unwrap_or_default()),
        Ok(None) => {}
        Err(error) => return bad(format!("{:#}", anyhow::Error::new(error)), CHOOSE),
    }
    // The type of `f_type` differs between targets, but the numbers have 32 bits.
    let kind = stat.f_type as u64 & 0xffff_ffff;
    if let Some((_, name)) = UNFIT.iter().find(|(magic, _)| *magic == kind) {
        return bad(format!("{shown} is on {name}, which does not support upper layers of overlays"), CHOOSE);
    }
    let free = rustix::fs::statvfs(existing).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let free_shown = format!("{shown}, {:.1} GB free", free as f64 / 1e9);
    if free < 1_000_000_000 { lacking(free_shown, format!("free some space, or {CHOOSE}")) } else { good(free_shown) }
}

/// Checks the configuration files.
fn configuration() -> Finding {
    const SEE: &str = "see `hm config`";
    let project = Source::locate(None).and_then(|source| source.project());
    let shown = match project {
        Ok(project) => Shown::read(&project),
        Err(failure) => return bad(failure.to_string(), SEE),
    };
    if let Some(mistake) = shown.mistakes.first() {
        return bad(mistake.to_string(), SEE);
    }
    let unknown: Vec<String> = shown.unknown().map(|row| format!("`{}` ({})", row.key, row.source)).collect();
    if unknown.is_empty() { good("valid") } else { lacking(format!("unknown keys: {}", unknown.join(", ")), SEE) }
}

fn uid_ranges() -> Finding {
    if is_root() {
        return good("not needed: hm runs as root");
    }
    const WITHOUT: &str = "without them, all files in a step belong to one user id";
    let missing: Vec<_> = ["newuidmap", "newgidmap"].into_iter().filter(|tool| on_path(tool).is_none()).collect();
    if !missing.is_empty() {
        return lacking(format!("{} not found; {WITHOUT}", missing.join(" and ")), "sudo apt-get install uidmap");
    }
    let uid = rustix::process::geteuid().as_raw().to_string();
    let user = user_name(&uid).unwrap_or_else(|| uid.clone());
    for (file, option) in [("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")] {
        let ranges = fs::read_to_string(file).unwrap_or_default();
        let owner = |line: &str| line.split(':').next().is_some_and(|name| name == user || name == uid);
        if !ranges.lines().any(owner) {
            let fix = format!("sudo usermod {option} 100000-165535 {user}");
            return lacking(format!("no range for {user} in {file}; {WITHOUT}"), fix);
        }
    }
    good(format!("assigned to {user}"))
}

fn user_name(uid: &str) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.find(|fields| fields.get(2) == Some(&uid)).map(|fields| fields[0].to_owned())
}

fn cgroups() -> Finding {
    const WITHOUT: &str = "without them, limits of memory and processes are less exact";
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let (version, dir) = if root.join("cgroup.controllers").exists() {
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        ("v2", root.join(path.trim_start_matches('/')))
    } else if root.join("memory").is_dir() {
        let of_memory = |line: &str| line.split(':').nth(1).is_some_and(|list| list.split(',').any(|c| c == "memory"));
        let path = own.lines().find(|line| of_memory(line)).and_then(|line| line.split(':').nth(2)).unwrap_or("/");
        ("v1", root.join("memory").join(path.trim_start_matches('/')))
    } else {
        return lacking(
            format!("none mounted at {}; {WITHOUT}", root.display()),
            "mount -t cgroup2 none /sys/fs/cgroup",
        );
    };
    if rustix::fs::access(&dir, rustix::fs::Access::WRITE_OK).is_ok() {
        good(format!("{version}, writable"))
    } else {
        lacking(
            format!("{version}, but {} is not writable; {WITHOUT}", dir.display()),
            "run hm in a delegated group: systemd-run --user --scope -p Delegate=yes hm ...",
        )
    }
}

fn kvm() -> Finding {
    const USE: &str = "only virtual machines need it";
    let device = Path::new("/dev/kvm");
    match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => good("/dev/kvm is accessible"),
        Err(error) if device.exists() => lacking(format!("/dev/kvm: {error}; {USE}"), "sudo usermod -aG kvm $USER"),
        Err(error) => lacking(format!("/dev/kvm: {error}; {USE}"), "enable virtualisation in the firmware or the host"),
    }
}

/// Checks whether what steps read can be recorded. `mode` is that of the configuration.
pub(super) fn traces(mode: &Sourced<CacheMode>) -> Finding {
    match (check_traces(), mode.value) {
        (Ok(()), _) => good("what steps read can be recorded"),
        (Err(why), CacheMode::Auto) => lacking(
            format!("{why}; without it, `[cache] mode = \"auto\"` ({}) is the same as \"declared\"", mode.source),
            "nothing is wrong with results; use another kernel, or run hm outside of what traces it",
        ),
        (Err(why), _) => lacking(why, "only `hm run --cache auto` and `--check-inputs` need it"),
    }
}

fn python() -> Finding {
    const USE: &str = "only pipelines in Python need it";
    const INSTALL: &str = "install Python 3, then `pip install harmont`";
    let name = interpreter::name();
    let python = name.to_string_lossy();
    // No path is below a file: without a checkout there is no program to exclude.
    let checkout = Source::locate(None).map_or_else(|_| "/dev/null".into(), |source| source.checkout);
    let program = match interpreter::find(&name, Some(&checkout)) {
        Ok(program) => program,
        Err(error) => return lacking(format!("{python}: {error}; {USE}"), INSTALL),
    };
    if let Program::OfTheCheckout(program) = &program {
        return good(format!("{}: part of this checkout, so it runs only in the sandbox", program.display()));
    }
    match Interpreter::of(program, &checkout, None) {
        Ok(found) => match found.harmont() {
            Some(version) => good(format!("harmont {version}")),
            None if !harmont_wheel::is_forbidden() => {
                good(format!("{python} does not have the package harmont: hm downloads it when a pipeline needs it"))
            }
            None => {
                let what = format!("{python} does not have the package harmont; {USE}");
                lacking(what, format!("{python} -m pip install harmont"))
            }
        },
        Err(failure) => lacking(format!("{failure}; {USE}"), INSTALL),
    }
}

fn rendering() -> Finding {
    match trial() {
        Ok(()) => good("pipelines in Python are rendered in a sandbox"),
        Err((reason, hint)) => lacking(format!("{reason}; only pipelines in Python need it"), hint),
    }
}

fn on_path(tool: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(tool)).find(|path| path.is_file())
}
