//! The form of a shared result at the engine: an Action that is never executed, named after our key, whose
//! result has `entry.json` and the blobs that it names.

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

use super::{error::RemoteCacheError, scope::CacheScope};
use crate::{
    cache::CacheKey,
    remote::{Blob, Digest, DigestFunction, reapi},
    store::{IdMap, ImageDigest, SourceId},
};

/// Incremented whenever an older `hm` would misinterpret an entry. It is part of the Action, so that each
/// version finds only its own entries.
pub(super) const VERSION: u32 = 2;
/// The version without chunks, which is still read.
pub(super) const OLD_VERSION: u32 = 1;
/// The file of the result that contains the entry.
const ENTRY: &str = "entry.json";
/// The file that contains its signature.
const SIGNATURE: &str = "entry.json.minisig";
/// More than any entry needs: about 200 bytes for each layer.
pub(super) const MAX_ENTRY_BYTES: u64 = 1 << 20;
/// More than any signature needs.
pub(super) const MAX_SIGNATURE_BYTES: u64 = 4 << 10;

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
    /// The key and the scope that the entry was written for, so that a signed entry cannot be offered under
    /// another key or in another scope. Entries of the old version have neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<EntryPlace>,
    /// Entries of the old version may come from a program that has scopes of another kind. They are not used.
    #[serde(default, skip_serializing)]
    pub(super) scope: IsPresent,
}

/// The place of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EntryPlace {
    /// The cache key, in hexadecimal.
    pub(super) key: String,
    pub(super) scope: CacheScope,
}

impl EntryPlace {
    pub(super) fn new(key: &CacheKey, scope: &CacheScope) -> Self {
        Self { key: key.to_string(), scope: scope.clone() }
    }
}

/// Whether a field has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct IsPresent(bool);

impl<'de> Deserialize<'de> for IsPresent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer)?;
        Ok(Self(true))
    }
}

/// The name of a layer: the digest of its tar, and what the engine has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerName {
    pub(super) diff_id: ImageDigest,
    #[serde(flatten)]
    pub(super) form: LayerForm,
}

/// What the engine has of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LayerForm {
    /// The compressed tar.
    Blob(BlobName),
    /// The list of its chunks.
    Chunks(BlobName),
}

impl LayerName {
    /// Returns the list of the layer's chunks, if it does not travel whole.
    pub(super) fn list(&self) -> Option<Digest> {
        match self.form {
            LayerForm::Blob(_) => None,
            LayerForm::Chunks(list) => Some(list.0),
        }
    }
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
pub(super) fn action_of(version: u32, scope: &CacheScope, key: &CacheKey, function: DigestFunction) -> KeyAction {
    let mut arguments = vec![format!("hm-exec-remote-cache-{version}")];
    if !scope.is_trusted() {
        arguments.push(scope.to_string());
    }
    let blob = |message: Vec<u8>| Blob::named_by(function, message);
    let command = reapi::Command { arguments, output_paths: vec![ENTRY.into()], ..Default::default() };
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
    blob_at(result, ENTRY, function).ok_or_else(|| RemoteCacheError::Foreign(format!("a result without {ENTRY}")))
}

/// Returns the digest of the file in a result that contains the entry's signature, if there is one.
pub(super) fn signature_blob(result: &reapi::ActionResult, function: DigestFunction) -> Option<Digest> {
    blob_at(result, SIGNATURE, function)
}

fn blob_at(result: &reapi::ActionResult, path: &str, function: DigestFunction) -> Option<Digest> {
    let file = result.output_files.iter().find(|file| file.path == path)?;
    function.parse(file.digest.as_ref()?).ok()
}

impl SharedEntry {
    /// Decodes what [`SharedEntry::encode`] wrote, if it was written for this place. `None` is where the old
    /// version is found.
    pub(super) fn decode(bytes: &[u8], place: Option<&EntryPlace>) -> Result<Self, RemoteCacheError> {
        let entry: Self =
            serde_json::from_slice(bytes).map_err(|error| RemoteCacheError::Foreign(error.to_string()))?;
        let foreign = |what: String| Err(RemoteCacheError::Foreign(what));
        match (entry.version, place) {
            (VERSION, Some(expected)) if entry.place.as_ref() == Some(expected) => Ok(entry),
            (VERSION, Some(EntryPlace { scope, .. })) => {
                let step = entry.step.chars().take(100).collect::<String>().escape_debug().to_string();
                let of = entry.place.map_or_else(|| "none".to_owned(), |place| place.scope.to_string());
                foreign(format!("in scope `{scope}`, an entry of step `{step}` for another key or scope ({of})"))
            }
            (OLD_VERSION, None) if !entry.scope.0 && entry.place.is_none() => Ok(entry),
            (OLD_VERSION, None) => foreign("an entry of version 1 with a scope".into()),
            (version, _) => foreign(format!("an entry of version {version}")),
        }
    }

