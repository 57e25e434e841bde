//! Looks up shared results.
//!
//! A result's files are needed if a step boots from them and that step is not found, or is found but its own
//! files are needed and cannot be fetched. So the steps that build on a result are looked up together with
//! it, downwards, and files are fetched upwards from there. Whatever cannot be fetched becomes a miss of the
//! step that created it, while that step can still run.

use std::sync::Arc;

use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{self, BoxFuture},
    stream,
};

use super::{
    entry::{
        EntryPlace, LayerName, MAX_ENTRY_BYTES, MAX_SIGNATURE_BYTES, OLD_VERSION, SharedEntry, VERSION, action_of,
        entry_blob, signature_blob,
    },
    error::{Consequence, RemoteCacheError},
    options::{Absent, RemoteCache},
    scope::CacheScope,
};
use crate::{
    blocking,
    cache::{CacheKey, Candidate, Found, LookedAhead, Question, is_young},
    model::SnapshotRef,
    remote::{DigestFunction, RemoteErrorKind, reapi},
    store::{Cached, IdMap, LayerId, Store},
};

/// The maximum number of steps of one question that are looked up at a time.
const AT_ONCE: usize = 32;
/// The limit of results without files. Beyond it, all are forgotten at once, because a long-lived engine must
/// not grow with every step that it looks up. One build never has more results without their files.
const MAX_ABSENT: usize = 1 << 17;

/// What is known about a candidate.
enum State {
    Unknown,
    /// In this machine's cache.
    Here,
    Missed,
    Shared(CacheKey, Arc<SharedEntry>),
}

impl RemoteCache {
    pub(super) async fn look_up(
        &self,
        store: &Arc<Store>,
        pipeline: &str,
        question: Question<'_>,
        ahead: &LookedAhead,
    ) -> Option<Found> {
        if self.is_resting() {
            return None;
        }
        match self.resolve(store, pipeline, &question, ahead).await {
            Ok(found) => found,
            Err(error) => {
                self.note("look a step up in the remote cache", error);
                None
            }
        }
    }

