//! The images of a runner. Each name is resolved once, and each image is fetched once.

use std::{
    collections::HashMap,
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OnceCell;

use super::{
    Base, ImageDigest, ImageError,
    archive::LocalImage,
    fetch::{ImageFetch, ImageOrigin},
    reference::ImageName,
    stored::StoredImage,
};
use crate::{
    model::{Activity, ActivityCount, REPORTED_EVERY},
    store::{IdMap, Store, StoreError, tree::UnpackLimits},
    sync::Mutex,
};

/// When a registry is asked to resolve a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Once per run, and again after a while in long runs.
    Always,
    /// If the image is not in the store.
    #[default]
    Missing,
    /// Never. Nothing is fetched from registries at all.
    Never,
}

/// Options for resolving and fetching images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImageOptions {
    /// When a registry is asked to resolve a tag.
    pub pull: PullPolicy,
    /// A mirror registry, optionally with a path, that is asked first for images of docker.io:
    /// `HOST[:PORT][/PATH]`.
    pub mirror: Option<String>,
    /// Registries that are contacted without encryption, as `HOST[:PORT]`. Those on this machine always are.
    pub insecure_registries: Vec<String>,
    /// The docker `config.json` that credentials are looked up in. By default in `$DOCKER_CONFIG` or
    /// `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// The maximum number of uncompressed bytes of a layer, and of bytes to download for an image. By default
    /// 64 GiB.
    pub max_bytes: Option<u64>,
}

/// An environment variable with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {value:?} of {name}: expected {expected}")]
pub struct BadVariable {
    /// The name of the variable.
    pub name: &'static str,
    /// The value.
    pub value: String,
    /// A description of valid values.
    pub expected: &'static str,
}

impl ImageOptions {
    /// Reads the options from `HM_REGISTRY_MIRROR`, `HM_INSECURE_REGISTRIES` (separated by commas) and
    /// `HM_MAX_IMAGE_BYTES`.
    ///
    /// # Errors
    /// Returns an error if one of them has an invalid value.
    pub fn from_env() -> Result<Self, BadVariable> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let max_bytes = match variable("HM_MAX_IMAGE_BYTES") {
            None => None,
            Some(value) => {
                let number = value.trim().parse().ok().filter(|bytes| *bytes > 0);
                let expected = "a number of bytes";
                Some(number.ok_or(BadVariable { name: "HM_MAX_IMAGE_BYTES", value, expected })?)
            }
        };
        let insecure = variable("HM_INSECURE_REGISTRIES").unwrap_or_default();
        Ok(Self {
            mirror: variable("HM_REGISTRY_MIRROR").map(|mirror| mirror.trim().trim_end_matches('/').to_owned()),
            insecure_registries: insecure
                .split(',')
                .map(|it| it.trim().to_owned())
                .filter(|it| !it.is_empty())
                .collect(),
            max_bytes,
            ..Self::default()
        })
    }

    fn limits(&self) -> UnpackLimits {
        let limits = UnpackLimits::default();
        UnpackLimits { bytes: self.max_bytes.unwrap_or(limits.bytes), ..limits }
    }
}

/// A receiver of progress messages, as lines for users.
pub trait Notes: Sync {
    /// Receives a line, without a line terminator.
    fn note(&self, line: String) -> impl Future<Output = ()> + Send;

    /// Receives what a fetch is doing, and how much of that is done, if it is counted. It is called several
    /// times a second.
    fn progress(&self, activity: Activity, count: Option<ActivityCount>) {
        let _ = (activity, count);
    }
}

/// Ignores all messages.
impl Notes for () {
    async fn note(&self, _: String) {}
}

/// The images of a runner. Concurrent requests share the work: a name is resolved once in a while, and an
/// image is fetched once.
#[derive(Debug, Default)]
pub struct Images {
    options: ImageOptions,
    pinned: Mutex<HashMap<String, Pin>>,
    fetching: Mutex<HashMap<(ImageDigest, IdMap), Turn>>,
    #[cfg(feature = "registry")]
    registries: super::registry::Registries,
}

/// A lock that is held while an image is fetched.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// How long a resolved name is reused. All steps of a build must use the same image, while a long-running
/// program that builds all day must notice new images.
const PINNED_FOR: Duration = Duration::from_secs(15 * 60);

/// A resolved name. The first request resolves it while others wait. A failure is returned to the caller, and
/// the next caller tries again.
#[derive(Debug)]
struct Pin {
    since: Instant,
    cell: Arc<OnceCell<Arc<Pinned>>>,
}

/// The result of resolving a name.
#[derive(Debug)]
enum Pinned {
    /// A base that need not be fetched.
    Base(Base),
    /// An image that the store may have already.
    Image { digest: ImageDigest, origin: ImageOrigin },
}

