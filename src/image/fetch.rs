//! Adds the layers of a pinned image to the store.
//!
//! Layers are fetched and unpacked concurrently, and each is unpacked while it is downloaded. That happens
//! under a lock that the kernel releases when its holder dies. If another task or process needs the same
//! layer, it waits and then finds the layer in place. The configuration is kept last.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    ImageDigest, ImageError, Notes,
    archive::{BlobAt, LocalImage},
    base_layer::base_layer,
    layers,
    manifest::ImageConfig,
    partial::Partial,
    stored,
};
use crate::{
    model::{Activity, ActivityCount, REPORTED_EVERY},
    size::megabytes,
    store::{IdMap, LayerId, Store, StoreError, tree::UnpackLimits},
};

/// The number of concurrent layers. More connections do not make a pull faster, and each unpacking needs a
/// processor.
const AT_ONCE: usize = 4;
/// The interval of progress messages during a long pull.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// The origin of an image's layers.
#[derive(Debug)]
pub(super) enum ImageOrigin {
    /// Files of this machine.
    Local(LocalImage),
    /// A registry.
    #[cfg(feature = "registry")]
    Registry(Box<super::registry::RemoteImage>),
}

/// One fetch.
pub(super) struct ImageFetch<'a> {
    pub(super) store: &'a Arc<Store>,
    /// The image as the user wrote it.
    pub(super) name: &'a str,
    pub(super) digest: ImageDigest,
    pub(super) origin: &'a ImageOrigin,
    pub(super) id_map: IdMap,
    pub(super) limits: UnpackLimits,
}

/// A layer of the image that is not in the store.
struct MissingLayer {
    /// The position in the manifest, counted from the lowest layer.
    index: usize,
    layer: LayerId,
    diff_id: ImageDigest,
}

