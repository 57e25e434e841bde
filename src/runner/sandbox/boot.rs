//! The filesystems that a step boots from: its layers as overlays.

use crate::image;
use crate::source;
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    cache_dirs::{AttachedCache, WantedCache},
    inputs::ShownInput,
    jail::{self, Bind, MountApi, Overlay, UpperDir},
    overlay_pool::{self, BuildOverlays, HostOverlay, HostOverlaySpec, Overlays, c_path, overlay},
};
use crate::{
    image::{HostImage, Images},
    model::SnapshotRef,
    runner::{
        ExecutorInput, Limits, RunnerError, StepContext,
        image_notes::{StepNotes, no_image},
    },
    source::{FrozenSource, HiddenFiles, SourceDelta},
    store::{
        Base, CacheDir, CommitRequest, IdMap, LayerId, MAX_LAYERS, Snapshot, SourceId, Staging, Store, StoreError, tree,
    },
    sync::Mutex,
    userns::Zygote,
};

/// The mount points that a root filesystem may lack.
pub(super) const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
/// The directory of the secrets.
const SECRETS: &str = "run/secrets";

/// The filesystems of one step, ready to be mounted.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) root: Overlay,
    pub(super) binds: Vec<Bind>,
    pub(super) caches: Vec<AttachedCache>,
    /// Copies of files of other steps, which `binds` mounts.
    pub(super) inputs: Option<Arc<Vec<ShownInput>>>,
    pub(super) staging: Staging,
    /// The variables that the image sets.
    pub(super) env: BTreeMap<String, String>,
    parent: Option<Arc<Snapshot>>,
    base: Base,
    pub(super) seen: SeenSource,
    pub(super) id_map: IdMap,
    /// The overlays of the host image that `binds` mounts.
    overlays: Vec<HostOverlay>,
    /// The host image, if the root is based on it.
    image: Option<Arc<HostImage>>,
    /// The build whose other steps may reuse the overlays afterwards.
    build: Option<BuildOverlays>,
}

/// The source that a step sees, and what it sees beyond the source's own layers.
#[derive(Debug, Clone)]
pub(super) struct SeenSource {
    pub(super) source: SourceId,
    pub(super) delta: SourceDelta,
}

/// The directories of the host image that each layer contains. Cached so that a chain does not examine its
/// layers again at every step.
#[derive(Debug, Default)]
pub(super) struct LayerDirs(Mutex<Looked>);

/// The directories that were looked up, and the layers that contain them.
#[derive(Debug, Default)]
struct Looked {
    dirs: Vec<PathBuf>,
    layers: HashMap<LayerId, u64>,
}

/// The most layers in the cache. When it is full, all are forgotten at once: the memory of a long-lived
/// engine must not grow with the steps it ran.
const MAX_REMEMBERED: usize = 1 << 16;

impl LayerDirs {
    /// Returns a bit for each directory of `image` that steps may write to, set if the layer contains it.
    fn of(&self, store: &Store, layer: &LayerId, image: &HostImage) -> Result<u64, StoreError> {
        let mut looked = self.0.lock();
        if !looked.dirs.iter().eq(image.dirs.iter().map(|dir| &dir.path)) {
            // The machine changed between two builds.
            *looked = Looked { dirs: image.dirs.iter().map(|dir| dir.path.clone()).collect(), ..Looked::default() };
        }
        let known = &mut looked.layers;
        if let Some(dirs) = known.get(layer) {
            return Ok(*dirs);
        }
        let mut dirs = 0;
        // Writable directories come first, and there are fewer of them than bits.
        for (index, dir) in image.dirs.iter().enumerate().filter(|(_, dir)| !dir.read_only) {
            dirs |= u64::from(store.layers().has_dir(layer, &dir.path)?) << index;
        }
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(layer.clone(), dirs);
        Ok(dirs)
    }
}

