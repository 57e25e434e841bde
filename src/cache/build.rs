//! The cache of one build: lookups, publishing, and the record of the run at its end.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, SystemTime},
};

use uuid::Uuid;

use super::{
    CacheKey, CacheMode, Difference, ProjectId,
    flight::{Entered, Flight, Flights},
    parts::{self, KeyRecord, RunSettings},
    prediction::differences_from_last,
    tracing_cost::CostChange,
};
use crate::{
    awake, blocking,
    model::{BuildStatus, CacheMissReason, SnapshotRef},
    source::SourceTimes,
    store::{CacheHit, Cached, KeepAs, Lease, NewRun, SourceId, Store, StoreError, StoreHandle, TracingCost},
};

/// Checking layers with more files and directories than this is done on a separate thread.
const QUICK_ENTRIES: u64 = 256;

/// A use is not recorded if the last recorded one is more recent than this, in milliseconds. Garbage
/// collection removes what was not used for longest, and needs to know that no better.
const FRESH_MS: i64 = 5 * 60 * 1000;

/// How long the end of a build may wait for the disk.
const FINISH_LIMIT: Duration = Duration::from_secs(30);

/// The cache of an engine. Nothing is opened before a build starts.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    store: StoreHandle,
    flights: Flights,
}

/// The cache of one build. What it finds stays in the store until this is dropped.
#[derive(Debug)]
pub(crate) struct BuildCache {
    /// The store, or the reason why there is none.
    store: Result<(Arc<Store>, Lease), Arc<str>>,
    flights: Flights,
    build: BuildFacts,
    project: ProjectId,
}

/// The facts about a build that the cache needs.
#[derive(Debug)]
pub(crate) struct BuildFacts {
    pub(crate) run: Uuid,
    pub(crate) source_dir: PathBuf,
    /// The project that the results belong to. By default the source directory's.
    pub(crate) project: Option<ProjectId>,
    pub(crate) pipeline: String,
    pub(crate) source_times: SourceTimes,
    /// The digest of the patterns of files that are left out of the source.
    pub(crate) source_ignore: Option<[u8; 32]>,
    pub(crate) started_at_ms: i64,
}

/// A request to the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LookupRequest {
    pub(crate) key: CacheKey,
    /// The maximum age of an entry.
    pub(crate) max_age: Option<Duration>,
}

/// A usable result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) snapshot: SnapshotRef,
    /// The run that made it, its step, and the time, in milliseconds since the Unix epoch.
    pub(crate) run: Uuid,
    pub(crate) step: Arc<str>,
    pub(crate) created_at: i64,
    /// Whether a use was recorded so recently that this one need not be.
    pub(crate) just_used: bool,
}

/// The outcome of a lookup.
#[derive(Debug)]
pub(crate) enum LookupOutcome {
    Found(Found),
    Missed {
        reason: CacheMissReason,
        message: Option<Arc<str>>,
        /// Keeps equal steps waiting while this one runs.
        flight: Option<Flight>,
    },
}

/// The answer to a lookup, available now or later.
pub(crate) enum Lookup {
    Now(LookupOutcome),
    Later(Pin<Box<dyn Future<Output = LookupOutcome> + Send>>),
}

/// Whether the layers of a result are present and unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intact {
    Yes,
    No,
    /// The check would take longer than a lookup may.
    TooMany,
}

/// The result of a step that passed.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) key: CacheKey,
    pub(crate) step: Arc<str>,
    pub(crate) snapshot: SnapshotRef,
    /// The path of its output. There is no file if it printed nothing.
    pub(crate) log: PathBuf,
    pub(crate) flight: Option<Flight>,
    /// Whether it is found by what the step read.
    pub(crate) traced: bool,
}

/// The record of a build at its end.
#[derive(Debug)]
pub(crate) struct BuildEnd {
    pub(crate) run_dir: PathBuf,
    pub(crate) records: Vec<KeyRecord>,
    /// The mode of the run, and that of steps that reuse less, by key.
    pub(crate) modes: (CacheMode, BTreeMap<String, CacheMode>),
    pub(crate) hits: Vec<[u8; 32]>,
    /// What tracing steps took and saved, by key.
    pub(crate) costs: Vec<(Arc<str>, CostChange)>,
    pub(crate) published: bool,
    pub(crate) exit_code: i32,
}

impl Cache {
    pub(crate) fn new(store: StoreHandle) -> Self {
        Self { store, flights: Flights::default() }
    }

