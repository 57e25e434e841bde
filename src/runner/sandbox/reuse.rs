//! Results that are found by what a step read: mode `auto`. See `docs/design/trace-cache.md`.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{
    jail::trace::{Answer, Reason, Trace},
    looks::{Found, Looking},
    placing::{WrittenByStep, place, written_by},
    runner::SandboxRunner,
    shadow::{FoundRecord, Matching},
    traced::Once,
    verify,
    view::Sought,
};
use crate::{
    cache::TraceRecord,
    model::SnapshotRef,
    runner::{ExecutorInput, Limits, RunnerError, RunnerErrorKind, StepContext, TraceLookup, TraceReuse, TracedResult},
    store::{Store, StoreError},
    tree::FileTime,
};

/// What a step that passed read, and the answers to that.
#[derive(Debug)]
pub(super) struct ReadByStep {
    pub(super) asked: Trace,
    pub(super) answers: Vec<Answer>,
    /// The time that a file would have got when it started.
    pub(super) started_at: FileTime,
    /// A time before that.
    since: SystemTime,
}

impl SandboxRunner {
    pub(super) fn boxed_look_up_trace<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> BoxFuture<'a, Result<TraceLookup, RunnerError>> {
        async move {
            let Some(reuse) = &ctx.reuse else {
                return Err(RunnerError::unsupported("the run's records are not kept"));
            };
            let limits = Limits::of_args(input.step.runner_args.as_ref())?;
            let store = self.store().map_err(|error| RunnerError::infrastructure("open the store", error))?;
            // Most steps are found without a zygote.
            let id_map = self.userns.prepare_trees(&store).await?;
            let sought = Sought { store: &store, ctx, input: &input, limits: &limits, id_map };
            let found = self.look_up_result(sought, reuse).await?;
            match reuse.verification {
                None => Ok(found),
                Some(_) => verify::expected(&store, ctx, found).await,
            }
        }
        .boxed()
    }

    async fn look_up_result(&self, sought: Sought<'_>, reuse: &TraceReuse) -> Result<TraceLookup, RunnerError> {
        let Sought { store, ctx, input, limits, .. } = sought;
        let base = self.base_of(sought).await?;
        let key = self.static_key(sought, &base, &reuse.project);
        let view = sought.view((&self.overlays, self.host_dirs()), &base).await?;
        let (reading, compared) = (Arc::clone(store), Arc::clone(&self.compared));
        let before = RunnerError::blocking("look for the result of a step", move || {
            let looking = view.map(|view| Looking::since(SystemTime::now(), view, compared));
            let found = looking.as_ref().and_then(|looking| looking.found_before(&reading, &key));
            // A record that is added from here on may be another one's result.
            let newest = if found.is_none() { reading.traces().newest(&key)? } else { None };
            Ok((looking, found, newest))
        });
        let (looking, newest) = match before.await? {
            (_, Some(result), _) => return Ok(TraceLookup::Found(result)),
            (looking, None, newest) => (looking, newest),
        };
        let zygote = self.zygote(store).await?;
        let matching = self.look_up_records(Once { store, zygote: &zygote, ctx, input, limits }, key).await?;
        if matching.records.is_empty() {
            return Ok(TraceLookup::Missed(matching.mismatch));
        }
        let parent = input.parent_snapshot.clone();
        let (store, is_kept) = (Arc::clone(store), reuse.verification.is_none());
        RunnerError::blocking("look for the result of a step", move || {
            let (result, found) = match result_of(&store, &matching, parent.as_ref(), is_kept)? {
                ResultOf::Kept(result, found) => (result, found),
                ResultOf::Made(snapshot) => return Ok(TraceLookup::Expected(snapshot)),
                ResultOf::None(why) => return Ok(TraceLookup::Missed(Some(why))),
            };
            if let (Some(looking), Some(newest), true) = (looking, newest, is_kept) {
                let origin = (found.record.parent != parent)
                    .then(|| result_key(&key, &found.bytes, found.record.parent.as_ref()));
                let record = *blake3::hash(&found.bytes).as_bytes();
                let kept = looking.ended(&found.record.asked, Found { newest, record, result, origin });
                keep_look(&store, &key, kept);
            }
            Ok(TraceLookup::Found(result))
        })
        .await
    }

    /// Returns what a step that passed read, unless something of it cannot be compared later.
    pub(super) async fn read_by(
        &self,
        once: Once<'_>,
        (since, started_at): ((SystemTime, Instant), FileTime),
        trace: Trace,
    ) -> Option<ReadByStep> {
        // It is not the command that takes this time.
        once.ctx.stop_limit();
        let step = &once.input.step.key;
        match self.confirmed(once, since, trace).await {
            Ok(Ok((asked, answers))) => Some(ReadByStep { asked, answers, started_at, since: since.0 }),
            Ok(Err(reasons)) => {
                let reasons: Vec<String> = reasons.iter().map(Reason::to_string).collect();
                tracing::info!("the result of step {step} is not kept: {}", reasons.join("; "));
                None
            }
            Err(error) => {
                warn_unless_cancelled(once, &error);
                None
            }
        }
    }

    /// Returns what is kept of a step that passed.
    pub(super) async fn traced_result(
        &self,
        once: Once<'_>,
        (reuse, read): (&TraceReuse, ReadByStep),
        snapshot: &SnapshotRef,
    ) -> Option<Box<TracedResult>> {
        let kept = async {
            let Once { store, input, limits, .. } = once;
            let parent = input.parent_snapshot.as_ref();
            let Some((read, written)) = written_by(store, (parent, snapshot), limits.ignore.clone(), read).await?
            else {
                return Ok(None);
            };
            let base = self.base_of(once.sought()).await?;
            let key = self.static_key(once.sought(), &base, &reuse.project);
            let view = once.sought().view((&self.overlays, self.host_dirs()), &base).await?;
            let (ReadByStep { asked, answers, since, .. }, WrittenByStep { digest: layer, layer: written }) =
                (read, written);
            let (parent_of, run, step) = (parent.cloned(), input.run_id, input.step.key.to_string());
            let record = TraceRecord { asked, answers, layer, parent: parent_of, written, run, step };
            let encoded = record.encode().map_err(|error| {
                RunnerError::infrastructure(
                    "keep what a step read",
                    StoreError::io("encode a record for", store.dir(), error),
                )
            })?;
            // What has no stored form is too large.
            let Some(encoded) = encoded else { return Ok(None) };
            let (id, result) = (*blake3::hash(&encoded).as_bytes(), result_key(&key, &encoded, parent));
            let compared = Arc::clone(&self.compared);
            let look = RunnerError::blocking("look at the files of the machine", move || {
                let found = Found { newest: id, record: id, result, origin: None };
                Ok(view.and_then(|view| Looking::since(since, view, compared).ended(&record.asked, found)))
            });
            Ok(Some(TracedResult { key, record: encoded, result, look: look.await? }))
        };
        kept.await.inspect_err(|error| warn_unless_cancelled(once, error)).ok().flatten().map(Box::new)
    }
}

