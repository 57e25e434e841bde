//! Freezing a source tree before it is known which pipeline runs on it, while that is rendered.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
};

use tokio::sync::oneshot;
use tracing::{Dispatch, Level, Metadata, Subscriber, span};

use super::{
    SourceOptions,
    freeze_progress::FreezeProgress,
    run_source::{NamedSource, Work},
    stat_cache::StatCache,
};
use crate::{
    store::{Store, StoreError, StoreHandle},
    sync::Mutex,
};

/// Receives a source, and the store that it is in.
type Offer = oneshot::Receiver<(Arc<Store>, NamedSource)>;

/// A source tree that is frozen on a thread of its own, for a [`RunRequest`](crate::RunRequest) that follows.
///
/// It is an offer: whatever prevents it, the run freezes the tree itself, and reports errors and warnings
/// then. If this is dropped, the work stops soon and leaves nothing behind.
///
/// Many runs find all steps in the cache and need no file of the source. So a run that did not take the offer
/// leaves a mark beside the stat cache, and no other offer is made until a run freezes the tree by itself.
#[derive(Debug)]
pub struct EarlyFreeze {
    dir: PathBuf,
    /// The mark of an offer that was not taken.
    unused: PathBuf,
    options: SourceOptions,
    abandoned: Arc<AtomicBool>,
    progress: Arc<FreezeProgress>,
    /// Receives the source, once.
    named: Mutex<Option<Offer>>,
    thread: Option<JoinHandle<()>>,
}

impl EarlyFreeze {
    /// Begins to freeze the tree at `dir` if it was frozen before, so that only changes have to be copied.
    /// Returns `None` if it was not, if the last offer was not taken, or if no thread can be started. Creates
    /// no store.
    #[must_use]
    pub fn begin(store: &StoreHandle, dir: &Path, options: SourceOptions) -> Option<Self> {
        let (store_dir, canonical) = (store.dir().ok()?, dir.canonicalize().ok()?);
        let unused = mark(&store_dir, &canonical);
        if !StatCache::path(&store_dir, &canonical).is_file() || unused.exists() {
            return None;
        }
        let (abandoned, progress) = (Arc::new(AtomicBool::new(false)), Arc::<FreezeProgress>::default());
        let (sender, receiver) = oneshot::channel();
        let (store, dir_of_thread, stop) = (store.clone(), dir.to_owned(), Arc::clone(&abandoned));
        let (counted, its_options) = (Arc::clone(&progress), options.clone());
        let freeze = move || {
            let named = || {
                // The store may have something to say that it says only once.
                let store = store.get()?;
                let (store_of_work, dir) = (Arc::clone(&store), dir_of_thread);
                let work = Work { store: store_of_work, dir, options: its_options, abandoned: stop, progress: counted };
                Ok::<_, StoreError>((store, unless_it_warns(|| work.name())?))
            };
            match named() {
                // Nothing waits for it if the run has ended.
                Ok((store, Some(named))) => drop(sender.send((store, named))),
                Ok((_, None)) => tracing::debug!("the source is frozen again, because there are warnings"),
                Err(error) => tracing::debug!(%error, "failed to freeze the source early"),
            }
        };
        let thread = Builder::new().name("freeze".into()).spawn(freeze).ok()?;
        Some(Self {
            dir: dir.to_owned(),
            unused,
            options,
            abandoned,
            progress,
            named: Mutex::new(Some(receiver)),
            thread: Some(thread),
        })
    }

    pub(super) fn progress(&self) -> &FreezeProgress {
        &self.progress
    }

    /// Waits for the source. Returns `None` if it is a different one, or if there is none.
    pub(super) async fn take(&self, store: &Arc<Store>, dir: &Path, options: &SourceOptions) -> Option<NamedSource> {
        if self.dir != dir || self.options != *options {
            return None;
        }
        let receiver = self.named.lock().take()?;
        let (its_store, named) = receiver.await.ok()?;
        Arc::ptr_eq(store, &its_store).then_some(named)
    }
}

impl Drop for EarlyFreeze {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by its thread.
            drop(thread.join());
        }
        if self.named.lock().is_some()
            && let Err(error) = fs::write(&self.unused, "")
        {
            tracing::debug!(%error, "failed to record that no step needed the source");
        }
    }
}

/// Allows offers again for a directory whose source is needed. `dir` is canonical.
pub(super) fn note_need(store: &Store, dir: &Path) {
    // Usually there is no mark.
    if let Err(error) = fs::remove_file(mark(store.dir(), dir))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "failed to record that a step needs the source");
    }
}

