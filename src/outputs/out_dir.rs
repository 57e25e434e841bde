//! The directory `.hm/out/<pipeline>/<step>` of a source directory. It is replaced as a whole.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{self, AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use uuid::Uuid;

use crate::{
    project::OUT,
    tree::{entries, open_dir_at, remove_tree},
};

/// The start of the names of what is not in place yet.
const NEW: &str = ".new-";
/// The longest name that is not shortened, in bytes.
const LONGEST: usize = 200;

/// A new directory, which is not in place yet. Dropping it removes it.
#[derive(Debug)]
pub(super) struct NewDir {
    /// `.hm/out/<pipeline>`.
    parent: OwnedFd,
    name: String,
    /// The final name.
    step: String,
    /// Locked as long as the directory is not in place.
    dir: OwnedFd,
}

/// Returns the place of a step's outputs below the source directory.
pub(super) fn path(pipeline: &str, step: &str) -> PathBuf {
    Path::new(".hm").join(OUT).join(plain_name(pipeline)).join(plain_name(step))
}

/// Removes the outputs of a pipeline's steps, or of one of them, but not what is being made.
pub(crate) fn clear(source_dir: &Path, pipeline: &str, step: Option<&str>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = fs::openat(CWD, source_dir, flags, Mode::empty())?;
    for name in [".hm", OUT, &plain_name(pipeline)] {
        dir = match open_dir_at(&dir, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // What is there is no directory, which is reported when outputs are to be written there.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOTDIR | Errno::LOOP)) => return Ok(()),
            opened => opened?,
        };
    }
    let only = step.map(plain_name);
    for (name, _) in entries(&dir)? {
        let is_other = only.as_ref().is_some_and(|only| only.as_bytes() != name.to_bytes());
        if is_other || name.to_bytes().starts_with(NEW.as_bytes()) {
            continue;
        }
        // Another run may put a directory in its place meanwhile.
        let old = new_name();
        match fs::renameat(&dir, &name, &dir, &*old) {
            Ok(()) => remove(dir.as_fd(), &old),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

impl NewDir {
    /// Makes a new directory for a step's outputs. Every directory on the way is made, if it is missing, and
    /// opened without following links.
    pub(super) fn make(source_dir: &Path, pipeline: &str, step: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = fs::openat(CWD, source_dir, flags, Mode::empty())?;
        let hm = sub_dir(top.as_fd(), ".hm")?;
        let out = sub_dir(hm.as_fd(), OUT)?;
        ignore_in_git(out.as_fd())?;
        let parent = sub_dir(out.as_fd(), &*plain_name(pipeline))?;
        sweep(parent.as_fd())?;
        let name = new_name();
        let dir = sub_dir(parent.as_fd(), &*name)?;
        fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        fs::flock(&parent, FlockOperation::Unlock)?;
        Ok(Self { parent, name, step: plain_name(step), dir })
    }

    /// Creates a file at a path of plain names.
    pub(super) fn create(&self, path: &Path, executable: bool) -> io::Result<File> {
        let mut dir = self.dir.try_clone()?;
        for name in path.parent().into_iter().flat_map(Path::iter) {
            dir = sub_dir(dir.as_fd(), name)?;
        }
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let mode = Mode::from_raw_mode(if executable { 0o777 } else { 0o666 });
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(dir, name, flags, mode)?.into())
    }

    /// Puts the directory in its place. What was there is removed.
    pub(super) fn put_in_place(self) -> io::Result<()> {
        let (parent, name, step) = (&self.parent, &*self.name, &*self.step);
        match fs::renameat_with(parent, name, parent, step, RenameFlags::EXCHANGE) {
            // What was there has the other name now, and is removed with this value.
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Ok(fs::renameat(parent, name, parent, step)?),
            // A file system without exchange. For a moment there is nothing in place.
            Err(Errno::INVAL | Errno::NOSYS) => {
                let old = new_name();
                fs::renameat(parent, step, parent, &*old)?;
                fs::renameat(parent, name, parent, step)?;
                remove(parent.as_fd(), &old);
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for NewDir {
    fn drop(&mut self) {
        if fs::statat(&self.parent, &*self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            remove(self.parent.as_fd(), &self.name);
        }
    }
}

fn new_name() -> String {
    format!("{NEW}{}", Uuid::new_v4().simple())
}

/// Removes the tree `name` in `dir`, wherever that is now: its path may lead elsewhere since it was opened.
fn remove(dir: BorrowedFd<'_>, name: &str) {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    if let Err(error) = remove_tree(Path::new(&path)) {
        tracing::warn!(%error, "failed to remove old outputs, `{name}` in `.hm/out`");
    }
}

/// Opens the directory `name`, which is made if it is missing. A link is an error.
fn sub_dir(dir: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> io::Result<OwnedFd> {
    match fs::mkdirat(dir, name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => open_dir_at(dir, name),
        // A read-only file system that has the directory.
        Err(errno) => open_dir_at(dir, name).map_err(|_| errno.into()),
    }
}

/// Makes git, and the frozen source, ignore everything in `dir`.
fn ignore_in_git(dir: BorrowedFd<'_>) -> io::Result<()> {
    const IGNORE: &str = ".gitignore";
    if fs::statat(dir, IGNORE, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Ok(());
    }
    sweep(dir)?;
    let name = new_name();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(dir, &*name, flags, Mode::from_raw_mode(0o666))?;
    fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let written = File::from(file).write_all(b"*\n");
    let placed = written.and_then(|()| Ok(fs::renameat(dir, &*name, dir, IGNORE)?));
    fs::flock(dir, FlockOperation::Unlock)?;
    placed.inspect_err(|_| _ = fs::unlinkat(dir, &*name, AtFlags::empty()))
}

/// Removes what killed processes were making. What is being made is locked, or its process holds the shared
/// lock on `dir` that this leaves.
fn sweep(dir: BorrowedFd<'_>) -> io::Result<()> {
    if fs::flock(dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
        remove_unlocked(dir);
    }
    Ok(fs::flock(dir, FlockOperation::LockShared)?)
}

fn remove_unlocked(dir: BorrowedFd<'_>) {
    for (name, _) in entries(dir).unwrap_or_default() {
        let Some(name) = name.to_str().ok().filter(|name| name.starts_with(NEW)) else { continue };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(entry) = fs::openat(dir, name, flags, Mode::empty()) else { continue };
        if fs::flock(&entry, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(dir, name);
        }
    }
}

/// Returns a single plain name for any text: unusual characters are encoded, and a long name is shortened.
fn plain_name(text: &str) -> String {
    use std::fmt::Write as _;
    let mut name = String::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => name.push(byte.into()),
            b'.' if at > 0 => name.push('.'),
            byte => {
                // Writing to a text cannot fail.
                let _ = write!(name, "%{byte:02x}");
            }
        }
    }
    if name.is_empty() {
        return "%".to_owned();
    }
    if name.len() > LONGEST {
        let hash = blake3::hash(text.as_bytes()).to_hex();
        name.truncate(LONGEST - 17);
        let _ = write!(name, "%{}", &hash[..16]);
    }
    name
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, thread};

    use super::*;

    fn fill(top: &Path, text: &str) -> io::Result<()> {
        let new = NewDir::make(top, "ci", "a/b")?;
        for name in ["one", "deep/two"] {
            new.create(Path::new(name), false)?.write_all(text.as_bytes())?;
        }
        new.put_in_place()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_directory_is_replaced_as_a_whole_if_several_write_at_once() {
        let top = tempfile::tempdir().unwrap();
        let (top, place) = (top.path(), top.path().join(".hm/out/ci/a%2fb"));
        thread::scope(|scope| {
            for text in ["x", "y", "z"] {
                scope.spawn(move || (0..20).for_each(|_| fill(top, text).unwrap()));
            }
            for _ in 0..200 {
                // An open directory stays the one that it was.
                let Ok(dir) = rustix::fs::open(&place, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) else {
                    continue;
                };
                let read = |name: &str| {
                    let file = rustix::fs::openat(&dir, name, OFlags::RDONLY, Mode::empty()).ok()?;
                    io::read_to_string(File::from(file)).ok()
                };
                if let (Some(one), Some(two)) = (read("one"), read("deep/two")) {
                    assert_eq!(one, two);
                    assert_eq!(one.len(), 1, "no half file");
                }
            }
        });
        assert_eq!(names(&place), ["deep", "one"]);
        assert_eq!(names(place.parent().unwrap()), ["a%2fb"], "nothing else is left");
        assert_eq!(fs::read_to_string(top.join(".hm/out/.gitignore")).unwrap(), "*\n");
    }

    #[test]
    fn what_the_last_run_left_is_removed_and_no_more() {
        let top = tempfile::tempdir().unwrap();
        clear(top.path(), "ci", None).unwrap();
        assert_eq!(names(top.path()), [] as [&str; 0]);
        fill(top.path(), "x").unwrap();
        let being_made = NewDir::make(top.path(), "ci", "other").unwrap();
        NewDir::make(top.path(), "nightly", "a").unwrap().put_in_place().unwrap();
        fs::write(top.path().join(".hm/out/ci/file"), "").unwrap();
        let outside = top.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, top.path().join(".hm/out/ci/link")).unwrap();
        clear(top.path(), "ci", Some("c")).unwrap();
        assert_eq!(names(&top.path().join(".hm/out/ci")).len(), 4);
        clear(top.path(), "ci", Some("a/b")).unwrap();
        assert_eq!(names(&top.path().join(".hm/out/ci")).len(), 3);
        clear(top.path(), "ci", None).unwrap();
        assert_eq!(names(&top.path().join(".hm/out/ci")), [&*being_made.name]);
        assert_eq!(names(&top.path().join(".hm/out")), [".gitignore", "ci", "nightly"]);
        assert_eq!(
            (names(&top.path().join(".hm/out/nightly")), names(&outside)),
            (vec!["a".into()], vec!["kept".into()])
        );
        // A link in the place of the directory is not followed.
        fs::remove_dir_all(top.path().join(".hm/out/nightly")).unwrap();
        symlink(&outside, top.path().join(".hm/out/nightly")).unwrap();
        clear(top.path(), "nightly", None).unwrap();
        assert_eq!(names(&outside), ["kept"]);
    }

    #[test]
    fn no_link_of_a_checkout_is_followed() {
        for link in [".hm", ".hm/out", ".hm/out/ci"] {
            let top = tempfile::tempdir().unwrap();
            let (source, outside) = (top.path().join("source"), top.path().join("outside"));
            fs::create_dir_all(&outside).unwrap();
            fs::create_dir_all(source.join(link).parent().unwrap()).unwrap();
            symlink(&outside, source.join(link)).unwrap();
            assert!(fill(&source, "x").is_err(), "{link}");
            assert_eq!(names(&outside), [] as [&str; 0], "{link}");
        }
        // A link in the place of the outputs is replaced, and what it leads to stays.
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("source/.hm/out/ci");
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(top.path().join("outside")).unwrap();
        symlink(top.path().join("outside"), place.join("a%2fb")).unwrap();
        fill(&top.path().join("source"), "x").unwrap();
        assert_eq!((names(&place), names(&top.path().join("outside"))), (vec!["a%2fb".to_owned()], vec![]));
        assert!(place.join("a%2fb/one").is_file());
    }

    #[test]
    fn a_directory_that_becomes_a_link_meanwhile_leads_nowhere() {
        let top = tempfile::tempdir().unwrap();
        let (source, outside) = (top.path().join("source"), top.path().join("outside"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(outside.join("a%2fb")).unwrap();
        fs::write(outside.join("a%2fb/kept"), "").unwrap();
        fill(&source, "old").unwrap();
        let new = NewDir::make(&source, "ci", "a/b").unwrap();
        new.create(Path::new("one"), false).unwrap();
        let (place, aside) = (source.join(".hm/out/ci"), source.join("aside"));
        fs::rename(&place, &aside).unwrap();
        symlink(&outside, &place).unwrap();
        new.create(Path::new("deep/two"), false).unwrap();
        new.put_in_place().unwrap();
        assert_eq!((names(&outside), names(&outside.join("a%2fb"))), (vec!["a%2fb".into()], vec!["kept".into()]));
        assert_eq!(
            (names(&aside), names(&aside.join("a%2fb"))),
            (vec!["a%2fb".into()], vec!["deep".into(), "one".into()])
        );
        // So does one of the new directories.
        let new = NewDir::make(&aside, "ci", "step").unwrap();
        new.create(Path::new("deep/one"), false).unwrap();
        let made = aside.join(".hm/out/ci").join(&new.name);
        fs::rename(made.join("deep"), aside.join("deep")).unwrap();
        symlink(&outside, made.join("deep")).unwrap();
        assert!(new.create(Path::new("deep/two"), false).is_err());
        assert_eq!(names(&outside), ["a%2fb"]);
    }

    #[test]
    fn what_killed_processes_left_is_removed_and_what_is_locked_is_not() {
        let top = tempfile::tempdir().unwrap();
        let parent = top.path().join(".hm/out/ci");
        fs::create_dir_all(parent.join(".new-dead")).unwrap();
        let alive = NewDir::make(top.path(), "ci", "other").unwrap();
        fill(top.path(), "x").unwrap();
        assert_eq!(names(&parent), [alive.name.clone(), "a%2fb".to_owned()]);
        drop(alive);
        assert_eq!(names(&parent), ["a%2fb"]);
    }

    #[test]
    fn any_text_is_a_single_plain_name() {
        for (text, name) in
            [("test", "test"), ("..", "%2e."), ("", "%"), ("a/../b", "a%2f..%2fb"), ("ä\n", "%c3%a4%0a")]
        {
            assert_eq!(plain_name(text), name);
        }
        let [one, other] = ["x".repeat(300), format!("{}y", "x".repeat(299))].map(|text| plain_name(&text));
        assert!(one != other && one.len() == LONGEST, "{one}");
    }
}
