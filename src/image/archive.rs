//! Images in files of this machine: OCI layouts (a directory, or a tar file of one) and archives of `docker
//! save`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{
    ImageDigest, ImageError,
    manifest::{
        Descriptor, Document, DocumentError, ImageConfig, ImageIndex, ImageManifest, MAX_DOCUMENT_BYTES, REF_NAME,
        candidates,
    },
    partial::Partial,
    reference::ImageName,
    search::ManifestSearch,
};
use crate::{
    project::{ProjectDir, ProjectFileError, ProjectFileErrorKind},
    store::{
        Store, StoreError,
        error::IoContext,
        files::create_new,
        tree::{BlobFile, decompress},
    },
};

/// The maximum number of members in an image's archive.
const MAX_MEMBERS: usize = 100_000;

/// An image in files of this machine, whose layers have not been read yet.
#[derive(Debug)]
pub(super) struct LocalImage {
    pub(super) digest: ImageDigest,
    pub(super) config: Vec<u8>,
    /// The layers, lowest first.
    pub(super) layers: Vec<BlobAt>,
    /// The decompressed copy of an archive that is compressed as a whole.
    _scratch: Option<Partial>,
}

/// The location of a layer's bytes.
#[derive(Debug, Clone)]
pub(super) struct BlobAt {
    place: BlobPlace,
    offset: u64,
    pub(super) length: u64,
}

/// The file that contains a blob.
#[derive(Debug, Clone)]
enum BlobPlace {
    Path(PathBuf),
    /// Looked up again beneath the layout for each access, so that an image with many layers holds one
    /// descriptor.
    Beneath(Arc<ProjectDir>, String),
}