impl ImageFetch<'_> {
    /// Fetches the missing layers.
    ///
    /// # Cancel safety
    /// If the future is dropped, downloads end. A layer of a file that is being unpacked is finished on its
    /// thread and then removed.
    pub(super) async fn run(&self, notes: &impl Notes) -> Result<(), ImageError> {
        base_layer(self.store, self.id_map)?;
        let bytes = self.config_bytes().await?;
        let count = self.layer_count();
        let config =
            ImageConfig::parse(&bytes, Some(count)).map_err(|wrong| wrong.of(self.name, |why| self.malformed(&why)))?;
        let missing = self.missing(&config)?;
        if !missing.is_empty() {
            self.layers(&missing, notes).await?;
        }
        // Walks the new layers.
        let (store, digest, id_map) = (Arc::clone(self.store), self.digest, self.id_map);
        let keep = tokio::task::spawn_blocking(move || stored::keep(&store, &digest, id_map, &config, bytes));
        Ok(keep.await.map_err(|error| self.no_thread(error))??)
    }

    async fn layers(&self, missing: &[MissingLayer], notes: &impl Notes) -> Result<(), ImageError> {
        let total: u64 = missing.iter().map(|it| self.length(it.index)).fold(0, u64::saturating_add);
        if total > self.limits.bytes {
            let (image, limit) = (self.name.to_owned(), self.limits.bytes);
            return Err(ImageError::TooLarge { image, bytes: total, limit });
        }
        let started = Instant::now();
        let layers = if missing.len() == 1 { "layer" } else { "layers" };
        let (verb, past) = self.verbs();
        notes.note(format!("{verb} {}: {} in {} {layers}", self.name, megabytes(total), missing.len())).await;
        let done = AtomicU64::new(0);
        // The largest ones first: one that starts last would run alone in the end.
        let mut missing: Vec<_> = missing.iter().collect();
        missing.sort_by_key(|it| Reverse(self.length(it.index)));
        let layers: Vec<_> = missing.into_iter().map(|layer| self.layer(layer, &done)).collect();
        let work = stream::iter(layers).buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) });
        tokio::pin!(work);
        let mut next_note = started + NOTE_EVERY;
        loop {
            tokio::select! {
                worked = &mut work => break worked?,
                () = tokio::time::sleep(REPORTED_EVERY) => {
                    let done = done.load(Relaxed);
                    notes.progress(self.activity(done < total), Some(ActivityCount::new(done.min(total), total)));
                    if Instant::now() < next_note {
                        continue;
                    }
                    next_note += NOTE_EVERY;
                    notes.note(match done < total {
                        true => format!("{verb} {}: {} of {}", self.name, megabytes(done), megabytes(total)),
                        false => format!("unpacking {}", self.name),
                    })
                    .await;
                }
            }
        }
        notes.note(format!("{past} {} in {:.1} s", self.name, started.elapsed().as_secs_f64())).await;
        Ok(())
    }

    /// Fetches and unpacks one layer, unless another task or process just did.
    async fn layer(&self, missing: &MissingLayer, done: &AtomicU64) -> Result<(), ImageError> {
        let MissingLayer { index, layer, diff_id } = missing;
        let _lock = layers::lock_layer(self.store, layer).await?;
        if self.store.layers().is_intact(layer)? {
            return Ok(());
        }
        // An existing directory is damaged.
        self.store.trash().discard_from(&self.store.layers().home(layer))?;
        let tree = match self.origin {
            ImageOrigin::Local(image) => {
                let at = image.layers[*index].clone();
                done.fetch_add(at.length, Relaxed);
                self.unpack(at, *diff_id).await?
            }
            #[cfg(feature = "registry")]
            ImageOrigin::Registry(image) => {
                let (store, name, diff_id) = (Arc::clone(self.store), self.name.to_owned(), *diff_id);
                let (id_map, limits) = (self.id_map, self.limits);
                let streamed = super::registry::StreamedLayer { store, image: name, diff_id, id_map, limits };
                image.unpack(*index, streamed, done).await?
            }
        };
        Ok(tree.place(layer)?)
    }

    /// Unpacks a layer that is a file of this machine.
    async fn unpack(&self, at: BlobAt, diff_id: ImageDigest) -> Result<Partial, ImageError> {
        let (store, id_map, limits, image) = (Arc::clone(self.store), self.id_map, self.limits, self.name.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            let file = layers::LayerFile { name: &image, diff_id, blob: at.open()?, limits };
            layers::unpack_tree(&store, file, id_map)
        });
        work.await.map_err(|error| self.no_thread(error))?
    }

    fn no_thread(&self, error: tokio::task::JoinError) -> StoreError {
        StoreError::io("unpack to", self.store.dir(), std::io::Error::other(error))
    }

    fn missing(&self, config: &ImageConfig) -> Result<Vec<MissingLayer>, StoreError> {
        let (mut seen, mut missing) = (BTreeSet::new(), Vec::new());
        for (index, diff_id) in config.rootfs.diff_ids.iter().enumerate() {
            let layer = LayerId::of_image(diff_id, self.id_map);
            if seen.insert(layer.clone()) && !self.store.layers().is_intact(&layer)? {
                missing.push(MissingLayer { index, layer, diff_id: *diff_id });
            }
        }
        Ok(missing)
    }

    async fn config_bytes(&self) -> Result<Vec<u8>, ImageError> {
        match self.origin {
            ImageOrigin::Local(image) => Ok(image.config.clone()),
            #[cfg(feature = "registry")]
            ImageOrigin::Registry(image) => image.config().await,
        }
    }

    fn layer_count(&self) -> usize {
        match self.origin {
            ImageOrigin::Local(image) => image.layers.len(),
            #[cfg(feature = "registry")]
            ImageOrigin::Registry(image) => image.layers().len(),
        }
    }

    fn length(&self, index: usize) -> u64 {
        match self.origin {
            ImageOrigin::Local(image) => image.layers[index].length,
            #[cfg(feature = "registry")]
            ImageOrigin::Registry(image) => image.layers()[index].size,
        }
    }

    fn activity(&self, is_incomplete: bool) -> Activity {
        let is_remote = !matches!(self.origin, ImageOrigin::Local(_));
        if is_remote && is_incomplete { Activity::PullingImage } else { Activity::UnpackingImage }
    }

    fn verbs(&self) -> (&'static str, &'static str) {
        match self.origin {
            ImageOrigin::Local(_) => ("unpacking", "unpacked"),
            #[cfg(feature = "registry")]
            ImageOrigin::Registry(_) => ("pulling", "pulled"),
        }
    }

    fn malformed(&self, reason: &str) -> ImageError {
        ImageError::UnsupportedFormat {
            image: self.name.to_owned(),
            what: format!("an invalid configuration ({reason})"),
            hint: "report it to its owner",
        }
    }
}
