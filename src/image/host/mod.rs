//! The `host` image: this machine's system, shown to steps copy-on-write.
//!
//! An overlay of `/` is not possible: the store is below it, and unprivileged users may not mount one. The
//! root of a step is therefore a skeleton of empty directories, and every system directory gets a separate
//! overlay on top. Home directories, the store, credentials, and the state of daemons are not included. Mount
//! points of the machine within a system directory are not visible either, because overlays do not cross
//! them.

mod kept;
mod mask;
mod redact;
mod skeleton;

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use mask::{Made, Reach};

use crate::store::{IdMap, Store, StoreError, error::IoContext, files::make_dir};

/// Top-level directories of the system, if they are directories. If they are links (`/bin` to `usr/bin`), the
/// skeleton contains the link.
const SYSTEM: [&str; 9] = ["usr", "etc", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Databases of package managers. They must be consistent with the installed files.
const PACKAGES: [&str; 9] = [
    "var/lib/dpkg",
    "var/lib/apt",
    "var/lib/rpm",
    "var/lib/dnf",
    "var/lib/pacman",
    "var/lib/apk",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
];

/// The number of entries of `/opt`, and of `/usr/local`, that are examined. This takes a few milliseconds.
const SEARCHED: usize = 2000;

/// Shown read-only if they exist: package stores that only their own daemon may write to.
const READ_ONLY: [&str; 2] = ["nix", "gnu"];

/// This machine's system as a set of lower directories. The directories made for it are removed when this is
/// dropped, which must not happen before the last step that sees it has ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct HostImage {
    /// The lowest lower directory of the step's root, with a mount point for each of `dirs`.
    pub skeleton: PathBuf,
    /// The directories to mount over it, parents before children.
    pub dirs: Vec<HostDir>,
    kept: kept::Tree,
    home: Home,
    /// See [`digest`](Self::digest).
    digest: OnceLock<[u8; 32]>,
}

/// The directory that contains everything created for an image.
#[derive(Debug)]
struct Home {
    store: Arc<Store>,
    path: PathBuf,
}

impl Drop for Home {
    fn drop(&mut self) {
        self.store.trash().discard(std::mem::take(&mut self.path));
    }
}

/// One directory of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostDir {
    /// The path relative to the step's root: `usr`, `var/lib/dpkg`.
    pub path: PathBuf,
    /// The lower directories of its overlay, topmost first: a mask over the machine's directory.
    pub lowers: Vec<PathBuf>,
    /// Whether steps see the directory as it is and cannot write to it: a read-only bind mount of the one
    /// lower directory.
    pub read_only: bool,
    /// Whether the lowest lower directory must be shown through a mount in which root cannot read what other
    /// users may not read. This is the case if it has too many files to examine each of them.
    pub screened: bool,
}

impl HostImage {
    /// Returns this machine's current system, with `extra_dirs` shown read-only. `id_map` defines how steps
    /// see owners. Takes a few milliseconds, and much longer if steps are root and the kernel cannot screen
    /// the large directories.
    ///
    /// # Errors
    /// Returns [`StoreError::StoreWithinImage`] if the store itself would be visible, or
    /// [`StoreError::BadHostDir`] for an extra directory that cannot be shown.
    pub fn new(store: &Arc<Store>, extra_dirs: &[PathBuf], id_map: IdMap) -> Result<Self, StoreError> {
        Self::of(store, Path::new("/"), extra_dirs, id_map)
    }

