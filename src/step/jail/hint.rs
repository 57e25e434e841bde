//! Advice to the user when a jail cannot be made.

use std::path::Path;

use super::SetupError;

/// The file that shows the id mapping of a process' user namespace.
const UID_MAP: &str = "/proc/self/uid_map";

/// Returns advice for the case that no user namespace can be made because of `error`. It names the setting
/// that forbids user namespaces.
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
    // The kernel refuses to map user 0 for a process that had no CAP_SETFCAP before, whatever the settings
    // are.
    if error.doing.ends_with(UID_MAP) {
        return "user 0 without capabilities cannot create user namespaces: run as an ordinary user (buildbox: the \
                platform properties unixUID=1000 and unixGID=1000), or as root with all capabilities"
            .into();
    }
    "allow user namespaces: in a container, start it with `--privileged`, or with `--security-opt \
     seccomp=unconfined --security-opt apparmor=unconfined`"
        .into()
}
