//! Sources, created from the engine's directory trees: each is created once, from the files of earlier ones
//! and from files that are fetched.
//!
//! A file of an earlier source is hard-linked, so that only changed files are transferred, and nothing is
//! written twice. Sources in the store are never written to: steps see them as the lower directory of an
//! overlay.

use crate::image;
use std::{
    collections::HashMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tokio::task::JoinError;

use super::inputs::{InputError, digest_of};
use crate::{
    blocking::{self, BlockingError},
    remote::{Cas, Digest, RemoteError, reapi},
    store::{ImageDigest, LayerId, Store, StoreError},
    sync::Mutex,
};

/// The maximum number of entries of a source.
const MAX_ENTRIES: usize = 4_000_000;
/// The maximum number of files that are remembered. Beyond it, all are forgotten at once, because a
/// long-lived worker must not grow with every source.
const MAX_REMEMBERED: usize = 1 << 20;
/// Files up to this size are fetched in batches.
const SMALL_BYTES: u64 = 1 << 20;
/// The size of such a batch.
const BATCH_BYTES: u64 = 16 << 20;

/// The reason why a source cannot be created.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkspaceError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("failed to make `{path}` of the source")]
    Make { path: String, source: io::Error },
}

impl BlockingError for WorkspaceError {
    fn not_done(_: &'static str, error: JoinError) -> Self {
        Self::Make { path: String::new(), source: io::Error::other(error) }
    }
}

impl From<RemoteError> for WorkspaceError {
    fn from(error: RemoteError) -> Self {
        Self::Input(error.into())
    }
}

/// The identity of a file in a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileKey {
    digest: Digest,
    mode: u32,
    mtime: Mtime,
}

/// The sources of a worker.
#[derive(Debug, Default)]
pub(super) struct Workspaces {
    /// The paths of files of sources in the store.
    files: Mutex<HashMap<FileKey, Arc<Path>>>,
}

/// A tree to create. Paths are relative, and directories come before their entries.
#[derive(Debug, Default)]
struct Plan {
    dirs: Vec<(PathBuf, u32, Mtime)>,
    files: Vec<(PathBuf, FileKey)>,
    links: Vec<(PathBuf, String, Mtime)>,
}

/// Seconds and nanoseconds since the Unix epoch. What has no time gets that of the epoch.
type Mtime = (i64, i32);

impl Workspaces {
    /// Returns the directory with the source of the tree `digest`, whose files are in its `workspace`. Call
    /// it while holding a lease on the store.
    ///
    /// # Errors
    /// Returns an error if the tree cannot be fetched or created.
    ///
    /// # Cancel safety
    /// If the future is dropped, nothing of the tree remains.
    pub(super) async fn get(&self, store: &Arc<Store>, cas: &Cas, digest: Digest) -> Result<PathBuf, WorkspaceError> {
        let name = ImageDigest::of(format!("workspace {digest}").as_bytes());
        let _lock = image::lock_layer(store, &image::tree_id(&name)).await?;
        let looker = Arc::clone(store);
        if let Some(layer) =
            blocking::run("look for the source", move || Ok::<_, WorkspaceError>(image::find_tree(&looker, &name)?))
                .await?
        {
            return Ok(store.layers().dir(&layer));
        }
        let plan = Arc::new(plan(cas, digest).await?);
        let tree = image::new_tree(store)?;
        let root = tree.root();
        let linked = {
            let (plan, root, files) = (Arc::clone(&plan), root.clone(), self.known(&plan));
            blocking::run("make the source", move || make(&plan, &root, &files)).await?
        };
        let missing: Vec<usize> = (0..plan.files.len()).filter(|index| !linked[*index]).collect();
        fetch(cas, &plan, &missing, &root).await?;
        let (keeper, made, at) = (Arc::clone(store), Arc::clone(&plan), root);
        let keeping = blocking::run("make the source", move || -> Result<LayerId, WorkspaceError> {
            // Innermost first, because creating an entry changes the modification time of its directory.
            for (dir, mode, mtime) in made.dirs.iter().rev() {
                let path = at.join(dir);
                let finished = fs::set_permissions(&path, Permissions::from_mode(*mode));
                finished.and_then(|()| set_mtime(&path, *mtime)).map_err(making(&path))?;
            }
            Ok(image::keep_tree(&keeper, tree, &name)?)
        });
        let layer = keeping.await?;
        self.remember(&plan, &store.layers().dir(&layer));
        Ok(store.layers().dir(&layer))
    }