/// What a step's filesystems depend on besides its own input.
#[derive(Debug)]
pub(super) struct BootContext<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) layer_dirs: &'a LayerDirs,
    pub(super) images: &'a Images,
    pub(super) host_dirs: &'a [PathBuf],
    pub(super) overlays: &'a Arc<Overlays>,
    pub(super) zygote: &'a Arc<Zygote>,
    pub(super) mount_api: MountApi,
    /// The cache directories of the step.
    pub(super) caches: Vec<WantedCache>,
    /// The files of the source that the step does not see.
    pub(super) hidden: Option<HiddenFiles>,
}

/// The filesystems of a step, before those of the host image are mounted.
struct Plan {
    root: Overlay,
    binds: Vec<Bind>,
    staging: Staging,
    env: BTreeMap<String, String>,
    host: Vec<HostOverlaySpec>,
}

/// What a step takes over from its parent.
#[derive(Clone, Copy)]
struct Inherited<'a> {
    parent: Option<&'a Snapshot>,
    /// The layer over the parent's, if the source changed since.
    delta: Option<&'a LayerId>,
    /// The layer over the source's, if the step does not see all of it.
    mask: Option<&'a LayerId>,
}

/// What a step boots with that does not see all files of its source. It is no part of its snapshot.
struct Hiding {
    mask: LayerId,
    /// What changed in the files that are seen, in place of the whole delta.
    delta: Option<LayerId>,
}

