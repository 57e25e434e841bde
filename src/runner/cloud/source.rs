//! The frozen source as a tree at the engine. Only missing files are uploaded, and no file is hashed twice.

use crate::source;
use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::FileType;

use super::error;
use crate::{
    blocking,
    remote::{Blob, Cas, Digest, DigestFunction, DirectoryTree, FileAttributes, Tree, TreeError, Uploaded},
    runner::RunnerError,
    source::{EntryKind, FrozenSource},
    store::{SourceId, Store},
    sync::Mutex,
    tree::attributes::{self, EntryAttributes},
};

/// A source at the engine.
#[derive(Debug, Clone, Copy)]
pub(super) struct RemoteSource {
    /// The directory that contains it as `workspace`.
    pub(super) root: Digest,
    /// The list of its modes and times, because not every worker creates files with those that the tree
    /// names.
    pub(super) attributes: Digest,
}

/// A source, once it is at the engine. Locked while it is being uploaded.
type Slot = Arc<tokio::sync::Mutex<Option<RemoteSource>>>;

/// The most sources to remember. When there are more, all are forgotten at once.
const MAX_REMEMBERED: usize = 64;

/// The sources that this process knows to be at the engine.
#[derive(Debug, Default)]
pub(super) struct Sources(Mutex<HashMap<SourceId, Slot>>);

/// A source's tree and list of attributes, and the path of a file for each content.
struct Named {
    tree: Tree,
    attributes: Blob,
    files: BTreeMap<Digest, Vec<u8>>,
}

impl Sources {
    /// Uploads a source to the engine, unless this process already did.
    pub(super) async fn bring(
        &self,
        store: &Arc<Store>,
        cas: &Cas,
        source: &Arc<FrozenSource>,
        uploaded: impl Fn(Uploaded),
    ) -> Result<RemoteSource, RunnerError> {
        let slot = self.slot(&source.id);
        let mut slot = slot.lock().await;
        if let Some(source) = *slot {
            return Ok(source);
        }
        let function = cas.digest_function().await.map_err(error::remote("ask for the source's files"))?;
        let (opened, frozen) = (Arc::clone(store), Arc::clone(source));
        let naming = blocking::run("name the source's files", move || name(&opened, &frozen, function));
        let Named { tree, attributes, files } = naming.await?;
        let named = RemoteSource { root: tree.root, attributes: attributes.digest };
        let directories = tree.directories.iter().chain([&attributes]).map(|blob| blob.digest);
        let missing = cas.find_missing(files.keys().copied().chain(directories)).await;
        let missing = missing.map_err(error::remote("ask for the source's files"))?;
        let (frozen, wanted) = (Arc::clone(source), missing.clone());
        let blobs = blocking::run("find the source's files", move || {
            let files = files.iter().filter(|(digest, _)| wanted.contains(digest));
            let files = files.map(|(digest, path)| Blob::of_file(*digest, frozen.locate(&as_path(path))));
            Ok::<_, RunnerError>(files.chain(tree.directories).chain([attributes]).collect::<Vec<_>>())
        });
        uploaded(cas.upload_missing(blobs.await?, missing).await.map_err(error::remote("upload the source"))?);
        *slot = Some(named);
        Ok(named)
    }

    /// Forgets all uploads, because the engine reported that something is missing.
    pub(super) fn forget(&self) {
        self.0.lock().clear();
    }

    fn slot(&self, source: &SourceId) -> Slot {
        let mut slots = self.0.lock();
        if slots.len() >= MAX_REMEMBERED {
            slots.clear();
        }
        Arc::clone(slots.entry(source.clone()).or_default())
    }
}

fn as_path(bytes: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(bytes)).to_path_buf()
}

