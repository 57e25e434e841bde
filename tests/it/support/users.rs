//! The users that run the tests: root, an ordinary user, and one with subordinate ids.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use super::{backends::skip, programs::hm};

/// An id that owns nothing here.
const ORDINARY: u32 = 1000;

/// Set if steps have such a range.
pub(crate) const RANGE: &str = "HM_TEST_RANGE";

/// Returns whether the suite runs as root, and steps have no user namespace.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns whether steps have users other than root.
pub(crate) fn has_users() -> bool {
    is_root() || std::env::var_os(RANGE).is_some()
}

/// Runs tests of this suite as an ordinary user, who must be able to read the files that the variables name.
/// Returns how many tests passed, which is all of them, or `None` if an ordinary user cannot make user
/// namespaces here.
pub(crate) fn run_again(args: &[&str], env: &[(&str, &Path)]) -> Option<u32> {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: std::path::PathBuf, name: &str| {
        let to = dir.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let (suite, hm) = (copy(std::env::current_exe().unwrap(), "suite"), copy(hm(), "hm"));
    for name in ["home", "tmp"] {
        let made = dir.path().join(name);
        fs::create_dir(&made).unwrap();
        std::os::unix::fs::chown(&made, Some(ORDINARY), Some(ORDINARY)).unwrap();
    }
    fs::create_dir_all(dir.path().join("home/.ssh")).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Not into pipes: they would not end before a process does that a failed test left behind.
    let (stdout, stderr) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let status = Command::new(suite)
        .args(args)
        .env("HM_TEST_HM", hm)
        .env("HOME", dir.path().join("home"))
        .env("TMPDIR", dir.path().join("tmp"))
        .env_remove("HM_REQUIRE_BACKENDS")
        .envs(env.iter().copied())
        .current_dir("/")
        .uid(ORDINARY)
        .gid(ORDINARY)
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .status()
        .unwrap();
    let text = [stdout, stderr].map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()).concat();
    if text.contains("make a user namespace") {
        skip("an ordinary user may not make user namespaces here");
        return None;
    }
    assert!(status.success(), "{text}");
    let passed =
        text.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split_once(" passed")?.0.parse().ok());
    assert!(passed.is_some(), "{text}");
    passed
}
