//! A run's source tree for runners that have no store: as a copy, or as an archive.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use flate2::{Compression, GzBuilder};
use tokio::sync::OnceCell;

use super::{FrozenSource, RunSource, run_source::Abandon, workspace::copy_source};
use crate::{
    store::{Store, StoreError, StoreHandle},
    tree,
};

/// What a run's source tree needs to be given out without a store of the runner.
#[derive(Debug, Default)]
pub(super) struct Archives {
    store: Option<StoreHandle>,
    temporary: OnceCell<TemporaryStore>,
    tar_gz: OnceCell<Arc<[u8]>>,
}

/// A store for one run. Dropping it removes it.
#[derive(Debug)]
struct TemporaryStore {
    store: Option<Arc<Store>>,
    dir: tempfile::TempDir,
}

impl TemporaryStore {
    fn create() -> Result<Self, StoreError> {
        let dir =
            tempfile::tempdir().map_err(|error| StoreError::io("make a directory in", std::env::temp_dir(), error))?;
        let store = Some(Store::open(&dir.path().join("store"))?);
        Ok(Self { store, dir })
    }
}

impl Drop for TemporaryStore {
    fn drop(&mut self) {
        // The directory is removed after the store was closed, unless something else has it open.
        drop(self.store.take());
        if let Err(error) = tree::remove_tree(&self.dir.path().join("store")) {
            tracing::warn!(%error, dir = %self.dir.path().display(), "failed to remove a temporary store");
        }
    }
}

impl RunSource {
    /// Sets the store in which the tree is frozen if no runner brings another one. By default, that is a
    /// temporary store.
    #[must_use]
    pub fn store(mut self, store: StoreHandle) -> Self {
        self.archives.store = Some(store);
        self
    }

    /// Returns the tree, frozen. The first caller of this or of [`freeze`](Self::freeze) decides in which
    /// store it is.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze), and if the store cannot be opened.
    ///
    /// # Cancel safety
    /// As [`freeze`](Self::freeze).
    pub async fn frozen(&self) -> Result<Arc<FrozenSource>, StoreError> {
        let store = match self.store_of_tree() {
            Some(store) => store,
            None => self.own_store().await?,
        };
        self.freeze_anywhere(&store).await
    }

    /// Copies the tree to `dir`, which must not exist; see [`FrozenSource::copy_to`].
    ///
    /// # Errors
    /// Returns an error if the tree cannot be frozen or copied. A part of the copy may be left.
    ///
    /// # Cancel safety
    /// If the future is dropped, the work stops soon. A part of the copy may be left.
    pub async fn copy_to(&self, dir: impl Into<PathBuf> + Send) -> Result<(), StoreError> {
        let dir = dir.into();
        let source = self.frozen().await?;
        self.on_thread("copy", move |abandoned| copy_source(&source, &dir, &abandoned)).await
    }

    /// Returns the whole tree as tar.gz, with paths relative to it. It is packed once for all callers of a
    /// run, and held in memory as long as this: a runner that can use a stream takes
    /// [`frozen`](Self::frozen) and [`FrozenSource::write_tar`].
    ///
    /// # Errors
    /// Returns an error if the tree cannot be frozen or read. The next caller tries again.
    ///
    /// # Cancel safety
    /// If all callers drop their futures, the work stops soon.
    pub async fn tar_gz(&self) -> Result<Arc<[u8]>, StoreError> {
        let pack = async || {
            let source = self.frozen().await?;
            self.on_thread("pack", move |abandoned| pack(&source, &abandoned)).await
        };
        Ok(Arc::clone(self.archives.tar_gz.get_or_try_init(pack).await?))
    }

    /// Opens the run's own store.
    async fn own_store(&self) -> Result<Arc<Store>, StoreError> {
        if let Some(store) = self.archives.store.clone() {
            return self.on_thread("open the store for", move |_| store.get()).await;
        }
        let create = || self.on_thread("open a store for", |_| TemporaryStore::create());
        let temporary = self.archives.temporary.get_or_try_init(create).await?;
        temporary.store.clone().ok_or(StoreError::Abandoned)
    }

    /// Does blocking work on a thread. `doing` completes "failed to ...", and is followed by the directory.
    pub(super) async fn on_thread<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(Arc<AtomicBool>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let abandoned = Arc::new(AtomicBool::new(false));
        let _guard = Abandon(Arc::clone(&abandoned));
        let done = tokio::task::spawn_blocking(move || work(abandoned)).await;
        done.map_err(|error| StoreError::io(doing, self.source_dir().to_owned(), io::Error::other(error)))?
    }
}

