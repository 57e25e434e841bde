//! Cache directories of a step: attached as overlays over their last content, and kept if the step passes.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use uuid::Uuid;

use super::{
    boot::Boot,
    jail::InnerOverlay,
    overlay_pool::{c_path, overlay},
};
use crate::{
    image::Notes,
    runner::{CacheArg, CacheScope, RunnerError, StepContext, image_notes::StepNotes},
    source::SourceDelta,
    store::{CacheDir, CacheDirName, IdMap, Staging, Store, StoreError, error::IoContext},
};

/// The arguments that are in no cache key: what a cache directory has is part of no result.
pub(super) const NOT_IN_KEYS: &[&str] = &["caches"];

/// A cache directory that a step asks for.
#[derive(Debug)]
pub(super) struct WantedCache {
    name: CacheDirName,
    path: PathBuf,
    /// Whether it has the content of earlier steps, and is kept for later ones.
    persists: bool,
}

/// Returns the cache directories of a step, with their identities.
pub(super) fn wanted(args: &BTreeMap<String, CacheArg>, ctx: &StepContext, id_map: IdMap) -> Vec<WantedCache> {
    let of = |(name, arg): (&String, &CacheArg)| {
        let owner = ctx.cache_owner.as_deref();
        let (project, pipeline) = owner.map_or(("", ""), |owner| (&*owner.project, &*owner.pipeline));
        let (scope, parts) = match arg.scope {
            CacheScope::Pipeline => (format!("pipeline {pipeline} of {project}"), ["pipeline", project, pipeline]),
            CacheScope::Project => (format!("project {project}"), ["project", project, ""]),
            CacheScope::User => ("user".to_owned(), ["user", "", ""]),
        };
        let times = ctx.archives.source_times().as_str();
        let mut hasher = blake3::Hasher::new();
        for part in ["hm-exec cache directory 1", id_map.as_str(), times, name.as_str()].into_iter().chain(parts) {
            // Each part is preceded by its length, so that the parts cannot be confused.
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let name = CacheDirName { key: *hasher.finalize().as_bytes(), name: name.clone(), scope };
        WantedCache { name, path: arg.path.clone(), persists: owner.is_some() }
    };
    args.iter().map(of).collect()
}

/// A cache directory of a step: what it starts from, and the layer that it writes to.
#[derive(Debug)]
pub(super) struct AttachedCache {
    name: CacheDirName,
    path: PathBuf,
    persists: bool,
    content: Option<CacheDir>,
    staging: Staging,
    lowers: Vec<PathBuf>,
    /// The lower directory of a cache directory without content.
    _none: Option<EmptyDir>,
}

/// An empty directory. Dropping it removes it.
#[derive(Debug)]
struct EmptyDir(PathBuf);

impl AttachedCache {
    /// Looks up the last content, and creates the layer that the step writes to. Takes some 100 µs.
    pub(super) fn attach(store: &Arc<Store>, wanted: &WantedCache) -> Result<Self, StoreError> {
        let WantedCache { name, path, persists } = wanted;
        let content = if *persists { store.cache_dir(name)? } else { None };
        let staging = store.stage()?;
        let layers = content.iter().flat_map(|content| &content.layers);
        let mut lowers: Vec<PathBuf> = layers.map(|layer| store.layers().dir(layer)).collect();
        let mut none = None;
        if let Some(top) = lowers.first() {
            // What a step changed about the directory itself persists, too.
            staging.imitate_root(top)?;
        } else {
            // An overlay needs a lower directory.
            let dir = staging.work().with_extension("none");
            fs::create_dir(&dir).doing("make the directory", &dir)?;
            lowers.push(dir.clone());
            none = Some(EmptyDir(dir));
        }
        let (name, path, persists) = (name.clone(), path.clone(), *persists);
        Ok(Self { name, path, persists, content, staging, lowers, _none: none })
    }

    /// Returns what it starts from, if it was kept before.
    pub(super) fn content(&self) -> Option<&CacheDir> {
        self.content.as_ref()
    }

    /// Returns the mount in the step.
    pub(super) fn mount(&self) -> Result<InnerOverlay, RunnerError> {
        let overlay = overlay(&self.lowers, &self.staging.upper(), self.staging.work())?;
        Ok(InnerOverlay { overlay, target: c_path(&self.path)? })
    }

    fn keep(self, store: &Arc<Store>, seen: &SourceDelta, id_map: IdMap) -> Result<(), StoreError> {
        let Self { name, content, staging, .. } = self;
        let latest = content.as_ref().map_or((0, 0), |content| content.latest).max(seen.latest);
        let layers = content.map(|content| content.layers).unwrap_or_default();
        store.keep_cache_dir(&name, staging, CacheDir { layers, source: seen.seen.clone(), latest }, id_map)
    }
}

impl Drop for EmptyDir {
    fn drop(&mut self) {
        // What remains is removed with this process's temporary files.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Keeps the cache directories of a step that passed, whose processes are dead. The step passes even if that
/// fails; its log has the reason.
pub(super) async fn keep(
    boot: &mut Boot,
    store: &Arc<Store>,
    ctx: &StepContext,
    step_id: Uuid,
) -> Result<(), RunnerError> {
    let caches = std::mem::take(&mut boot.caches).into_iter().filter(|cache| cache.persists);
    let caches: Vec<AttachedCache> = caches.collect();
    if caches.is_empty() {
        return Ok(());
    }
    let (store, seen, id_map) = (Arc::clone(store), boot.seen.delta.clone(), boot.id_map);
    let failures = RunnerError::blocking("keep the step's cache directories", move || {
        let keep = |cache: AttachedCache| {
            let name = cache.name.name.clone();
            cache.keep(&store, &seen, id_map).err().map(|error| (name, error))
        };
        Ok(caches.into_iter().filter_map(keep).collect::<Vec<_>>())
    })
    .await?;
    let notes = StepNotes { bus: &ctx.event_bus, step_id };
    for (name, error) in failures {
        notes.note(format!("warning: cache directory `{name}` was not kept: {}", error.to_line())).await;
    }
    Ok(())
}
