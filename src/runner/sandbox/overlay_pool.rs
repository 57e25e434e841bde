//! The overlays of the host image's directories, which the steps of a build reuse one after another.
//!
//! Creating and removing an overlay takes a millisecond, and there are nine; most steps write to none of
//! them. So they are mounted in the zygote's mount namespace, and a step gets copies of the mounts. The next
//! step reuses the overlays that a step did not write to. An overlay that it wrote to is renamed into the
//! step's layer. No two steps ever use the same overlay at the same time.
//!
//! Below the overlay of a large directory there is a screen, which all overlays of the directory share. It
//! shows root what others may read, and is created once per build.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, Weak},
};

use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{
    attempt::setup_error,
    jail::{Bind, MountApi, MountedOverlay, Overlay, Screen, UpperDir, UserNamespace},
};
use crate::{
    blocking,
    image::HostImage,
    runner::{RunnerError, StepContext},
    store::{StagedDir, Staging, Store, StoreError, Touched},
    sync::Mutex,
    userns::Zygote,
};

/// The most overlays that wait for a step of their build. Every step's mount namespace starts with a copy of
/// each.
const MAX_WAITING: usize = 128;

/// The state that steps of a build share, by the build.
#[derive(Debug, Default)]
pub(super) struct Overlays(Mutex<HashMap<Uuid, Build>>);

/// The state that the steps of one build share.
#[derive(Debug, Default)]
struct Build {
    /// The overlays that wait for a step.
    waiting: Vec<HostOverlay>,
    /// The mounted screens.
    screens: Vec<Arc<MountedScreen>>,
    /// The state of the machine when the build began. Dropped last, because overlays depend on it.
    image: Arc<OnceCell<Arc<HostImage>>>,
}

/// The overlays of one build.
#[derive(Debug, Clone)]
pub(super) struct BuildOverlays {
    all: Arc<Overlays>,
    build: Uuid,
}

/// The specification of the overlay for a directory of the host image.
#[derive(Debug)]
pub(super) struct HostOverlaySpec {
    /// The path of the directory, relative to the step's root.
    pub(super) path: PathBuf,
    /// The lower directories, topmost first.
    pub(super) lowers: Vec<PathBuf>,
    /// The number of lower directories that come from layers.
    pub(super) layers: usize,
    /// Whether the lowest directory is shown through a screen.
    pub(super) screened: bool,
}

/// A mounted overlay. Dropping it unmounts the overlay and discards all that was written to it.
#[derive(Debug)]
pub(super) struct HostOverlay {
    spec: HostOverlaySpec,
    dir: StagedDir,
    screen: Option<Arc<MountedScreen>>,
    /// The zygote whose mount namespace contains the overlay.
    zygote: Weak<Zygote>,
}

/// A mounted screen. Dropping it unmounts the screen.
#[derive(Debug)]
struct MountedScreen {
    /// The directory behind the screen.
    shows: PathBuf,
    dir: StagedDir,
    zygote: Weak<Zygote>,
}

impl MountedScreen {
    fn new(shows: &Path, store: &Arc<Store>, zygote: &Arc<Zygote>) -> Result<Self, StoreError> {
        Ok(Self { shows: shows.into(), dir: StagedDir::new(store, &[])?, zygote: Arc::downgrade(zygote) })
    }

    fn mounted(&self) -> Result<Screen, RunnerError> {
        let on = c_path(&self.dir.mountpoint())?;
        Ok(Screen { dir: c_path(&self.shows)?, empty: c_path(&self.dir.upper())?, on })
    }
}

impl Overlays {
    /// Returns the overlays of the build that `ctx` belongs to. They are dropped when the build ends.
    pub(super) fn of_build(self: &Arc<Self>, ctx: &StepContext, build: Uuid) -> BuildOverlays {
        if let Entry::Vacant(place) = self.lock().entry(build) {
            place.insert(Build::default());
            let all = Arc::clone(self);
            ctx.at_build_end(async move { drop(all.take_all(build)) });
        }
        BuildOverlays { all: Arc::clone(self), build }
    }

