//! The image tests again with a range of subordinate ids, where layers are unpacked, packed and combined in
//! the steps' user namespace.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::support::{
    backends::usable,
    programs::hm,
    users::{RANGE, is_root},
};

/// An id that owns nothing here, and ids that no user has.
const ORDINARY: u32 = 1000;
const IDS: &str = "1000:2000000:65536\n";

#[test]
fn images_and_overlays_have_owners_if_the_user_has_subordinate_ids() {
    if !is_root() {
        return;
    }
    let found = |program: &str| {
        Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let tools = ["unshare", "setpriv", "newuidmap"].into_iter().all(found);
    if !usable("a range of ids", tools, "install the packages util-linux and uidmap") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for (from, to) in [(std::env::current_exe().unwrap(), path("suite")), (hm(), path("hm"))] {
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["home", "tmp"] {
        fs::create_dir(path(name)).unwrap();
        std::os::unix::fs::chown(path(name), Some(ORDINARY), Some(ORDINARY)).unwrap();
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path("ids"), IDS).unwrap();
    // The machine's own files do not change: a copy is mounted over `/etc` for this process alone. It is not
    // mounted over the two files, because only root can make an overlay of a directory with mounts on its
    // files.
    let script = "cp -a /etc \"$1/etc\" && cp \"$1/ids\" \"$1/etc/subuid\" && cp \"$1/ids\" \"$1/etc/subgid\" && \
                  mount --bind \"$1/etc\" /etc && exec setpriv --reuid 1000 --regid 1000 --clear-groups \
                  \"$1/suite\" images::archives images::export images::streaming \
                  sandbox::overlays sandbox::identity sandbox::read_only_programs \
                  sandbox::network::every_user";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .env("HM_TEST_HM", path("hm"))
        .env(RANGE, "1")
        .env("HOME", path("home"))
        .env("TMPDIR", path("tmp"))
        .env_remove("HM_REQUIRE_BACKENDS")
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let denied = text.contains("unshare failed") || text.contains("mount:") || text.contains("make a user namespace");
    if !usable("a range of ids", !denied, &text) {
        return;
    }
    assert!(output.status.success() && !text.contains("ok. 0 passed"), "{text}");
}
