//! The documents of an image besides its layers: indexes, manifests, configurations.
//!
//! They are parsed leniently (unknown fields are ignored), and only as far as they are needed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    ImageDigest, ImageError,
    platform::{Platform, this_machine, this_platform},
};

/// The maximum size of a manifest or configuration. No legitimate one is larger.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// Overlayfs supports 500 lower directories, and steps need some of them.
const MAX_LAYERS: usize = 256;

/// The name of an image within an OCI layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A reference to another document, or to a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: ImageDigest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A document that an image's name may refer to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Document {
    /// One manifest per platform.
    Index(ImageIndex),
    /// One image.
    Manifest(ImageManifest),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ImageIndex {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ImageManifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// The relevant part of an image's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ImageConfig {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) config: Option<Execution>,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(super) struct Execution {
    #[serde(default, rename = "Env")]
    pub(super) env: Option<Vec<String>>,
    #[serde(default, rename = "Entrypoint")]
    pub(super) entrypoint: Option<Vec<String>>,
    #[serde(default, rename = "Cmd")]
    pub(super) cmd: Option<Vec<String>>,
    #[serde(default, rename = "WorkingDir")]
    pub(super) workdir: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RootFs {
    /// The layers by the digests of their uncompressed tar streams, lowest first.
    pub(super) diff_ids: Vec<ImageDigest>,
}

/// The program that an image runs by default.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "an image says no more about its program")]
pub struct ImageProgram {
    /// Its path, and its arguments.
    pub argv: Vec<String>,
    /// The directory where it starts.
    pub workdir: String,
}

impl ImageProgram {
    /// Returns the program of an image that is configured so, if it has one.
    pub(crate) fn of(
        entrypoint: Option<&Vec<String>>,
        cmd: Option<&Vec<String>>,
        workdir: Option<&str>,
    ) -> Option<Self> {
        let argv: Vec<String> = [entrypoint, cmd].into_iter().flatten().flatten().cloned().collect();
        let workdir = workdir.filter(|dir| dir.starts_with('/')).unwrap_or("/").to_owned();
        (!argv.is_empty()).then_some(Self { argv, workdir })
    }
}

/// A problem with a document. The caller adds the document's name.
#[derive(Debug)]
pub(super) enum DocumentError {
    Malformed(String),
    Unsupported(String, &'static str),
    Platform { wanted: String, found: String },
}

impl DocumentError {
    /// Returns the error for an image that is only for `found`.
    pub(super) fn platform(found: String) -> Self {
        Self::Platform { wanted: this_machine(), found }
    }

    /// Returns the error for an image of a registry or an archive. `malformed` creates the error for an
    /// invalid document.
    pub(super) fn of(self, image: &str, malformed: impl FnOnce(String) -> ImageError) -> ImageError {
        let image = image.to_owned();
        match self {
            Self::Malformed(reason) => malformed(reason),
            Self::Unsupported(what, hint) => ImageError::UnsupportedFormat { image, what, hint },
            Self::Platform { wanted, found } => ImageError::UnsupportedPlatform { image, wanted, found },
        }
    }
}

impl Document {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Version {
            #[serde(rename = "schemaVersion")]
            schema_version: u32,
        }
        let malformed =
            |error: serde_json::Error| DocumentError::Malformed(format!("its manifest is invalid ({error})"));
        let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
        if version.schema_version != 2 {
            let what = format!("a manifest of version {}", version.schema_version);
            return Err(DocumentError::Unsupported(what, "push it again with a current tool"));
        }
        let document: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        if let Self::Manifest(manifest) = &document {
            manifest.check()?;
        }
        Ok(document)
    }
}

impl ImageIndex {
    /// Returns the entries that may be for this machine: first those that say so, in descending order of the
    /// processor level that they use, then those that do not say what they are for.
    pub(super) fn candidates(&self) -> Vec<&Descriptor> {
        candidates(self.manifests.iter())
    }

    /// Lists the platforms of the entries, for users.
    pub(super) fn platforms(&self) -> String {
        let platforms = self.manifests.iter().filter_map(|entry| entry.platform.as_ref()).take(20);
        let found = platforms.map(Platform::to_text).collect::<Vec<_>>().join(", ");
        if found.is_empty() { "no platform that it names".into() } else { found }
    }
}

/// Returns [`ImageIndex::candidates`] of some entries.
pub(super) fn candidates<'a>(entries: impl Iterator<Item = &'a Descriptor>) -> Vec<&'a Descriptor> {
    let ranked = entries.filter_map(|entry| match &entry.platform {
        Some(platform) => platform.rank().map(|rank| (Some(rank), entry)),
        None => Some((None, entry)),
    });
    let mut ranked: Vec<_> = ranked.collect();
    // Equally ranked entries stay in the order of the index.
    ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    ranked.into_iter().map(|(_, entry)| entry).collect()
}

impl ImageManifest {
    fn check(&self) -> Result<(), DocumentError> {
        if self.layers.len() > MAX_LAYERS {
            let what = format!("{} layers", self.layers.len());
            return Err(DocumentError::Unsupported(what, "at most 256 can be mounted: squash it"));
        }
        for layer in &self.layers {
            // A layer is accepted unless its type is known to be something else, because archives and old
            // tools set types carelessly.
            let known = layer.media_type.is_empty() || layer.media_type.contains("tar");
            if !known || layer.media_type.contains("foreign") || layer.media_type.contains("encrypted") {
                let what = format!("a layer of the type `{}`", layer.media_type.escape_default());
                return Err(DocumentError::Unsupported(what, "only plain filesystem images are supported"));
            }
        }
        Ok(())
    }
}

