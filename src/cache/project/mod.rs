//! Determines the project that a cached result belongs to.
//!
//! ```text
//! source ─▶ its repository (`.git` upwards) ─▶ URL of `origin` ─▶ git:github.com/owner/repo//directory
//!                                         └──▶ none           ─▶ path:/canonical/directory
//! ```
//!
//! Files are read, but git is never run, because a checkout's configuration may name programs for it to run.
//! The files only determine a name. A checkout with a false origin can therefore access the results of
//! another project, but nothing else.

mod config;
mod origin;
mod url;

use std::{
    fmt, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

pub use self::origin::RemoteOrigin;
use self::url::Origin;
use crate::project::{common_dir, read_plain, repository_above};

/// More than the size of any real configuration.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// How many local clones of local clones are followed.
const MAX_CLONES: u32 = 16;

/// The project that results belong to. It is part of every cache key, so that no project uses another one's
/// results.
///
/// ```
/// use hm_exec::cache::ProjectId;
///
/// assert_eq!(ProjectId::named("monorepo").as_str(), "id:monorepo");
/// let here = ProjectId::of_checkout(std::path::Path::new("."));
/// assert!(here.as_str().starts_with("git:") || here.as_str().starts_with("path:"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(Arc<str>);

impl ProjectId {
    /// Returns the project that is checked out at `dir`: its repository's `origin`, and the path of `dir` in
    /// the repository. If the origin cannot be determined, returns [`of_directory`](Self::of_directory).
    /// Blocks while a few small files are read.
    #[must_use]
    pub fn of_checkout(dir: &Path) -> Self {
        let dir = canonical(dir);
        let Some(top) = repository_above(&dir) else { return Self::of_directory(&dir) };
        let below = dir.strip_prefix(top).unwrap_or(Path::new("")).to_owned();
        Self::of_repository(top, &top.join(".git"), &below, MAX_CLONES)
    }

    /// Returns the project of a directory that is not a checkout: its canonical path.
    #[must_use]
    pub fn of_directory(dir: &Path) -> Self {
        Self::of_path("path", &canonical(dir))
    }

    /// Returns a project that the user named explicitly.
    #[must_use]
    pub fn named(id: &str) -> Self {
        Self(format!("id:{id}").into())
    }

    /// Returns a name that several projects share on purpose.
    #[must_use]
    pub fn shared(name: &str) -> Self {
        Self(format!("share:{name}").into())
    }

    /// Returns the part of this project in a directory below its top.
    #[must_use]
    pub fn below(self, path: &Path) -> Self {
        let named = path.components().any(|part| matches!(part, Component::Normal(_)));
        // The text before it never contains two consecutive slashes, because origins and paths are
        // normalized.
        if named { Self(format!("{}//{}", self.0, text_of(path)).into()) } else { self }
    }

    /// Returns the project as text: `git:`, `path:`, `id:` or `share:`, followed by its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_path(kind: &str, path: &Path) -> Self {
        Self(format!("{kind}:{}", text_of(path)).into())
    }

    fn of_repository(top: &Path, git: &Path, below: &Path, clones: u32) -> Self {
        let itself = || Self::of_directory(&top.join(below));
        let url = match read_origin(top, git) {
            Ok(Some(url)) => url,
            Ok(None) => return itself(),
            Err(error) => {
                tracing::warn!(%error, "failed to read the project's origin; using the cached results of its directory");
                return itself();
            }
        };
        let local = match url::parse(&url) {
            Origin::Remote(origin) => return Self(format!("git:{origin}").into()).below(below),
            Origin::Opaque => return itself(),
            Origin::Local(local) => top.join(local),
        };
        let Some(next) = clones.checked_sub(1) else { return itself() };
        match Place::of(&local) {
            Place::Repository { top, git } => Self::of_repository(&top, &git, below, next),
            Place::Directory(dir) => Self::of_directory(&dir.join(below)),
        }
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The target of a local origin.
enum Place {
    Repository { top: PathBuf, git: PathBuf },
    Directory(PathBuf),
}

impl Place {
    /// Looks where git would: at the path, or at the path with `.git` appended.
    fn of(path: &Path) -> Self {
        let with_suffix = || {
            let mut name = path.as_os_str().to_owned();
            name.push(".git");
            PathBuf::from(name)
        };
        let path = if path.exists() { path.to_owned() } else { with_suffix() };
        let dir = canonical(&path);
        match (dir.file_name(), dir.parent()) {
            (Some(name), Some(top)) if name == ".git" => Self::Repository { top: top.to_owned(), git: dir.clone() },
            _ if dir.join(".git").symlink_metadata().is_ok() => Self::Repository { git: dir.join(".git"), top: dir },
            _ if dir.join("HEAD").is_file() => Self::Repository { git: dir.clone(), top: dir },
            _ => Self::Directory(dir),
        }
    }
}

/// Returns the URL of a repository's origin, if it has one.
fn read_origin(top: &Path, git: &Path) -> io::Result<Option<String>> {
    let path = common_dir(top, git)?.join("config");
    let Some(config) = read_plain(&path, MAX_CONFIG_BYTES)? else { return Ok(None) };
    config::origin_url(&String::from_utf8_lossy(&config)).map_err(|malformed| {
        let text = format!("{}, line {}: not in git's format", path.display(), malformed.line);
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

/// Returns the path without links or, if it cannot be resolved, an absolute path.
fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Returns a path as text. A path that is not valid text is mapped to a text that no other path has.
fn text_of(path: &Path) -> String {
    match path.to_str() {
        Some(text) => text.to_owned(),
        None => format!("\0{}", path.as_os_str().as_bytes().escape_ascii()),
    }
}

#[cfg(test)]
mod tests;