/// Returns the path of the mark for a source directory. Old ones are removed with stat caches.
fn mark(store: &Path, source: &Path) -> PathBuf {
    StatCache::path(store, source).with_extension("unused")
}

/// Does some work, and returns its result if it logged no warning. Those are suppressed.
fn unless_it_warns<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    let warned = Arc::new(AtomicBool::new(false));
    let done = tracing::dispatcher::with_default(&Dispatch::new(Warnings(Arc::clone(&warned))), work)?;
    Ok((!warned.load(Ordering::Relaxed)).then_some(done))
}

/// Records whether there was a warning.
struct Warnings(Arc<AtomicBool>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::{
        super::{SourceTimes, test_project::TestProject},
        *,
    };

    /// Returns a project with one file.
    fn project() -> TestProject {
        let project = TestProject::new();
        fs::write(project.file("file"), "content").unwrap();
        project
    }

    fn begin(project: &TestProject, store: &StoreHandle) -> Option<EarlyFreeze> {
        EarlyFreeze::begin(store, &project.dir(), SourceOptions::default())
    }

    #[tokio::test]
    async fn a_directory_that_was_never_frozen_is_left_to_the_run() {
        let project = project();
        assert!(begin(&project, &project.handle()).is_none());
        assert!(!project.store_dir().exists());
    }

    #[tokio::test]
    async fn the_source_of_a_run_is_the_one_that_was_frozen_early() {
        let project = project();
        project.source().freeze(&project.handle().get().unwrap()).await.unwrap();
        fs::write(project.file("file"), "edited").unwrap();
        let handle = project.handle();
        let mut early = begin(&project, &handle).unwrap();
        early.thread.take().unwrap().join().unwrap();
        // A later edit belongs to the next run.
        fs::write(project.file("file"), "edited once more").unwrap();
        let store = handle.get().unwrap();
        let source = project.source().frozen_early(Some(Arc::new(early)));
        let frozen = source.freeze(&store).await.unwrap();
        assert_eq!(fs::read_to_string(frozen.locate(Path::new("file"))).unwrap(), "edited");
        assert_eq!(source.name(&store).await.unwrap(), frozen.id);
    }

    #[tokio::test]
    async fn what_is_offered_for_another_source_or_store_is_not_used() {
        let project = project();
        let handle = project.handle();
        let store = handle.get().unwrap();
        project.source().freeze(&store).await.unwrap();
        let early = || {
            note_need(&store, &project.dir().canonicalize().unwrap());
            begin(&project, &handle).unwrap()
        };
        assert!(early().take(&store, Path::new("/elsewhere"), &SourceOptions::default()).await.is_none());
        assert!(early().take(&store, &project.dir(), &SourceOptions::with_times(SourceTimes::Real)).await.is_none());
        let other = Store::open(&project.store_dir()).unwrap();
        assert!(early().take(&other, &project.dir(), &SourceOptions::default()).await.is_none());
        let one = early();
        assert!(one.take(&store, &project.dir(), &SourceOptions::default()).await.is_some());
        assert!(one.take(&store, &project.dir(), &SourceOptions::default()).await.is_none());
    }

    #[tokio::test]
    async fn an_offer_that_no_run_takes_is_not_repeated_until_one_freezes_the_tree() {
        let project = project();
        let handle = project.handle();
        let store = handle.get().unwrap();
        project.source().freeze(&store).await.unwrap();
        drop(begin(&project, &handle).unwrap());
        assert!(begin(&project, &handle).is_none());
        project.source().freeze(&store).await.unwrap();
        let early = begin(&project, &handle).unwrap();
        project.source().frozen_early(Some(Arc::new(early))).name(&store).await.unwrap();
        assert!(begin(&project, &handle).is_some());
    }

    #[tokio::test]
    async fn a_source_with_warnings_is_frozen_by_the_run_which_reports_them() {
        let project = project();
        let handle = project.handle();
        let store = handle.get().unwrap();
        project.source().freeze(&store).await.unwrap();
        let _socket = UnixListener::bind(project.file("socket")).unwrap();
        let early = begin(&project, &handle).unwrap();
        assert!(early.take(&store, &project.dir(), &SourceOptions::default()).await.is_none());
    }

    #[tokio::test]
    async fn errors_are_left_to_the_run() {
        let project = project();
        let handle = project.handle();
        let store = handle.get().unwrap();
        project.source().freeze(&store).await.unwrap();
        let early = begin(&project, &handle).unwrap();
        early.abandoned.store(true, Ordering::Relaxed);
        drop(early.take(&store, &project.dir(), &SourceOptions::default()).await);
        let source = project.source().frozen_early(Some(Arc::new(early)));
        source.freeze(&store).await.unwrap();
    }
}
