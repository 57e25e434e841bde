//! A run's source tree, as runners request it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::OnceCell;

use super::{
    EarlyFreeze, FrozenSource, HiddenFiles, SourceOptions, SourceTimes,
    archives::Archives,
    early::note_need,
    freeze::{FreezeWatch, LayerState, freeze_until_stable},
    freeze_progress::FreezeProgress,
    manifest::Manifest,
};
use crate::{
    model::{Activity, ActivityCount, ArchiveId},
    store::{Lease, SourceId, Store, StoreError},
    sync::Mutex,
};

/// A run's source tree, frozen when the first runner requests it.
#[derive(Debug)]
pub struct RunSource {
    id: ArchiveId,
    source_dir: PathBuf,
    options: SourceOptions,
    early: Option<Arc<EarlyFreeze>>,
    named: OnceCell<NamedSource>,
    progress: Arc<FreezeProgress>,
    pub(super) archives: Archives,
}

/// A source tree that is in the store.
#[derive(Debug)]
pub(super) struct NamedSource {
    id: SourceId,
    store: Arc<Store>,
    /// Keeps the tree in the store.
    _lease: Lease,
    /// The source, once its layers were found intact.
    intact: OnceCell<Arc<FrozenSource>>,
    /// The manifest, if only the name was asked for: who needs that often looks at the files next.
    manifest: Mutex<Option<Arc<Manifest>>>,
}

impl RunSource {
    /// Names the tree. Steps see [normal](SourceTimes::Normal) times. Nothing is read yet.
    #[must_use]
    pub fn new(id: ArchiveId, source_dir: impl Into<PathBuf>) -> Self {
        Self {
            id,
            source_dir: source_dir.into(),
            options: SourceOptions::default(),
            early: None,
            named: OnceCell::new(),
            progress: Arc::default(),
            archives: Archives::default(),
        }
    }

    /// Sets which times of files steps see.
    #[must_use]
    pub fn times(mut self, times: SourceTimes) -> Self {
        self.options.times = times;
        self
    }

    /// Leaves files out besides what ignore files name.
    #[must_use]
    pub fn leaving_out(mut self, ignore: Option<HiddenFiles>) -> Self {
        self.options = self.options.leaving_out(ignore);
        self
    }

    /// Returns which times of files steps see.
    pub(crate) fn source_times(&self) -> SourceTimes {
        self.options.times
    }

    /// Uses a tree that is frozen already, if it is the same directory with the same options, and in the
    /// store of this run.
    #[must_use]
    pub fn frozen_early(mut self, early: Option<Arc<EarlyFreeze>>) -> Self {
        self.early = early;
        self
    }

    /// Returns what the freezing of the tree is doing, while it goes on.
    pub(crate) fn activity(&self) -> Option<(Activity, Option<ActivityCount>)> {
        // What is read or copied before it is known whether the early one is used.
        let early = self.early.as_ref().and_then(|early| early.progress().activity());
        self.progress.activity().or(early)
    }

    /// Returns the id in [`ExecutorInput::workspace_archive_id`](crate::ExecutorInput).
    #[must_use]
    pub fn id(&self) -> ArchiveId {
        self.id
    }

    /// Returns the user's directory. Only outputs of steps are written to it, in `.hm/out`.
    #[must_use]
    pub fn source_dir(&self) -> &Path {
        &self.source_dir
    }

    /// Returns the name of the tree, whose manifest is then in the store. The first caller of this or of
    /// [`freeze`](Self::freeze) examines the tree on a thread for blocking work. The other callers wait.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    ///
    /// # Cancel safety
    /// As [`freeze`](Self::freeze).
    pub(crate) async fn name(&self, store: &Arc<Store>) -> Result<SourceId, StoreError> {
        Ok(self.named(store, LayerState::Recorded).await?.id.clone())
    }

    /// Returns the manifest of the tree, if naming it has left it in memory. The times of directories in it
    /// may be later than what steps see. The next call returns `None`.
    pub(crate) fn take_manifest(&self) -> Option<Arc<Manifest>> {
        self.named.get()?.manifest.lock().take()
    }

