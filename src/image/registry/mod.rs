//! Registries: resolves names, and downloads images.
//!
//! `oci-client` performs the requests. This module decides which registry to ask (a mirror first, for
//! docker.io) and how often, and verifies the answers: every document and every layer is checked against the
//! digest that named it.

mod credentials;
mod download;
mod error;
mod layer_sink;
mod session;

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use chrono::{DateTime, Utc};
use oci_client::{Client, Reference};
use tokio::sync::OnceCell;

use self::{
    download::BlobSink,
    error::DownloadError,
    layer_sink::LayerSink,
    session::{RegistrySession, client},
};
use super::{
    ImageDigest, ImageError, ImageOptions, Notes, PullPolicy,
    manifest::{Descriptor, Document, DocumentError, ImageConfig, ImageManifest, MAX_DOCUMENT_BYTES},
    partial::Partial,
    search::ManifestSearch,
};
use crate::store::{Store, TagRow};
pub(super) use layer_sink::StreamedLayer;

/// The registry whose images a mirror may have.
const DOCKER_HUB: &str = "docker.io";

/// The registries of a runner's images. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Registries(Arc<Clients>);

/// Clients for registries, one with and one without encryption. Each is made when it is first needed: to
/// load the machine's certificates takes milliseconds.
#[derive(Default)]
struct Clients {
    encrypted: OnceLock<Client>,
    plain: OnceLock<Client>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// The registries to ask for an image, in this order. Clients and credentials are looked up when the first
/// registry is asked.
#[derive(Debug)]
struct Sources {
    /// The image as the user wrote it.
    image: String,
    /// Each with whether it is contacted without encryption.
    references: Vec<(Reference, bool)>,
    docker_config: Option<PathBuf>,
    registries: Registries,
    sessions: OnceCell<Vec<RegistrySession>>,
}

/// An image of a registry that is pinned, and whose layers have not been read yet.
#[derive(Debug)]
pub(super) struct RemoteImage {
    /// The image as the user wrote it.
    name: String,
    sources: Sources,
    /// The manifest for this machine.
    digest: ImageDigest,
    /// Fetched on demand if the tag was remembered.
    manifest: OnceCell<ImageManifest>,
}

/// Parses the name of an image of a registry.
pub(super) fn reference(image: &str) -> Result<Reference, ImageError> {
    image.parse().map_err(|error: oci_client::ParseError| ImageError::BadName {
        image: image.to_owned(),
        reason: format!("{error}; use a name such as `debian:bookworm` or `ghcr.io/owner/name:tag`"),
    })
}

impl Registries {
    /// Resolves `image` to a manifest and a configuration.
    pub(super) async fn pin(
        &self,
        options: &ImageOptions,
        store: &Arc<Store>,
        image: &str,
        notes: &impl Notes,
    ) -> Result<(ImageDigest, RemoteImage), ImageError> {
        let reference = reference(image)?;
        let full = reference.whole();
        let remembered = store.stacks().tag(&full)?;
        let sources = self.sources(options, image, &reference)?;
        let from = |tag: &TagRow, sources| {
            let manifest = OnceCell::new();
            (tag.image, RemoteImage { name: image.to_owned(), sources, digest: tag.manifest, manifest })
        };
        if let Some(tag) = &remembered {
            let is_enough = match options.pull {
                PullPolicy::Always => reference.digest().is_some(),
                PullPolicy::Missing => reference.digest().is_some() || store.stacks().has_image(&tag.image)?,
                PullPolicy::Never => true,
            };
            if is_enough {
                return Ok(from(tag, sources));
            }
        } else if options.pull == PullPolicy::Never {
            return Err(ImageError::Offline { image: image.to_owned() });
        }
        let patience = if remembered.is_some() { session::IMPATIENT } else { session::PATIENT };
        match ask(image, sources.sessions().await?, patience).await {
            Ok((digest, manifest)) => {
                let fetched_at = Utc::now().timestamp_millis();
                let tag = TagRow { manifest: digest, image: manifest.config.digest, fetched_at };
                store.stacks().remember_tag(&full, &tag)?;
                let manifest = OnceCell::new_with(Some(manifest));
                Ok((tag.image, RemoteImage { name: image.to_owned(), sources, digest, manifest }))
            }
            Err(error) => match (remembered, &error) {
                (Some(tag), ImageError::Unreachable { .. } | ImageError::RateLimited { .. }) => {
                    let since = DateTime::from_timestamp_millis(tag.fetched_at).unwrap_or_default();
                    let since = since.format("%Y-%m-%d %H:%M UTC");
                    notes.note(format!("warning: {error}: using `{image}` as resolved at {since}")).await;
                    Ok(from(&tag, sources))
                }
                _ => Err(error),
            },
        }
    }