impl BootContext<'_> {
    /// Hides the files of the source that the step does not see.
    pub(super) fn hiding(mut self, limits: &Limits) -> Self {
        self.hidden.clone_from(&limits.ignore);
        self
    }

    /// Looks up what `input` boots from, and creates the layer that it writes to.
    pub(super) async fn boot(&self, ctx: &StepContext, input: &ExecutorInput) -> Result<Boot, RunnerError> {
        let source = ctx.frozen_source(self.store).await.map_err(failed("freeze the source"))?;
        let parent = match &input.parent_snapshot {
            Some(snapshot) => Some(self.store.snapshots().get(snapshot).map_err(failed("read the parent's snapshot"))?),
            None => None,
        };
        let base = match (&parent, &input.step.image) {
            (Some(parent), _) => parent.base.clone(),
            (None, Some(image)) => {
                let notes = StepNotes { bus: &ctx.event_bus, step_id: input.step_id };
                // Boxed, because most steps have a parent and do not need the space for this future.
                Box::pin(self.images.fetch(self.store, image, self.zygote.id_map(), &notes)).await.map_err(no_image)?
            }
            (None, None) => Base::Host,
        };
        let build = (base == Base::Host).then(|| self.overlays.of_build(ctx, input.run_id));
        self.boot_over(&source, parent, base, !ctx.secrets.is_empty(), build).await
    }

    /// Does the same as [`boot`](Self::boot) for a source that is already frozen. Takes some 100 µs. On the
    /// host image it takes some milliseconds if overlays must be mounted because no free ones are left in
    /// `build`.
    pub(super) async fn boot_over(
        &self,
        source: &FrozenSource,
        parent: Option<Arc<Snapshot>>,
        base: Base,
        has_secrets: bool,
        build: Option<BuildOverlays>,
    ) -> Result<Boot, RunnerError> {
        let image = match base {
            Base::Host => Some(host_image(self.store, self.host_dirs, self.zygote.id_map(), build.as_ref()).await?),
            _ => None,
        };
        let caches = self.caches.iter().map(|wanted| AttachedCache::attach(self.store, wanted));
        let caches = caches.collect::<Result<Vec<_>, _>>().map_err(failed("attach a cache directory"))?;
        let delta = self.delta(source, parent.as_ref(), &caches).await?;
        let hiding = match self.hidden.as_ref().filter(|hidden| !hidden.is_empty()) {
            Some(hidden) => Some(Box::pin(self.hide(source, parent.as_ref(), hidden)).await?),
            None => None,
        };
        let inherited = match &hiding {
            Some(Hiding { mask, delta }) => {
                Inherited { parent: parent.as_deref(), delta: delta.as_ref(), mask: Some(mask) }
            }
            None => Inherited { parent: parent.as_deref(), delta: delta.layer.as_ref(), mask: None },
        };
        let Plan { root, mut binds, staging, env, host } =
            self.plan(source, inherited, &base, image.as_deref(), has_secrets)?;
        let mounting = overlay_pool::obtain(host, build.as_ref(), self.store, self.zygote, self.mount_api);
        let overlays = mounting.await?;
        let shown = overlays.iter().map(HostOverlay::bind).collect::<Result<Vec<_>, _>>()?;
        // Bound host directories may lie below the overlays, so the overlays come first.
        binds.splice(0..0, shown);
        let (source, id_map) = (source.id.clone(), self.zygote.id_map());
        let seen = SeenSource { source, delta };
        let inputs = None;
        Ok(Boot { root, binds, caches, inputs, staging, env, parent, base, seen, id_map, overlays, image, build })
    }

    /// Returns the layer that makes the parent's snapshot show `source`, if one is needed.
    async fn delta(
        &self,
        source: &FrozenSource,
        parent: Option<&Arc<Snapshot>>,
        caches: &[AttachedCache],
    ) -> Result<SourceDelta, RunnerError> {
        // Another mapping of ids is refused later.
        let parent = parent.filter(|parent| parent.id_map == self.zygote.id_map());
        let caches: Vec<CacheDir> = caches.iter().filter_map(AttachedCache::content).cloned().collect();
        let is_other = |seen: &SourceId| *seen != source.id;
        if !parent.is_some_and(|parent| is_other(&parent.source)) && !caches.iter().any(|it| is_other(&it.source)) {
            return Ok(SourceDelta { layer: None, seen: source.id.clone(), latest: (0, 0) });
        }
        // It may copy many files.
        let (store, parent, source) = (Arc::clone(self.store), parent.cloned(), source.clone());
        let delta = RunnerError::blocking("compare the source", move || {
            Ok(source::delta_with_caches(&store, parent.as_deref(), &caches, &source)?)
        });
        Box::pin(delta).await
    }

    /// Returns what hides files of the source.
    async fn hide(
        &self,
        source: &FrozenSource,
        parent: Option<&Arc<Snapshot>>,
        hidden: &HiddenFiles,
    ) -> Result<Hiding, RunnerError> {
        let is_older = |parent: &&Arc<Snapshot>| parent.id_map == self.zygote.id_map() && parent.source != source.id;
        let parent = parent.filter(is_older).cloned();
        let (store, source, hidden) = (Arc::clone(self.store), source.clone(), hidden.clone());
        RunnerError::blocking("hide files of the source", move || {
            let mask = source::mask(&store, &source, &hidden)?;
            let delta = match parent {
                Some(parent) => source::delta_of_shown(&store, &parent, &source, &hidden)?,
                None => None,
            };
            Ok(Hiding { mask, delta })
        })
        .await
    }

    fn plan(
        &self,
        source: &FrozenSource,
        Inherited { parent, delta, mask }: Inherited<'_>,
        base: &Base,
        host_image: Option<&HostImage>,
        has_secrets: bool,
    ) -> Result<Plan, RunnerError> {
        let id_map = self.zygote.id_map();
        if let Some(parent) = parent
            && parent.id_map != id_map
        {
            return Err(RunnerError::unsupported(format!(
                "the parent's snapshot was made with {} ids, but steps here have {id_map} ids: run the parent step again",
                parent.id_map,
            )));
        }
        if let Base::Rootfs(dir) = base
            && self.store.dir().starts_with(dir)
        {
            // The kernel would fail with ELOOP.
            let (store, within) = (self.store.dir().into(), dir.clone());
            return Err(failed("use the image")(StoreError::StoreWithinImage { store, within }));
        }
        let layers = parent.iter().flat_map(|parent| &parent.layers);
        let layers = delta.into_iter().chain(layers).chain(mask);
        let mut lowers: Vec<PathBuf> = layers.map(|it| self.store.layers().dir(it)).collect();
        lowers.extend_from_slice(&source.roots);

        let staging = self.store.stage().map_err(failed("make the step's layer"))?;
        let (mut host, mut binds, mut env) = (Vec::new(), Vec::new(), BTreeMap::new());
        if let Some(image) = host_image {
            lowers.push(image.skeleton.clone());
            let touched: Vec<(PathBuf, u64)> = parent
                .iter()
                .flat_map(|parent| &parent.layers)
                .map(|it| Ok((self.store.layers().dir(it), self.layer_dirs.of(self.store, it, image)?)))
                .collect::<Result<_, _>>()
                .map_err(failed("read the parent's layers"))?;
            for (index, dir) in image.dirs.iter().enumerate() {
                if dir.read_only {
                    if let Some(source) = dir.lowers.first() {
                        let target = c_path(&Path::new("/").join(&dir.path))?;
                        binds.push(Bind { source: c_path(source)?, target, writable: false });
                    }
                    continue;
                }
                let touching = touched.iter().filter(|(_, dirs)| dirs >> index & 1 == 1);
                let mut dir_lowers: Vec<PathBuf> = touching.map(|(root, _)| root.join(&dir.path)).collect();
                let layers = dir_lowers.len();
                dir_lowers.extend_from_slice(&dir.lowers);
                let (path, screened) = (dir.path.clone(), dir.screened);
                host.push(HostOverlaySpec { path, lowers: dir_lowers, layers, screened });
            }
        }
        match base {
            Base::Host => {}
            Base::Rootfs(dir) => {
                for name in MOUNT_POINTS {
                    if dir.join(name).symlink_metadata().is_err() {
                        staging.premake(Path::new(name), &[]).map_err(failed("make the step's layer"))?;
                    }
                }
                lowers.push(dir.clone());
                binds.extend(jail::resolver(std::slice::from_ref(dir)));
                // The ground layer has mount points that the directory lacks, such as `/etc/hosts`.
                let ground = image::base_layer(self.store, id_map).map_err(failed("make the lowest layer"))?;
                lowers.push(self.store.layers().dir(&ground));
            }
            Base::Image(digest) => {
                let image = image::stored::StoredImage::find(self.store, digest, id_map).map_err(no_image)?;
                let dirs: Vec<PathBuf> = image.layers.iter().map(|layer| self.store.layers().dir(layer)).collect();
                for name in MOUNT_POINTS {
                    if !tree::topmost(&dirs, Path::new(name)).is_some_and(|metadata| metadata.is_dir()) {
                        staging.premake(Path::new(name), &[]).map_err(failed("make the step's layer"))?;
                    }
                }
                binds.extend(jail::resolver(&dirs));
                lowers.extend(dirs);
                env = image.env;
            }
        }
        if has_secrets && !lowers.iter().any(|lower| lower.join("run").is_symlink()) {
            staging.premake(Path::new(SECRETS), &lowers).map_err(failed("make the step's layer"))?;
        }
        let root = overlay(&lowers, &staging.upper(), staging.work())?;
        Ok(Plan { root, binds, staging, env, host })
    }
}

