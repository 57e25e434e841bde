//! What a step would see, by a name that is known without a look at it.
//!
//! Layers do not change, so those of the parent and of an image are named by their ids, and so is the
//! source. Only the files of the machine may have changed between two views of the same name and source.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    boot::{failed, host_image, machine_dirs},
    overlay_pool::Overlays,
};
use crate::{
    runner::{ExecutorInput, Limits, RunnerError, StepContext},
    source::SourceTimes,
    store::{Base, IdMap, SourceId, Store},
};

/// The file that a step on an image sees of the machine.
const RESOLVER: &str = "/etc/resolv.conf";

/// What a step would see.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// The name. Views with equal names differ at most in the source and in the files of the machine.
    pub(super) name: [u8; 32],
    /// The source.
    pub(super) source: SourceId,
    /// The directories of the machine in it: the paths at which the step sees them, and their own.
    pub(super) dirs: Vec<(PathBuf, PathBuf)>,
}

impl View {
    /// Returns where the machine has what a step may see at a path.
    pub(super) fn on_machine<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
        self.dirs.iter().filter_map(move |(shown, dir)| {
            let rest = path.strip_prefix(shown).ok()?;
            Some(if rest.as_os_str().is_empty() { dir.clone() } else { dir.join(rest) })
        })
    }
}

/// A step that is looked up, and what it would run in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sought<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) ctx: &'a StepContext,
    pub(super) input: &'a ExecutorInput,
    pub(super) limits: &'a Limits,
    pub(super) id_map: IdMap,
}

impl Sought<'_> {
    /// Returns what the step would see if it boots from `base`. An image need not be in the store. Returns
    /// `None` if the next run would give the same another name.
    pub(super) async fn view(
        &self,
        (overlays, host_dirs): (&Arc<Overlays>, &[PathBuf]),
        base: &Base,
    ) -> Result<Option<View>, RunnerError> {
        let Self { store, ctx, input, limits, id_map } = *self;
        let source = ctx.frozen_source(store).await.map_err(failed("freeze the source"))?;
        let parent = match &input.parent_snapshot {
            Some(snapshot) => Some(store.snapshots().get(snapshot).map_err(failed("read the parent's snapshot"))?),
            None => None,
        };
        let hides = limits.ignore.as_ref().is_some_and(|hidden| !hidden.is_empty());
        let is_edited = parent.as_ref().is_some_and(|parent| parent.source != source.id);
        let is_foreign = parent.as_ref().is_some_and(|parent| parent.id_map != id_map);
        // With real times, an edit may be older than what was made of the file.
        let is_real = source.times == SourceTimes::Real;
        if is_foreign || is_real || !limits.caches.is_empty() || hides && is_edited {
            return Ok(None);
        }
        let (image, resolver) = match base {
            Base::Host => {
                let build = overlays.of_build(ctx, input.run_id);
                (Some(host_image(store, host_dirs, id_map, Some(&build)).await?), None)
            }
            Base::Image(_) | Base::Rootfs(_) => match Path::new(RESOLVER).canonicalize() {
                Ok(resolver) => (None, Some((PathBuf::from(RESOLVER), resolver))),
                Err(_) => return Ok(None),
            },
        };
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        part(b"hm-exec view");
        part(base.to_string().as_bytes());
        part(id_map.as_str().as_bytes());
        if let Some(image) = &image {
            match image.digest().map_err(failed("read what hides the machine's files"))? {
                Some(digest) => part(&digest),
                None => return Ok(None),
            }
        }
        // Without masks, which differ from run to run, and are in the digest.
        let is_own = |dir: &Path| dir.starts_with(store.dir());
        let dirs: Vec<_> = machine_dirs(image.as_deref(), base, resolver).filter(|(_, dir)| !is_own(dir)).collect();
        for path in dirs.iter().flat_map(|(shown, dir)| [shown, dir]) {
            part(path.as_os_str().as_bytes());
        }
        if let (Some(name), Some(snapshot)) = (&input.parent_snapshot, &parent) {
            part(name.0.as_bytes());
            for layer in &snapshot.layers {
                part(layer.as_str().as_bytes());
            }
        }
        Ok(Some(View { name: *hasher.finalize().as_bytes(), source: source.id.clone(), dirs }))
    }
}
