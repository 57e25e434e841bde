//! What a step boots from: its layers as overlays.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs::DirBuilder,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::jail::{self, Bind, Overlay};
use crate::{
    runner::{
        ExecutorInput, RunnerError, SnapshotRef, StepContext,
        image_notes::{StepNotes, no_image},
    },
    store::{
        Base, CommitRequest, FrozenSource, HostImage, IdMap, Images, LayerId, MAX_LAYERS, Snapshot, SourceId, Staging,
        Store, StoreError, tree,
    },
};

/// Mount points that a root file system may lack.
pub(super) const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
/// Where secrets are.
const SECRETS: &str = "run/secrets";

/// The file systems of one step, ready to be mounted.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) root: Overlay,
    pub(super) overlays: Vec<(CString, Overlay)>,
    pub(super) binds: Vec<Bind>,
    pub(super) staging: Staging,
    /// The variables that the image sets.
    pub(super) env: BTreeMap<String, String>,
    parent: Option<Arc<Snapshot>>,
    base: Base,
    source: SourceId,
    delta: Option<LayerId>,
    id_map: IdMap,
}

/// Which directories of the host image a layer has something for, so that a chain does not look again at every step.
#[derive(Debug, Default)]
pub(super) struct LayerDirs(Mutex<HashMap<LayerId, Touched>>);

/// A bit for each of the image's directories.
#[derive(Debug, Clone, Copy, Default)]
struct Touched {
    /// The layer has the directory.
    dirs: u64,
    /// The layer has the first part of its path.
    parents: u64,
}

/// More layers than this are forgotten all at once: a long-lived engine must not grow with the steps it ran.
const MAX_REMEMBERED: usize = 1 << 16;

impl LayerDirs {
    fn of(&self, store: &Store, layer: &LayerId, image: &HostImage) -> Result<Touched, StoreError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(touched) = known.get(layer) {
            return Ok(*touched);
        }
        let mut touched = Touched::default();
        for (index, dir) in image.dirs.iter().enumerate() {
            let first = dir.path.iter().next().map_or(Path::new(""), Path::new);
            let has_first = store.layer_has_dir(layer, first)?;
            touched.parents |= u64::from(has_first) << index;
            touched.dirs |= u64::from(has_first && store.layer_has_dir(layer, &dir.path)?) << index;
        }
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(layer.clone(), touched);
        Ok(touched)
    }
}

/// What a step's file systems depend on, besides its own input.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) layer_dirs: &'a LayerDirs,
    pub(super) images: &'a Images,
    pub(super) host_dirs: &'a [PathBuf],
    pub(super) id_map: IdMap,
}