/// The result of a step over its parent.
#[derive(Debug)]
pub(super) enum ResultOf<'a> {
    /// It is found by this key, and was by this record.
    Kept([u8; 32], &'a FoundRecord),
    /// It was made, and nothing finds it.
    Made(SnapshotRef),
    /// There is none, because of this.
    None(String),
}

/// Returns the result that a step has over its parent: that of the first record that matches which has one
/// there, or else one that can be put there.
fn result_of<'a>(
    store: &Arc<Store>,
    matching: &'a Matching,
    parent: Option<&SnapshotRef>,
    is_kept: bool,
) -> Result<ResultOf<'a>, StoreError> {
    let keyed = matching.records.iter().map(|it| (result_key(&matching.key, &it.bytes, parent), it));
    let results: Vec<_> = keyed.collect();
    let found = store.steps().read(|reader| results.iter().find(|(key, _)| reader.get(key).is_some()).copied())?;
    let Some((key, found)) = found else { return place(store, matching, parent, is_kept) };
    store.traces().touch(&matching.key, &found.bytes)?;
    if found.record.parent.as_ref() != parent {
        // What it was put over this parent from is in use, too.
        store.steps().touch(&[result_key(&matching.key, &found.bytes, found.record.parent.as_ref())])?;
    }
    Ok(ResultOf::Kept(key, found))
}

/// Keeps what a look found. If that fails, the next run looks again.
fn keep_look(store: &Store, key: &[u8; 32], look: Option<([u8; 32], Vec<u8>)>) {
    if let Some((view, look)) = look
        && let Err(error) = store.traces().keep_look(key, &view, &look)
    {
        tracing::info!(error = &error as &dyn std::error::Error, "what a look found is not kept");
    }
}

fn warn_unless_cancelled(once: Once<'_>, error: &RunnerError) {
    if error.kind() != RunnerErrorKind::Cancelled {
        let step = &once.input.step.key;
        tracing::warn!("the result of step {step} is not kept: {}", error.to_line());
    }
}

/// Returns the key of the result that a step with this static key and record has over a parent.
pub(super) fn result_key(key: &[u8; 32], record: &[u8], parent: Option<&SnapshotRef>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"hm-exec traced result").update(key).update(blake3::hash(record).as_bytes());
    hasher.update(&[u8::from(parent.is_some())]);
    if let Some(parent) = parent {
        hasher.update(parent.0.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_changes_the_key_of_a_result() {
        let parents = [None, Some(SnapshotRef::from("hm1:a")), Some(SnapshotRef::from("hm1:b")), Some("".into())];
        let mut keys: Vec<_> = parents.iter().map(|parent| result_key(&[1; 32], b"record", parent.as_ref())).collect();
        keys.push(result_key(&[2; 32], b"record", None));
        keys.push(result_key(&[1; 32], b"records", None));
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(keys[0], result_key(&[1; 32], b"record", None));
    }
}
