//! Writes single keys of configuration files, and keeps everything else as it is, comments included.

use std::{
    ffi::OsStr,
    fs::{DirBuilder, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use hm_exec::project::{CONFIG_BYTES, ProjectDir};
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat},
    io::Errno,
};
use toml_edit::{DocumentMut, Item, Table};

use super::file::{self, OWN_NAME, PROJECT_DIR, SHARED_NAME};
use crate::failure::{Failure, Outcome};

/// A directory whose files no other `hm` changes at the same time.
#[derive(Debug)]
pub(super) struct LockedDir {
    dir: OwnedFd,
    _lock: OwnedFd,
}

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl LockedDir {
    /// Creates the directory if it is missing, accessible only to its owner, and waits for other writers.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let dir = rustix::fs::open(path, DIR_FLAGS, Mode::empty())?;
        // A file and not the directory is locked, because NFS locks only what can be written to.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let lock = openat(&dir, ".lock", flags, Mode::RUSR | Mode::WUSR)?;
        Self::lock(dir, lock)
    }

    /// Waits for other writers in the project's directory of pipelines. It must not be a link.
    fn of_project(project: &ProjectDir) -> io::Result<Self> {
        let dir = rustix::fs::open(project.path().join(PROJECT_DIR), DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty())?;
        let lock = dir.try_clone()?;
        Self::lock(dir, lock)
    }

    fn lock(dir: OwnedFd, lock: OwnedFd) -> io::Result<Self> {
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Replaces a file, whole or not at all. A link in its place is replaced, not followed.
    pub(super) fn replace(&self, name: &OsStr, bytes: &[u8], mode: Mode) -> io::Result<()> {
        let mut temporary = OsStr::new(".").to_owned();
        temporary.push(name);
        temporary.push(".new");
        // Only a killed process can have left it, because this one has the lock.
        match unlinkat(&self.dir, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.dir, &temporary, flags, Mode::RUSR | Mode::WUSR)?);
        let written = file
            .write_all(bytes)
            .and_then(|()| file.set_permissions(std::fs::Permissions::from_mode(mode.as_raw_mode())))
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(renameat(&self.dir, &temporary, &self.dir, name)?));
        if let Err(error) = written {
            // Best effort: the next writer removes it as well.
            let _ = unlinkat(&self.dir, &temporary, AtFlags::empty());
            return Err(error);
        }
        // The new file is there; only a power failure could bring the old one back.
        if let Err(errno) = rustix::fs::fsync(self.dir.as_fd()) {
            tracing::debug!(%errno, "failed to synchronize a directory");
        }
        Ok(())
    }
}

/// Sets keys such as `cloud.org` in the user's own file. Returns the file.
pub(crate) fn set_users(keys: &[(&str, &str)]) -> Outcome<PathBuf> {
    let path = users_file(keys).ok_or_else(|| {
        Failure::input("no directory for configuration: neither XDG_CONFIG_HOME nor HOME is set")
            .hint("set one of them")
    })?;
    set_in(&path, keys)?;
    Ok(path)
}

/// Sets keys in one file of the user.
fn set_in(path: &Path, keys: &[(&str, &str)]) -> Outcome<()> {
    let failed =
        |error: io::Error| Failure::infrastructure(format_args!("failed to write {}", path.display())).because(error);
    // People keep such files elsewhere, and link to them: the link stays.
    let real = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        real => real.map_err(failed)?,
    };
    let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(Failure::input(format_args!("{} is not a file", real.display())));
    };
    let dir = LockedDir::create(parent).map_err(failed)?;
    let old = if real.exists() { Some(super::read_users(&real)?) } else { None };
    let mode = real.metadata().map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
    let text = with_keys(path, old, keys)?;
    dir.replace(name, text.as_bytes(), Mode::from_raw_mode(mode)).map_err(failed)
}

/// Sets keys in the project's `.hm/config.toml`, to which the user has agreed. Returns the file.
pub(crate) fn set_projects(project: &ProjectDir, keys: &[(&str, &str)]) -> Outcome<PathBuf> {
    let path = Path::new(PROJECT_DIR).join(SHARED_NAME);
    let shown = project.path().join(&path);
    let failed = |error: io::Error| Failure::input(format_args!("failed to write {}", shown.display())).because(error);
    let dir = LockedDir::of_project(project).map_err(failed)?;
    let old = project.read_text_if_any(&path, CONFIG_BYTES)?.map(String::into_bytes);
    let text = with_keys(&shown, old, keys)?;
    dir.replace(SHARED_NAME.as_ref(), text.as_bytes(), Mode::from_raw_mode(0o644)).map_err(failed)?;
    Ok(shown)
}

/// Returns the user's file that has the first of the keys, else one that exists, else the one to create.
fn users_file(keys: &[(&str, &str)]) -> Option<PathBuf> {
    let files = file::user_files();
    let has_key = |path: &PathBuf| {
        let text = super::read_users(path).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let document = text.and_then(|text| text.parse::<DocumentMut>().ok());
        document.zip(keys.first()).is_some_and(|(document, (key, _))| {
            key.split('.').try_fold(document.as_item(), |item, part| item.get(part)).is_some()
        })
    };
    let shared = |path: &&PathBuf| path.file_name().is_some_and(|name| name == SHARED_NAME);
    let found = files.iter().find(|path| path.exists() && has_key(path));
    // The published `hm` reads this one as well.
    let found = found.or_else(|| files.iter().filter(shared).find(|path| path.exists()));
    found.cloned().or_else(|| Some(file::user_dirs().first()?.join(OWN_NAME)))
}

