//! Recorded consent: a file for each project in `$XDG_STATE_HOME/hm/trust`, named after the project's path.
//!
//! Files are replaced as a whole under a lock, so that concurrent processes lose no consent, and a reader
//! needs no lock. A file that another user owns or may write to is not trusted.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::Permission;
use crate::{
    failure::{Failure, Outcome},
    reporter::to_stderr,
};

const VERSION: u32 = 1;
/// No file that this module writes is larger.
const MAX_BYTES: u64 = 1 << 20;

/// A user's recorded consent for one project.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// The project's directory, for the user. Lookups use the file's name.
    pub(crate) project: String,
    pub(crate) granted: Vec<Granted>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Granted {
    /// The key and the value, without secrets.
    pub(crate) what: String,
    digest: String,
    pub(crate) since: DateTime<Utc>,
}

/// Returns the digests of what the user consented to for `project`.
pub(crate) fn of(project: &Path) -> Outcome<BTreeSet<String>> {
    let Some(dir) = grants_dir() else { return Ok(BTreeSet::new()) };
    let record = read(&dir, &file_name(project))?;
    Ok(record.into_iter().flat_map(|record| record.granted).map(|granted| granted.digest).collect())
}

/// Records consent to `permissions`, in addition to what was recorded before.
pub(crate) fn grant(project: &Path, permissions: &[&Permission]) -> Outcome<()> {
    let dir = grants_dir().ok_or_else(|| {
        Failure::input("no directory to record consent in: neither XDG_STATE_HOME nor HOME is set")
            .hint("set one of them, or use HM_TRUST=1")
    })?;
    let _lock = lock(&dir)?;
    let name = file_name(project);
    let granted = read(&dir, &name)?.map_or_else(Vec::new, |record| record.granted);
    let mut record = Record { version: VERSION, project: project.to_string_lossy().into_owned(), granted };
    let since = Utc::now();
    for permission in permissions {
        let digest = permission.digest();
        if !record.granted.iter().any(|granted| granted.digest == digest) {
            record.granted.push(Granted { what: permission.what(), digest, since });
        }
    }
    write(&dir, &name, &record).map_err(|error| failed("record consent in", &dir, error))
}

/// Removes all consent for `project`. Returns whether there was any.
pub(crate) fn revoke(project: &Path) -> Outcome<bool> {
    let Some(dir) = grants_dir().filter(|dir| dir.exists()) else { return Ok(false) };
    let _lock = lock(&dir)?;
    match fs::remove_file(dir.join(file_name(project))) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("revoke consent in", &dir, error)),
    }
}

/// Returns all recorded consent, by project.
pub(crate) fn all() -> Outcome<Vec<Record>> {
    let Some(dir) = grants_dir() else { return Ok(Vec::new()) };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read consent in", &dir, error)),
    };
    let mut records = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| failed("read consent in", &dir, error))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.ends_with(".json") && !name.starts_with('.')) {
            records.extend(read(&dir, name)?);
        }
    }
    records.sort_by(|a, b| a.project.cmp(&b.project));
    Ok(records)
}

fn failed(doing: &str, dir: &Path, error: io::Error) -> Failure {
    Failure::infrastructure(format_args!("failed to {doing} {}", dir.display())).because(error)
}

fn grants_dir() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("hm/trust"))
}

fn file_name(project: &Path) -> String {
    format!("{}.json", &blake3::hash(project.as_os_str().as_bytes()).to_hex()[..32])
}

/// Creates the directory if it is missing, accessible only to its owner, and waits for other writers.
fn lock(dir: &Path) -> Outcome<File> {
    let locked = || -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if dir.metadata()?.mode() & 0o777 != 0o700 {
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(dir.join(".lock"), flags, Mode::RUSR | Mode::WUSR)?);
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(file)
    };
    let file = locked().map_err(|error| failed("record consent in", dir, error))?;
    check_owner(dir, &dir.metadata().map_err(|error| failed("record consent in", dir, error))?)?;
    Ok(file)
}

/// Refuses a file that another user owns or may write to.
fn check_owner(path: &Path, metadata: &fs::Metadata) -> Outcome<()> {
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() == own && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Failure::input(format_args!(
        "recorded consent is not trusted: {} belongs to another user, or is writable by others",
        path.display()
    ))
    .hint("remove it, make it accessible only to you (chmod go-rwx), or use HM_TRUST=1"))
}

/// Returns a project's record. A damaged one counts as missing, after a warning.
fn read(dir: &Path, name: &str) -> Outcome<Option<Record>> {
    let path = dir.join(name);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(failed("read consent in", dir, errno.into())),
    };
    let unreadable = |error| failed("read consent in", dir, error);
    check_owner(dir, &dir.metadata().map_err(unreadable)?)?;
    let metadata = file.metadata().map_err(unreadable)?;
    check_owner(&path, &metadata)?;
    let mut bytes = Vec::new();
    if metadata.is_file() {
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) if record.version == VERSION => Ok(Some(record)),
        _ => {
            to_stderr(&format!(
                "warning: ignoring the consent in {}, which is damaged or from another version of hm",
                path.display()
            ));
            Ok(None)
        }
    }
}

/// Replaces a record atomically.
fn write(dir: &Path, name: &str, record: &Record) -> io::Result<()> {
    let mut file =
        tempfile::Builder::new().prefix(".new-").permissions(Permissions::from_mode(0o600)).tempfile_in(dir)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name)).map_err(|error| error.error)?;
    Ok(())
}