/// The files of an image by name.
#[derive(Debug)]
enum ImageFiles {
    /// Links in a layout are not followed, because the layout may have come with a checkout.
    Dir(Arc<ProjectDir>),
    Tar {
        shown: PathBuf,
        path: PathBuf,
        members: BTreeMap<String, (u64, u64)>,
    },
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl LocalImage {
    /// Finds the image with the name `name`, which the user wrote as `image`. Reads only documents, unless an
    /// archive is compressed as a whole. `limit` is the maximum size of its decompressed copy, in bytes.
    pub(super) fn open(store: &Arc<Store>, image: &str, name: &ImageName, limit: u64) -> Result<Self, ImageError> {
        match name {
            ImageName::OciDir { path, tag } => Self::oci(&ImageFiles::open_dir(path)?, image, tag.as_deref()),
            ImageName::OciArchive { path, tag } => {
                let (files, scratch) = ImageFiles::open_tar(store, path, limit)?;
                Ok(Self { _scratch: scratch, ..Self::oci(&files, image, tag.as_deref())? })
            }
            ImageName::DockerArchive { path, tag } => {
                let (files, scratch) = ImageFiles::open_tar(store, path, limit)?;
                Ok(Self { _scratch: scratch, ..Self::docker(&files, image, tag.as_deref())? })
            }
            ImageName::Host | ImageName::Rootfs | ImageName::Registry => {
                Err(ImageError::BadName { image: image.into(), reason: "it is not a file".into() })
            }
        }
    }

    fn oci(files: &ImageFiles, image: &str, tag: Option<&str>) -> Result<Self, ImageError> {
        let bad = |reason: String| files.bad(reason);
        let wrong = |wrong: DocumentError| wrong.of(image, bad);
        let index = files.document("index.json")?.ok_or_else(|| bad("it has no index.json".into()))?;
        let index: ImageIndex =
            serde_json::from_slice(&index).map_err(|error| bad(format!("its index.json is invalid ({error})")))?;
        let mut search = files.entry(image, &index, tag)?;
        let ImageManifest { config, layers } = loop {
            let at = search.next().map_err(wrong)?;
            match Document::parse(&files.blob(image, "the manifest", &at.digest)?).map_err(wrong)? {
                Document::Index(index) => search.descend(at, &index),
                Document::Manifest(manifest) if at.is_certain => break manifest,
                Document::Manifest(manifest) => {
                    let bytes = files.blob(image, "the configuration", &manifest.config.digest)?;
                    match ImageConfig::parse(&bytes, None) {
                        Ok(_) => break manifest,
                        Err(DocumentError::Platform { found, .. }) => search.reject(found),
                        Err(other) => return Err(wrong(other)),
                    }
                }
            }
        };
        let blobs = layers.iter().map(|layer| {
            let name = blob_name(&layer.digest);
            files.find(&name)?.ok_or_else(|| bad(format!("the layer {name} is missing")))
        });
        let layers = blobs.collect::<Result<_, _>>()?;
        let bytes = files.blob(image, "the configuration", &config.digest)?;
        Ok(Self { digest: config.digest, config: bytes, layers, _scratch: None })
    }

    fn docker(files: &ImageFiles, image: &str, tag: Option<&str>) -> Result<Self, ImageError> {
        let bad = |reason: String| files.bad(reason);
        let manifest = files.document("manifest.json")?.ok_or_else(|| bad("it has no manifest.json".into()))?;
        let images: Vec<Saved> = serde_json::from_slice(&manifest)
            .map_err(|error| bad(format!("its manifest.json is invalid ({error})")))?;
        let not_found =
            || ImageError::NotFound { image: image.into(), place: Some(format!("in `{}`", files.shown().display())) };
        let saved = match (tag, &images[..]) {
            (None, []) => return Err(bad("it has no images".into())),
            (None, [first, others @ ..]) if others.iter().all(|other| other.config == first.config) => first,
            (None, several) => {
                let names: Vec<&str> =
                    several.iter().flat_map(|it| it.repo_tags.iter().flatten()).map(|it| &**it).collect();
                return Err(bad(format!("it has several images: add `:NAME:TAG` of one ({})", names.join(", "))));
            }
            (Some(tag), images) => {
                let is_it = |name: &String| name == tag || name.strip_prefix("docker.io/library/") == Some(tag);
                let of_it = |saved: &&Saved| saved.repo_tags.iter().flatten().any(is_it);
                images.iter().find(of_it).ok_or_else(not_found)?
            }
        };
        let config = files.document(&saved.config)?.ok_or_else(|| bad("its configuration is missing".into()))?;
        let blobs = saved.layers.iter().map(|name| {
            let missing = || bad(format!("the layer {} is missing", name.escape_default()));
            files.find(name)?.ok_or_else(missing)
        });
        let layers = blobs.collect::<Result<_, _>>()?;
        Ok(Self { digest: ImageDigest::of(&config), config, layers, _scratch: None })
    }
}

impl ImageFiles {
    /// Opens a layout. Links in the path to it are followed, because the caller specified that path.
    fn open_dir(path: &Path) -> Result<Self, ImageError> {
        let path = absolute(path)?;
        match ProjectDir::open(&path) {
            Ok(dir) => Ok(Self::Dir(Arc::new(dir))),
            Err(error) => Err(refused(&path, "it", error)),
        }
    }

    /// Lists a tar file. None of it is unpacked.
    fn open_tar(store: &Arc<Store>, path: &Path, limit: u64) -> Result<(Self, Option<Partial>), ImageError> {
        let shown = absolute(path)?;
        let unreadable = |source| ImageError::Unreadable { path: shown.clone(), source };
        if !fs::metadata(&shown).map_err(unreadable)?.is_file() {
            return Err(ImageError::BadArchive { path: shown, reason: "it is not a regular file".into() });
        }
        let mut start = [0; 4];
        let mut file = File::open(&shown).map_err(unreadable)?;
        let read = file.read(&mut start).map_err(unreadable)?;
        let is_compressed = start[..read].starts_with(&[0x1f, 0x8b]) || start == [0x28, 0xb5, 0x2f, 0xfd];
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let (path, scratch) = if is_compressed {
            let scratch = Partial::free(store);
            expand(&shown, file, scratch.path(), limit)?;
            (scratch.path().to_owned(), Some(scratch))
        } else {
            (shown.clone(), None)
        };
        let members = members(&path).map_err(|error| ImageError::BadArchive {
            path: shown.clone(),
            reason: format!("it is not a complete tar file ({error})"),
        })?;
        Ok((Self::Tar { shown, path, members }, scratch))
    }

