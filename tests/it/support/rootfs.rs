//! Small root filesystems that steps boot from.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use super::backends::usable;

/// Returns a root filesystem with only a shell.
pub(crate) fn shell_rootfs() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    let mut files = vec!["/bin/sh".to_owned()];
    let ldd = Command::new("ldd").arg("/bin/sh").output().ok()?;
    let ldd = String::from_utf8_lossy(&ldd.stdout).into_owned();
    files.extend(ldd.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    for file in files {
        let to = dir.path().join(&file[1..]);
        fs::create_dir_all(to.parent()?).ok()?;
        fs::copy(fs::canonicalize(&file).ok()?, to).ok()?;
    }
    Some(dir)
}

/// Makes a root filesystem with busybox and nothing else.
pub(crate) fn busybox_rootfs(dir: &Path) -> Option<String> {
    let image = dir.join("busybox");
    fs::create_dir_all(image.join("bin")).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o755)).unwrap();
    let copied = fs::copy("/bin/busybox", image.join("bin/busybox"));
    if !usable("busybox", copied.is_ok(), "there is no /bin/busybox: install busybox-static") {
        return None;
    }
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for name in String::from_utf8(list).unwrap().lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", image.join("bin").join(name)).unwrap();
    }
    Some(format!("rootfs:{}", image.display()))
}