    /// Returns the cache's store.
    pub(crate) fn store(&self) -> &StoreHandle {
        &self.store
    }

    /// Opens the store for a build, and records its run. If that fails, every lookup reports the failure.
    /// Blocks for about a millisecond.
    pub(crate) fn open(&self, build: BuildFacts) -> BuildCache {
        self.open_with(build, |store, build| {
            let BuildFacts { run, source_dir, pipeline, started_at_ms, .. } = build;
            store.runs().begin(&NewRun { id: *run, source_dir, pipeline, started_at: *started_at_ms })
        })
    }

    /// Opens the store for lookups of a build that does not start, so it is not recorded.
    pub(crate) fn open_to_predict(&self, build: BuildFacts) -> BuildCache {
        self.open_with(build, |_, _| Ok(()))
    }

    fn open_with(
        &self,
        build: BuildFacts,
        begin: impl FnOnce(&Store, &BuildFacts) -> Result<(), StoreError>,
    ) -> BuildCache {
        let open = || {
            let store = self.store.get()?;
            // Before anything is looked up.
            let lease = store.lease()?;
            begin(&store, &build)?;
            Ok((store, lease))
        };
        let store = open().map_err(|error: StoreError| {
            let message = in_words(error);
            tracing::warn!("caching is disabled: {message}");
            message
        });
        let project = build.project.clone().unwrap_or_else(|| ProjectId::of_directory(&build.source_dir));
        BuildCache { store, flights: self.flights.clone(), build, project }
    }
}

impl BuildCache {
    /// Removes the record of the run, because it could not begin.
    pub(crate) fn forget_run(&self) {
        if let Ok((store, _)) = &self.store
            && let Err(error) = store.runs().forget(self.build.run)
        {
            tracing::warn!("{}", in_words(error));
        }
    }

    /// Looks a step up. Answers immediately, unless an equal step is in flight, or many files have to be
    /// checked.
    pub(crate) fn look_up(&self, request: LookupRequest) -> Lookup {
        let store = match &self.store {
            Ok((store, _)) => store,
            Err(message) => return Lookup::Now(unavailable(Arc::clone(message))),
        };
        match self.flights.enter(request.key) {
            Entered::After(waiting) => {
                let (store, flights) = (Arc::clone(store), self.flights.clone());
                Lookup::Later(Box::pin(async move {
                    let mut waiting = waiting;
                    loop {
                        if let Some(found) = waiting.landed().await {
                            return LookupOutcome::Found(found);
                        }
                        match flights.enter(request.key) {
                            Entered::First(flight) => return check(store, request, flight).await,
                            Entered::After(again) => waiting = again,
                        }
                    }
                }))
            }
            Entered::First(flight) => match store.steps().cached_within(&request.key.0, QUICK_ENTRIES) {
                Ok(Some(cached)) => Lookup::Now(judge(cached, request, flight)),
                Ok(None) => Lookup::Later(Box::pin(check(Arc::clone(store), request, flight))),
                Err(error) => Lookup::Now(unavailable(in_words(error))),
            },
        }
    }