    /// Returns the paths of those files of a plan that are known.
    fn known(&self, plan: &Plan) -> HashMap<FileKey, Arc<Path>> {
        let files = self.files.lock();
        plan.files.iter().filter_map(|(_, key)| Some((*key, Arc::clone(files.get(key)?)))).collect()
    }

    fn remember(&self, plan: &Plan, root: &Path) {
        let mut files = self.files.lock();
        if files.len() + plan.files.len() > MAX_REMEMBERED {
            files.clear();
        }
        files.extend(plan.files.iter().map(|(path, key)| (*key, root.join(path).into())));
    }
}

/// Reads the directories of a tree, level by level.
async fn plan(cas: &Cas, root: Digest) -> Result<Plan, WorkspaceError> {
    let mut plan = Plan::default();
    let mut level = vec![(PathBuf::new(), root)];
    while !level.is_empty() {
        let mut wanted: Vec<Digest> = level.iter().map(|(_, digest)| *digest).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut messages = HashMap::new();
        for (digest, bytes) in cas.read_many(wanted).await? {
            let directory = reapi::Directory::decode(&bytes[..])
                .map_err(|error| InputError::Malformed(format!("a directory that cannot be decoded: {error}")))?;
            messages.insert(digest, directory);
        }
        let mut next = Vec::new();
        for (path, digest) in level {
            let Some(directory) = messages.get(&digest) else { continue };
            let properties = directory.node_properties.as_ref();
            let mode = properties.and_then(|it| it.unix_mode.as_ref()).map_or(0o755, |mode| mode.value & 0o7777);
            plan.dirs.push((path.clone(), mode, mtime_of(properties)));
            for node in &directory.files {
                let properties = node.node_properties.clone().unwrap_or_default();
                let mode = match properties.unix_mode {
                    Some(mode) => mode.value & 0o7777,
                    None if node.is_executable => 0o755,
                    None => 0o644,
                };
                let mtime = mtime_of(Some(&properties));
                let digest = digest_of(node.digest.as_ref(), &node.name)?;
                plan.files.push((path.join(checked(&node.name)?), FileKey { digest, mode, mtime }));
            }
            for node in &directory.symlinks {
                let mtime = mtime_of(node.node_properties.as_ref());
                plan.links.push((path.join(checked(&node.name)?), node.target.clone(), mtime));
            }
            for node in &directory.directories {
                let path = path.join(checked(&node.name)?);
                next.push((path, digest_of(node.digest.as_ref(), &node.name)?));
            }
            if plan.files.len() + plan.links.len() + plan.dirs.len() + next.len() > MAX_ENTRIES {
                return Err(InputError::Malformed(format!("the source has more than {MAX_ENTRIES} entries")).into());
            }
        }
        level = next;
    }
    Ok(plan)
}

fn mtime_of(properties: Option<&reapi::NodeProperties>) -> Mtime {
    properties.and_then(|properties| properties.mtime.as_ref()).map_or((0, 0), |time| (time.seconds, time.nanos))
}

/// Returns `name` unless it could refer outside of its directory.
fn checked(name: &str) -> Result<&str, InputError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(InputError::Malformed(format!("invalid file name `{}`", name.escape_default())));
    }
    Ok(name)
}