    /// Returns the tree in the store, with layers that are intact. The first caller freezes it on a thread
    /// for blocking work, while the other callers wait. All runners of a run share one store.
    ///
    /// # Errors
    /// Returns an error if the tree cannot be read or copied, or if its layers are damaged and it was edited
    /// since it was named. The next caller tries again.
    ///
    /// # Cancel safety
    /// If all callers drop their futures, the work stops soon and leaves nothing behind.
    pub async fn freeze(&self, store: &Arc<Store>) -> Result<Arc<FrozenSource>, StoreError> {
        let named = self.named(store, LayerState::Intact).await?;
        self.intact(named, store).await
    }

    /// Returns the tree in the store in which it was frozen first, or in `store`.
    pub(super) async fn freeze_anywhere(&self, store: &Arc<Store>) -> Result<Arc<FrozenSource>, StoreError> {
        let named = self.named(store, LayerState::Intact).await?;
        self.intact(named, &named.store).await
    }

    /// Returns a source whose layers are intact.
    async fn intact(&self, named: &NamedSource, store: &Arc<Store>) -> Result<Arc<FrozenSource>, StoreError> {
        let intact = named.intact.get_or_try_init(|| self.check(store, &named.id)).await?;
        // Steps begin to run. What still needs the manifest can read it in the store.
        named.manifest.lock().take();
        Ok(Arc::clone(intact))
    }

    /// Returns the store in which the tree is.
    pub(super) fn store_of_tree(&self) -> Option<Arc<Store>> {
        self.named.get().map(|named| Arc::clone(&named.store))
    }

    /// Returns the source. If this is the first call, its layers are in the required state.
    async fn named(&self, store: &Arc<Store>, state: LayerState) -> Result<&NamedSource, StoreError> {
        let name = async || {
            if let Some(early) = &self.early
                && let Some(named) = early.take(store, &self.source_dir, &self.options).await
            {
                return Ok(named);
            }
            self.work(store, move |work| {
                if let Ok(dir) = work.dir.canonicalize() {
                    note_need(&work.store, &dir);
                }
                work.freeze(state)
            })
            .await
        };
        self.named.get_or_try_init(name).await
    }

    /// Returns the source with this name if its layers are intact. Freezes the tree again if they are not.
    async fn check(&self, store: &Arc<Store>, id: &SourceId) -> Result<Arc<FrozenSource>, StoreError> {
        let id = id.clone();
        self.work(store, move |work| {
            if let Some(intact) = FrozenSource::find(&work.store, &id, work.options.times)? {
                return Ok(Arc::new(intact));
            }
            tracing::debug!(source = %id, "layers of the source are damaged; freezing it again");
            let options = (&work.options, LayerState::Intact);
            let (again, _) = freeze_until_stable(&work.store, &work.dir, options, work.watch())?;
            // Steps were already looked up in the cache by the name.
            if again.id == id { Ok(Arc::new(again)) } else { Err(StoreError::SourceChanged { path: work.dir }) }
        })
        .await
    }

    /// Does blocking work on the tree, on a thread.
    async fn work<T: Send + 'static>(
        &self,
        store: &Arc<Store>,
        work: impl FnOnce(Work) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (store, dir, options) = (Arc::clone(store), self.source_dir.clone(), self.options.clone());
        let progress = Arc::clone(&self.progress);
        self.on_thread("freeze", move |abandoned| work(Work { store, dir, options, abandoned, progress })).await
    }
}

/// What work on a tree needs.
pub(super) struct Work {
    pub(super) store: Arc<Store>,
    pub(super) dir: PathBuf,
    pub(super) options: SourceOptions,
    pub(super) abandoned: Arc<AtomicBool>,
    pub(super) progress: Arc<FreezeProgress>,
}

impl Work {
    /// Freezes the tree, and looks at no layer that is in the store already.
    pub(super) fn name(self) -> Result<NamedSource, StoreError> {
        self.freeze(LayerState::Recorded)
    }

