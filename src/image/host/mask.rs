//! Hides the parts of the machine's system directories that steps must not see.

use std::{
    collections::VecDeque,
    fmt::Write,
    fs::{self, Metadata, Permissions},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::redact;
use crate::{
    store::{StoreError, error::IoContext, files::make_dir},
    tree,
};

/// Credentials that some programs leave world-readable, or that name accounts elsewhere. Files that are not
/// world-readable need not be listed, because all of them are hidden.
const HIDDEN: [&str; 36] = [
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
    "usr/local/cargo/credentials",
    "usr/local/cargo/credentials.toml",
    "usr/local/etc/ssl/private",
    "var/cache/debconf/passwords.dat",
];

/// Directories with too many files to examine each of them in every run.
const LARGE: [&str; 8] = ["usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Directories where users install files by hand, outside of any package manager.
const BY_HAND: [&str; 2] = ["opt", "usr/local"];

/// Programs that some systems let other users run but not read, and that steps need. Any other such file is
/// hidden.
const PROGRAMS: [&str; 4] = ["usr/bin/sudo", "usr/bin/sudoreplay", "usr/bin/userhelper", "usr/sbin/userhelper"];

/// Files with a password for each account, and the entry of a locked account.
const SHADOWS: [(&str, &str, &str); 4] = [
    ("shadow", "passwd", ":*:19000:0:99999:7:::"),
    ("shadow-", "passwd", ":*:19000:0:99999:7:::"),
    ("gshadow", "group", ":*::"),
    ("gshadow-", "group", ":*::"),
];

/// How much is examined to find what other users may not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// Large directories are searched only in places where users install files by hand: up to this many
    /// entries of each, those nearest to its top first.
    pub(super) entries: usize,
    /// Whether the kernel hides the content of the rest from steps.
    pub(super) screened: bool,
}

impl Reach {
    /// Examines everything.
    pub(super) const ALL: Self = Self { entries: usize::MAX, screened: false };
}

/// The result of [`make`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// Whether the mask contains anything.
    pub(super) masks: bool,
    /// Whether the mask hides everything that other users may not read.
    pub(super) complete: bool,
}

/// Creates the mask over the directory `name` of the machine.
pub(super) fn make(machine: &Path, name: &Path, mask: &Path, reach: Reach) -> Result<Made, StoreError> {
    let mut layer = Layer { machine, name, mask, screened: reach.screened, empty: true };
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
    let complete = if reach == Reach::ALL || !LARGE.map(Path::new).contains(&name) {
        layer.search(name, usize::MAX)?
    } else {
        let mut complete = BY_HAND.map(Path::new).contains(&name);
        for dir in BY_HAND.map(Path::new).into_iter().filter(|dir| dir.starts_with(name)) {
            complete &= layer.search(dir, reach.entries)?;
        }
        complete
    };
    if reach.screened && !complete {
        layer.programs()?;
    }
    // These files are deep in directories that are not searched.
    for file in redact::named(name) {
        layer.redact_named(file)?;
    }
    if !layer.empty {
        keep_times(mask, &machine.join(name)).doing("set the times in", mask)?;
    }
    Ok(Made { masks: !layer.empty, complete })
}

/// Gives what a mask contains the times of what it is over. Otherwise each run would see files that are newer
/// than those that earlier steps left.
fn keep_times(mask: &Path, machine: &Path) -> io::Result<()> {
    for entry in fs::read_dir(mask)? {
        let (entry, kind) = entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind)))?;
        let model = machine.join(entry.file_name());
        if kind.is_dir() {
            keep_times(&entry.path(), &model)?;
        } else if kind.is_symlink() {
            keep_time(&entry.path(), fs::symlink_metadata(model))?;
        } else if kind.is_file() {
            keep_time(&entry.path(), fs::metadata(model))?;
        }
    }
    keep_time(mask, fs::metadata(machine))
}

