//! The lower directories of a step: unpacked layers, and the source directory as it is.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use hm_exec_step::{
    ATTRIBUTES_SUFFIX, Lower,
    tree::{self, IdMap, UnpackLimits},
};

use super::{
    Failure, Scratch,
    layer_cache::{CachedLayer, LayerCache},
};

/// The name of a source's tree in its directory.
const WORKSPACE: &str = "workspace";

/// The maximum number of lower directories of an overlay, including the bottom one.
const MAX_LOWERS: usize = 499;

/// A part of a step's filesystem in the files of the worker.
#[derive(Debug)]
pub(crate) struct Found {
    /// The file of a layer, or the directory of a source.
    pub(crate) path: PathBuf,
    /// The list of a source's modes and times.
    pub(crate) attributes: Option<PathBuf>,
}

/// The lower directories of a step.
#[derive(Debug)]
pub(crate) struct Lowers {
    /// Their paths, topmost first.
    pub(crate) lowers: Vec<PathBuf>,
    /// Those of them that are in the cache.
    pub(crate) cached: Vec<CachedLayer>,
}

/// Finds the parts of a step's filesystem: one for each of `stack`, in the same order.
///
/// # Errors
/// Returns an error if there are too many to stack, or if one of them does not exist.
pub(crate) fn find(dir: &Path, stack: &[Lower]) -> Result<Vec<Found>, Failure> {
    let parts = stack.iter().map(|lower| {
        let (Lower::Layer { path, .. } | Lower::Workspace { path }) = lower;
        let attributes = match lower {
            Lower::Layer { .. } => None,
            Lower::Workspace { path } => find_if_any(dir, &format!("{path}{ATTRIBUTES_SUFFIX}"))?,
        };
        Ok(Found { path: find_one(dir, path)?, attributes })
    });
    let parts = parts.collect::<Result<Vec<_>, Failure>>()?;
    // A source may have a layer of its own over it.
    let count = parts.len() + parts.iter().filter(|part| part.attributes.is_some()).count();
    if count > MAX_LOWERS {
        return Err(Failure::lasting(format!("the step has {count} layers, more than the limit of {MAX_LOWERS}")));
    }
    Ok(parts)
}

/// Finds a file that need not exist.
fn find_if_any(dir: &Path, path: &str) -> Result<Option<PathBuf>, Failure> {
    match dir.join(path).symlink_metadata() {
        Ok(_) => find_one(dir, path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(format_args!("find {path:?}"), &error)),
    }
}

fn find_one(dir: &Path, path: &str) -> Result<PathBuf, Failure> {
    let within = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !within {
        return Err(Failure::lasting(format!("the path {path:?} is not below the input's directory")));
    }
    // A worker may provide its files as symbolic links.
    let found = dir.join(path).canonicalize();
    found.map_err(|error| Failure::io(format_args!("find {path:?}"), &error))
}

/// Unpacks the layers of `stack`, which were found at `parts`, in parallel, and corrects the attributes of
/// its sources. Layers in the cache are used as they are.
///
/// # Errors
/// Returns the first error of any of them.
pub(crate) fn make(
    stack: &[Lower],
    parts: &[Found],
    cache: Option<&LayerCache>,
    scratch: &Scratch,
    id_map: IdMap,
) -> Result<Lowers, Failure> {
    let cached = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let some = || -> Result<Vec<(usize, bool, PathBuf)>, Failure> {
        // A layer that corrects another one lies over it.
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(lower), Some(part)) = (stack.get(index), parts.get(index)) else { return Ok(done) };
            let root = match lower {
                Lower::Workspace { path: name } => {
                    if let Some(list) = &part.attributes {
                        let layer = scratch.make_dir(&format!("attributes/{index}"))?;
                        if restore(list, name, &part.path, &layer)? {
                            done.push((index, true, layer));
                        }
                    }
                    part.path.clone()
                }
                Lower::Layer { path: name, diff_id } => {
                    let unpack = |root: &Path, limits| unpack((&part.path, name, diff_id), root, id_map, limits);
                    if let Some(layer) = cache.and_then(|cache| cache.get(diff_id, content_bytes(&part.path), unpack)) {
                        let root = layer.root.clone();
                        cached.lock().unwrap_or_else(PoisonError::into_inner).push(layer);
                        root
                    } else {
                        let root = scratch.make_dir(&format!("layers/{index}"))?;
                        unpack(&root, UnpackLimits::default()).inspect_err(|_| {
                            // The step cannot run without this layer, so the others need not be unpacked.
                            next.store(stack.len(), Ordering::Relaxed);
                        })?;
                        root
                    }
                }
            };
            done.push((index, false, root));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(stack.len());
    let done: Vec<_> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(some)).collect();
        let own = some();
        let others = others.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::passing("failed to unpack layers: a thread panicked")))
        });
        others.chain([own]).collect()
    });
    let mut lowers = Vec::new();
    for done in done {
        lowers.extend(done?);
    }
    lowers.sort_unstable_by_key(|(index, corrects, _)| std::cmp::Reverse((*index, *corrects)));
    // Two layers with equal content are one in the cache, and an overlay refuses the same directory twice.
    // The lower one shows nothing that the upper one does not.
    let mut seen = HashSet::new();
    lowers.retain(|(.., root)| seen.insert(root.clone()));
    let base_layer = scratch.make_dir("base-layer")?;
    tree::make_base_layer(&base_layer).map_err(|error| Failure::io("create the lowest layer", &error))?;
    let lowers = lowers.into_iter().map(|(.., root)| root).chain([base_layer]).collect();
    Ok(Lowers { lowers, cached: cached.into_inner().unwrap_or_else(PoisonError::into_inner) })
}