    fn watch(&self) -> FreezeWatch<'_> {
        FreezeWatch { abandoned: &self.abandoned, progress: &self.progress }
    }

    fn freeze(self, state: LayerState) -> Result<NamedSource, StoreError> {
        let lease = self.store.lease()?;
        let (frozen, manifest) = freeze_until_stable(&self.store, &self.dir, (&self.options, state), self.watch())?;
        let (id, is_intact) = (frozen.id.clone(), state == LayerState::Intact);
        let manifest = Mutex::new((!is_intact).then_some(manifest));
        let intact = OnceCell::new_with(is_intact.then(|| Arc::new(frozen)));
        Ok(NamedSource { id, store: self.store, _lease: lease, intact, manifest })
    }
}

/// Stops the work when no caller waits for it any more.
pub(super) struct Abandon(pub(super) Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::test_project::TestProject, *};

    fn truncate(source: &FrozenSource, name: &str) {
        let file = source.locate(Path::new(name));
        fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap();
    }

    fn read(source: &FrozenSource, name: &str) -> String {
        fs::read_to_string(source.locate(Path::new(name))).unwrap()
    }

    #[tokio::test]
    async fn layers_that_a_name_did_not_look_at_are_intact_once_the_source_is_frozen() {
        let project = TestProject::new();
        fs::write(project.file("file"), "content").unwrap();
        let first = project.source().freeze(&project.store()).await.unwrap();
        truncate(&first, "file");
        let (store, source) = (project.store(), project.source());
        assert_eq!(source.name(&store).await.unwrap(), first.id);
        let again = source.freeze(&store).await.unwrap();
        assert_eq!(again.id, first.id);
        assert_eq!(read(&again, "file"), "content");
        assert_eq!(source.name(&store).await.unwrap(), first.id);

        // Also if the name is a new one, over a layer that is damaged.
        truncate(&again, "file");
        fs::write(project.file("other"), "new").unwrap();
        let (store, source) = (project.store(), project.source());
        let id = source.name(&store).await.unwrap();
        assert_ne!(id, first.id);
        let third = source.freeze(&store).await.unwrap();
        assert_eq!((&third.id, &*read(&third, "file"), &*read(&third, "other")), (&id, "content", "new"));
    }

    #[tokio::test]
    async fn an_edit_cannot_replace_a_damaged_source_that_has_a_name() {
        let project = TestProject::new();
        fs::write(project.file("file"), "content").unwrap();
        let first = project.source().freeze(&project.store()).await.unwrap();
        truncate(&first, "file");
        let (store, source) = (project.store(), project.source());
        source.name(&store).await.unwrap();
        fs::write(project.file("file"), "edited in the meantime").unwrap();
        assert!(matches!(source.freeze(&store).await, Err(StoreError::SourceChanged { .. })));
        assert_eq!(read(&project.source().freeze(&store).await.unwrap(), "file"), "edited in the meantime");
    }

    #[tokio::test]
    async fn a_name_links_no_damaged_file_into_a_new_layer() {
        let project = TestProject::new();
        (0..1500).for_each(|number| fs::write(project.file(&format!("file-{number}")), "old").unwrap());
        fs::write(project.file("kept"), "content").unwrap();
        let first = project.source().freeze(&project.store()).await.unwrap();
        truncate(&first, "kept");
        // So many changes become a whole tree.
        (0..1500).for_each(|number| fs::write(project.file(&format!("file-{number}")), "newer").unwrap());
        let (store, source) = (project.store(), project.source());
        source.name(&store).await.unwrap();
        let second = source.freeze(&store).await.unwrap();
        assert_eq!(second.layers.len(), 1);
        assert_eq!((&*read(&second, "kept"), &*read(&second, "file-7")), ("content", "newer"));
    }

    #[tokio::test]
    async fn a_name_that_is_waited_for_and_a_frozen_source_are_one() {
        let project = TestProject::new();
        fs::write(project.file("file"), "content").unwrap();
        let (store, source) = (project.store(), project.source());
        let (name, frozen, other) = tokio::join!(source.name(&store), source.freeze(&store), source.freeze(&store));
        let frozen = frozen.unwrap();
        assert!(name.unwrap() == frozen.id && Arc::ptr_eq(&frozen, &other.unwrap()));
    }
}