    /// Looks results up in a consistent state, by a function that `read` gets. Their layers are not checked.
    /// Takes microseconds for each. Returns `None` if `read` does, or if there is no store to read.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&dyn Fn(LookupRequest) -> Option<Found>) -> Option<T>) -> Option<T> {
        let (store, _) = self.store.as_ref().ok()?;
        let now = now_ms();
        let done = store.steps().read(|reader| {
            read(&|LookupRequest { key, max_age }| {
                let CacheHit { snapshot, run, step, created_at, used_at } = reader.get(&key.0)?;
                let just_used = (0..FRESH_MS).contains(&(now - used_at));
                is_young(created_at, max_age).then_some(Found { snapshot, run, step, created_at, just_used })
            })
        });
        // A lookup of the step itself reports the error.
        done.ok().flatten()
    }

    /// Returns whether the layers of a result are unchanged, if that takes no longer than a lookup may.
    pub(crate) fn is_intact(&self, key: CacheKey) -> Intact {
        self.store.as_ref().map_or(Intact::No, |(store, _)| is_intact(store, key, QUICK_ENTRIES))
    }

    /// Does work that checks results on a thread for blocking work. Returns `None` if that fails.
    pub(crate) async fn check<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn(CacheKey) -> Intact) -> T + Send + 'static,
    ) -> Option<T> {
        let (store, _) = self.store.as_ref().ok()?;
        let store = Arc::clone(store);
        on_thread("check results", move || Ok(work(&|key| is_intact(&store, key, u64::MAX)))).await.ok()
    }

    /// Keeps the result of a step under its key, and passes it to the steps that wait for it. Returns the
    /// entry as it will be found.
    ///
    /// # Errors
    /// Returns an error if the result cannot be kept. The snapshot then still belongs to its runner.
    pub(crate) async fn publish(&self, result: Passed) -> Result<Found, Arc<str>> {
        let (store, _) = self.store.as_ref().map_err(Arc::clone)?;
        let (store, run, pipeline) = (Arc::clone(store), self.build.run, self.build.pipeline.clone());
        let Passed { key, step, snapshot, log, flight, traced } = result;
        let found = Found { snapshot, run, step, created_at: now_ms(), just_used: true };
        let kept = on_thread("keep a result", move || {
            store.steps().keep_log(&key.0, &log)?;
            let Found { step, created_at, .. } = &found;
            let (key, pipeline, created_at) = (&key.0, &*pipeline, *created_at);
            let name = match traced {
                true => KeepAs::Traced { key, run, pipeline, step, created_at },
                false => KeepAs::Cached { key, run, pipeline, step, created_at },
            };
            store.keep(&found.snapshot, name)?;
            Ok(found)
        });
        let found = kept.await?;
        if let Some(flight) = flight {
            flight.land(found.clone());
        }
        Ok(found)
    }

    /// Keeps the record of what a step read, under a key that is known before it runs.
    ///
    /// # Errors
    /// Returns an error if it cannot be kept.
    pub(crate) async fn keep_trace(&self, key: [u8; 32], record: Vec<u8>) -> Result<(), Arc<str>> {
        let (store, _) = self.store.as_ref().map_err(Arc::clone)?;
        let store = Arc::clone(store);
        on_thread("keep what a step read", move || store.traces().keep(&key, &record)).await
    }

    /// Returns what tracing the steps of the pipeline took and saved until now, by key. What cannot be read is
    /// not known.
    pub(crate) fn tracing_costs(&self) -> BTreeMap<String, TracingCost> {
        let Ok((store, _)) = &self.store else { return BTreeMap::new() };
        let costs = store.tracing_costs().of(self.project.as_str(), &self.build.pipeline);
        costs.unwrap_or_else(|error| {
            tracing::warn!("what tracing steps took is not known: {}", error.to_line());
            BTreeMap::new()
        })
    }

    /// Returns how steps that are not found differ from the last runs that looked them up, by key. `source`
    /// is the source as it is now, to name files that changed. What cannot be read explains nothing.
    pub(crate) async fn differences(
        &self,
        records: Vec<KeyRecord>,
        source: Option<SourceId>,
    ) -> BTreeMap<String, Vec<Difference>> {
        let Ok((store, _)) = &self.store else { return BTreeMap::new() };
        let store = Arc::clone(store);
        let BuildFacts { source_dir, pipeline, source_times, source_ignore, .. } = &self.build;
        let (source_dir, pipeline) = (source_dir.clone(), pipeline.clone());
        let (times, ignore) = (*source_times, *source_ignore);
        let project = self.project.clone();
        let compared = on_thread("compare cache keys", move || {
            differences_from_last(
                &store,
                (&source_dir, &pipeline),
                (&project, times, ignore),
                &records,
                source.as_ref(),
            )
        });
        compared.await.unwrap_or_else(|message| {
            tracing::warn!("earlier runs cannot be compared: {message}");
            BTreeMap::new()
        })
    }

    /// Returns the project that the results belong to.
    pub(crate) fn project(&self) -> &ProjectId {
        &self.project
    }

    /// Returns which times of source files the steps see.
    pub(crate) fn source_times(&self) -> SourceTimes {
        self.build.source_times
    }

    /// Returns the digest of the patterns of files that are left out of the source.
    pub(crate) fn source_ignore(&self) -> Option<&[u8; 32]> {
        self.build.source_ignore.as_ref()
    }

    /// Returns the store, if there is one, and the pipeline.
    pub(crate) fn store(&self) -> Option<(&Arc<Store>, &str)> {
        self.store.as_ref().ok().map(|(store, _)| (store, &*self.build.pipeline))
    }

    /// Records how the run in `run_dir` ended, what was looked up, and that `hits` were used. If something
    /// was published, syncs it to the disk.
    pub(crate) async fn finish(&self, end: BuildEnd) {
        let Ok((store, _)) = &self.store else { return };
        let (store, run) = (Arc::clone(store), self.build.run);
        let BuildEnd { run_dir, records, modes, hits, costs, published, exit_code } = end;
        let pipeline = self.build.pipeline.clone();
        let (project, source_times) = (self.project.clone(), self.build.source_times);
        let source_ignore = self.build.source_ignore;
        let record = move || {
            let origin = (project.as_str(), source_times);
            let settings = RunSettings { mode: modes.0, limits: modes.1, source_ignore };
            let is_worth_it = !records.is_empty() || settings.mode == CacheMode::Off || !settings.limits.is_empty();
            if is_worth_it && let Err(error) = parts::write(&run_dir, &store.secret()?, origin, (&records, settings)) {
                tracing::warn!(%error, "`hm why` will not be able to explain this run");
            }
            store.steps().touch(&hits)?;
            if !costs.is_empty() {
                let of = (project.as_str(), &*pipeline);
                store.tracing_costs().change(of, &costs, |change, cost| change.apply(cost))?;
            }
            if published {
                store.layers().sync()?;
            }
            store.runs().end(run, exit_code)
        };
        let finishing = on_thread("record the run", move || match record() {
            // `hm` reports a full disk itself after a build that could not run. Do not warn twice.
            Err(error @ StoreError::Full { .. }) if exit_code == BuildStatus::Infrastructure.exit_code() => {
                tracing::debug!(%error, "failed to record the run");
                Ok(())
            }
            recorded => recorded,
        });
        match awake::timeout(FINISH_LIMIT, pin!(finishing)).await {
            Some(Ok(())) => {}
            Some(Err(message)) => tracing::warn!("the cache may lose the results of this run: {message}"),
            None => tracing::warn!(
                "the cache may lose the results of this run: the disk did not finish writing within {FINISH_LIMIT:?}"
            ),
        }
    }
}