/// Returns a file's text with keys set.
fn with_keys(path: &Path, old: Option<Vec<u8>>, keys: &[(&str, &str)]) -> Outcome<String> {
    let invalid = || {
        Failure::input(format_args!("{} is not valid, so it is not changed", path.display()))
            .hint("run `hm config` to see its mistakes")
    };
    let text = String::from_utf8(old.unwrap_or_default()).map_err(|_| invalid())?;
    let mut document: DocumentMut = text.parse().map_err(|_| invalid())?;
    // Comments without any key would move behind the new ones.
    let mut head = String::new();
    if document.is_empty() {
        head = text;
        if !head.is_empty() && !head.ends_with('\n') {
            head.push('\n');
        }
        document = DocumentMut::new();
    }
    for (key, value) in keys {
        let mut parts = key.split('.').collect::<Vec<_>>();
        let Some(last) = parts.pop() else { continue };
        let mut table = document.as_table_mut() as &mut dyn toml_edit::TableLike;
        for part in parts {
            let below = table.entry(part).or_insert_with(|| Item::Table(Table::new()));
            table = below.as_table_like_mut().ok_or_else(invalid)?;
        }
        match table.get_mut(last).and_then(Item::as_value_mut) {
            // The comment behind it stays.
            Some(old) => {
                let decor = old.decor().clone();
                *old = (*value).into();
                *old.decor_mut() = decor;
            }
            None => drop(table.insert(last, toml_edit::value(*value))),
        }
    }
    Ok(head + &document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, keys: &[(&str, &str)]) -> Outcome<String> {
        with_keys(Path::new("config.toml"), Some(text.as_bytes().to_vec()), keys)
    }

    #[test]
    fn one_key_is_set_and_all_else_stays() {
        let text = "# mine\nbackend = 'docker' # why\n\n[cloud] # here\norg = 'old'   # ours\n[x]\ny = [1,\n 2]\n";
        let expected = text.replace("'old'", "\"new\"");
        assert_eq!(edited(text, &[("cloud.org", "new")]).unwrap(), expected);
        assert_eq!(
            edited("", &[("cloud.org", "a"), ("cloud.pipeline", "p")]).unwrap(),
            "[cloud]\norg = \"a\"\npipeline = \"p\"\n"
        );
        assert_eq!(edited("cloud = { org = 'x' }\n", &[("cloud.org", "a")]).unwrap(), "cloud = { org = \"a\" }\n");
        assert_eq!(edited("cloud.org = 'x'\n", &[("cloud.org", "a\"b")]).unwrap(), "cloud.org = 'a\"b'\n");
    }

    #[test]
    fn a_link_and_the_mode_stay_and_writers_at_once_lose_nothing() {
        let top = tempfile::tempdir().unwrap();
        let (real, link) = (top.path().join("dotfiles/hm.toml"), top.path().join("hm/hm.toml"));
        for path in [&real, &link] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        std::fs::write(&real, "# mine\n").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        std::thread::scope(|scope| {
            for at in 0..8 {
                let link = &link;
                scope.spawn(move || set_in(link, &[(&format!("cloud.k{at}"), "x")]).unwrap());
            }
        });
        let text = std::fs::read_to_string(&real).unwrap();
        assert!(text.starts_with("# mine\n") && (0..8).all(|at| text.contains(&format!("k{at} = "))), "{text}");
        assert!(link.is_symlink());
        assert_eq!(real.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_project_is_written_to_below_its_own_directory_only() {
        let top = tempfile::tempdir().unwrap();
        let (inside, outside) = (top.path().join("in"), top.path().join("out"));
        for dir in [inside.join(".hm"), outside.clone()] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let project = ProjectDir::open(&inside).unwrap();
        let set = || set_projects(&project, &[("cloud.org", "acme")]);
        assert_eq!(set().unwrap(), inside.join(".hm/config.toml"));
        std::fs::write(outside.join("config.toml"), "").unwrap();
        std::fs::remove_file(inside.join(".hm/config.toml")).unwrap();
        std::os::unix::fs::symlink(outside.join("config.toml"), inside.join(".hm/config.toml")).unwrap();
        assert!(set().is_err());
        std::fs::remove_dir_all(inside.join(".hm")).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join(".hm")).unwrap();
        assert!(set().is_err());
        assert_eq!(std::fs::read(outside.join("config.toml")).unwrap(), b"");
    }

    #[test]
    fn a_file_that_is_not_valid_is_not_changed() {
        for text in ["[cloud", "cloud = 3", "\0"] {
            assert!(edited(text, &[("cloud.org", "a")]).is_err(), "{text:?}");
        }
        assert!(with_keys(Path::new("x"), Some(vec![0xff]), &[("cloud.org", "a")]).is_err());
    }
}
