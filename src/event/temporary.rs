//! Directories of runs that are not kept, and the removal of directories that killed processes left.
//!
//! ```text
//! $TMPDIR/hm-exec-UID/        mode 0700, owned by this user, otherwise not used
//!   run-XXXXXX/hm-run         the marker: only a directory that has it is ever removed
//!   run-XXXXXX/journal        locked for as long as the run is written or read
//! ```
//!
//! All checks and removals are relative to open directories, because other users may write to `$TMPDIR`.

use std::{
    ffi::CStr,
    fs::{DirBuilder, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Once,
    thread,
    time::{Duration, SystemTime},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, unlinkat},
    io::Errno,
};
use tempfile::TempDir;

use crate::tree::{entries, open_dir, open_dir_at};

/// The prefix of run directories in the private directory.
const PREFIX: &str = "run-";

/// The prefix of run directories in `$TMPDIR` itself, used if there is no private directory. These are never
/// cleaned up later.
const UNSWEPT_PREFIX: &str = "hm-run-";

/// The marker's name, and its content.
const MARKER: &CStr = c"hm-run";
const MARKER_TEXT: &[u8] = b"This directory belongs to a run of hm-exec, which removes it.\n";

/// The minimum age of a directory to be removed. Younger directories may lack their journal, or its lock,
/// because they are still being made.
const MIN_AGE: Duration = Duration::from_secs(60);

static SWEPT: Once = Once::new();

/// Makes a directory for a run in the system's temporary directory. The first call in a process also starts a
/// thread that removes the directories of runs that were killed.
pub(super) fn create() -> io::Result<TempDir> {
    let top = std::env::temp_dir();
    match private_dir(&top) {
        Ok((path, dir)) => {
            SWEPT.call_once(|| sweep(dir));
            make(&path, PREFIX)
        }
        Err(error) => {
            // Another user may have taken the name, which must not prevent runs from starting.
            tracing::debug!(%error, "directories of killed runs remain in {}", top.display());
            make(&top, UNSWEPT_PREFIX)
        }
    }
}

/// Opens this user's directory for runs in `top`, and makes it if it is missing.
fn private_dir(top: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let user = rustix::process::geteuid().as_raw();
    let path = top.join(format!("hm-exec-{user}"));
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let dir = open_dir(&path)?;
    let stat = fstat(&dir)?;
    let refused = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {why}", path.display()));
    if stat.st_uid != user {
        return Err(refused(format!("it belongs to user {}", stat.st_uid)));
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::RWXG | Mode::RWXO) {
        return Err(refused("it is accessible to others".into()));
    }
    Ok((path, dir))
}

/// Makes a marked directory that only its owner may enter.
fn make(parent: &Path, prefix: &str) -> io::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix(prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent)?;
    let marker = dir.path().join(MARKER.to_string_lossy().as_ref());
    File::options().write(true).create_new(true).mode(0o600).open(marker)?.write_all(MARKER_TEXT)?;
    Ok(dir)
}

/// Removes the directories of killed runs, in a separate thread, because there may be many.
fn sweep(dir: OwnedFd) {
    let work = move || {
        if let Err(error) = remove_abandoned(&dir, SystemTime::now()) {
            tracing::debug!(%error, "failed to look for killed runs");
        }
    };
    if let Err(error) = thread::Builder::new().name("hm-old-runs".into()).spawn(work) {
        tracing::debug!(%error, "failed to look for killed runs");
    }
}

fn remove_abandoned(parent: &OwnedFd, now: SystemTime) -> io::Result<()> {
    for (name, kind) in entries(parent)? {
        let is_candidate = matches!(kind, FileType::Directory | FileType::Unknown);
        if is_candidate
            && name.to_bytes().starts_with(PREFIX.as_bytes())
            && let Err(error) = remove_if_abandoned(parent, &name, now)
        {
            tracing::debug!(%error, ?name, "failed to remove a killed run");
        }
    }
    Ok(())
}

/// Removes a marked directory if its journal can be locked, which means that no process writes or reads the
/// run.
fn remove_if_abandoned(parent: &OwnedFd, name: &CStr, now: SystemTime) -> io::Result<()> {
    let dir = match open_dir_at(parent, name) {
        Err(error) if is_absent(&error) => return Ok(()),
        dir => dir?,
    };
    let stat = fstat(&dir)?;
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    let is_old = now.duration_since(modified).unwrap_or_default() >= MIN_AGE;
    if stat.st_uid != rustix::process::geteuid().as_raw() || !is_old || !is_marked(&dir)? {
        return Ok(());
    }
    // The lock is held until everything is removed.
    let journal = open_file(&dir, c"journal")?;
    if journal.as_ref().is_some_and(|journal| journal.try_lock().is_err()) {
        return Ok(());
    }
    // The marker is removed last, so that an interrupted removal can be resumed.
    empty(&dir, Some(MARKER))?;
    remove(&dir, MARKER, AtFlags::empty())?;
    remove(parent, name, AtFlags::REMOVEDIR)
}