    /// Returns the entry as a blob, and the result that names it and every blob that it names: chunks by the
    /// trees that list them. From the result, engines that collect garbage know which blobs belong together.
    /// `sign` returns the entry's signature, which is a blob of its own.
    pub(super) fn encode(
        &self,
        sign: impl FnOnce(&[u8]) -> Option<String>,
    ) -> Result<(Vec<Blob>, reapi::ActionResult), RemoteCacheError> {
        let json = serde_json::to_vec(self).map_err(|error| RemoteCacheError::Foreign(error.to_string()))?;
        let function = self.manifest.0.function;
        let signature = sign(&json).map(|text| Blob::named_by(function, text.into_bytes()));
        let blob = Blob::named_by(function, json);
        let file = |(path, digest): (String, Digest)| reapi::OutputFile {
            path,
            digest: Some(digest.into()),
            ..Default::default()
        };
        let lists: Vec<Digest> = self.layers.iter().filter_map(LayerName::list).collect();
        let whole = self.blobs().filter(|blob| !lists.contains(blob));
        let named = whole.enumerate().map(|(index, digest)| (format!("blobs/{index}"), digest));
        let mut output_files: Vec<_> = named.map(file).collect();
        output_files.push(file((ENTRY.into(), blob.digest)));
        output_files.extend(signature.iter().map(|signature| file((SIGNATURE.into(), signature.digest))));
        let tree = |(index, list): (usize, &Digest)| reapi::OutputDirectory {
            path: format!("chunks/{index}"),
            tree_digest: Some((*list).into()),
            ..Default::default()
        };
        let output_directories = lists.iter().enumerate().map(tree).collect();
        let blobs = [blob].into_iter().chain(signature).collect();
        Ok((blobs, reapi::ActionResult { output_files, output_directories, ..Default::default() }))
    }

    /// Returns every blob that the entry names, of chunks their lists.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let layers = self.layers.iter().map(|layer| match layer.form {
            LayerForm::Blob(blob) | LayerForm::Chunks(blob) => blob.0,
        });
        [self.manifest.0].into_iter().chain(layers).chain(self.log.map(|log| log.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key(byte: u8) -> CacheKey {
        CacheKey([byte; 32])
    }

    fn place() -> EntryPlace {
        EntryPlace::new(&key(1), &CacheScope::trusted())
    }

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
            place: Some(place()),
            scope: IsPresent::default(),
        }
    }

    fn decode(json: &Value, place: Option<&EntryPlace>) -> Result<SharedEntry, String> {
        SharedEntry::decode(json.to_string().as_bytes(), place).map_err(|error| error.to_string())
    }

    #[test]
    fn an_entry_is_used_only_where_it_was_written_for() {
        let json = serde_json::to_value(entry()).unwrap();
        assert_eq!(json.get("scope"), None);
        assert_eq!(decode(&json, Some(&place())), Ok(entry()));
        for other in
            [EntryPlace::new(&key(2), &CacheScope::trusted()), EntryPlace::new(&key(1), &"pr-1".parse().unwrap())]
        {
            let refused = decode(&json, Some(&other)).unwrap_err();
            assert!(refused.contains("step `build`") && refused.contains("(trusted)"), "{refused}");
        }
        let mut without = json.clone();
        without.as_object_mut().unwrap().remove("place");
        assert!(decode(&without, Some(&place())).is_err());
        assert!(decode(&json, None).is_err());
    }

    #[test]
    fn entries_of_the_old_version_are_read_unless_they_have_a_scope() {
        let layer = json!({ "diff_id": ImageDigest::of(b"tar"), "blob": Digest::of(b"blob").to_string() });
        let mut json = serde_json::to_value(entry()).unwrap();
        let fields = json.as_object_mut().unwrap();
        fields.remove("place");
        fields.insert("version".into(), 1.into());
        fields.insert("layers".into(), json!([layer]));
        let read = decode(&json, None).unwrap();
        assert_eq!(read.layers[0].form, LayerForm::Blob(BlobName(Digest::of(b"blob"))));
        assert!(decode(&json, Some(&place())).is_err());
        json["scope"] = json!({ "version": 1, "name": "trusted", "signature": "AAAA" });
        assert!(decode(&json, None).unwrap_err().contains("with a scope"));
    }

    #[test]
    fn each_scope_and_version_has_actions_of_its_own() {
        let action =
            |version, scope: &str| action_of(version, &scope.parse().unwrap(), &key(1), DigestFunction::Sha256).digest;
        let all = [action(1, "trusted"), action(2, "trusted"), action(2, "pr-1"), action(2, "pr-2")];
        assert!((0..4).all(|one| (0..one).all(|other| all[one] != all[other])));
        // Results that were shared before there were chunks are found under this name.
        assert_eq!(all[0].to_string(), "c1be94106e1ea20c1e31bc6589256d692729c23adb8e86069b193bb52b11626c/174");
    }

    #[test]
    fn a_result_names_chunks_by_their_lists() {
        let layer = |form| LayerName { diff_id: ImageDigest::of(b"tar"), form };
        let (list, blob) = (Digest::of(b"list"), Digest::of(b"blob"));
        let mut entry = entry();
        entry.layers = vec![layer(LayerForm::Chunks(BlobName(list))), layer(LayerForm::Blob(BlobName(blob)))];
        let json = serde_json::to_value(&entry).unwrap();
        assert_eq!(decode(&json, Some(&place())), Ok(entry.clone()));
        let (blobs, result) = entry.encode(|_| Some("signature".into())).unwrap();
        let trees: Vec<_> = result.output_directories.iter().map(|it| it.tree_digest.clone().unwrap()).collect();
        assert_eq!(trees, [list.into()]);
        let files: Vec<_> = result.output_files.iter().map(|file| file.digest.clone().unwrap()).collect();
        assert!(files.contains(&blob.into()) && !files.contains(&list.into()));
        assert_eq!(entry_blob(&result, DigestFunction::Sha256).unwrap(), blobs[0].digest);
        assert_eq!(signature_blob(&result, DigestFunction::Sha256), Some(blobs[1].digest));
    }
}