    /// Returns the registries to ask for an image.
    fn sources(&self, options: &ImageOptions, image: &str, reference: &Reference) -> Result<Sources, ImageError> {
        let mut references = Vec::new();
        if let Some(mirror) = &options.mirror
            && reference.registry() == DOCKER_HUB
        {
            references.push(session::on_mirror(mirror, reference).ok_or_else(|| ImageError::BadName {
                image: mirror.clone(),
                reason: "HM_REGISTRY_MIRROR must be HOST[:PORT][/PATH] of a registry".into(),
            })?);
        }
        references.push(reference.clone());
        let with_protocol = |reference: Reference| {
            let is_plain = session::is_plain(options, reference.resolve_registry());
            (reference, is_plain)
        };
        Ok(Sources {
            image: image.to_owned(),
            references: references.into_iter().map(with_protocol).collect(),
            docker_config: options.docker_config.clone(),
            registries: self.clone(),
            sessions: OnceCell::new(),
        })
    }

    /// Returns the client for registries that are contacted with or without encryption, or the reason why
    /// there is none.
    fn client(&self, is_plain: bool) -> Result<Client, String> {
        let slot = if is_plain { &self.0.plain } else { &self.0.encrypted };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let made = client(is_plain)?;
        Ok(slot.get_or_init(|| made).clone())
    }
}

impl Sources {
    /// Returns a session with each registry.
    async fn sessions(&self) -> Result<&[RegistrySession], ImageError> {
        let sessions = self.sessions.get_or_try_init(async || {
            let mut sessions = Vec::with_capacity(self.references.len());
            for (reference, is_plain) in &self.references {
                let client = self.registries.client(*is_plain).map_err(|reason| ImageError::Unreachable {
                    image: self.image.clone(),
                    registry: reference.registry().to_owned(),
                    reason,
                })?;
                let auth = credentials::look_up(self.docker_config.clone(), reference.registry()).await?;
                sessions.push(RegistrySession::new(&self.image, client, reference.clone(), auth));
            }
            Ok(sessions)
        });
        sessions.await.map(Vec::as_slice)
    }
}

/// Requests the manifest for this machine. Returns its digest and the manifest.
async fn ask(
    image: &str,
    sessions: &[RegistrySession],
    patience: u32,
) -> Result<(ImageDigest, ImageManifest), ImageError> {
    let mut failed = None;
    for session in sessions {
        match ask_one(image, session, patience).await {
            Ok(found) => return Ok(found),
            Err(error) => {
                tracing::debug!(%error, "a registry has no answer");
                failed = Some(error);
            }
        }
    }
    Err(failed.unwrap_or_else(|| ImageError::NotFound { image: image.to_owned(), place: None }))
}

async fn ask_one(
    image: &str,
    session: &RegistrySession,
    patience: u32,
) -> Result<(ImageDigest, ImageManifest), ImageError> {
    let wrong = |wrong| session.wrong(wrong);
    let (bytes, digest) = session.document(None, patience).await?;
    let index = match Document::parse(&bytes).map_err(wrong)? {
        Document::Manifest(manifest) => return Ok((digest, manifest)),
        Document::Index(index) => index,
    };
    let mut search = ManifestSearch::among(&index.candidates(), index.platforms());
    loop {
        let at = search.next().map_err(wrong)?;
        let (bytes, _) = session.document(Some(at.digest), patience).await?;
        match Document::parse(&bytes).map_err(wrong)? {
            Document::Index(index) => search.descend(at, &index),
            Document::Manifest(manifest) if at.is_certain => return Ok((at.digest, manifest)),
            Document::Manifest(manifest) => {
                match config_of(image, &[session], &manifest).await.map(|bytes| ImageConfig::parse(&bytes, None))? {
                    Ok(_) => return Ok((at.digest, manifest)),
                    Err(DocumentError::Platform { found, .. }) => search.reject(found),
                    Err(other) => return Err(wrong(other)),
                }
            }
        }
    }
}

/// Fetches a configuration from the first session that has it, and verifies its digest.
async fn config_of(
    image: &str,
    sessions: &[&RegistrySession],
    manifest: &ImageManifest,
) -> Result<Vec<u8>, ImageError> {
    let config = &manifest.config;
    if config.size > MAX_DOCUMENT_BYTES {
        let (image, bytes, limit) = (image.to_owned(), config.size, MAX_DOCUMENT_BYTES);
        return Err(ImageError::TooLarge { image, bytes, limit });
    }
    let mut bytes = Vec::new();
    let from = BlobSource { image, sessions, what: "the configuration" };
    from.download(config, &mut bytes, &AtomicU64::new(0)).await?;
    Ok(bytes)
}

/// Where a blob is looked for.
struct BlobSource<'a> {
    image: &'a str,
    sessions: &'a [&'a RegistrySession],
    /// The part of the image, for errors.
    what: &'a str,
}