fn is_marked(dir: &OwnedFd) -> io::Result<bool> {
    let Some(marker) = open_file(dir, MARKER)? else { return Ok(false) };
    let mut text = Vec::new();
    marker.take(MARKER_TEXT.len() as u64 + 1).read_to_end(&mut text)?;
    Ok(text == MARKER_TEXT)
}

/// Opens a regular file. Returns `None` if there is no such entry, or if it is something else.
fn open_file(dir: &OwnedFd, name: &CStr) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        file => file?,
    };
    let is_file = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile;
    Ok(is_file.then(|| file.into()))
}

/// Removes the files of a run: files, and directories of files. Anything deeper was not made by a run, and is
/// an error.
fn empty(dir: &OwnedFd, kept: Option<&CStr>) -> io::Result<()> {
    for (name, _) in entries(dir)? {
        if kept == Some(&*name) {
            continue;
        }
        match open_dir_at(dir, &*name) {
            Ok(below) if kept.is_some() => {
                empty(&below, None)?;
                remove(dir, &name, AtFlags::REMOVEDIR)?;
            }
            Ok(_) => remove(dir, &name, AtFlags::REMOVEDIR)?,
            Err(_) => remove(dir, &name, AtFlags::empty())?,
        }
    }
    Ok(())
}

fn remove(dir: impl AsFd, name: &CStr, flags: AtFlags) -> io::Result<()> {
    match unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::event::logs::RunFiles;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    #[test]
    fn runs_that_were_killed_are_removed_and_no_others() {
        let top = tempfile::tempdir().unwrap();
        let (parent, dir) = private_dir(top.path()).unwrap();
        let later = SystemTime::now() + 2 * MIN_AGE;
        let run = |locked: bool| {
            let path = make(&parent, PREFIX).unwrap().keep();
            let (files, journal) = RunFiles::create(&path, None).unwrap();
            fs::write(files.log_path(0, 1), "output").unwrap();
            (path, locked.then_some((files, journal)))
        };
        let (live, _held) = run(true);
        let (killed, _) = run(false);
        let early = make(&parent, PREFIX).unwrap().keep();
        // A user's directory, or one that only looks like a run.
        fs::create_dir(parent.join("run-mine")).unwrap();
        fs::write(parent.join("run-mine/thesis.txt"), "years of work").unwrap();
        fs::create_dir(parent.join("run-other")).unwrap();
        fs::write(parent.join("run-other/hm-run"), "not what the marker says").unwrap();
        fs::create_dir(parent.join("run-linked")).unwrap();
        symlink(live.join("hm-run"), parent.join("run-linked/hm-run")).unwrap();
        symlink(&killed, parent.join("run-link")).unwrap();
        fs::create_dir(parent.join("other")).unwrap();
        fs::write(parent.join("run-file"), "").unwrap();

        remove_abandoned(&dir, SystemTime::now()).unwrap();
        assert!(killed.exists(), "too young to tell");
        remove_abandoned(&dir, later).unwrap();
        assert!(!killed.exists() && !early.exists());
        let live = live.file_name().unwrap().to_string_lossy().into_owned();
        let mut expected = ["other", "run-file", "run-link", "run-linked", "run-mine", "run-other", &live];
        expected.sort_unstable();
        assert_eq!(names(&parent), expected);
        assert_eq!(fs::read(parent.join("run-mine/thesis.txt")).unwrap(), b"years of work");
    }

    #[test]
    fn a_removal_that_was_interrupted_is_resumed_and_deeper_directories_stay() {
        let top = tempfile::tempdir().unwrap();
        let (parent, dir) = private_dir(top.path()).unwrap();
        let run = make(&parent, PREFIX).unwrap().keep();
        fs::create_dir_all(run.join("logs/mine/deep")).unwrap();
        let later = SystemTime::now() + 2 * MIN_AGE;
        remove_abandoned(&dir, later).unwrap();
        assert!(run.join("logs/mine/deep").exists() && run.join("hm-run").exists());
        fs::remove_dir_all(run.join("logs/mine")).unwrap();
        remove_abandoned(&dir, later).unwrap();
        assert_eq!(names(&parent), [""; 0]);
    }

    #[test]
    fn a_directory_that_others_may_enter_or_that_is_a_link_is_not_used() {
        let top = tempfile::tempdir().unwrap();
        let (path, _) = private_dir(top.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(private_dir(top.path()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        fs::remove_dir(&path).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), &path).unwrap();
        assert!(private_dir(top.path()).is_err());
        assert_eq!(names(elsewhere.path()), [""; 0]);
        if rustix::process::geteuid().is_root() {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(private_dir(top.path()).unwrap_err().to_string().contains("belongs to user 12345"));
        }
    }
}
