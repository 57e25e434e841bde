//! A session with one registry for one image.

use std::{net::IpAddr, time::Duration};

use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    },
    secrets::RegistryAuth,
};

use super::{
    super::{ImageDigest, ImageError, ImageOptions, manifest::DocumentError, manifest::MAX_DOCUMENT_BYTES},
    error::{Attempts, RegistryError},
};

/// The number of attempts at a request that a build depends on. The pauses take seven and a half seconds in
/// total.
pub(super) const PATIENT: u32 = 6;
/// The number of attempts if there is a fallback.
pub(super) const IMPATIENT: u32 = 2;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A registry that sends nothing for this long is considered dead.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const ACCEPTED: &[&str] =
    &[OCI_IMAGE_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];

/// One registry, and one of its images.
pub(super) struct RegistrySession {
    /// The image as the user wrote it.
    image: String,
    pub(super) client: Client,
    pub(super) reference: Reference,
    auth: RegistryAuth,
}

impl std::fmt::Debug for RegistrySession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySession").field("reference", &self.reference).finish_non_exhaustive()
    }
}

/// Creates a client for registries that are contacted with or without encryption. Returns the reason if that
/// fails.
pub(super) fn client(is_plain: bool) -> Result<Client, String> {
    crate::tls::choose_provider();
    let config = ClientConfig {
        protocol: if is_plain { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("hm-exec/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    let config = if is_plain { past_proxies(config, |name| std::env::var(name).ok()) } else { config };
    Client::try_from(config).map_err(|error| format!("TLS is not available; is ca-certificates installed? {error}"))
}

/// Makes requests to registries on this machine bypass the environment's proxy, as programs written in Go do.
/// Without encryption, the proxy could read the credentials for them. Other registries are contacted through
/// the proxy.
fn past_proxies(config: ClientConfig, variable: impl Fn(&str) -> Option<String>) -> ClientConfig {
    let first = |names: [&str; 2]| names.into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    let all = || first(["all_proxy", "ALL_PROXY"]);
    let Some(http_proxy) = first(["http_proxy", "HTTP_PROXY"]).or_else(all) else { return config };
    // If a proxy is configured here, the environment is ignored.
    let https_proxy = first(["https_proxy", "HTTPS_PROXY"]).or_else(all);
    let own = first(["no_proxy", "NO_PROXY"]).map(|own| format!("{own},")).unwrap_or_default();
    let no_proxy = Some(format!("{own}localhost,127.0.0.0/8,::1"));
    ClientConfig { http_proxy: Some(http_proxy), https_proxy, no_proxy, ..config }
}

/// Returns whether a registry, given as `HOST[:PORT]`, is contacted without encryption: those on this
/// machine, and those that the user lists.
pub(super) fn is_plain(options: &ImageOptions, registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let is_here = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    host == "localhost" || is_here || options.insecure_registries.iter().any(|insecure| insecure == registry)
}

/// Returns the same image on a mirror, given as `HOST[:PORT][/PATH]`.
pub(super) fn on_mirror(mirror: &str, reference: &Reference) -> Option<Reference> {
    let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
    let repository = [prefix, reference.repository()].join("/").trim_matches('/').to_owned();
    let end = match (reference.tag(), reference.digest()) {
        (_, Some(digest)) => format!("@{digest}"),
        (tag, None) => format!(":{}", tag.unwrap_or("latest")),
    };
    // A host without a dot or a port would be parsed as a part of the path.
    let is_host = host.contains(['.', ':']) || host == "localhost";
    format!("{host}/{repository}{end}").parse().ok().filter(|_| is_host)
}

impl RegistrySession {
    pub(super) fn new(image: &str, client: Client, reference: Reference, auth: RegistryAuth) -> Self {
        Self { image: image.to_owned(), client, reference, auth }
    }

    /// Fetches a manifest or an index, and its digest: the one with this name, or another one of the same
    /// repository.
    pub(super) async fn document(
        &self,
        digest: Option<ImageDigest>,
        patience: u32,
    ) -> Result<(Vec<u8>, ImageDigest), ImageError> {
        let reference = match digest {
            Some(digest) => self.reference.clone_with_digest(digest.to_string()),
            None => self.reference.clone(),
        };
        let mut attempts = Attempts::new(patience);
        let bytes = loop {
            let answer = match self.authenticate().await {
                Ok(()) => {
                    self.client.pull_manifest_raw(&reference, &self.auth, ACCEPTED).await.map_err(RegistryError::of)
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok((bytes, _)) => break bytes.to_vec(),
                Err(error) => {
                    attempts.after(error).await.map_err(|error| self.error(error, "the manifest"))?;
                }
            }
        };
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(self.bad_answer(format!("a manifest of {} bytes", bytes.len())));
        }
        let found = ImageDigest::of(&bytes);
        if let Some(expected) = reference.digest()
            && expected.starts_with("sha256:")
            && expected != found.to_string()
        {
            let (expected, found) = (expected.to_owned(), found.to_string());
            return Err(self.error(RegistryError::WrongDigest { expected, found }, "the manifest"));
        }
        Ok((bytes, found))
    }

    /// Requests a token if the registry requires one. The client stores it.
    pub(super) async fn authenticate(&self) -> Result<(), RegistryError> {
        let done = self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await;
        done.map(drop).map_err(RegistryError::of)
    }

    /// Returns the error for a failed request for `what`.
    pub(super) fn error(&self, error: RegistryError, what: &str) -> ImageError {
        let (image, registry) = (self.image.clone(), self.reference.registry().to_owned());
        match error {
            RegistryError::NotFound => ImageError::NotFound { image, place: None },
            RegistryError::Unauthorized => ImageError::Unauthorized { image, registry },
            RegistryError::RateLimited => ImageError::RateLimited { image, registry },
            RegistryError::Unreachable(reason) => ImageError::Unreachable { image, registry, reason },
            RegistryError::WrongDigest { expected, found } => {
                ImageError::WrongDigest { image, what: what.to_owned(), expected, found }
            }
            RegistryError::BadAnswer(reason) => ImageError::BadAnswer { image, registry, reason },
        }
    }

    pub(super) fn bad_answer(&self, reason: String) -> ImageError {
        self.error(RegistryError::BadAnswer(reason), "")
    }

    pub(super) fn wrong(&self, wrong: DocumentError) -> ImageError {
        wrong.of(&self.image, |reason| self.bad_answer(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_asked_without_encryption_unless_said() {
        let insecure_registries = vec!["registry.lan:5000".to_owned()];
        let options = ImageOptions { insecure_registries, ..ImageOptions::default() };
        for plain in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.8.8", "registry.lan:5000"] {
            assert!(is_plain(&options, plain), "{plain}");
        }
        for other in ["registry.lan", "registry.lan:443", "ghcr.io", "localhost.example.com", "127.0.0.1.example.com"] {
            assert!(!is_plain(&options, other), "{other}");
        }
    }

    #[test]
    fn a_proxy_is_not_asked_for_registries_of_this_machine() {
        let of = |variables: &[(&str, &str)]| {
            let named =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
            let config = past_proxies(ClientConfig::default(), named);
            (config.http_proxy, config.no_proxy)
        };
        let here = "localhost,127.0.0.0/8,::1";
        assert_eq!(of(&[("https_proxy", "http://p:1"), ("http_proxy", "")]), (None, None));
        assert_eq!(of(&[("ALL_PROXY", "http://p:1")]), (Some("http://p:1".into()), Some(here.into())));
        assert_eq!(
            of(&[("HTTP_PROXY", "http://p:2"), ("all_proxy", "http://p:1"), ("no_proxy", "a,b")]),
            (Some("http://p:2".into()), Some(format!("a,b,{here}")))
        );
    }

    #[test]
    fn a_mirror_has_images_under_its_path() {
        let reference: Reference = "debian:bookworm".parse().unwrap();
        let on = |mirror: &str| on_mirror(mirror, &reference).map(|reference| reference.whole());
        assert_eq!(on("mirror.lan").as_deref(), Some("mirror.lan/library/debian:bookworm"));
        assert_eq!(on("mirror.lan:5000/hub").as_deref(), Some("mirror.lan:5000/hub/library/debian:bookworm"));
        assert_eq!(on("127.0.0.1:5000").as_deref(), Some("127.0.0.1:5000/library/debian:bookworm"));
        for wrong in ["mirror", "https://mirror.lan", ""] {
            assert_eq!(on(wrong), None, "{wrong}");
        }
    }
}