/// Packs a tree. Equal sources give equal bytes, as long as the compressor is the same.
fn pack(source: &FrozenSource, abandoned: &AtomicBool) -> Result<Arc<[u8]>, StoreError> {
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    let mut out = UntilAbandoned { out: gzip, abandoned };
    let written = source.write_tar(&mut out);
    if abandoned.load(Ordering::Relaxed) {
        return Err(StoreError::Abandoned);
    }
    written?;
    let packed = out.out.finish();
    Ok(packed.map_err(|error| StoreError::io("pack", source.locate("".as_ref()), error))?.into())
}

/// Fails once the work was abandoned.
struct UntilAbandoned<'a, W> {
    out: W,
    abandoned: &'a AtomicBool,
}

impl<W: Write> Write for UntilAbandoned<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(io::Error::other("nothing waits for it any more"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        ffi::OsStr,
        fs,
        io::Read,
        os::unix::{ffi::OsStrExt, fs::PermissionsExt},
        path::Path,
    };

    use super::{super::test_project::TestProject, *};

    /// Returns what a directory holds, by path: mode and content, or the target of a link.
    fn tree_of(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        fn walk(top: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let path = entry.path();
                let meta = path.symlink_metadata().unwrap();
                let content = if meta.is_symlink() {
                    fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
                } else if meta.is_dir() {
                    walk(top, &path, found);
                    Vec::new()
                } else {
                    fs::read(&path).unwrap()
                };
                found.insert(path.strip_prefix(top).unwrap().to_owned(), (meta.permissions().mode(), content));
            }
        }
        let mut found = BTreeMap::new();
        walk(dir, dir, &mut found);
        found
    }

    fn project() -> TestProject {
        let project = TestProject::new();
        fs::create_dir(project.file("dir")).unwrap();
        fs::write(project.file("dir/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(project.file("dir/run"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(project.dir().join(OsStr::from_bytes(b"-rf \xff\n")), "odd name").unwrap();
        std::os::unix::fs::symlink("../../etc/passwd", project.file("link")).unwrap();
        project
    }

    #[tokio::test]
    async fn a_copy_and_an_archive_are_the_source_and_need_no_store() {
        let project = project();
        let out = tempfile::tempdir().unwrap();
        let source = project.source();
        source.copy_to(out.path().join("copy")).await.unwrap();
        assert_eq!(tree_of(&out.path().join("copy")), tree_of(&project.dir()));
        assert!(source.copy_to(out.path().join("copy")).await.is_err(), "nothing is overwritten");

        let packed = source.tar_gz().await.unwrap();
        assert!(Arc::ptr_eq(&packed, &source.tar_gz().await.unwrap()), "packed once");
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut tar).unwrap();
        tar::Archive::new(&*tar).unpack(out.path().join("unpacked")).unwrap();
        assert_eq!(tree_of(&out.path().join("unpacked")), tree_of(&project.dir()));
        let mut plain = Vec::new();
        source.frozen().await.unwrap().write_tar(&mut plain).unwrap();
        assert_eq!(plain, tar);
        assert_eq!(packed, project.source().tar_gz().await.unwrap(), "equal sources give equal bytes");

        assert!(!project.store_dir().exists());
        let temporary = source.frozen().await.unwrap().roots[0].clone();
        assert!(temporary.exists());
        drop(source);
        assert!(!temporary.exists());
    }

    #[tokio::test]
    async fn the_tree_is_frozen_once_in_the_store_of_whoever_asks_first() {
        let project = project();
        let (store, source) = (project.store(), project.source().store(project.handle()));
        let first = source.freeze(&store).await.unwrap();
        assert!(Arc::ptr_eq(&first, &source.frozen().await.unwrap()));
        drop((store, first, source));

        let source = project.source().store(project.handle());
        let (frozen, packed) = tokio::join!(source.frozen(), source.tar_gz());
        let frozen = frozen.unwrap();
        assert!(frozen.roots[0].starts_with(project.store_dir()));
        assert!(Arc::ptr_eq(&frozen, &source.frozen().await.unwrap()));
        assert!(!packed.unwrap().is_empty());
    }

    #[tokio::test]
    async fn work_that_nothing_waits_for_stops() {
        let project = project();
        let out = tempfile::tempdir().unwrap();
        let run = project.source();
        let (source, abandoned) = (run.frozen().await.unwrap(), AtomicBool::new(true));
        let copied = copy_source(&source, &out.path().join("copy"), &abandoned);
        assert!(matches!(copied, Err(StoreError::Abandoned)));
        assert!(matches!(pack(&source, &abandoned), Err(StoreError::Abandoned)));
    }
}
