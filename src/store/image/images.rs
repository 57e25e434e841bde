//! The images of a runner: what each name stands for, found out once, and fetched once.

use std::{
    collections::HashMap,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::OnceCell;

use super::{
    Base, ImageDigest, ImageError,
    archive::LocalImage,
    fetch::{Fetch, Origin},
    reference::ImageName,
};
use crate::store::{IdMap, Store, StoreError, tree::UnpackLimits};

/// When a registry is asked what a tag stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Each run asks once, long ones again after a while.
    Always,
    /// Where the store does not have the image.
    #[default]
    Missing,
    /// Never; nothing is fetched from registries at all.
    Never,
}

/// How images are found and fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImageOptions {
    /// When a registry is asked what a tag stands for.
    pub pull: PullPolicy,
    /// A registry, with a path where need be, that is asked first for images of docker.io: `HOST[:PORT][/PATH]`.
    pub mirror: Option<String>,
    /// Registries that are asked without encryption, as `HOST[:PORT]`. Those of this machine are anyway.
    pub insecure_registries: Vec<String>,
    /// Where credentials are looked up: the `config.json` of docker. By default in `$DOCKER_CONFIG` or `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// Most uncompressed bytes of a layer, and most bytes of an image to download. By default 64 GiB.
    pub max_bytes: Option<u64>,
}

/// An environment variable that can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value:?}: {expected}")]
pub struct BadVariable {
    /// The variable.
    pub name: &'static str,
    /// What it says.
    pub value: String,
    /// What it should say.
    pub expected: &'static str,
}

impl ImageOptions {
    /// What `HM_REGISTRY_MIRROR`, `HM_INSECURE_REGISTRIES` (separated by commas) and `HM_MAX_IMAGE_BYTES` say.
    ///
    /// # Errors
    /// Where one of them can't be understood.
    pub fn from_env() -> Result<Self, BadVariable> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let max_bytes = match variable("HM_MAX_IMAGE_BYTES") {
            None => None,
            Some(value) => {
                let number = value.trim().parse().ok().filter(|bytes| *bytes > 0);
                let expected = "write a number of bytes";
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

/// Somebody who wants to know how fetching goes on: lines for people.
pub trait Notes: Sync {
    /// Tells a line, without an end of line.
    fn note(&self, line: String) -> impl Future<Output = ()> + Send;
}

/// Nobody.
impl Notes for () {
    async fn note(&self, _: String) {}
}

/// The images of a runner: what a name stands for is found out once in a while, and what it stands for is fetched once,
/// whoever asks.
#[derive(Debug, Default)]
pub struct Images {
    options: ImageOptions,
    pinned: Mutex<HashMap<String, Pin>>,
    fetching: Mutex<HashMap<(ImageDigest, IdMap), Turn>>,
    #[cfg(feature = "registry")]
    registries: super::registry::Registries,
}

/// Held while an image is fetched.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// How long a name stands for the same image without anybody's asking again: a build's steps must agree, while a program
/// that builds all day must see new images.
const PINNED_FOR: Duration = Duration::from_secs(15 * 60);

/// What a name stands for, found out by the first who asks, while others wait. A failure is told, and the next one tries
/// again.
#[derive(Debug)]
struct Pin {
    since: Instant,
    cell: Arc<OnceCell<Arc<Pinned>>>,
}

/// What a name stands for.
#[derive(Debug)]
enum Pinned {
    /// Nothing to fetch.
    Base(Base),
    /// An image that the store may have already.
    Image { digest: ImageDigest, origin: Box<Origin> },
}

impl Images {
    /// Images that are found and fetched as `options` say.
    #[must_use]
    pub fn new(options: ImageOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// What the name `image` stands for. No layer is fetched, and none need be there.
    ///
    /// # Errors
    /// Why nobody can tell.
    pub async fn pin(&self, store: &Arc<Store>, image: &str, notes: &impl Notes) -> Result<Base, ImageError> {
        Ok(match &*self.pinned(store, image, notes).await? {
            Pinned::Base(base) => base.clone(),
            Pinned::Image { digest, .. } => Base::Image(*digest),
        })
    }

    /// What a step whose image is `image` boots from, with all its layers in the store.
    ///
    /// # Errors
    /// Why it can't be had.
    ///
    /// # Cancel safety
    /// Where all callers drop their futures nothing is left, apart from layers that were in place already.
    pub async fn fetch(
        &self,
        store: &Arc<Store>,
        image: &str,
        id_map: IdMap,
        notes: &impl Notes,
    ) -> Result<Base, ImageError> {
        let pinned = self.pinned(store, image, notes).await?;
        let (digest, origin) = match &*pinned {
            Pinned::Base(base) => return Ok(base.clone()),
            Pinned::Image { digest, origin } => (*digest, origin),
        };
        // Until the image has its name. Whoever boots from it has a lease of his own.
        let _lease = store.lease()?;
        let fetching = Arc::clone(lock(&self.fetching).entry((digest, id_map)).or_default());
        let alone = fetching.lock().await;
        if store.image(&digest, id_map).is_ok() {
            store.touch_image(&digest, id_map)?;
            return Ok(Base::Image(digest));
        }
        #[cfg(feature = "registry")]
        if let Origin::Registry(remote) = &**origin {
            if self.options.pull == PullPolicy::Never {
                return Err(ImageError::Offline { image: image.to_owned() });
            }
            remote.complete().await?;
        }
        let limits = self.options.limits();
        Fetch { store, name: image, digest, origin, id_map, limits }.run(notes).await?;
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
                    Pinned::Image { digest: local.digest, origin: Box::new(Origin::Local(local)) }
                }
            };
            Ok(Arc::new(pinned))
        });
        pinned.await.cloned()
    }

    fn cell(&self, image: &str) -> Arc<OnceCell<Arc<Pinned>>> {
        let mut pinned = lock(&self.pinned);
        pinned.retain(|_, pin| pin.since.elapsed() < PINNED_FOR);
        let new = || Pin { since: Instant::now(), cell: Arc::default() };
        Arc::clone(&pinned.entry(image.to_owned()).or_insert_with(new).cell)
    }

    #[cfg(feature = "registry")]
    async fn pin_remote(&self, store: &Arc<Store>, image: &str, notes: &impl Notes) -> Result<Pinned, ImageError> {
        let (digest, remote) = self.registries.pin(&self.options, store, image, notes).await?;
        Ok(Pinned::Image { digest, origin: Box::new(Origin::Registry(remote)) })
    }

    #[cfg(not(feature = "registry"))]
    #[expect(clippy::unused_async, reason = "registries are waited for")]
    async fn pin_remote(&self, _: &Arc<Store>, image: &str, _: &impl Notes) -> Result<Pinned, ImageError> {
        Err(ImageError::NoRegistry { image: image.to_owned() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does work that reads files on a thread for it.
async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let failed = |error| StoreError::io("look for an image from", Path::new(store.dir()), std::io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