/// Returns whether a result's layers are unchanged, by a walk over at most `entries` files and directories.
fn is_intact(store: &Store, key: CacheKey, entries: u64) -> Intact {
    match store.steps().cached_within(&key.0, entries) {
        Ok(Some(Cached::Found { .. })) => Intact::Yes,
        Ok(Some(_)) | Err(_) => Intact::No,
        Ok(None) => Intact::TooMany,
    }
}

/// Performs a lookup that takes longer.
async fn check(store: Arc<Store>, request: LookupRequest, flight: Flight) -> LookupOutcome {
    match on_thread("look a result up", move || store.steps().cached(&request.key.0)).await {
        Ok(cached) => judge(cached, request, flight),
        Err(message) => unavailable(message),
    }
}

/// Derives the outcome from the entry in the store.
fn judge(cached: Cached, request: LookupRequest, flight: Flight) -> LookupOutcome {
    let (reason, message) = match cached {
        Cached::Found { created_at, .. } if !is_young(created_at, request.max_age) => (CacheMissReason::Expired, None),
        Cached::Found { snapshot, run, step, created_at } => {
            let found = Found { snapshot, run, step: step.into(), created_at, just_used: false };
            flight.land(found.clone());
            return LookupOutcome::Found(found);
        }
        Cached::Absent => (CacheMissReason::Absent, None),
        Cached::Damaged { reason } => (CacheMissReason::Damaged, Some(reason.into())),
    };
    LookupOutcome::Missed { reason, message, flight: Some(flight) }
}

/// Returns whether an entry is young enough. An entry with a time in the future has no known age.
pub(crate) fn is_young(created_at: i64, max_age: Option<Duration>) -> bool {
    let age = u64::try_from(now_ms() - created_at).ok().map(Duration::from_millis);
    max_age.is_none_or(|limit| age.is_some_and(|age| age <= limit))
}

fn unavailable(message: Arc<str>) -> LookupOutcome {
    LookupOutcome::Missed { reason: CacheMissReason::Unavailable, message: Some(message), flight: None }
}

/// Does work on a thread for blocking work. Its error becomes text.
async fn on_thread<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Arc<str>> {
    let done = blocking::run(doing, move || work().map_err(anyhow::Error::from)).await;
    done.map_err(|error| format!("{error:#}").into())
}

/// Formats an error and its causes on one line.
fn in_words(error: impl std::error::Error + Send + Sync + 'static) -> Arc<str> {
    format!("{:#}", anyhow::Error::new(error)).into()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