impl Boot {
    /// Commits the snapshot of a step whose processes are dead. Blocks for some 100 µs, or for long if
    /// layers are merged: see [`Boot::merges`].
    ///
    /// # Errors
    /// Returns an error if the layer cannot be put in place.
    fn commit(self, store: &Arc<Store>) -> Result<SnapshotRef, StoreError> {
        let Self { staging, parent, base, seen: SeenSource { source, delta }, id_map, overlays, build, .. } = self;
        let lowers = || {
            let layers = parent.iter().flat_map(|parent| &parent.layers).map(|layer| store.layers().dir(layer));
            layers.chain(["/".into()]).collect()
        };
        overlay_pool::commit(overlays, build.as_ref(), &staging, lowers)?;
        let request = CommitRequest { parent: parent.as_deref(), base, source, delta: delta.layer, id_map };
        store.commit(staging, request)
    }

    /// Discards the writes of a step whose processes are dead.
    pub(super) fn discard(self) {
        if let Some(build) = &self.build {
            overlay_pool::give_back(self.overlays, build);
        }
    }

    /// Returns every directory that receives writes of the step.
    ///
    /// # Errors
    /// Returns an error if a path contains a zero byte.
    pub(super) fn uppers(&self) -> Result<Vec<UpperDir>, RunnerError> {
        let root = UpperDir { source: self.root.upper.clone(), target: c"/".into() };
        std::iter::once(Ok(root)).chain(self.overlays.iter().map(HostOverlay::upper)).collect()
    }

