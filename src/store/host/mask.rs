//! What of the machine's system directories steps must not see.

use std::{
    fmt::Write,
    fs::{self, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::store::{StoreError, error::Doing, layout::make_dir, tree};

/// Credentials that some programs leave readable for everybody, or that name accounts elsewhere. What is not readable for
/// everybody needs no mention: all of `/etc` and of `/usr/local/etc` that is so is hidden.
const HIDDEN: [&str; 34] = [
    "etc/NetworkManager/system-connections",
    "etc/apt/auth.conf",
    "etc/apt/auth.conf.d",
    "etc/boto.cfg",
    "etc/ceph",
    "etc/cni",
    "etc/consul.d",
    "etc/containers/auth.json",
    "etc/credstore",
    "etc/credstore.encrypted",
    "etc/docker",
    "etc/gitlab-runner",
    "etc/ipsec.secrets",
    "etc/krb5.keytab",
    "etc/kubernetes",
    "etc/letsencrypt",
    "etc/msmtprc",
    "etc/netplan",
    "etc/nomad.d",
    "etc/openvpn",
    "etc/ppp",
    "etc/rancher",
    "etc/salt/pki",
    "etc/security/opasswd",
    "etc/ssl/private",
    "etc/pki/tls/private",
    "etc/teleport.yaml",
    "etc/vault.d",
    "etc/wireguard",
    "etc/wpa_supplicant",
    "etc/netrc",
    "etc/.netrc",
    "usr/local/etc/ssl/private",
    "var/cache/debconf/passwords.dat",
];

/// Where everything that is not readable for everybody is hidden.
const SEARCHED: [&str; 2] = ["etc", "usr/local/etc"];

/// Shown although not everybody may read it: rules without secrets, which `sudo` refuses to work without.
const SHOWN: [&str; 2] = ["etc/sudoers", "etc/sudoers.d"];

/// Files with a password for each account, and what stands for a locked one.
const SHADOWS: [(&str, &str, &str); 4] = [
    ("shadow", "passwd", ":*:19000:0:99999:7:::"),
    ("shadow-", "passwd", ":*:19000:0:99999:7:::"),
    ("gshadow", "group", ":*::"),
    ("gshadow-", "group", ":*::"),
];

/// Makes the mask over the directory `name` of the machine. False where it needs none.
pub(super) fn make(machine: &Path, name: &Path, mask: &Path) -> Result<bool, StoreError> {
    let mut layer = Layer { machine, name, mask, empty: true };
    for hidden in HIDDEN {
        layer.hide(Path::new(hidden))?;
    }
    for home in homes(machine) {
        layer.hide(&home)?;
    }
    if name == Path::new("etc") {
        layer.accounts()?;
        layer.network()?;
    }
    for dir in SEARCHED.map(Path::new) {
        if dir.starts_with(name) {
            layer.search(dir)?;
        }
    }
    Ok(!layer.empty)
}

/// The homes of people, as paths relative to the root, wherever they are.
fn homes(machine: &Path) -> Vec<PathBuf> {
    let passwd = fs::read(machine.join("etc/passwd")).unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    let of_people = passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        (uid == 0 || uid >= 1000).then(|| fields.get(5).copied())?
    });
    let own = std::env::var("HOME").ok();
    let homes = of_people.chain(own.as_deref()).filter_map(|home| Path::new(home).strip_prefix("/").ok());
    homes.filter(|home| home.components().count() > 1).map(Path::to_path_buf).collect()
}

/// The layer over one directory of the machine. Paths are relative to the root.
struct Layer<'a> {
    machine: &'a Path,
    name: &'a Path,
    mask: &'a Path,
    empty: bool,
}

