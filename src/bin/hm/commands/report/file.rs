//! Files of reports, which are old or new, and never half of one. A killed process leaves nothing of them.

use std::{
    fs::{self, File, Permissions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufWriter, Write},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, linkat, rename},
    io::Errno,
};

use crate::failure::{Failure, Outcome};

/// The prefix of names that files have for a moment.
const PREFIX: &str = ".hm-report-";

/// How often a file gets its name. After that, other processes write the same report all the time.
const ROUNDS: u32 = 100;

/// The age from which a file that no process has locked belongs to one that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// The mode of a new file, of which the user's mask leaves a part.
const MODE: u32 = 0o666;

/// The mode of a new file in the store, which is for its owner alone.
const STORE_MODE: u32 = 0o600;

/// Returns whether a path stands for the standard output.
pub(super) fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Writes a report. A reader of the file sees the whole report, or what was there before.
pub(super) fn write(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Outcome<()> {
    let written = if is_stdout(path) {
        match buffered(io::stdout().lock(), write) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map(drop),
        }
    } else {
        write_file(path, MODE, write)
    };
    let name = if is_stdout(path) { "to stdout".into() } else { path.display().to_string() };
    written.map_err(|error| Failure::input(format_args!("failed to write {name}")).because(error))
}

/// Writes a report to a file in the store.
pub(super) fn write_in_store(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Outcome<()> {
    write_file(path, STORE_MODE, write)
        .map_err(|error| Failure::infrastructure(format_args!("failed to write {}", path.display())).because(error))
}

fn write_file(path: &Path, new_mode: u32, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // A link stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = fs::metadata(&target).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        // A pipe or a terminal, such as /dev/stdout. Opening a directory is an error.
        return buffered(File::options().write(true).open(&target)?, write).map(drop);
    }
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A new file is for others as far as the user's mask allows. One that replaces another is for no more
    // users than that.
    let mode = old.as_ref().map_or(new_mode, |old| old.permissions().mode() & 0o777);
    match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(mode)) {
        Ok(file) => give_name(&buffered(File::from(file), write)?, &target),
        // Only the file may be written to, and not its directory.
        Err(Errno::ACCESS) if old.is_some() => buffered(File::create(&target)?, write).map(drop),
        // The filesystem has no files without names.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS | Errno::INVAL) => write_beside(&target, mode, write),
        Err(error) => Err(error.into()),
    }
}

/// Gives a whole file without a name that of its target. If this process is killed before, nothing of the
/// file is left.
fn give_name(file: &File, target: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |name: &Path| linkat(CWD, &*open, CWD, name, AtFlags::SYMLINK_FOLLOW);
    match link(target) {
        Err(Errno::EXIST) => {}
        linked => return Ok(linked?),
    }
    // A link replaces no file, but a rename does. Each target has a name of its own for the time between, so
    // that the next report finds what a process left that was killed here. What has this name is whole.
    let mut hash = DefaultHasher::new();
    target.file_name().hash(&mut hash);
    let between = target.with_file_name(format!("{PREFIX}{:016x}", hash.finish()));
    let place = || match rename(&between, target) {
        // Another process has done it, which writes the same report.
        Err(Errno::NOENT) => Ok(()),
        renamed => renamed,
    };
    for _ in 0..ROUNDS {
        match link(&between) {
            Err(Errno::EXIST) => place()?,
            linked => return Ok(linked.and_then(|()| place().inspect_err(|_| _ = remove(&between)))?),
        }
    }
    Err(Errno::BUSY.into())
}

/// Writes to a file beside the target, for filesystems that have no files without names.
fn write_beside(target: &Path, mode: u32, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    remove_abandoned(dir);
    let file = tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(mode)).tempfile_in(dir)?;
    // It tells others that this process is alive. Without locks, its age does.
    if let Err(error) = file.as_file().try_lock() {
        tracing::debug!(%error, "the file of a report cannot be locked");
    }
    let file = buffered(file, write)?;
    file.persist(target).map(drop).map_err(|error| error.error)
}

/// Removes the files of processes that were killed when they wrote a report.
fn remove_abandoned(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) || !is_abandoned(&path) {
            continue;
        }
        if let Err(error) = remove(&path) {
            tracing::debug!(path = %path.display(), %error, "the file of an earlier report cannot be removed");
        }
    }
}

fn is_abandoned(path: &Path) -> bool {
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, open, Mode::empty()).map(File::from) else { return false };
    let changed = file.metadata().ok().filter(fs::Metadata::is_file).and_then(|file| file.modified().ok());
    // The lock may be a moment younger than the file.
    changed.and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= ABANDONED_AFTER) && file.try_lock().is_ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes to `file` through a buffer, and returns the file.
fn buffered<W: Write>(file: W, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<W> {
    let mut out = BufWriter::with_capacity(256 << 10, file);
    write(&mut out)?;
    // Also what the file itself holds back, as the standard output does.
    out.flush()?;
    out.into_inner().map_err(io::IntoInnerError::into_error)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_report_has_a_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        for text in ["first", "second"] {
            let before = names(dir.path());
            let written = write_file(&path, MODE, |out| {
                out.write_all(text.as_bytes())?;
                out.flush()?;
                assert_eq!(names(dir.path()), before);
                Ok(())
            });
            written.unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(names(dir.path()), ["report"]);
        }
        write_file(&path, MODE, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!((names(dir.path()), fs::read_to_string(&path).unwrap()), (vec!["report".into()], "second".into()));
    }

    #[test]
    fn what_was_left_between_link_and_rename_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        let whole = |text: &str| {
            let mut file =
                File::from(rustix::fs::open(dir.path(), OFlags::TMPFILE | OFlags::RDWR, Mode::RWXU).unwrap());
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        give_name(&whole("old"), &path).unwrap();
        let mut hash = DefaultHasher::new();
        path.file_name().hash(&mut hash);
        let between = format!("{PREFIX}{:016x}", hash.finish());
        fs::write(dir.path().join(&between), "left").unwrap();
        give_name(&whole("new"), &path).unwrap();
        assert_eq!((names(dir.path()), fs::read_to_string(&path).unwrap()), (vec!["report".into()], "new".into()));
    }

    #[test]
    fn writers_of_one_report_at_once_leave_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        std::thread::scope(|scope| {
            for writer in ["a", "b", "c", "d"] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_file(path, MODE, |out| out.write_all(writer.repeat(1000).as_bytes())).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() == 1000 && text == text[..1].repeat(1000), "{text}");
        assert_eq!(names(dir.path()), ["report"]);
    }

    #[test]
    fn without_unnamed_files_those_of_killed_writers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, age: u32| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - ABANDONED_AFTER * age).unwrap();
            file
        };
        file(".hm-report-old", 2);
        file(".hm-report-new", 0);
        file("other", 2);
        let written = file(".hm-report-written", 2);
        written.try_lock().unwrap();
        write_beside(&dir.path().join("report"), MODE, |out| out.write_all(b"text")).unwrap();
        assert_eq!(names(dir.path()), [".hm-report-new", ".hm-report-written", "other", "report"]);
        write_beside(&dir.path().join("report"), MODE, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(names(dir.path()), [".hm-report-new", ".hm-report-written", "other", "report"]);
        assert_eq!(fs::read(dir.path().join("report")).unwrap(), b"text");
    }
}