/// Computes the digest of every file and directory of a source. Reads only files whose content has no known
/// digest.
fn name(store: &Store, source: &FrozenSource, function: DigestFunction) -> Result<Named, RunnerError> {
    let failed = error::store("read the source's manifest");
    let manifest = source::Manifest::of(store, &source.id).map_err(failed)?;
    let mut contents = Contents::of(store, &manifest, function)?;
    let (mut tree, mut files) = (DirectoryTree::new(function), BTreeMap::new());
    tree.add_directory(b"workspace").map_err(untravelable)?;
    for entry in manifest.entries() {
        let path = [b"workspace/", entry.path].concat();
        let attributes = FileAttributes { mode: entry.mode, mtime: entry.mtime };
        match entry.kind {
            EntryKind::Directory => tree.add_directory(&path).map_err(untravelable)?.set_attributes(attributes),
            EntryKind::Symlink { target } => tree.add_symlink(&path, target, attributes).map_err(untravelable)?,
            EntryKind::File { size_bytes, hash } => {
                let hash = contents.next(hash, || source.locate(&as_path(entry.path)))?;
                let digest = Digest { function, hash, size_bytes };
                tree.add_file(&path, digest, attributes).map_err(untravelable)?;
                files.insert(digest, entry.path.to_vec());
            }
        }
    }
    contents.remember(store)?;
    let attributes = attributes::encode(manifest.entries().map(|entry| EntryAttributes {
        path: entry.path,
        kind: match entry.kind {
            EntryKind::Directory => FileType::Directory,
            EntryKind::File { .. } => FileType::RegularFile,
            EntryKind::Symlink { .. } => FileType::Symlink,
        },
        mode: entry.mode,
        mtime: entry.mtime,
    }));
    let attributes =
        attributes.map_err(|error| RunnerError::infrastructure("list the modes and times of the source", error))?;
    Ok(Named { tree: tree.finish(), attributes: Blob::named_by(function, attributes), files })
}

/// The hashes of the files of a manifest by the engine's digest function, in the manifest's order.
enum Contents {
    /// Manifests have these hashes.
    Blake3,
    /// The store remembers the hashes of contents that were read before.
    Sha256 { known: std::vec::IntoIter<Option<[u8; 32]>>, new: Vec<([u8; 32], [u8; 32])> },
}

impl Contents {
    fn of(store: &Store, manifest: &source::Manifest, function: DigestFunction) -> Result<Self, RunnerError> {
        if function == DigestFunction::Blake3 {
            return Ok(Self::Blake3);
        }
        let hash = |kind| if let EntryKind::File { hash, .. } = kind { Some(*hash) } else { None };
        let contents: Vec<[u8; 32]> = manifest.entries().filter_map(|entry| hash(entry.kind)).collect();
        let known = store.digests().sha256_of(&contents).map_err(error::store("look up what files are called"))?;
        Ok(Self::Sha256 { known: known.into_iter(), new: Vec::new() })
    }

    /// Returns the hash of the next file, and reads it if that is not known.
    fn next(&mut self, content: &[u8; 32], path: impl FnOnce() -> PathBuf) -> Result<[u8; 32], RunnerError> {
        let (known, new) = match self {
            Self::Blake3 => return Ok(*content),
            Self::Sha256 { known, new } => (known, new),
        };
        if let Some(sha256) = known.next().flatten() {
            return Ok(sha256);
        }
        let path = path();
        let digest = Digest::of_file(&path)
            .map_err(|error| RunnerError::infrastructure(format!("read {}", path.display()), error))?;
        new.push((*content, digest.hash));
        Ok(digest.hash)
    }

    fn remember(self, store: &Store) -> Result<(), RunnerError> {
        match self {
            Self::Sha256 { new, .. } if !new.is_empty() => {
                store.digests().remember_sha256(&new).map_err(error::store("remember what files are called"))
            }
            _ => Ok(()),
        }
    }
}

fn untravelable(error: TreeError) -> RunnerError {
    RunnerError::unsupported(format!("failed to send the source: {:#}", anyhow::Error::new(error)))
}
