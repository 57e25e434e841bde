//! The form of a shared result at the engine: an Action that is never executed, named after our key, whose
//! result has `entry.json` and the blobs that it names.

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

use super::error::RemoteCacheError;
use crate::{
    cache::CacheKey,
    remote::{Blob, Digest, DigestFunction, reapi},
    store::{IdMap, ImageDigest, SourceId},
};

/// Incremented whenever an older `hm` would misinterpret an entry. It is part of the Action, so that each
/// version finds only its own entries.
pub(super) const VERSION: u32 = 1;
/// The file of the result that contains the entry.
const ENTRY: &str = "entry.json";
/// More than any entry needs: about 200 bytes for each layer.
pub(super) const MAX_ENTRY_BYTES: u64 = 1 << 20;

/// A shared result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SharedEntry {
    pub(super) version: u32,
    /// The snapshot's id. The keys of steps that build on it are derived from it.
    pub(super) snapshot: String,
    pub(super) id_map: IdMap,
    /// The run that created it, its pipeline and step, and the time, in milliseconds since the Unix epoch.
    pub(super) run: Uuid,
    pub(super) pipeline: String,
    pub(super) step: String,
    pub(super) created_at: i64,
    /// The source that the step saw, and its manifest.
    pub(super) source: SourceId,
    pub(super) manifest: BlobName,
    /// The base image. A machine that boots a step from this snapshot knows the image's name, and fetches it
    /// as for any step.
    pub(super) image: ImageDigest,
    /// The layers with the steps' changes, topmost first.
    pub(super) layers: Vec<LayerName>,
    /// The step's output.
    pub(super) log: Option<BlobName>,
    /// The creator of the entry, for readers that trust only some creators. Not written yet; an entry that
    /// has a scope is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<Scope>,
}

/// The identity that vouches for an entry. Later versions add a name and a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scope {
    pub(super) version: u32,
}

/// The name of a layer: the digest of its tar, and the compressed tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerName {
    pub(super) diff_id: ImageDigest,
    pub(super) blob: BlobName,
}

/// `HASH/SIZE`, or `blake3/HASH/SIZE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobName(pub(super) Digest);

impl Serialize for BlobName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BlobName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// An Action, and the blobs that it consists of.
pub(super) struct KeyAction {
    pub(super) digest: Digest,
    pub(super) blobs: Vec<Blob>,
}

/// Returns the Action that represents a key. It is never executed; a worker that tried would find no such
/// command.
pub(super) fn action_of(key: &CacheKey, function: DigestFunction) -> KeyAction {
    let blob = |message: Vec<u8>| Blob::named_by(function, message);
    let command = reapi::Command {
        arguments: vec![format!("hm-exec-remote-cache-{VERSION}")],
        output_paths: vec![ENTRY.into()],
        ..Default::default()
    };
    let command = blob(command.encode_to_vec());
    // Some engines do not store the empty directory.
    let target = blake3::Hash::from_bytes(key.0).to_hex().to_string();
    let link = reapi::SymlinkNode { name: "key".into(), target, ..Default::default() };
    let root = blob(reapi::Directory { symlinks: vec![link], ..Default::default() }.encode_to_vec());
    let action = reapi::Action {
        command_digest: Some(command.digest.into()),
        input_root_digest: Some(root.digest.into()),
        salt: key.0.to_vec(),
        ..Default::default()
    };
    let action = blob(action.encode_to_vec());
    KeyAction { digest: action.digest, blobs: vec![command, root, action] }
}

/// Returns the digest of the file in a result that contains the entry.
pub(super) fn entry_blob(result: &reapi::ActionResult, function: DigestFunction) -> Result<Digest, RemoteCacheError> {
    let file = result.output_files.iter().find(|file| file.path == ENTRY);
    let digest = file.and_then(|file| file.digest.as_ref()).and_then(|digest| function.parse(digest).ok());
    digest.ok_or_else(|| RemoteCacheError::Foreign(format!("a result without {ENTRY}")))
}

impl SharedEntry {
    /// Decodes what [`SharedEntry::encode`] wrote.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RemoteCacheError> {
        let entry: Self =
            serde_json::from_slice(bytes).map_err(|error| RemoteCacheError::Foreign(error.to_string()))?;
        match (entry.version, &entry.scope) {
            (VERSION, None) => Ok(entry),
            (VERSION, Some(Scope { version })) => Err(RemoteCacheError::Foreign(format!(
                "an entry in a scope of version {version}, which this hm does not support"
            ))),
            (version, _) => Err(RemoteCacheError::Foreign(format!("an entry of version {version}"))),
        }
    }

    /// Returns the entry as a blob, and the result that names it and every blob that it names. From the
    /// result, engines that collect garbage know which blobs belong together.
    pub(super) fn encode(&self) -> Result<(Blob, reapi::ActionResult), RemoteCacheError> {
        let json = serde_json::to_vec(self).map_err(|error| RemoteCacheError::Foreign(error.to_string()))?;
        let blob = Blob::named_by(self.manifest.0.function, json);
        let file = |(path, digest): (String, Digest)| reapi::OutputFile {
            path,
            digest: Some(digest.into()),
            ..Default::default()
        };
        let named = self.blobs().enumerate().map(|(index, digest)| (format!("blobs/{index}"), digest));
        let mut output_files: Vec<_> = named.map(file).collect();
        output_files.push(file((ENTRY.into(), blob.digest)));
        Ok((blob, reapi::ActionResult { output_files, ..Default::default() }))
    }

    /// Returns every blob that the entry names.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let layers = self.layers.iter().map(|layer| layer.blob.0);
        [self.manifest.0].into_iter().chain(layers).chain(self.log.map(|log| log.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry() -> SharedEntry {
        SharedEntry {
            version: VERSION,
            snapshot: "0123456789abcdef0123456789abcdef".into(),
            id_map: IdMap::Root,
            run: Uuid::nil(),
            pipeline: "ci".into(),
            step: "build".into(),
            created_at: 5,
            source: serde_json::from_value(json!("0123456789abcdef0123456789abcdef")).unwrap(),
            manifest: BlobName(Blob::of_bytes(b"manifest".to_vec()).digest),
            image: ImageDigest::of(b"image"),
            layers: Vec::new(),
            log: None,
            scope: None,
        }
    }

    #[test]
    fn an_entry_without_a_scope_is_what_it_was_and_one_with_a_scope_is_not_used() {
        let mut json = serde_json::to_value(entry()).unwrap();
        assert_eq!(json.get("scope"), None);
        let decode = |json: &Value| SharedEntry::decode(json.to_string().as_bytes());
        assert_eq!(decode(&json).ok(), Some(entry()));
        json["scope"] = json!({ "version": 1, "name": "trusted", "signature": "AAAA" });
        match decode(&json) {
            Err(RemoteCacheError::Foreign(why)) => assert!(why.contains("scope of version 1"), "{why}"),
            _ => panic!("it is used"),
        }
    }
}