    /// Returns the directories of this machine that can change while a step runs: the paths at which the step
    /// sees them, and their own. What hm itself made, in `store`, does not change.
    pub(super) fn machine_dirs(&self, store: &Path) -> Vec<(PathBuf, PathBuf)> {
        // An image's step sees the machine's own file.
        let resolver = self.binds.iter().filter_map(|bind| {
            let path = |text: &std::ffi::CStr| PathBuf::from(OsStr::from_bytes(text.to_bytes()));
            (bind.target.to_bytes() == b"/etc/resolv.conf").then(|| (path(&bind.target), path(&bind.source)))
        });
        let dirs = machine_dirs(self.image.as_deref(), &self.base, resolver);
        dirs.filter(|(_, dir)| !dir.starts_with(store)).collect()
    }

    /// Returns whether the commit may merge layers.
    fn merges(&self) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.layers.len() + 2 > MAX_LAYERS)
    }
}

/// Returns the current state of the machine, for steps with ids that are mapped so. The steps of a build
/// share the state that the first of them saw.
pub(super) async fn host_image(
    store: &Arc<Store>,
    host_dirs: &[PathBuf],
    id_map: IdMap,
    build: Option<&BuildOverlays>,
) -> Result<Arc<HostImage>, RunnerError> {
    let make = || async {
        let (store, dirs) = (Arc::clone(store), host_dirs.to_vec());
        RunnerError::blocking("make the host image", move || {
            Ok(Arc::new(image::HostImage::new(&store, &dirs, id_map)?))
        })
        .await
    };
    match build {
        Some(build) => build.image(make).await,
        None => make().await,
    }
}

/// Returns the directories of this machine, and of what `hm` made over them, that a step on `base` sees: the
/// paths at which it does, and their own.
pub(super) fn machine_dirs<'a>(
    image: Option<&'a HostImage>,
    base: &Base,
    resolver: impl IntoIterator<Item = (PathBuf, PathBuf)> + 'a,
) -> impl Iterator<Item = (PathBuf, PathBuf)> + 'a {
    let image = image.into_iter().flat_map(|image| &image.dirs);
    let host = image.flat_map(|dir| dir.lowers.iter().map(|lower| (Path::new("/").join(&dir.path), lower.clone())));
    let rootfs = match base {
        Base::Rootfs(dir) => Some((PathBuf::from("/"), dir.clone())),
        Base::Host | Base::Image(_) => None,
    };
    host.chain(rootfs).chain(resolver)
}

/// Commits the step's layer. Merging layers takes long enough to need a thread; a rename does not.
pub(super) async fn commit(boot: Boot, store: &Arc<Store>) -> Result<SnapshotRef, RunnerError> {
    let doing = "commit the step's layer";
    if !boot.merges() {
        return boot.commit(store).map_err(|error| RunnerError::infrastructure(doing, error));
    }
    let store = Arc::clone(store);
    RunnerError::blocking(doing, move || Ok(boot.commit(&store)?)).await
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(StoreError) -> RunnerError {
    move |error| RunnerError::infrastructure(doing, error)
}
