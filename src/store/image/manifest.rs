//! The documents that an image consists of besides its layers: indexes, manifests, configurations.
//!
//! Read leniently (unknown fields are passed over), as far as they are needed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ImageDigest, ImageError};

/// A manifest or configuration beyond this is no honest one.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// Overlays take 500 lower directories, and steps need some.
const MAX_LAYERS: usize = 256;

/// The name of an image within an OCI layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Refers to another document, or to a layer.
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

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
}

/// What a name may stand for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Document {
    /// One manifest per platform.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// An image's configuration, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Config {
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
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RootFs {
    /// The layers by the digests of their uncompressed tar streams, lowest first.
    pub(super) diff_ids: Vec<ImageDigest>,
}

/// What went wrong with a document; who holds it knows its name.
#[derive(Debug)]
pub(super) enum Wrong {
    Malformed(String),
    Unsupported(String, &'static str),
    Platform { wanted: String, found: String },
}

impl Wrong {
    /// The error, for an image of a registry or an archive: `malformed` makes the one for what makes no sense.
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
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Wrong> {
        #[derive(Deserialize)]
        struct Version {
            #[serde(rename = "schemaVersion")]
            schema_version: u32,
        }
        let malformed = |error: serde_json::Error| Wrong::Malformed(format!("its manifest does not decode ({error})"));
        let version: Version = serde_json::from_slice(bytes).map_err(malformed)?;
        if version.schema_version != 2 {
            let what = format!("a manifest of version {}", version.schema_version);
            return Err(Wrong::Unsupported(what, "push it again with a tool of this decade"));
        }
        let document: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        if let Self::Manifest(manifest) = &document {
            manifest.check()?;
        }
        Ok(document)
    }
}

impl Index {
    /// The image for this machine.
    pub(super) fn for_this_machine(&self) -> Result<&Descriptor, Wrong> {
        let wanted = this_platform();
        let fits = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|platform| *platform == wanted);
        if let Some(entry) = self.manifests.iter().find(|entry| entry.platform.as_ref() == Some(&wanted)) {
            return Ok(entry);
        }
        if let [only] = &self.manifests[..]
            && fits(&only)
        {
            return Ok(only);
        }
        let platforms = self.manifests.iter().filter_map(|entry| entry.platform.as_ref()).take(20);
        let found = platforms.map(Platform::to_text).collect::<Vec<_>>().join(", ");
        let found = if found.is_empty() { "no platform that it names".into() } else { found };
        Err(Wrong::Platform { wanted: wanted.to_text(), found })
    }
}

impl Manifest {
    fn check(&self) -> Result<(), Wrong> {
        if self.layers.len() > MAX_LAYERS {
            let what = format!("{} layers", self.layers.len());
            return Err(Wrong::Unsupported(what, "at most 256 can be mounted: squash it"));
        }
        for layer in &self.layers {
            // What is not known to be something else is looked at: archives and old tools are careless with types.
            let known = layer.media_type.is_empty() || layer.media_type.contains("tar");
            if !known || layer.media_type.contains("foreign") || layer.media_type.contains("encrypted") {
                let what = format!("a layer of the type `{}`", layer.media_type.escape_default());
                return Err(Wrong::Unsupported(what, "only plain images of file systems can be booted from"));
            }
        }
        Ok(())
    }
}