impl ImageConfig {
    /// Parses a configuration, and checks that it is for this machine and has `layers` layers.
    pub(super) fn parse(bytes: &[u8], layers: Option<usize>) -> Result<Self, DocumentError> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| DocumentError::Malformed(format!("its configuration is invalid ({error})")))?;
        let found = config.rootfs.diff_ids.len();
        if let Some(layers) = layers
            && found != layers
        {
            return Err(DocumentError::Malformed(format!(
                "its configuration has {found} layers, but its manifest has {layers}"
            )));
        }
        if found > MAX_LAYERS {
            return Err(DocumentError::Unsupported(format!("{found} layers"), "at most 256 can be mounted: squash it"));
        }
        // The processor level that a variant requires is not checked, because there is nothing to choose from
        // here.
        let (os, architecture) = (config.os.clone(), config.architecture.clone());
        let platform = Platform { os, architecture, variant: None };
        let says_nothing = platform.os.is_empty() || platform.architecture.is_empty();
        if !says_nothing && platform != this_platform() {
            return Err(DocumentError::platform(platform.to_text()));
        }
        Ok(config)
    }

    /// Returns the program that runs by default, if there is one.
    pub(super) fn program(&self) -> Option<ImageProgram> {
        let Execution { entrypoint, cmd, workdir, .. } = self.config.as_ref()?;
        ImageProgram::of(entrypoint.as_ref(), cmd.as_ref(), workdir.as_deref())
    }

    /// Returns the environment variables of a command, by name.
    pub(super) fn env(&self) -> BTreeMap<String, String> {
        let vars = self.config.iter().flat_map(|config| config.env.iter().flatten());
        vars.filter_map(|var| var.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(digest: &str, arch: Option<&str>) -> serde_json::Value {
        let platform = arch.map(|arch| json!({ "os": "linux", "architecture": arch }));
        let digest = ImageDigest::of(digest.as_bytes());
        let mut descriptor = json!({ "mediaType": "application/x.tar", "digest": digest.to_string(), "size": 1 });
        if let Some(platform) = platform {
            descriptor["platform"] = platform;
        }
        descriptor
    }

    fn index(entries: &[serde_json::Value]) -> ImageIndex {
        match Document::parse(&serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap()) {
            Ok(Document::Index(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_index_offers_what_runs_here_the_best_first() {
        let here = this_platform().architecture;
        let found = index(&[descriptor("a", Some("other")), descriptor("c", None), descriptor("b", Some(&here))]);
        let digests = |index: &ImageIndex| index.candidates().into_iter().map(|it| it.digest).collect::<Vec<_>>();
        assert_eq!(digests(&found), [ImageDigest::of(b"b"), ImageDigest::of(b"c")]);
        let other = index(&[descriptor("a", Some("other"))]);
        assert_eq!((digests(&other), other.platforms()), (vec![], "linux/other".into()));
        assert_eq!(index(&[]).platforms(), "no platform that it names");
        if here != "amd64" {
            return;
        }
        let leveled = |digest: &str, variant: &str| {
            let mut entry = descriptor(digest, Some("amd64"));
            entry["platform"]["variant"] = variant.into();
            entry
        };
        // No machine has the first level.
        let levels =
            index(&[leveled("a", "v99"), descriptor("b", Some(&here)), leveled("c", "v1"), leveled("d", "v2")]);
        let mut expected = ["b", "c"].map(|digest| ImageDigest::of(digest.as_bytes())).to_vec();
        if std::arch::is_x86_feature_detected!("sse4.2") {
            expected.insert(0, ImageDigest::of(b"d"));
        }
        assert_eq!(digests(&levels), expected);
    }

    #[test]
    fn documents_that_make_no_sense_are_told() {
        for wrong in [
            &b"{"[..],
            b"{}",
            br#"{"schemaVersion":2}"#,
            br#"{"schemaVersion":2,"config":{"digest":"sha256:x","size":1},"layers":[]}"#,
        ] {
            assert!(
                matches!(Document::parse(wrong), Err(DocumentError::Malformed(_))),
                "{}",
                String::from_utf8_lossy(wrong)
            );
        }
        assert!(matches!(Document::parse(br#"{"schemaVersion":1}"#), Err(DocumentError::Unsupported(..))));
        let mut layer = descriptor("l", None);
        layer["mediaType"] = "application/vnd.wasm".into();
        let manifest = json!({ "schemaVersion": 2, "config": descriptor("c", None), "layers": [layer] });
        let parsed = Document::parse(&serde_json::to_vec(&manifest).unwrap());
        assert!(matches!(parsed, Err(DocumentError::Unsupported(..))), "{parsed:?}");
    }

    #[test]
    fn a_configuration_is_for_one_platform() {
        let config = |arch: &str| {
            let env = ["A=1", "B=2=3", "broken"];
            json!({ "os": "linux", "architecture": arch, "config": { "Env": env }, "rootfs": { "diff_ids": [] } })
        };
        let parse =
            |config: serde_json::Value, layers| ImageConfig::parse(&serde_json::to_vec(&config).unwrap(), layers);
        let here = this_platform().architecture;
        let env = parse(config(&here), Some(0)).unwrap().env();
        assert_eq!(env.into_iter().collect::<Vec<_>>(), [("A".into(), "1".into()), ("B".into(), "2=3".into())]);
        assert!(matches!(parse(config("other"), None), Err(DocumentError::Platform { .. })));
        assert!(matches!(parse(config(&here), Some(1)), Err(DocumentError::Malformed(_))));
        assert!(parse(json!({ "rootfs": { "diff_ids": [] } }), None).is_ok());
    }
}