    /// Returns a search that begins at the image called `tag` in an index, or at the only one.
    fn entry(&self, image: &str, index: &ImageIndex, tag: Option<&str>) -> Result<ManifestSearch, ImageError> {
        let name = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
        let is_it = |entry: &&Descriptor| {
            let name = entry.annotations.get(REF_NAME);
            let is_named =
                |tag: &str| name.is_some_and(|name| name == tag || name.rsplit_once(':').is_some_and(|it| it.1 == tag));
            tag.is_none_or(is_named)
        };
        let entries: Vec<_> = index.manifests.iter().filter(is_it).collect();
        let [first, others @ ..] = &entries[..] else {
            return Err(match tag {
                None => self.bad("it has no images".into()),
                Some(_) => {
                    let place = Some(format!("in `{}`", self.shown().display()));
                    ImageError::NotFound { image: image.into(), place }
                }
            });
        };
        // The same image may be listed several times.
        if others.iter().all(|other| other.digest == first.digest) {
            return Ok(ManifestSearch::at(first.digest));
        }
        // Images for several platforms, side by side.
        let here: Vec<_> = candidates(entries.iter().copied().filter(|entry| entry.platform.is_some()));
        let names: BTreeSet<_> = entries.iter().filter_map(|entry| name(entry)).collect();
        if names.len() > 1 && (here.is_empty() || here.iter().any(|entry| name(entry) != name(here[0]))) {
            let names = names.into_iter().take(20).collect::<Vec<_>>().join(", ");
            return Err(self.bad(format!("it has several images: add `:TAG` of one ({names})")));
        }
        if names.is_empty() && entries.iter().all(|entry| entry.platform.is_none()) {
            return Err(self.bad("it has several images, none of which has a name or a platform".into()));
        }
        Ok(ManifestSearch::among(&candidates(entries.iter().copied()), index.platforms()))
    }

    fn shown(&self) -> &Path {
        match self {
            Self::Dir(dir) => dir.path(),
            Self::Tar { shown, .. } => shown,
        }
    }

    fn bad(&self, reason: String) -> ImageError {
        ImageError::BadArchive { path: self.shown().into(), reason }
    }

    /// Returns the location of a file, or `None` if it does not exist.
    fn find(&self, name: &str) -> Result<Option<BlobAt>, ImageError> {
        match self {
            Self::Dir(dir) => match dir.open_file(name, u64::MAX) {
                Ok(file) => {
                    let path = || dir.path().join(name);
                    let metadata = file.metadata().map_err(|source| ImageError::Unreadable { path: path(), source })?;
                    let place = BlobPlace::Beneath(Arc::clone(dir), name.to_owned());
                    Ok(Some(BlobAt { place, offset: 0, length: metadata.len() }))
                }
                Err(error) if error.kind() == ProjectFileErrorKind::Missing => Ok(None),
                Err(error) => Err(refused(dir.path(), name, error)),
            },
            Self::Tar { path, members, .. } => {
                let found = members.get(&normal(name));
                Ok(found.map(|&(offset, length)| BlobAt { place: BlobPlace::Path(path.clone()), offset, length }))
            }
        }
    }

    /// Returns a small file, or `None` if it does not exist.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(at) = self.find(name)? else { return Ok(None) };
        if at.length > MAX_DOCUMENT_BYTES {
            return Err(self.bad(format!("{} has {} bytes", name.escape_default(), at.length)));
        }
        let BlobFile { mut file, offset, length } = at.open()?;
        let mut bytes = Vec::new();
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(length).read_to_end(&mut bytes));
        read.map_err(|source| ImageError::Unreadable { path: self.shown().join(name), source })?;
        Ok(Some(bytes))
    }

    /// Returns a document that is named by its digest.
    fn blob(&self, image: &str, what: &str, digest: &ImageDigest) -> Result<Vec<u8>, ImageError> {
        let name = blob_name(digest);
        let bytes = self.document(&name)?.ok_or_else(|| self.bad(format!("{what} {name} is missing")))?;
        let found = ImageDigest::of(&bytes);
        if found != *digest {
            return Err(ImageError::WrongDigest {
                image: image.into(),
                what: what.into(),
                expected: digest.to_string(),
                found: found.to_string(),
            });
        }
        Ok(bytes)
    }
}