impl Config {
    /// Reads a configuration, and checks that it is for this machine and has `layers` layers.
    pub(super) fn parse(bytes: &[u8], layers: Option<usize>) -> Result<Self, Wrong> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| Wrong::Malformed(format!("its configuration does not decode ({error})")))?;
        let found = config.rootfs.diff_ids.len();
        if let Some(layers) = layers
            && found != layers
        {
            return Err(Wrong::Malformed(format!("its configuration names {found} layers, its manifest {layers}")));
        }
        if found > MAX_LAYERS {
            return Err(Wrong::Unsupported(format!("{found} layers"), "at most 256 can be mounted: squash it"));
        }
        let platform = Platform { os: config.os.clone(), architecture: config.architecture.clone() };
        let wanted = this_platform();
        let says_nothing = platform.os.is_empty() || platform.architecture.is_empty();
        if !says_nothing && platform != wanted {
            return Err(Wrong::Platform { wanted: wanted.to_text(), found: platform.to_text() });
        }
        Ok(config)
    }

    /// The variables that a command finds, by name.
    pub(super) fn env(&self) -> BTreeMap<String, String> {
        let vars = self.config.iter().flat_map(|config| config.env.iter().flatten());
        vars.filter_map(|var| var.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl Platform {
    fn to_text(&self) -> String {
        format!("{}/{}", self.os.escape_default(), self.architecture.escape_default())
    }
}

/// This machine, in the words of images.
pub(crate) fn this_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    };
    Platform { os: "linux".into(), architecture: architecture.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(digest: &str, arch: Option<&str>) -> serde_json::Value {
        let platform = arch.map(|arch| json!({ "os": "linux", "architecture": arch, "variant": "v8" }));
        let digest = ImageDigest::of(digest.as_bytes());
        let mut descriptor = json!({ "mediaType": "application/x.tar", "digest": digest.to_string(), "size": 1 });
        if let Some(platform) = platform {
            descriptor["platform"] = platform;
        }
        descriptor
    }

    fn index(entries: &[serde_json::Value]) -> Index {
        match Document::parse(&serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap()) {
            Ok(Document::Index(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_index_has_one_image_for_this_machine() {
        let here = this_platform().architecture;
        let found = index(&[descriptor("a", Some("other")), descriptor("b", Some(&here)), descriptor("c", None)]);
        assert_eq!(found.for_this_machine().unwrap().digest, ImageDigest::of(b"b"));
        assert!(index(&[descriptor("a", None)]).for_this_machine().is_ok());
        let wrong = index(&[descriptor("a", Some("other"))]).for_this_machine().unwrap_err();
        assert!(matches!(wrong, Wrong::Platform { found, .. } if found == "linux/other"));
        assert!(index(&[]).for_this_machine().is_err());
    }

    #[test]
    fn documents_that_make_no_sense_are_told() {
        for wrong in [
            &b"{"[..],
            b"{}",
            br#"{"schemaVersion":2}"#,
            br#"{"schemaVersion":2,"config":{"digest":"sha256:x","size":1},"layers":[]}"#,
        ] {
            assert!(matches!(Document::parse(wrong), Err(Wrong::Malformed(_))), "{}", String::from_utf8_lossy(wrong));
        }
        assert!(matches!(Document::parse(br#"{"schemaVersion":1}"#), Err(Wrong::Unsupported(..))));
        let mut layer = descriptor("l", None);
        layer["mediaType"] = "application/vnd.wasm".into();
        let manifest = json!({ "schemaVersion": 2, "config": descriptor("c", None), "layers": [layer] });
        let parsed = Document::parse(&serde_json::to_vec(&manifest).unwrap());
        assert!(matches!(parsed, Err(Wrong::Unsupported(..))), "{parsed:?}");
    }

    #[test]
    fn a_configuration_is_for_one_platform() {
        let config = |arch: &str| {
            let env = ["A=1", "B=2=3", "broken"];
            json!({ "os": "linux", "architecture": arch, "config": { "Env": env }, "rootfs": { "diff_ids": [] } })
        };
        let parse = |config: serde_json::Value, layers| Config::parse(&serde_json::to_vec(&config).unwrap(), layers);
        let here = this_platform().architecture;
        let env = parse(config(&here), Some(0)).unwrap().env();
        assert_eq!(env.into_iter().collect::<Vec<_>>(), [("A".into(), "1".into()), ("B".into(), "2=3".into())]);
        assert!(matches!(parse(config("other"), None), Err(Wrong::Platform { .. })));
        assert!(matches!(parse(config(&here), Some(1)), Err(Wrong::Malformed(_))));
        assert!(parse(json!({ "rootfs": { "diff_ids": [] } }), None).is_ok());
    }
}