    fn take_all(&self, build: Uuid) -> Option<Build> {
        self.lock().remove(&build)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Build>> {
        self.0.lock()
    }
}

impl BuildOverlays {
    /// Returns the state of the machine that the steps of this build see. The first step calls `make`.
    ///
    /// # Errors
    /// Returns the errors of `make`. The next step tries again.
    pub(super) async fn image<F>(&self, make: impl FnOnce() -> F) -> Result<Arc<HostImage>, RunnerError>
    where
        F: Future<Output = Result<Arc<HostImage>, RunnerError>>,
    {
        // If the build has ended meanwhile, the image is not shared.
        let shared = self.all.lock().get(&self.build).map(|build| Arc::clone(&build.image)).unwrap_or_default();
        shared.get_or_try_init(make).await.map(Arc::clone)
    }

    /// Returns the screen of a directory, if there is one already.
    fn screen(&self, shows: &Path, zygote: &Arc<Zygote>) -> Option<Arc<MountedScreen>> {
        let fits = |it: &&Arc<MountedScreen>| it.shows == shows && Weak::as_ptr(&it.zygote) == Arc::as_ptr(zygote);
        self.all.lock().get(&self.build)?.screens.iter().find(fits).map(Arc::clone)
    }

    /// Makes mounted screens available to later steps.
    fn share(&self, screens: Vec<Arc<MountedScreen>>) {
        if let Some(build) = self.all.lock().get_mut(&self.build) {
            build.screens.extend(screens);
        }
    }

    /// Returns a waiting overlay that matches `spec`, if there is one.
    fn take(&self, spec: &HostOverlaySpec, zygote: &Arc<Zygote>) -> Option<HostOverlay> {
        let mut builds = self.all.lock();
        let waiting = &mut builds.get_mut(&self.build)?.waiting;
        let fits = |it: &HostOverlay| it.is_of(zygote) && it.spec.path == spec.path && it.spec.lowers == spec.lowers;
        // Prefer the overlay that was returned last, because the kernel still caches its directories.
        let found = waiting.iter().rposition(fits)?;
        Some(waiting.remove(found))
    }

    /// Makes overlays without writes available to other steps.
    fn put_back(&self, overlays: Vec<HostOverlay>) {
        let mut builds = self.all.lock();
        // If the build has ended meanwhile, the overlays are dropped.
        let Some(Build { waiting, .. }) = builds.get_mut(&self.build) else { return };
        waiting.extend(overlays);
        let surplus = waiting.len().saturating_sub(MAX_WAITING);
        waiting.drain(..surplus);
    }
}

impl HostOverlay {
    fn is_of(&self, zygote: &Arc<Zygote>) -> bool {
        Weak::as_ptr(&self.zygote) == Arc::as_ptr(zygote)
    }

    /// Returns the bind that mounts the overlay for a step.
    pub(super) fn bind(&self) -> Result<Bind, RunnerError> {
        let target = c_path(&Path::new("/").join(&self.spec.path))?;
        Ok(Bind { source: c_path(&self.dir.mountpoint())?, target, writable: true })
    }

    /// Returns the directory that receives the step's writes, and the path in the step that shows it.
    pub(super) fn upper(&self) -> Result<UpperDir, RunnerError> {
        let target = c_path(&Path::new("/").join(&self.spec.path))?;
        Ok(UpperDir { source: c_path(&self.dir.upper())?, target })
    }