    fn of(store: &Arc<Store>, machine: &Path, extra_dirs: &[PathBuf], id_map: IdMap) -> Result<Self, StoreError> {
        let home = Home { store: Arc::clone(store), path: store.instance().new_tmp() };
        make_dir(&home.path)?;
        let mut dirs = Vec::new();
        for name in SYSTEM.iter().chain(&PACKAGES) {
            let dir = machine.join(name);
            if fs::symlink_metadata(&dir).is_ok_and(|metadata| metadata.is_dir()) {
                let real = visible(store, &dir)?;
                let screened = id_map == IdMap::Root && can_screen(&real);
                let reach = match id_map {
                    IdMap::Root if !screened => Reach::ALL,
                    // The kernel prevents unprivileged users from reading files of other users that they may
                    // not read.
                    _ => Reach { entries: SEARCHED, screened },
                };
                let mask = home.path.join(format!("mask-{}", name.replace('/', "-")));
                let Made { masks, complete } = mask::make(machine, Path::new(name), &mask, reach)?;
                let lowers = masks.then_some(mask).into_iter().chain([real]).collect();
                dirs.push(HostDir { path: name.into(), lowers, read_only: false, screened: screened && !complete });
            }
        }
        for name in READ_ONLY {
            let dir = machine.join(name);
            if dir.is_dir() {
                dirs.push(HostDir {
                    path: name.into(),
                    lowers: vec![visible(store, &dir)?],
                    read_only: true,
                    screened: false,
                });
            }
        }
        for dir in extra_dirs {
            dirs.push(HostDir {
                path: extra_path(dir)?,
                lowers: vec![visible(store, dir)?],
                read_only: true,
                screened: false,
            });
        }
        let kept = kept::tree(store, machine, &dirs, SystemTime::now())?;
        Ok(Self { skeleton: kept.root().into(), dirs, kept, home, digest: OnceLock::new() })
    }

    /// Returns a digest of everything that steps see of the machine but the content of its directories: the
    /// skeleton, which directories there are, and what hides files in them. Returns `None` if the skeleton is
    /// for this run only.
    ///
    /// # Errors
    /// Returns an error if a mask cannot be read.
    pub fn digest(&self) -> Result<Option<[u8; 32]>, StoreError> {
        if !self.kept.is_kept() {
            return Ok(None);
        }
        if let Some(digest) = self.digest.get() {
            return Ok(Some(*digest));
        }
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        part(self.skeleton.as_os_str().as_bytes());
        for HostDir { path, lowers, read_only, screened } in &self.dirs {
            part(path.as_os_str().as_bytes());
            part(&[u8::from(*read_only), u8::from(*screened)]);
            for lower in lowers {
                match lower.starts_with(&self.home.path) {
                    true => part(&mask::digest(lower)?),
                    false => part(lower.as_os_str().as_bytes()),
                }
            }
        }
        Ok(Some(*self.digest.get_or_init(|| *hasher.finalize().as_bytes())))
    }
}

/// Returns the real path of a directory that steps will see. It must not contain the store.
fn visible(store: &Store, dir: &Path) -> Result<PathBuf, StoreError> {
    let real = dir.canonicalize().doing("resolve", dir)?;
    if store.dir().starts_with(&real) {
        return Err(StoreError::StoreWithinImage { store: store.dir().into(), within: real });
    }
    if real.starts_with(store.dir()) {
        return Err(StoreError::BadHostDir { path: dir.into(), reason: "it is part of the store" });
    }
    Ok(real)
}

/// Returns whether a directory can be shown through a screen: an overlay that is mounted by a user without
/// files, below the overlay that steps write to. Overlays can be stacked at most twice, and that user must
/// have an id in this user namespace.
fn can_screen(dir: &Path) -> bool {
    const OVERLAY: u64 = 0x794c_7630;
    const ECRYPTFS: u64 = 0xf15f;
    let is_plain = rustix::fs::statfs(dir).is_ok_and(|of| ![OVERLAY, ECRYPTFS].contains(&(of.f_type as u64)));
    is_plain
        && rustix::process::geteuid().is_root()
        && fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
}