impl BlobSource<'_> {
    /// Downloads a blob from the first session that has it. Adds the received bytes to `done`.
    async fn download(
        &self,
        descriptor: &Descriptor,
        sink: &mut impl BlobSink,
        done: &AtomicU64,
    ) -> Result<(), ImageError> {
        let mut failed = None;
        for session in self.sessions {
            let before = done.load(Relaxed);
            match session.blob(descriptor, sink, done).await {
                Ok(()) => return Ok(()),
                Err(DownloadError::Store(error)) => return Err(error.into()),
                Err(DownloadError::Registry(error)) => failed = Some(session.error(error, self.what)),
            }
            done.fetch_sub(done.load(Relaxed).saturating_sub(before).min(descriptor.size), Relaxed);
        }
        Err(failed.unwrap_or_else(|| ImageError::NotFound { image: self.image.to_owned(), place: None }))
    }
}

impl RemoteImage {
    /// Fetches the manifest if it is not known yet.
    pub(super) async fn complete(&self) -> Result<(), ImageError> {
        let manifest = self.manifest.get_or_try_init(async || {
            let mut failed = None;
            for session in self.sources.sessions().await? {
                let document = session.document(Some(self.digest), session::PATIENT).await;
                let parsed = document.and_then(|(bytes, _)| Document::parse(&bytes).map_err(|it| session.wrong(it)));
                match parsed {
                    Ok(Document::Manifest(manifest)) => return Ok(manifest),
                    Ok(Document::Index(_)) => failed = Some(session.bad_answer("it has become an index".into())),
                    Err(error) => failed = Some(error),
                }
            }
            Err(failed.unwrap_or_else(|| ImageError::NotFound { image: self.name.clone(), place: None }))
        });
        manifest.await.map(drop)
    }

    /// Returns the layers, lowest first. Returns none before [`complete`](Self::complete).
    pub(super) fn layers(&self) -> &[Descriptor] {
        self.manifest.get().map_or(&[], |manifest| &manifest.layers)
    }

    /// Returns the configuration, verified against its digest.
    pub(super) async fn config(&self) -> Result<Vec<u8>, ImageError> {
        self.complete().await?;
        let Some(manifest) = self.manifest.get() else {
            return Err(ImageError::NotFound { image: self.name.clone(), place: None });
        };
        config_of(&self.name, &self.sessions().await?, manifest).await
    }

    async fn sessions(&self) -> Result<Vec<&RegistrySession>, ImageError> {
        Ok(self.sources.sessions().await?.iter().collect())
    }

    /// Downloads the layer at `index` and unpacks it meanwhile. Returns the tree once both digests, that of
    /// the download and that of the content, are verified. Adds the received bytes to `done`.
    pub(super) async fn unpack(
        &self,
        index: usize,
        layer: StreamedLayer,
        done: &AtomicU64,
    ) -> Result<Partial, ImageError> {
        let not_found = || ImageError::NotFound { image: self.name.clone(), place: None };
        let descriptor = self.layers().get(index).ok_or_else(not_found)?;
        let mut sink = LayerSink::new(layer);
        let sessions = self.sessions().await?;
        let from = BlobSource { image: &self.name, sessions: &sessions, what: "a layer" };
        match from.download(descriptor, &mut sink, done).await {
            Ok(()) => sink.finish().await,
            Err(error) => {
                sink.restart().await;
                Err(error)
            }
        }
    }
}
