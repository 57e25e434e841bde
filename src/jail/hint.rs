//! What to do where there is no jail.

use std::path::Path;

use super::SetupError;

/// Where a process says which ids its user namespace has.
const UID_MAP: &str = "/proc/self/uid_map";

/// What to do where no user namespace can be had, because of `error`: which of the switches that forbid them is set.
#[must_use]
pub fn user_namespace_hint(error: &SetupError) -> String {
    let is = |file: &str, value: &str| {
        std::fs::read_to_string(Path::new("/proc/sys").join(file)).is_ok_and(|found| found.trim() == value)
    };
    if is("kernel/unprivileged_userns_clone", "0") {
        return "allow user namespaces: `sudo sysctl kernel.unprivileged_userns_clone=1`".into();
    }
    if is("user/max_user_namespaces", "0") {
        return "allow user namespaces: `sudo sysctl user.max_user_namespaces=15000`".into();
    }
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return "allow user namespaces: `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or give hm an \
                AppArmor profile with `userns`"
            .into();
    }
    // The kernel lets nobody map user 0 who had no CAP_SETFCAP before, whatever the switches say.
    if error.doing.ends_with(UID_MAP) {
        return "this is user 0 without capabilities, whom no user namespace can have: run as an ordinary user (buildbox: the \
                platform properties unixUID=1000 and unixGID=1000), or as root with all capabilities"
            .into();
    }
    "allow user namespaces: in a container, start it with `--privileged`, or with `--security-opt \
     seccomp=unconfined --security-opt apparmor=unconfined`"
        .into()
}