fn keep_time(made: &Path, model: io::Result<Metadata>) -> io::Result<()> {
    // The step's own files may be over nothing.
    let Ok(metadata) = model else { return Ok(()) };
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let modified = time((metadata.mtime(), metadata.mtime_nsec()));
    let times = Timestamps { last_access: modified, last_modification: modified };
    Ok(utimensat(CWD, made, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Returns the digest of a mask: of all names, with types, modes, owners, contents and targets.
pub(super) fn digest(mask: &Path) -> Result<[u8; 32], StoreError> {
    let mut hasher = blake3::Hasher::new();
    hash_entry(mask, &mut hasher).doing("read", mask)?;
    Ok(*hasher.finalize().as_bytes())
}

fn hash_entry(path: &Path, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let mut content = Vec::new();
    let mut entries = Vec::new();
    if metadata.is_dir() {
        entries = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?;
        entries.sort();
    } else if metadata.is_symlink() {
        content = fs::read_link(path)?.into_os_string().into_vec();
    } else if metadata.is_file() {
        content = fs::read(path)?;
    }
    let name = path.file_name().unwrap_or_default().as_bytes();
    for part in [name, &content] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let numbers = [metadata.mode(), metadata.uid(), metadata.gid()].map(u32::to_le_bytes);
    hasher.update(numbers.as_flattened()).update(&(entries.len() as u64).to_le_bytes());
    entries.iter().try_for_each(|entry| hash_entry(&path.join(entry), hasher))
}

/// Returns the home directories of users, as paths relative to the root, wherever they are.
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
    /// Whether the kernel may hide from steps what only some users of the machine may read.
    screened: bool,
    empty: bool,
}

impl Layer<'_> {
    /// Hides the file or directory at `path`, if it exists in this directory.
    fn hide(&mut self, path: &Path) -> Result<(), StoreError> {
        if path == self.name || !path.starts_with(self.name) {
            return Ok(());
        }
        if fs::symlink_metadata(self.machine.join(path)).is_err() {
            return Ok(());
        }
        let Some(place) = self.place(path)? else { return Ok(()) };
        tree::whiteout(&place).doing("hide", &self.machine.join(path))
    }

    /// Hides what other users may not read in the directory at `path` and below it, and removes passwords
    /// from addresses. Directories are searched breadth-first, until `budget` entries were seen. Returns
    /// whether those were all.
    fn search(&mut self, path: &Path, mut budget: usize) -> Result<bool, StoreError> {
        let Ok(top) = fs::symlink_metadata(self.machine.join(path)) else { return Ok(true) };
        let mut dirs = VecDeque::from([path.to_path_buf()]);
        while let Some(dir) = dirs.pop_front() {
            // A caller who cannot list it cannot show it to a step either.
            let Ok(entries) = fs::read_dir(self.machine.join(&dir)) else { continue };
            for entry in entries.flatten() {
                let Some(left) = budget.checked_sub(1) else { return Ok(false) };
                budget = left;
                if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                    continue;
                }
                let Ok(metadata) = entry.metadata() else { continue };
                let path = dir.join(entry.file_name());
                if is_private(&metadata) && !is_program(&path, &metadata) {
                    // Empty files such as locks contain no secrets, and programs need them. A screen does not
                    // let root open them.
                    let tells = metadata.is_dir() || metadata.len() > 0;
                    match tells {
                        true => self.hide(&path)?,
                        false if self.screened => self.put_like(&path, b"", &metadata)?,
                        false => {}
                    }
                } else if metadata.is_dir() {
                    // Overlays do not cross mount points.
                    if metadata.dev() == top.dev() {
                        dirs.push_back(path);
                    }
                } else if redact::may_have_passwords(&path) && metadata.is_file() {
                    self.redact(&path, &metadata)?;
                }
            }
        }
        Ok(true)
    }

    /// Removes user names and passwords from the addresses in a file, and settings that are secrets.
    fn redact(&mut self, path: &Path, metadata: &Metadata) -> Result<(), StoreError> {
        let from = self.machine.join(path);
        if metadata.len() > redact::MAX_BYTES {
            return self.hide(path);
        }
        let text = fs::read(&from).doing("read", &from)?;
        match redact::without_secrets(path, &text) {
            Some(clean) => self.put_like(path, &clean, metadata),
            None => Ok(()),
        }
    }

    /// Does the same for one file, if it exists and is world-readable.
    fn redact_named(&mut self, path: &Path) -> Result<(), StoreError> {
        let from = self.machine.join(path);
        let Ok(metadata) = fs::symlink_metadata(&from) else { return Ok(()) };
        // The mask would turn a link on the way into a directory. The link's target is handled at its own
        // path.
        let is_straight = match (from.canonicalize(), self.machine.canonicalize()) {
            (Ok(real), Ok(machine)) => real == machine.join(path),
            _ => false,
        };
        if is_straight && metadata.is_file() && !is_private(&metadata) { self.redact(path, &metadata) } else { Ok(()) }
    }

    /// Copies the programs that other users may run but not read. No step could run them through a screen.
    fn programs(&mut self) -> Result<(), StoreError> {
        let name = self.name;
        for program in PROGRAMS.map(Path::new).into_iter().filter(|path| path.starts_with(name)) {
            let from = self.machine.join(program);
            let Ok(metadata) = fs::symlink_metadata(&from) else { continue };
            if is_program(program, &metadata) {
                let content = fs::read(&from).doing("read", &from)?;
                self.put_like(program, &content, &metadata)?;
            }
        }
        Ok(())
    }

    /// Adds account files without passwords.
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
            self.put(&path, text.as_bytes(), 0o640, (None, Some(metadata.gid())))?;
        }
        Ok(())
    }

    /// Adds files that are links to what steps lack or, in containers, mount points that overlays do not
    /// cross.
    fn network(&mut self) -> Result<(), StoreError> {
        for name in ["resolv.conf", "hosts", "hostname"] {
            let path = self.name.join(name);
            let from = self.machine.join(&path);
            let is_public = fs::metadata(&from).is_ok_and(|metadata| metadata.is_file() && !is_private(&metadata));
            match fs::read(&from) {
                Ok(text) if is_public => self.put(&path, &text, 0o644, (None, None))?,
                // The step's own file is mounted here.
                _ if name == "hosts" && self.name == Path::new("etc") => {
                    self.put(&path, b"", 0o644, (None, None))?;
                }
                _ => {}
            }
        }
        if let Some(mtab) = self.place(&self.name.join("mtab"))? {
            std::os::unix::fs::symlink("/proc/self/mounts", &mtab).doing("make the link", &mtab)?;
        }
        Ok(())
    }

    /// Puts a file into the mask that differs from the machine's only in its content.
    fn put_like(&mut self, path: &Path, content: &[u8], model: &Metadata) -> Result<(), StoreError> {
        self.put(path, content, model.mode() & 0o7777, (Some(model.uid()), Some(model.gid())))
    }

    fn put(
        &mut self,
        path: &Path,
        content: &[u8],
        mode: u32,
        (owner, group): (Option<u32>, Option<u32>),
    ) -> Result<(), StoreError> {
        let Some(place) = self.place(path)? else { return Ok(()) };
        fs::write(&place, content).doing("write", &place)?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&place, owner, group).doing("own", &place)?;
        }
        fs::set_permissions(&place, Permissions::from_mode(mode)).doing("set the mode of", &place)
    }

    /// Returns the place of `path` in the mask, and creates its parents with the attributes of the machine's.
    /// Returns `None` if the mask already contains something there, or if a parent of it is hidden.
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

/// Returns whether users other than the owner and the group cannot read this file, or cannot list or enter
/// this directory. Permission to run a file does not count, because steps running as root could read it, too.
fn is_private(metadata: &Metadata) -> bool {
    let others = metadata.mode() & 0o005;
    if metadata.is_dir() { others != 0o005 } else { metadata.is_file() && others & 0o004 == 0 }
}

/// Returns whether this is one of [`PROGRAMS`], which contain nothing that is not in their packages.
fn is_program(path: &Path, metadata: &Metadata) -> bool {
    PROGRAMS.iter().any(|program| path == Path::new(program)) && metadata.is_file() && metadata.mode() & 0o001 != 0
}