/// Creates directories and symbolic links, and hard links to the files that are known. Returns which files
/// were linked. A duplicate name is an error, because nothing is created over an existing entry.
fn make(plan: &Plan, root: &Path, known: &HashMap<FileKey, Arc<Path>>) -> Result<Vec<bool>, WorkspaceError> {
    // The first one is the root, which exists.
    for (dir, ..) in plan.dirs.iter().skip(1) {
        let path = root.join(dir);
        fs::create_dir(&path).map_err(making(&path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(making(&path))?;
    }
    for (link, target, mtime) in &plan.links {
        let path = root.join(link);
        symlink(target, &path).and_then(|()| set_mtime(&path, *mtime)).map_err(making(&path))?;
    }
    let link = |(path, key): &(PathBuf, FileKey)| {
        let path = root.join(path);
        match known.get(key).map(|known| fs::hard_link(known, &path)) {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => Err(making(&path)(error)),
            // The file was garbage-collected in the meantime, or has reached the maximum number of links.
            Some(Err(_)) => Ok(false),
        }
    };
    plan.files.iter().map(link).collect()
}

/// Fetches files to their paths.
async fn fetch(cas: &Cas, plan: &Arc<Plan>, missing: &[usize], root: &Path) -> Result<(), WorkspaceError> {
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for index in missing {
        let (path, key) = &plan.files[*index];
        if key.digest.size_bytes > SMALL_BYTES {
            let path = root.join(path);
            cas.read_to_file(key.digest, &path).await?;
            finish(&path, key).map_err(making(&path))?;
            continue;
        }
        batch.push(*index);
        batch_bytes += key.digest.size_bytes;
        if batch_bytes >= BATCH_BYTES {
            fetch_small(cas, plan, std::mem::take(&mut batch), root).await?;
            batch_bytes = 0;
        }
    }
    fetch_small(cas, plan, batch, root).await
}

async fn fetch_small(cas: &Cas, plan: &Arc<Plan>, batch: Vec<usize>, root: &Path) -> Result<(), WorkspaceError> {
    let mut wanted: Vec<Digest> = batch.iter().map(|index| plan.files[*index].1.digest).collect();
    wanted.sort_unstable();
    wanted.dedup();
    // The empty blob need not exist at the engine.
    wanted.retain(|digest| digest.size_bytes > 0);
    let read: HashMap<Digest, Vec<u8>> = cas.read_many(wanted).await?.into_iter().collect();
    let (plan, root) = (Arc::clone(plan), root.to_owned());
    blocking::run("make the source", move || {
        for index in batch {
            let (path, key) = &plan.files[index];
            let path = root.join(path);
            let bytes = read.get(&key.digest).map_or(&[][..], Vec::as_slice);
            fs::File::create_new(&path)
                .and_then(|mut file| io::Write::write_all(&mut file, bytes))
                .and_then(|()| finish(&path, key))
                .map_err(making(&path))?;
        }
        Ok(())
    })
    .await
}

/// Sets a file's mode and modification time.
fn finish(path: &Path, key: &FileKey) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(key.mode))?;
    set_mtime(path, key.mtime)
}

fn set_mtime(path: &Path, (seconds, nanos): (i64, i32)) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.clamp(0, 999_999_999).into() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn making(path: &Path) -> impl FnOnce(io::Error) -> WorkspaceError + use<> {
    let path = path.display().to_string();
    move |source| WorkspaceError::Make { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(content: &[u8]) -> FileKey {
        FileKey { digest: Digest::of(content), mode: 0o644, mtime: (1, 2) }
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(checked(name).is_err(), "{name:?}");
        }
        assert_eq!(checked("..a").unwrap(), "..a");
    }

    #[test]
    fn what_is_known_is_linked_and_what_comes_twice_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let old = top.path().join("old");
        fs::write(&old, "known").unwrap();
        let known =
            HashMap::from([(key(b"known"), Arc::from(&*old)), (key(b"gone"), Arc::from(top.path().join("gone")))]);
        let plan = Plan {
            dirs: vec![(PathBuf::new(), 0o755, (0, 0)), ("dir".into(), 0o755, (3, 0))],
            files: vec![("dir/a".into(), key(b"known")), ("b".into(), key(b"gone")), ("c".into(), key(b"new"))],
            links: vec![("link".into(), "/etc".into(), (3, 4))],
        };
        let root = top.path().join("new");
        fs::create_dir(&root).unwrap();
        assert_eq!(make(&plan, &root, &known).unwrap(), [true, false, false]);
        assert_eq!(fs::read_to_string(root.join("dir/a")).unwrap(), "known");
        let twice = Plan { files: vec![("dir".into(), key(b"known"))], ..plan };
        let root = top.path().join("twice");
        fs::create_dir(&root).unwrap();
        assert!(make(&twice, &root, &known).is_err());
    }

    #[test]
    fn a_link_that_is_also_a_directory_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let plan = Plan {
            dirs: vec![(PathBuf::new(), 0o755, (0, 0)), ("out".into(), 0o755, (0, 0))],
            links: vec![("out".into(), top.path().display().to_string(), (0, 0))],
            files: vec![],
        };
        let root = top.path().join("root");
        fs::create_dir(&root).unwrap();
        assert!(make(&plan, &root, &HashMap::new()).is_err());
    }
}