    async fn resolve(
        &self,
        store: &Arc<Store>,
        pipeline: &str,
        question: &Question<'_>,
        ahead: &LookedAhead,
    ) -> Result<Option<Found>, RemoteCacheError> {
        let mut states = self.look(store, question).await?;
        let mut is_needed: Vec<bool> = question.candidates.iter().map(|candidate| candidate.is_needed).collect();
        // Its layers are here in any case, because they are among those of the steps that build on it.
        let mut is_cheap = vec![false; is_needed.len()];
        let mut answer = None;
        for (at, candidate) in question.candidates.iter().enumerate().rev() {
            let found = match &states[at] {
                State::Unknown => continue,
                State::Here => None,
                State::Missed => None,
                State::Shared(key, entry) => {
                    let image = question.image;
                    let mut here = match is_needed[at] || is_cheap[at] {
                        true => self.fetch(store, pipeline, image, key, entry).await.map(|()| true),
                        false => Ok(false),
                    };
                    if !is_needed[at] && !matches!(here, Ok(true)) {
                        here = self.do_without(store, image, key, entry).await.map(|()| false);
                    }
                    match here {
                        Ok(is_here) => {
                            if let Some(parent) = candidate.parent {
                                is_cheap[parent] |= is_here;
                            }
                            Some(found(entry))
                        }
                        // The result has disappeared in the meantime.
                        Err(error) if error.consequence() == Consequence::Miss => {
                            self.note(&using(candidate), error);
                            None
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let is_usable = found.is_some() || matches!(states[at], State::Here);
            if let (Some(parent), false) = (candidate.parent, is_usable) {
                is_needed[parent] = true;
            }
            match &states[at] {
                State::Shared(key, _) if at > 0 => drop(ahead.lock().insert(*key, found)),
                _ if at == 0 => answer = found,
                _ => {}
            }
            states[at] = State::Unknown;
        }
        Ok(answer)
    }

    /// Looks up the first candidate, and the candidates above each one that is found.
    async fn look(&self, store: &Arc<Store>, question: &Question<'_>) -> Result<Vec<State>, RemoteCacheError> {
        let candidates = &question.candidates;
        let mut above = vec![Vec::new(); candidates.len()];
        for (at, candidate) in candidates.iter().enumerate() {
            if let Some(parent) = candidate.parent {
                above[parent].push(at);
            }
        }
        let mut states: Vec<State> = candidates.iter().map(|_| State::Unknown).collect();
        let mut level = vec![(0, question.key)];
        while !level.is_empty() {
            // Boxed and collected: the compiler cannot prove that a stream which creates the futures lazily
            // is `Send`.
            let looks: Vec<BoxFuture<'_, Result<(usize, State), RemoteCacheError>>> =
                level.drain(..).map(|(at, key)| self.look_at(store, at, &candidates[at], key).boxed()).collect();
            let looked: Vec<(usize, State)> = stream::iter(looks).buffer_unordered(AT_ONCE).try_collect().await?;
            for (at, state) in looked {
                if let State::Shared(_, entry) = &state {
                    let snapshot = reference(entry);
                    let keys = above[at].iter().map(|&at| (at, (question.key_over)(&candidates[at], &snapshot.0)));
                    level.extend(keys);
                }
                states[at] = state;
            }
        }
        Ok(states)
    }

    async fn look_at(
        &self,
        store: &Arc<Store>,
        at: usize,
        candidate: &Candidate,
        key: CacheKey,
    ) -> Result<(usize, State), RemoteCacheError> {
        let max_age = candidate.max_age;
        // The first candidate has already been looked up in the local cache.
        if at > 0 {
            let here = Arc::clone(store);
            let looked =
                blocking::run("look into the cache", move || Ok::<_, RemoteCacheError>(here.steps().cached(&key.0)))
                    .await?;
            if matches!(looked, Ok(Cached::Found { created_at, .. }) if is_young(created_at, max_age)) {
                return Ok((at, State::Here));
            }
        }
        let id_map = self.userns.id_map().await;
        let entry = self.entry(&key, candidate, id_map).await?;
        Ok((at, entry.map_or(State::Missed, |entry| State::Shared(key, entry))))
    }

    /// Returns the first usable entry for a key of the scopes that this run reads, if the engine has every
    /// blob that it names.
    async fn entry(
        &self,
        key: &CacheKey,
        candidate: &Candidate,
        id_map: IdMap,
    ) -> Result<Option<Arc<SharedEntry>>, RemoteCacheError> {
        let _turn = self.questions.acquire().await;
        let function = self.cas.digest_function().await?;
        let scopes = self.rules.read_scopes();
        let gets: Vec<BoxFuture<'_, _>> = scopes
            .iter()
            .map(|scope| self.actions.get(action_of(VERSION, scope, key, function).digest).boxed())
            .collect();
        let results = future::try_join_all(gets).await?;
        for (scope, result) in scopes.iter().zip(results) {
            let Some(result) = result else { continue };
            let place = EntryPlace::new(key, scope);
            let entry = self.usable(&result, function, Some(&place), (candidate, id_map)).await?;
            if entry.is_some() {
                return Ok(entry);
            }
        }
        if !self.rules.reads_unscoped() {
            return Ok(None);
        }
        // Asked only then, because an up-to-date entry makes it useless.
        let old = action_of(OLD_VERSION, &CacheScope::trusted(), key, function).digest;
        match self.actions.get(old).await? {
            Some(result) => self.usable(&result, function, None, (candidate, id_map)).await,
            None => Ok(None),
        }
    }

    /// Returns the entry of a result if it may be used, and if the engine has every blob that it names.
    /// `place` is `None` for the old version.
    async fn usable(
        &self,
        result: &reapi::ActionResult,
        function: DigestFunction,
        place: Option<&EntryPlace>,
        (candidate, id_map): (&Candidate, IdMap),
    ) -> Result<Option<Arc<SharedEntry>>, RemoteCacheError> {
        let read = async {
            let entry = self.read_entry(result, function, place).await?;
            if !is_young(entry.created_at, candidate.max_age) || entry.id_map != id_map {
                return Ok(None);
            }
            let missing = self.cas.find_missing(entry.blobs()).await?;
            Ok::<_, RemoteCacheError>(missing.is_empty().then(|| Arc::new(entry)))
        };
        match read.await {
            Err(error) if error.consequence() == Consequence::Miss => {
                self.note(&using(candidate), error);
                Ok(None)
            }
            read => read,
        }
    }

    /// Reads the entry of a result, if it may be used.
    async fn read_entry(
        &self,
        result: &reapi::ActionResult,
        function: DigestFunction,
        place: Option<&EntryPlace>,
    ) -> Result<SharedEntry, RemoteCacheError> {
        let signature = async {
            match signature_blob(result, function).filter(|_| self.rules.has_keys()) {
                Some(signature) => match self.cas.read(signature, MAX_SIGNATURE_BYTES).await {
                    // It is as if there were none.
                    Err(error) if matches!(error.kind(), RemoteErrorKind::MissingBlobs | RemoteErrorKind::Corrupt) => {
                        Ok(None)
                    }
                    read => read.map(Some),
                },
                None => Ok(None),
            }
        };
        let entry = self.cas.read(entry_blob(result, function)?, MAX_ENTRY_BYTES);
        let (bytes, signature) = future::try_join(entry, signature).await?;
        let entry = SharedEntry::decode(&bytes, place)?;
        if let Some(EntryPlace { scope, .. }) = place {
            self.rules.check(scope, &bytes, signature.as_deref()).map_err(|why| {
                let step = entry.step.chars().take(100).collect();
                RemoteCacheError::Unsigned { step, scope: scope.clone(), why }
            })?;
        }
        if LayerId::parse(&entry.snapshot).is_none() {
            return Err(RemoteCacheError::Foreign("a snapshot without an id".into()));
        }
        Ok(entry)
    }

    /// Uses a result without its files.
    async fn do_without(
        &self,
        store: &Arc<Store>,
        image: &str,
        key: &CacheKey,
        entry: &Arc<SharedEntry>,
    ) -> Result<(), RemoteCacheError> {
        // After this, the files must be there if a step boots from them all the same.
        for list in entry.layers.iter().filter_map(LayerName::list) {
            if !self.chunks.is_complete(&self.cas, list).await? {
                return Err(RemoteCacheError::Foreign("chunks of a layer are missing".into()));
            }
        }
        self.fetch_log(store, key, entry).await?;
        let is_here = tokio::sync::Mutex::new(false);
        let absent = Absent { key: *key, image: image.to_owned(), entry: Arc::clone(entry), is_here };
        let mut all = self.absent.lock();
        if all.len() >= MAX_ABSENT {
            all.clear();
        }
        all.insert(entry.snapshot.clone(), Arc::new(absent));
        Ok(())
    }

    pub(super) async fn fetch_absent(&self, store: &Arc<Store>, pipeline: &str, snapshot: &SnapshotRef) {
        let id = snapshot.0.strip_prefix(SCHEME).unwrap_or_default();
        let Some(absent) = self.absent.lock().get(id).cloned() else { return };
        let mut is_here = absent.is_here.lock().await;
        if *is_here {
            return;
        }
        match self.fetch(store, pipeline, &absent.image, &absent.key, &absent.entry).await {
            Ok(()) => {
                *is_here = true;
                self.absent.lock().remove(id);
            }
            Err(error) => {
                let step = absent.entry.step.chars().take(100).collect::<String>();
                let doing = format!("fetch the result of step `{}`", step.escape_debug());
                self.note(&format!("{doing} (use `--remote-cache=off` to run it again)"), error);
            }
        }
    }
}

/// Returns what fails if a result is not usable.
fn using(candidate: &Candidate) -> String {
    format!("use the shared result of step `{}`", candidate.name.escape_debug())
}

/// The prefix of a snapshot's id in its name.
const SCHEME: &str = "hm1:";

fn reference(entry: &SharedEntry) -> SnapshotRef {
    SnapshotRef::from(format!("{SCHEME}{}", entry.snapshot))
}

fn found(entry: &SharedEntry) -> Found {
    let (snapshot, step) = (reference(entry), entry.step.as_str().into());
    Found { snapshot, run: entry.run, step, created_at: entry.created_at, just_used: true }
}