impl Images {
    /// Creates a set of images that are resolved and fetched with `options`.
    #[must_use]
    pub fn new(options: ImageOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Resolves the name `image`. No layer is fetched, and none need be in the store.
    ///
    /// # Errors
    /// Returns an error if the name cannot be resolved.
    pub async fn pin(&self, store: &Arc<Store>, image: &str, notes: &impl Notes) -> Result<Base, ImageError> {
        Ok(match &*self.pinned(store, image, notes).await? {
            Pinned::Base(base) => base.clone(),
            Pinned::Image { digest, .. } => Base::Image(*digest),
        })
    }

    /// Returns the base that a step with the image `image` boots from, with all its layers in the store.
    ///
    /// # Errors
    /// Returns an error if the image cannot be fetched.
    ///
    /// # Cancel safety
    /// If all callers drop their futures, nothing is left except layers that were in place already.
    pub async fn fetch(
        &self,
        store: &Arc<Store>,
        image: &str,
        id_map: IdMap,
        notes: &impl Notes,
    ) -> Result<Base, ImageError> {
        let pinned = waiting(notes, Activity::ResolvingImage, self.pinned(store, image, notes)).await?;
        let (digest, origin) = match &*pinned {
            Pinned::Base(base) => return Ok(base.clone()),
            Pinned::Image { digest, origin } => (*digest, origin),
        };
        // Until the image has its name. Those who boot from it hold their own leases.
        let _lease = store.lease()?;
        let fetching = Arc::clone(self.fetching.lock().entry((digest, id_map)).or_default());
        let alone = waiting(notes, Activity::WaitingForImage, fetching.lock()).await;
        if StoredImage::find(store, &digest, id_map).is_ok() {
            store.stacks().touch_image(&digest, id_map)?;
            return Ok(Base::Image(digest));
        }
        #[cfg(feature = "registry")]
        if let ImageOrigin::Registry(remote) = origin {
            if self.options.pull == PullPolicy::Never {
                return Err(ImageError::Offline { image: image.to_owned() });
            }
            remote.complete().await?;
        }
        let limits = self.options.limits();
        ImageFetch { store, name: image, digest, origin, id_map, limits }.run(notes).await?;
        drop(alone);
        Ok(Base::Image(digest))
    }

    async fn pinned(&self, store: &Arc<Store>, image: &str, notes: &impl Notes) -> Result<Arc<Pinned>, ImageError> {
        let cell = self.cell(image);
        let pinned = cell.get_or_try_init(async || {
            let pinned = match ImageName::parse(image)? {
                ImageName::Host => Pinned::Base(Base::Host),
                ImageName::Rootfs => Pinned::Base(Base::parse(image)?),
                ImageName::Registry => self.pin_remote(store, image, notes).await?,
                name => {
                    let (opener, text) = (Arc::clone(store), image.to_owned());
                    let limit = self.options.limits().bytes;
                    let local = blocking(store, move || LocalImage::open(&opener, &text, &name, limit)).await?;
                    Pinned::Image { digest: local.digest, origin: ImageOrigin::Local(local) }
                }
            };
            Ok(Arc::new(pinned))
        });
        pinned.await.cloned()
    }

    fn cell(&self, image: &str) -> Arc<OnceCell<Arc<Pinned>>> {
        let mut pinned = self.pinned.lock();
        pinned.retain(|_, pin| pin.since.elapsed() < PINNED_FOR);
        let new = || Pin { since: Instant::now(), cell: Arc::default() };
        Arc::clone(&pinned.entry(image.to_owned()).or_insert_with(new).cell)
    }

    #[cfg(feature = "registry")]
    async fn pin_remote(&self, store: &Arc<Store>, image: &str, notes: &impl Notes) -> Result<Pinned, ImageError> {
        let (digest, remote) = self.registries.pin(&self.options, store, image, notes).await?;
        Ok(Pinned::Image { digest, origin: ImageOrigin::Registry(Box::new(remote)) })
    }

    #[cfg(not(feature = "registry"))]
    #[expect(clippy::unused_async, reason = "registries are waited for")]
    async fn pin_remote(&self, _: &Arc<Store>, image: &str, _: &impl Notes) -> Result<Pinned, ImageError> {
        Err(ImageError::NoRegistry { image: image.to_owned() })
    }
}

/// Waits for work that is not counted, and reports it meanwhile.
async fn waiting<T>(notes: &impl Notes, activity: Activity, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(REPORTED_EVERY) => notes.progress(activity, None),
        }
    }
}

/// Runs work that reads files on a thread for blocking work.
async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let failed = |error| StoreError::io("look for an image from", Path::new(store.dir()), std::io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
