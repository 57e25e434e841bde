//! The lower directories of a step: unpacked layers, and the source directory as it is.

use std::{
    fs::File,
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use hm_exec_step::{
    Lower,
    tree::{self, IdMap, UnpackLimits},
};

use super::{Failure, Scratch};

/// The maximum number of lower directories of an overlay, including the bottom one.
const MAX_LOWERS: usize = 499;

/// Returns the paths of the parts of a step's filesystem: one for each of `stack`, in the same order.
///
/// # Errors
/// Returns an error if there are too many to stack, or if one of them does not exist.
pub(crate) fn find(dir: &Path, stack: &[Lower]) -> Result<Vec<PathBuf>, Failure> {
    if stack.len() > MAX_LOWERS {
        return Err(Failure::lasting(format!(
            "the step has {} layers, more than the limit of {MAX_LOWERS}",
            stack.len()
        )));
    }
    stack
        .iter()
        .map(|lower| {
            let (Lower::Layer { path, .. } | Lower::Workspace { path }) = lower;
            let within = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            if path.is_empty() || !within {
                return Err(Failure::lasting(format!("the path {path:?} is not below the input's directory")));
            }
            // A worker may provide its files as symbolic links.
            let found = dir.join(path).canonicalize();
            found.map_err(|error| Failure::io(format_args!("find {path:?}"), &error))
        })
        .collect()
}

/// Unpacks the layers of `stack`, whose files are at `paths`, in parallel. Returns all lower directories of
/// the step, topmost first.
///
/// # Errors
/// Returns the first error of any of them.
pub(crate) fn make(
    stack: &[Lower],
    paths: &[PathBuf],
    scratch: &Scratch,
    id_map: IdMap,
) -> Result<Vec<PathBuf>, Failure> {
    let next = AtomicUsize::new(0);
    let some = || -> Result<Vec<(usize, PathBuf)>, Failure> {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(lower), Some(path)) = (stack.get(index), paths.get(index)) else { return Ok(done) };
            let root = match lower {
                Lower::Workspace { .. } => path.clone(),
                Lower::Layer { path: name, diff_id } => {
                    let root = scratch.make_dir(&format!("layers/{index}"))?;
                    unpack(path, name, diff_id, &root, id_map).inspect_err(|_| {
                        // The step cannot run without this layer, so the others need not be unpacked.
                        next.store(stack.len(), Ordering::Relaxed);
                    })?;
                    root
                }
            };
            done.push((index, root));
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
    lowers.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
    let base_layer = scratch.make_dir("base-layer")?;
    tree::make_base_layer(&base_layer).map_err(|error| Failure::io("create the lowest layer", &error))?;
    Ok(lowers.into_iter().map(|(_, root)| root).chain([base_layer]).collect())
}

fn unpack(path: &Path, name: &str, diff_id: &str, root: &Path, id_map: IdMap) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| Failure::io(format_args!("open {name:?}"), &error))?;
    let unpacked =
        tree::unpack(file, root, id_map, UnpackLimits::default()).map_err(|error| Failure::unpack(name, &error))?;
    let found = super::layer::digest(&unpacked.diff_id);
    if found == diff_id {
        return Ok(());
    }
    Err(Failure::passing(format!("{name} is damaged: its digest is {found}, but the step expects {diff_id}")))
}
