//! Inputs: the files in the source that match the `on_change` paths of cached steps.
//!
//! They are read once per build, in the frozen source, so the key is computed from the same files that the
//! step sees. A build without such paths has no cost. The module knows neither how keys are made nor how
//! paths are matched.

use crate::source;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::OnceCell;

use super::{CachingScope, key::is_cached};
use crate::{
    cache::BuildCache,
    event::EventBus,
    ir::on_change_paths,
    model::StepIndex,
    source::RunSource,
    store::{Store, StoreError},
};

/// The digest of a step's inputs, or the reason why there is none.
pub(super) type Digest = Result<[u8; 32], Arc<str>>;

/// The inputs of all cached steps of a build that have `on_change` paths.
pub(super) struct Inputs<'a> {
    paths: BTreeMap<StepIndex, Vec<&'a str>>,
    archives: &'a RunSource,
    store: Option<&'a Arc<Store>>,
    /// The bus that gets the progress of the freezing of the source.
    bus: Option<&'a EventBus>,
    found: OnceCell<BTreeMap<StepIndex, Digest>>,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(scope: CachingScope<'a>) -> Self {
        let CachingScope { plan, cache, archives, outputs, .. } = scope;
        let bus = outputs.map(|(context, _)| &context.event_bus);
        let store = cache.and_then(BuildCache::store).map(|(store, _)| store);
        let paths_of = |step: StepIndex| {
            let cache = plan.step(step).step.cache.as_deref()?;
            // Binding has refused anything that is not a list of paths.
            let paths = on_change_paths(cache).ok().filter(|paths| !paths.is_empty())?;
            is_cached(plan, step).then_some((step, paths))
        };
        let paths = if store.is_some() { plan.dag.steps().filter_map(paths_of).collect() } else { BTreeMap::new() };
        Self { paths, archives, store, bus, found: OnceCell::new() }
    }

    /// Returns a step's digest; the inner option is `None` if the step has no paths. Returns `None` until the
    /// digests are [computed](Self::find).
    pub(super) fn get(&self, step: StepIndex) -> Option<Result<Option<[u8; 32]>, Arc<str>>> {
        if !self.paths.contains_key(&step) {
            return Some(Ok(None));
        }
        self.found.get()?.get(&step).map(|digest| digest.clone().map(Some))
    }

    /// Returns whether nothing is left to compute.
    pub(super) fn is_complete(&self) -> bool {
        self.paths.is_empty() || self.found.get().is_some()
    }

    /// Computes all digests. The first caller freezes the source, the others wait.
    ///
    /// # Cancel safety
    /// If this is cancelled, the next caller starts again.
    pub(super) async fn find(&self) {
        if !self.paths.is_empty() {
            self.found.get_or_init(|| self.look()).await;
        }
    }

    async fn look(&self) -> BTreeMap<StepIndex, Digest> {
        match self.digests().await {
            Ok(digests) => self.paths.iter().map(|(step, paths)| (*step, of_step(paths, &digests))).collect(),
            Err(message) => self.paths.keys().map(|step| (*step, Err(Arc::clone(&message)))).collect(),
        }
    }

    /// Returns the digest of the files that each path matches.
    async fn digests(&self) -> Result<BTreeMap<String, Option<[u8; 32]>>, Arc<str>> {
        let (archives, Some(store)) = (self.archives, self.store) else { return Ok(BTreeMap::new()) };
        let in_words = |error: StoreError| -> Arc<str> {
            format!("failed to read the paths of `on_change`: {:#}", anyhow::Error::new(error)).into()
        };
        let naming = archives.name(store);
        let named = match self.bus {
            Some(bus) => bus.reporting(None, || archives.activity(), naming).await,
            None => naming.await,
        };
        let id = named.map_err(in_words)?;
        let patterns: BTreeSet<String> = self.paths.values().flatten().map(|path| (*path).to_owned()).collect();
        let (store, checkout) = (Arc::clone(store), archives.source_dir().to_owned());
        let manifest = archives.take_manifest();
        let looking =
            tokio::task::spawn_blocking(move || source::path_digests(&store, &id, manifest, &checkout, patterns));
        looking.await.map_err(|error| Arc::from(error.to_string()))?.map_err(in_words)
    }
}

/// Returns the digest over the matches of all of a step's paths. A path that matches nothing may be misspelt,
/// and then the step's inputs are unknown.
fn of_step(paths: &[&str], digests: &BTreeMap<String, Option<[u8; 32]>>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        let Some(digest) = digests.get(*path).copied().flatten() else {
            let path = path.escape_debug();
            return Err(format!("its `on_change` path `{path}` matches nothing in the source").into());
        };
        hasher.update(&(path.len() as u64).to_le_bytes()).update(path.as_bytes()).update(&digest);
    }
    Ok(*hasher.finalize().as_bytes())
}
