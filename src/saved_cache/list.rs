//! The list of results in a saved cache, `hm-cache.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

use crate::{
    hex::{from_hex, to_hex},
    store::{DEFAULT_SCOPE, IdMap, ImageDigest, SourceId},
};

/// Incremented whenever an older `hm` would misinterpret a list.
const VERSION: u32 = 1;
/// The version of a list with a scope. An older `hm` would take its results for those of `trusted`.
const SCOPED_VERSION: u32 = 2;
/// The maximum size of a list, enough for some 50,000 results.
pub(super) const MAX_LIST_BYTES: u64 = 64 << 20;
/// The maximum length of the names in a result, in bytes.
const MAX_NAME_BYTES: usize = 4096;
/// The maximum number of a result's layers. Overlayfs does not support more.
const MAX_LAYERS: usize = 500;

/// The results of a saved cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct List {
    version: u32,
    /// The scope of the remote cache whose results these are, unless it is the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<String>,
    /// The images that results build on, by the digest of their configuration.
    pub(super) images: BTreeMap<ImageDigest, SavedImage>,
    /// The results, the one that was used last first.
    pub(super) results: Vec<SavedResult>,
}

/// An image, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedImage {
    /// Its full name in a registry.
    pub(super) reference: String,
    /// The manifest for the machine that saved it.
    pub(super) manifest: ImageDigest,
    /// When the registry was asked, in milliseconds since the Unix epoch.
    pub(super) fetched_at: i64,
}

/// The result of a cached step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedResult {
    pub(super) key: Key,
    /// The snapshot's id. The keys of steps that build on it are derived from it.
    pub(super) snapshot: String,
    pub(super) id_map: IdMap,
    /// The run that created it, its pipeline and step.
    pub(super) run: Uuid,
    pub(super) pipeline: String,
    pub(super) step: String,
    /// When it was created, and last used, in milliseconds since the Unix epoch.
    pub(super) created_at: i64,
    pub(super) used_at: i64,
    /// The source that the step saw, and its manifest.
    pub(super) source: SourceId,
    pub(super) manifest: Blob,
    /// The base image.
    pub(super) image: ImageDigest,
    /// The layers with the steps' changes, topmost first.
    pub(super) layers: Vec<SavedLayer>,
    /// The step's output, if it printed anything.
    pub(super) log: Option<Blob>,
}

/// The digest of a layer's tar, and the compressed tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedLayer {
    pub(super) diff_id: ImageDigest,
    pub(super) blob: Blob,
}

/// A file in `blobs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Blob {
    pub(super) digest: ImageDigest,
    pub(super) bytes: u64,
}

/// A cache key, as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key(pub(super) [u8; 32]);

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex(&text).map(Self).ok_or_else(|| D::Error::custom("expected 64 hexadecimal digits"))
    }
}

impl Default for List {
    fn default() -> Self {
        Self { version: VERSION, scope: None, images: BTreeMap::new(), results: Vec::new() }
    }
}

impl List {
    /// Decodes what [`List::encode`] wrote.
    ///
    /// # Errors
    /// Returns the reason if it is something else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if ![VERSION, SCOPED_VERSION].contains(&head.version) {
            return Err(format!("its format has version {}, and this hm knows version {SCOPED_VERSION}", head.version));
        }
        let list: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if list.scope.is_some() != (list.version == SCOPED_VERSION) {
            return Err("its version and its scope do not fit".to_owned());
        }
        let is_short = |text: &str| text.len() <= MAX_NAME_BYTES;
        let is_plain = |it: &SavedResult| {
            [&it.snapshot, &it.pipeline, &it.step].into_iter().all(|text| is_short(text))
                && it.layers.len() <= MAX_LAYERS
        };
        if !list.results.iter().all(is_plain)
            || !list.scope.iter().all(|scope| is_short(scope))
            || !list.images.values().all(|image| is_short(&image.reference))
        {
            return Err("it has names or stacks of layers that no hm writes".to_owned());
        }
        Ok(list)
    }

    /// Returns the name of the scope whose results these are.
    pub(super) fn scope(&self) -> &str {
        self.scope.as_deref().unwrap_or(DEFAULT_SCOPE)
    }

    /// Sets the scope whose results these are.
    pub(super) fn set_scope(&mut self, scope: Option<String>) {
        self.scope = scope.filter(|scope| scope != DEFAULT_SCOPE);
        self.version = if self.scope.is_some() { SCOPED_VERSION } else { VERSION };
    }

    /// Encodes the whole file.
    pub(super) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl SavedResult {
    /// Returns every blob that it needs.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Blob> {
        self.layers.iter().map(|layer| layer.blob).chain([self.manifest]).chain(self.log)
    }
}

impl SavedImage {
    /// Returns the name by which exactly this image is pulled, or `None` if it does not name an image in a
    /// registry.
    pub(super) fn exact_name(&self) -> Option<String> {
        let name = self.reference.split('@').next().unwrap_or_default();
        let (dir, last) = name.rsplit_once('/')?;
        let last = last.split(':').next().unwrap_or_default();
        let name = format!("{dir}/{last}@{}", self.manifest);
        crate::image::image_path(&name).is_none().then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_of_another_version_or_with_absurd_names_is_refused() {
        let list = List::default();
        assert_eq!(List::decode(&list.encode().unwrap()).unwrap(), list);
        let decode = |json: serde_json::Value| List::decode(json.to_string().as_bytes()).unwrap_err();
        let why = decode(json!({ "version": 3, "what": "ever" }));
        assert!(why.contains("version 3"), "{why}");
        let image = json!({ "reference": "x".repeat(5000), "manifest": ImageDigest::of(b""), "fetched_at": 0 });
        let images = json!({ ImageDigest::of(b"").to_string(): image });
        let why = decode(json!({ "version": 1, "images": images, "results": [] }));
        assert!(why.contains("no hm writes"), "{why}");
        assert!(List::decode(b"").is_err());
    }

    #[test]
    fn a_list_with_a_scope_has_a_version_that_an_older_program_refuses() {
        let mut list = List::default();
        list.set_scope(Some("trusted".into()));
        assert_eq!((&list, list.scope()), (&List::default(), "trusted"));
        list.set_scope(Some("pr-1".into()));
        let read = List::decode(&list.encode().unwrap()).unwrap();
        assert_eq!((read.version, read.scope()), (2, "pr-1"));
        for (version, scope) in [(1, json!("pr-1")), (2, json!(null))] {
            let json = json!({ "version": version, "scope": scope, "images": {}, "results": [] });
            assert!(List::decode(json.to_string().as_bytes()).unwrap_err().contains("do not fit"), "{json}");
        }
    }

    #[test]
    fn an_image_is_pulled_by_its_manifest_and_from_registries_alone() {
        let manifest = ImageDigest::of(b"manifest");
        let name = |reference: &str| SavedImage { reference: reference.into(), manifest, fetched_at: 0 }.exact_name();
        let exact = |name: &str| Some(format!("{name}@{manifest}"));
        assert_eq!(name("docker.io/library/debian:bookworm"), exact("docker.io/library/debian"));
        assert_eq!(name("127.0.0.1:5000/a/b:c"), exact("127.0.0.1:5000/a/b"));
        assert_eq!(name(&format!("ghcr.io/a/b@{manifest}")), exact("ghcr.io/a/b"));
        for local in ["host", "rootfs:/", "oci:/images/it:latest", "docker-archive:/f.tar", "oci-archive:/a/b", ""] {
            assert_eq!(name(local), None, "{local}");
        }
    }
}