    fn mounted(&self, user_namespace: UserNamespace) -> Result<MountedOverlay, RunnerError> {
        // A directory that looks like the machine's own belongs to root, or to the user who is root in the
        // step.
        let takes_owner = self.spec.layers > 0 && user_namespace == UserNamespace::Range;
        let mut lowers = self.spec.lowers.clone();
        if let (Some(lowest), Some(screen)) = (lowers.last_mut(), &self.screen) {
            *lowest = screen.dir.mountpoint();
        }
        let overlay = overlay(&lowers, &self.dir.upper(), &self.dir.work())?;
        Ok(MountedOverlay { overlay, on: c_path(&self.dir.mountpoint())?, takes_owner })
    }
}

/// Returns the overlays for `specs`, in the same order: waiting overlays of the build, and new ones.
///
/// # Cancel safety
/// If the future is dropped, all overlays are dropped as well.
pub(super) async fn obtain(
    specs: Vec<HostOverlaySpec>,
    build: Option<&BuildOverlays>,
    store: &Arc<Store>,
    zygote: &Arc<Zygote>,
    mount_api: MountApi,
) -> Result<Vec<HostOverlay>, RunnerError> {
    let unmade = |error: StoreError| RunnerError::infrastructure("make the step's layer", error);
    let (mut overlays, mut wanted) = (Vec::with_capacity(specs.len()), Vec::new());
    let (mut screens, mut new_screens) = (Vec::new(), Vec::new());
    for spec in specs {
        if let Some(overlay) = build.and_then(|build| build.take(&spec, zygote)) {
            overlays.push(overlay);
            continue;
        }
        let machine = Path::new("/").join(&spec.path);
        let models: Vec<PathBuf> = spec.lowers[..spec.layers].iter().cloned().chain([machine]).collect();
        let screen = match spec.lowers.last().filter(|_| spec.screened) {
            None => None,
            Some(shows) => Some(match build.and_then(|build| build.screen(shows, zygote)) {
                Some(screen) => screen,
                None => {
                    let screen = Arc::new(MountedScreen::new(shows, store, zygote).map_err(unmade)?);
                    screens.push(screen.mounted()?);
                    new_screens.push(Arc::clone(&screen));
                    screen
                }
            }),
        };
        let dir = StagedDir::new(store, &models).map_err(unmade)?;
        let overlay = HostOverlay { spec, dir, screen, zygote: Arc::downgrade(zygote) };
        wanted.push((overlays.len(), overlay.mounted(zygote.user_namespace())?));
        overlays.push(overlay);
    }
    if wanted.is_empty() {
        return Ok(overlays);
    }
    let (zygote, build) = (Arc::clone(zygote), build.cloned());
    // The overlays are moved to the thread: if the future is dropped, they are first mounted and then
    // unmounted.
    let mounting = blocking::run("mount the host image", move || {
        let (new, mounts): (Vec<usize>, Vec<MountedOverlay>) = wanted.into_iter().unzip();
        let asked = zygote.mount(screens, mounts, mount_api);
        asked.map_err(|error| RunnerError::infrastructure("ask the sandbox's helper", error))?.map_err(setup_error)?;
        for index in new {
            overlays[index].dir.ready().map_err(unmade)?;
        }
        if let Some(build) = build {
            build.share(new_screens);
        }
        Ok(overlays)
    });
    mounting.await
}

/// Moves the step's writes into its layer, and makes the other overlays available to the next step. No
/// process of the step may be left.
///
/// # Errors
/// Returns an error if the writes cannot be moved.
pub(super) fn commit(
    overlays: Vec<HostOverlay>,
    build: Option<&BuildOverlays>,
    staging: &Staging,
    lowers: impl Fn() -> Vec<PathBuf>,
) -> Result<(), StoreError> {
    let mut untouched = Vec::with_capacity(overlays.len());
    for overlay in overlays {
        match overlay.dir.touched()? {
            Touched::No => untouched.push(overlay),
            Touched::InPassing => {}
            Touched::Yes => staging.adopt(&overlay.spec.path, &overlay.dir, &lowers())?,
        }
    }
    if let Some(build) = build {
        build.put_back(untouched);
    }
    Ok(())
}

/// Discards the step's writes, and makes the other overlays available to the next step. No process of the
/// step may be left.
pub(super) fn give_back(mut overlays: Vec<HostOverlay>, build: &BuildOverlays) {
    // An overlay that cannot be examined cannot be trusted, either.
    overlays.retain(|overlay| matches!(overlay.dir.touched(), Ok(Touched::No)));
    build.put_back(overlays);
}

/// Describes an overlay of `lowers`, topmost first.
pub(super) fn overlay(lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<Overlay, RunnerError> {
    let lowers = lowers.iter().map(|lower| c_path(lower)).collect::<Result<_, _>>()?;
    Ok(Overlay { lowers, upper: c_path(upper)?, work: c_path(work)? })
}

pub(super) fn c_path(path: &Path) -> Result<CString, RunnerError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| RunnerError::unsupported(format!("the path {} contains a NUL byte", path.display())))
}