/// Makes a layer in `layer` that gives the source in `source` the attributes of the list at `path`. Returns
/// whether anything differs.
fn restore(path: &Path, name: &str, source: &Path, layer: &Path) -> Result<bool, Failure> {
    let restore = || {
        let to = layer.join(WORKSPACE);
        fs::create_dir(&to)?;
        let (from, to) = (tree::open_dir(&source.join(WORKSPACE))?, tree::open_dir(&to)?);
        tree::attributes::restore(File::open(path)?, from.as_fd(), to.as_fd())
    };
    restore().map_err(|error| not_restored(name, &error))
}

fn not_restored(name: &str, error: &io::Error) -> Failure {
    match error.kind() {
        // Another worker of this kind has as little.
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => Failure::lasting(format!(
            "failed to restore the modes and times of {name:?}: the files whose modes or times the engine did not \
             keep do not fit into the memory of this worker ({error}); use workers with more memory, or a worker \
             that keeps node properties"
        )),
        _ => Failure::io(format_args!("restore the modes and times of {name:?}"), error),
    }
}

/// Returns about how many bytes are in a compressed layer.
fn content_bytes(path: &Path) -> u64 {
    /// What compression usually achieves, rounded up.
    const RATIO: u64 = 4;
    path.metadata().map_or(0, |blob| blob.len().saturating_mul(RATIO))
}

fn unpack(
    (path, name, diff_id): (&Path, &str, &str),
    root: &Path,
    id_map: IdMap,
    limits: UnpackLimits,
) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| Failure::io(format_args!("open {name:?}"), &error))?;
    let unpacked = tree::unpack(file, root, id_map, limits).map_err(|error| Failure::unpack(name, &error))?;
    let found = super::layer::digest(&unpacked.diff_id);
    if found == diff_id {
        return Ok(());
    }
    Err(Failure::passing(format!("{name} is damaged: its digest is {found}, but the step expects {diff_id}")))
}

#[cfg(test)]
mod tests {
    use hm_exec_step::{
        Exit,
        tree::attributes::{EntryAttributes, encode},
    };
    use rustix::{
        fs::FileType,
        io::Errno,
        mount::{MountFlags, UnmountFlags, mount, unmount},
    };

    use super::*;

    #[test]
    fn sources_that_do_not_fit_into_memory_are_not_tried_again_elsewhere() {
        for (errno, retries, word) in [
            (Errno::NOSPC, false, "use workers with more memory"),
            (Errno::NOMEM, false, "use workers with more memory"),
            (Errno::IO, true, "restore the modes and times"),
        ] {
            let Exit::Failed { message, retry } = not_restored("source", &errno.into()).exit() else { panic!() };
            assert!(retry == retries && message.contains(word) && message.contains("source"), "{message}");
        }
    }

    #[test]
    fn a_source_that_fills_the_memory_of_this_worker_is_not_tried_again_elsewhere() {
        let top = tempfile::tempdir().unwrap();
        let (source, memory, disk) = (top.path().join("source"), top.path().join("memory"), top.path().join("disk"));
        for dir in [&source.join(WORKSPACE), &memory, &disk] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(source.join(WORKSPACE).join("large"), vec![1; 2 << 20]).unwrap();
        let entry =
            |path: &'static str, kind| EntryAttributes { path: path.as_bytes(), kind, mode: 0o700, mtime: (7, 0) };
        let list = encode([entry("", FileType::Directory), entry("large", FileType::RegularFile)]).unwrap();
        fs::write(source.with_extension("attributes"), list).unwrap();
        if let Err(error) = mount("tmpfs", &memory, "tmpfs", MountFlags::empty(), Some(c"size=1m")) {
            // Only root can mount, and not in every container.
            eprintln!("skipped: a tmpfs cannot be mounted here: {error}");
            return;
        }
        let stack = [Lower::Workspace { path: "source".into() }];
        let parts = find(top.path(), &stack).unwrap();
        let made = make(&stack, &parts, None, &Scratch::at(memory.clone()), IdMap::Root);
        unmount(&memory, UnmountFlags::DETACH).unwrap();
        let Exit::Failed { message, retry } = made.unwrap_err().exit() else { panic!() };
        assert!(!retry && message.contains("use workers with more memory"), "{message}");
        // With room, the source has its modes.
        let lowers = make(&stack, &parts, None, &Scratch::at(disk.clone()), IdMap::Root).unwrap().lowers;
        assert_eq!(lowers, [disk.join("attributes/0"), source, disk.join("base-layer")]);
        assert_eq!(fs::metadata(disk.join("attributes/0/workspace/large")).unwrap().len(), 2 << 20);
    }
}