impl Ground<'_> {
    /// Looks up what `input` boots from, and makes the layer that it writes to.
    pub(super) async fn boot(&self, ctx: &StepContext, input: &ExecutorInput) -> Result<Boot, RunnerError> {
        let source = ctx.archives.freeze(self.store).await.map_err(failed("freeze the source"))?;
        let parent = match &input.parent_snapshot {
            Some(snapshot) => Some(self.store.snapshot(snapshot).map_err(failed("read the parent's snapshot"))?),
            None => None,
        };
        let base = match (&parent, &input.step.image) {
            (Some(parent), _) => parent.base.clone(),
            (None, Some(image)) => {
                let notes = StepNotes { bus: &ctx.event_bus, step_id: input.step_id };
                // Boxed, because most steps have a parent and need no room for it.
                Box::pin(self.images.fetch(self.store, image, self.id_map, &notes)).await.map_err(no_image)?
            }
            (None, None) => Base::Host,
        };
        self.boot_over(&source, parent, base, !ctx.secrets.is_empty())
    }

    /// The same for a source that is frozen already. Synchronous: some 100 µs.
    pub(super) fn boot_over(
        &self,
        source: &FrozenSource,
        parent: Option<Arc<Snapshot>>,
        base: Base,
        has_secrets: bool,
    ) -> Result<Boot, RunnerError> {
        if let Some(parent) = &parent
            && parent.id_map != self.id_map
        {
            return Err(RunnerError::unsupported(format!(
                "the snapshot to start from was made with {} ids, and here steps have {} ids: run its step again",
                id_map_name(parent.id_map),
                id_map_name(self.id_map),
            )));
        }
        if let Base::Rootfs(dir) = &base
            && self.store.dir().starts_with(dir)
        {
            // The kernel calls it a loop of symbolic links.
            let (store, within) = (self.store.dir().into(), dir.clone());
            return Err(failed("use the image")(StoreError::StoreWithinImage { store, within }));
        }
        let delta = match &parent {
            Some(parent) if parent.source != source.id => {
                self.store.delta(parent, source).map_err(failed("compare the source"))?
            }
            _ => None,
        };
        let layers = parent.iter().flat_map(|parent| &parent.layers);
        let mut lowers: Vec<PathBuf> = delta.iter().chain(layers).map(|it| self.store.layer_dir(it)).collect();
        lowers.extend_from_slice(&source.roots);

        let staging = self.store.stage().map_err(failed("make the step's layer"))?;
        let mut works = Works::new(&staging);
        let (mut overlays, mut binds, mut env) = (Vec::new(), Vec::new(), BTreeMap::new());
        match &base {
            Base::Host => {
                let image = self.store.host_image(self.host_dirs).map_err(failed("make the host image"))?;
                lowers.push(image.skeleton.clone());
                let touched: Vec<(PathBuf, Touched)> = parent
                    .iter()
                    .flat_map(|parent| &parent.layers)
                    .map(|it| Ok((self.store.layer_dir(it), self.layer_dirs.of(self.store, it, &image)?)))
                    .collect::<Result<_, _>>()
                    .map_err(failed("read the parent's layers"))?;
                for (index, dir) in image.dirs.iter().enumerate() {
                    let target = c_path(&Path::new("/").join(&dir.path))?;
                    if dir.read_only {
                        if let Some(source) = dir.lowers.first() {
                            binds.push(Bind { source: c_path(source)?, target: target.clone() });
                        }
                        continue;
                    }
                    let with = |bits: fn(&Touched) -> u64| {
                        touched.iter().filter(move |(_, it)| bits(it) >> index & 1 == 1).map(|(root, _)| root)
                    };
                    let mut models: Vec<PathBuf> = with(|it| it.parents).cloned().collect();
                    models.push("/".into());
                    let upper = staging.premake(&dir.path, &models).map_err(failed("make the step's layer"))?;
                    let mut dir_lowers: Vec<PathBuf> = with(|it| it.dirs).map(|root| root.join(&dir.path)).collect();
                    dir_lowers.extend_from_slice(&dir.lowers);
                    overlays.push((target, overlay(&dir_lowers, &upper, &mut works)?));
                }
            }
            Base::Rootfs(dir) => {
                for name in MOUNT_POINTS {
                    if dir.join(name).symlink_metadata().is_err() {
                        staging.premake(Path::new(name), &[]).map_err(failed("make the step's layer"))?;
                    }
                }
                lowers.push(dir.clone());
                binds.extend(jail::resolver(std::slice::from_ref(dir)));
            }
            Base::Image(digest) => {
                let image = self.store.image(digest, self.id_map).map_err(no_image)?;
                let dirs: Vec<PathBuf> = image.layers.iter().map(|layer| self.store.layer_dir(layer)).collect();
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
        let root = overlay(&lowers, &staging.upper(), &mut works)?;
        let (source, id_map) = (source.id.clone(), self.id_map);
        Ok(Boot { root, overlays, binds, staging, env, parent, base, source, delta, id_map })
    }
}

impl Boot {
    /// Makes the snapshot of a step whose processes are dead. Blocks for some 100 µs; for long where layers are merged, which
    /// [`Boot::merges`] tells.
    ///
    /// # Errors
    /// Where the layer can't be put in place.
    pub(super) fn commit(self, store: &Arc<Store>) -> Result<SnapshotRef, StoreError> {
        let Self { staging, parent, base, source, delta, id_map, .. } = self;
        let request = CommitRequest { parent: parent.as_deref(), base, source, delta, id_map };
        store.commit(staging, request)
    }

    /// Whether the commit may merge layers.
    pub(super) fn merges(&self) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.layers.len() + 2 > MAX_LAYERS)
    }
}

/// The work directories of a step's overlays: one each.
pub(super) struct Works {
    dir: PathBuf,
    next: u32,
}

impl Works {
    pub(super) fn new(staging: &Staging) -> Self {
        Self { dir: staging.work().to_owned(), next: 0 }
    }

    fn next(&mut self) -> Result<PathBuf, RunnerError> {
        let dir = self.dir.join(self.next.to_string());
        self.next += 1;
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|error| RunnerError::infrastructure("make a work directory", error))?;
        Ok(dir)
    }
}

pub(super) fn overlay(lowers: &[PathBuf], upper: &Path, works: &mut Works) -> Result<Overlay, RunnerError> {
    let lowers = lowers.iter().map(|lower| c_path(lower)).collect::<Result<_, _>>()?;
    Ok(Overlay { lowers, upper: c_path(upper)?, work: c_path(&works.next()?)? })
}

fn c_path(path: &Path) -> Result<CString, RunnerError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| RunnerError::unsupported(format!("the path {} has a zero byte in it", path.display())))
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(StoreError) -> RunnerError {
    move |error| RunnerError::infrastructure(doing, error)
}

fn id_map_name(id_map: IdMap) -> &'static str {
    match id_map {
        IdMap::Root => "real",
        IdMap::Range => "subordinate",
        IdMap::Single => "single",
    }
}