/// Returns the mount point of an extra directory, which is its path on the machine.
fn extra_path(dir: &Path) -> Result<PathBuf, StoreError> {
    let bad = |reason| StoreError::BadHostDir { path: dir.into(), reason };
    let relative = dir.strip_prefix("/").map_err(|_| bad("its path is not absolute"))?;
    let mut parts = relative.components();
    if !parts.clone().all(|part| matches!(part, Component::Normal(_))) {
        return Err(bad("its path has `.` or `..` in it"));
    }
    match parts.next().and_then(|first| first.as_os_str().to_str()) {
        None => Err(bad("it is the root directory")),
        Some("proc" | "sys" | "dev" | "run" | "workspace") => Err(bad("steps have their own directory there")),
        Some(_) if !dir.is_dir() => Err(bad("no such directory")),
        Some(_) => Ok(relative.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    use super::*;

    fn put(machine: &Path, path: &str, text: &str, mode: u32) {
        let path = machine.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn machine(top: &Path) -> PathBuf {
        let machine = top.join("machine");
        put(&machine, "usr/bin/tool", "tool", 0o755);
        put(&machine, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/opt/me:/bin/sh\n", 0o644);
        put(&machine, "etc/shadow", "root:$6$hash:1:0:99999:7:::\n", 0o640);
        put(&machine, "etc/ssh/ssh_host_rsa_key", "key", 0o600);
        put(&machine, "etc/ssh/ssh_config", "config", 0o644);
        put(&machine, "etc/daemon/token", "token", 0o600);
        put(&machine, "etc/docker/config.json", "auth", 0o644);
        put(&machine, "etc/gitconfig", "[url \"https://t0ken@git.example/\"]\n\tinsteadOf = x:\n", 0o644);
        put(&machine, "usr/lib/node_modules/npm/npmrc", "a=b\n//npm.example/:_authToken=s3cret\n", 0o644);
        put(&machine, "etc/daemon/run", "token", 0o711);
        put(&machine, "etc/daemon/own", "token", 0o611);
        put(&machine, "etc/daemon/write", "token", 0o602);
        put(&machine, "etc/daemon/public", "", 0o755);
        put(&machine, "etc/names/file", "token", 0o644);
        fs::set_permissions(machine.join("etc/names"), fs::Permissions::from_mode(0o711)).unwrap();
        put(&machine, "etc/resolv.conf", "nameserver 192.0.2.1\n", 0o644);
        put(&machine, "opt/me/.netrc", "login", 0o644);
        put(&machine, "var/lib/dpkg/status", "Package: x\n", 0o644);
        put(&machine, "var/lib/service/data", "data", 0o644);
        put(&machine, "var/lib/ucf/hashfile", "hash", 0o644);
        put(&machine, "home/me/.ssh/id_rsa", "key", 0o600);
        put(&machine, "root/.ssh/id_rsa", "key", 0o600);
        std::os::unix::fs::symlink("usr/bin", machine.join("bin")).unwrap();
        machine
    }

    fn image(store: &Arc<Store>, machine: &Path) -> HostImage {
        HostImage::of(store, machine, &[], IdMap::Single).unwrap()
    }

    #[test]
    fn the_skeleton_has_links_and_mount_points_but_nobodys_files() {
        let top = tempfile::tempdir().unwrap();
        let (store, machine) = (Store::open(&top.path().join("store")).unwrap(), machine(top.path()));
        let HostImage { skeleton, dirs, .. } = &image(&store, &machine);
        let paths: Vec<_> = dirs.iter().map(|dir| dir.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["usr", "etc", "opt", "var/lib/dpkg"]);
        assert_eq!(fs::read_link(skeleton.join("bin")).unwrap().to_str(), Some("usr/bin"));
        for path in ["usr", "etc", "opt", "var/lib/dpkg", "var/lib/service", "root", "home", "proc", "workspace"] {
            assert_eq!(fs::read_dir(skeleton.join(path)).unwrap().count(), 0, "{path}");
        }
        assert_eq!(fs::metadata(skeleton.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_to_string(skeleton.join("var/lib/ucf/hashfile")).unwrap(), "hash");
    }

    #[test]
    fn what_is_secret_is_masked() {
        let top = tempfile::tempdir().unwrap();
        let (store, machine) = (Store::open(&top.path().join("store")).unwrap(), machine(top.path()));
        if crate::tree::whiteout(&top.path().join("probe")).is_err() {
            assert!(std::env::var_os("HM_REQUIRE_BACKENDS").is_none(), "whiteouts can't be made here");
            eprintln!("skipped: whiteouts can't be made here");
            return;
        }
        let image = image(&store, &machine);
        let mask = |path: &str| {
            let dir = image.dirs.iter().find(|dir| Path::new(path).starts_with(&dir.path)).unwrap();
            assert_eq!(dir.lowers.len(), 2, "{path}");
            dir.lowers[0].join(Path::new(path).strip_prefix(&dir.path).unwrap())
        };
        for path in [
            "etc/ssh/ssh_host_rsa_key",
            "etc/daemon/token",
            "etc/daemon/run",
            "etc/daemon/own",
            "etc/daemon/write",
            "etc/names",
            "etc/docker",
            "opt/me",
        ] {
            assert!(fs::symlink_metadata(mask(path)).unwrap().file_type().is_char_device(), "{path}");
        }
        assert!(!mask("etc/ssh/ssh_config").exists() && !mask("etc/passwd").exists());
        assert!(!mask("etc/daemon/public").exists());
        let gitconfig = fs::read_to_string(mask("etc/gitconfig")).unwrap();
        assert_eq!(gitconfig, "[url \"https://git.example/\"]\n\tinsteadOf = x:\n");
        assert_eq!(fs::read_to_string(mask("usr/lib/node_modules/npm/npmrc")).unwrap(), "a=b\n");
        let shadow = fs::read_to_string(mask("etc/shadow")).unwrap();
        assert!(shadow.starts_with("root:*:") && shadow.contains("\nme:*:") && !shadow.contains("hash"), "{shadow}");
        assert_eq!(fs::read_to_string(mask("etc/resolv.conf")).unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(fs::read_link(mask("etc/mtab")).unwrap().to_str(), Some("/proc/self/mounts"));
    }

    #[test]
    fn a_store_within_a_system_directory_is_refused_with_the_way_out() {
        let top = tempfile::tempdir().unwrap();
        let machine = machine(top.path());
        let store = Store::open(&machine.join("opt/cache")).unwrap();
        let error = HostImage::of(&store, &machine, &[], IdMap::Single).unwrap_err();
        assert!(matches!(error, StoreError::StoreWithinImage { .. }));
        assert!(error.to_string().contains("HM_CACHE_DIR"), "{error}");
    }

    #[test]
    fn extra_directories_are_read_only_and_checked() {
        let top = tempfile::tempdir().unwrap();
        let (store, machine) = (Store::open(&top.path().join("store")).unwrap(), machine(top.path()));
        let tools = top.path().join("tools");
        fs::create_dir(&tools).unwrap();
        let image = HostImage::of(&store, &machine, std::slice::from_ref(&tools), IdMap::Single).unwrap();
        let shown = image.dirs.last().unwrap();
        assert!(shown.read_only && shown.path == tools.strip_prefix("/").unwrap());
        assert!(image.skeleton.join(&shown.path).is_dir());
        let store_dir = store.dir().to_path_buf();
        for bad in ["relative".into(), "/".into(), "/proc/self".into(), "/nowhere/at/all".into(), "/tmp/../etc".into()]
        {
            assert!(matches!(
                HostImage::of(&store, &machine, &[bad], IdMap::Single),
                Err(StoreError::BadHostDir { .. })
            ));
        }
        assert!(matches!(
            HostImage::of(&store, &machine, &[store_dir.parent().unwrap().into()], IdMap::Single),
            Err(StoreError::StoreWithinImage { .. })
        ));
    }
}