impl Layer<'_> {
    /// Hides what is at `path`, if it is in this directory and there.
    fn hide(&mut self, path: &Path) -> Result<(), StoreError> {
        if path == self.name || !path.starts_with(self.name) || SHOWN.map(Path::new).contains(&path) {
            return Ok(());
        }
        if fs::symlink_metadata(self.machine.join(path)).is_err() {
            return Ok(());
        }
        let Some(place) = self.place(path)? else { return Ok(()) };
        tree::whiteout(&place).doing("hide", &self.machine.join(path))
    }

    /// Hides what not everybody may read below the directory at `path`.
    fn search(&mut self, path: &Path) -> Result<(), StoreError> {
        let mut dirs = vec![path.to_path_buf()];
        while let Some(dir) = dirs.pop() {
            // Whoever can't list it can't show it to a step either.
            let Ok(entries) = fs::read_dir(self.machine.join(&dir)) else { continue };
            for entry in entries.flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                let path = dir.join(entry.file_name());
                if is_secret(&metadata) {
                    self.hide(&path)?;
                } else if metadata.is_dir() {
                    dirs.push(path);
                }
            }
        }
        Ok(())
    }

    /// Accounts without passwords.
    fn accounts(&mut self) -> Result<(), StoreError> {
        for (shadow, list, locked) in SHADOWS {
            let path = self.name.join(shadow);
            let Ok(metadata) = fs::symlink_metadata(self.machine.join(&path)) else { continue };
            let accounts = fs::read(self.machine.join(self.name).join(list)).unwrap_or_default();
            let mut text = String::new();
            for account in String::from_utf8_lossy(&accounts).lines() {
                if let Some((name, _)) = account.split_once(':') {
                    let _ = writeln!(text, "{name}{locked}");
                }
            }
            self.put(&path, text.as_bytes(), 0o640, Some(metadata.gid()))?;
        }
        Ok(())
    }

    /// Files that are links to what steps do not have, or, in containers, mount points that overlays do not cross.
    fn network(&mut self) -> Result<(), StoreError> {
        for name in ["resolv.conf", "hosts", "hostname"] {
            let path = self.name.join(name);
            match fs::read(self.machine.join(&path)) {
                Ok(text) => self.put(&path, &text, 0o644, None)?,
                // Where the step's own is mounted.
                Err(_) if name == "hosts" && self.name == Path::new("etc") => self.put(&path, b"", 0o644, None)?,
                Err(_) => {}
            }
        }
        if let Some(mtab) = self.place(&self.name.join("mtab"))? {
            std::os::unix::fs::symlink("/proc/self/mounts", &mtab).doing("make the link", &mtab)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, text: &[u8], mode: u32, group: Option<u32>) -> Result<(), StoreError> {
        let Some(place) = self.place(path)? else { return Ok(()) };
        fs::write(&place, text).doing("write", &place)?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&place, None, group).doing("own", &place)?;
        }
        fs::set_permissions(&place, Permissions::from_mode(mode)).doing("set the mode of", &place)
    }

    /// Where in the mask `path` goes, its parents made like the machine's. `None` where the mask has something there, or
    /// a parent of it is hidden.
    fn place(&mut self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let within = path.strip_prefix(self.name).unwrap_or(path);
        let (mut made, mut model) = (self.mask.to_path_buf(), self.machine.join(self.name));
        self.imitate(&made, &model)?;
        let mut parts = within.components().peekable();
        while let Some(part) = parts.next() {
            made.push(part);
            model.push(part);
            match fs::symlink_metadata(&made) {
                Ok(metadata) if metadata.is_dir() && parts.peek().is_some() => {}
                Ok(_) => return Ok(None),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("read", made, error));
                }
                Err(_) if parts.peek().is_none() => break,
                Err(_) => self.imitate(&made, &model)?,
            }
        }
        self.empty = false;
        Ok(Some(made))
    }

    fn imitate(&self, made: &Path, model: &Path) -> Result<(), StoreError> {
        if made.is_dir() {
            return Ok(());
        }
        let metadata = fs::metadata(model).doing("read", model)?;
        make_dir(made)?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(made, Some(metadata.uid()), Some(metadata.gid())).doing("own", made)?;
        }
        fs::set_permissions(made, Permissions::from_mode(metadata.mode() & 0o7777)).doing("set the mode of", made)
    }
}

/// Whether the machine does not let everybody read this. Empty files, such as locks, tell nothing.
fn is_secret(metadata: &Metadata) -> bool {
    if metadata.is_dir() {
        metadata.mode() & 0o005 != 0o005
    } else {
        metadata.is_file() && metadata.mode() & 0o004 == 0 && metadata.len() > 0
    }
}