impl BlobAt {
    /// Opens the file that contains the blob.
    pub(super) fn open(&self) -> Result<BlobFile, ImageError> {
        let file = match &self.place {
            BlobPlace::Path(path) => {
                File::open(path).map_err(|source| ImageError::Unreadable { path: path.clone(), source })?
            }
            BlobPlace::Beneath(dir, name) => {
                dir.open_file(name, u64::MAX).map_err(|error| refused(dir.path(), name, error))?
            }
        };
        Ok(BlobFile { file, offset: self.offset, length: self.length })
    }
}

/// Returns the error for `name` of the layout at `dir`, which was refused.
fn refused(dir: &Path, name: &str, error: ProjectFileError) -> ImageError {
    let name = name.escape_default();
    let reason = match error.kind() {
        ProjectFileErrorKind::Outside => {
            format!("{name} is a link out of it, which is not followed; make a copy without links with `cp -rL`")
        }
        ProjectFileErrorKind::NotRegular => format!("{name} is not a regular file"),
        _ => return ImageError::Unreadable { path: error.path().into(), source: io::Error::other(error) },
    };
    ImageError::BadArchive { path: dir.into(), reason }
}

fn blob_name(digest: &ImageDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn absolute(path: &Path) -> Result<PathBuf, ImageError> {
    path.canonicalize().map_err(|source| ImageError::Unreadable { path: path.into(), source })
}

/// Decompresses a whole archive.
fn expand(shown: &Path, file: File, to: &Path, limit: u64) -> Result<(), ImageError> {
    let damaged = |error: io::Error| ImageError::BadArchive {
        path: shown.into(),
        reason: format!("failed to decompress it ({error})"),
    };
    let mut stream = decompress(file).map_err(damaged)?;
    let mut out = create_new(to).doing("make", to)?;
    let (mut buffer, mut bytes) = (vec![0; 1 << 17], 0_u64);
    loop {
        let read = stream.read(&mut buffer).map_err(damaged)?;
        if read == 0 {
            return Ok(());
        }
        bytes += read as u64;
        if bytes > limit {
            let reason = format!("it contains more than {limit} bytes: set HM_MAX_IMAGE_BYTES to allow more");
            return Err(ImageError::BadArchive { path: shown.into(), reason });
        }
        io::Write::write_all(&mut out, &buffer[..read]).map_err(|error| StoreError::io("write", to, error))?;
    }
}

/// Returns the location of the data of each member of a tar file. A link between members, as in old archives,
/// counts as the member that it points to.
fn members(path: &Path) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
    let length = fs::metadata(path)?.len();
    let (mut members, mut links) = (BTreeMap::new(), Vec::new());
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if members.len() + links.len() >= MAX_MEMBERS {
            return Err(io::Error::other("it has too many entries"));
        }
        let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
        let target = || entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let (offset, size) = (entry.raw_file_position(), entry.size());
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(io::Error::other("it ends in the middle of a file"));
                }
                members.insert(name, (offset, size));
            }
            tar::EntryType::Symlink => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
                links.extend(target().map(|target| (name, normal(&format!("{dir}/{target}")))));
            }
            tar::EntryType::Link => links.extend(target().map(|target| (name, normal(&target)))),
            _ => {}
        }
    }
    for (name, target) in links {
        if let Some(&at) = members.get(&target) {
            members.entry(name).or_insert(at);
        }
    }
    Ok(members)
}

/// Returns a name without `.` and `..`. It never leads outside of the archive.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn names_within_archives_lead_nowhere_else() {
        for (name, expected) in
            [("./a/b", "a/b"), ("x/../../../a", "a"), ("x/../y/layer.tar", "y/layer.tar"), ("/", "")]
        {
            assert_eq!(normal(name), expected);
        }
    }
}
