//! Results that are found by what a step read: mode `auto`. See `docs/design/trace-cache.md`.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{
    jail::trace::{Answer, Reason, Trace},
    placing::{WrittenByStep, place, written_by},
    runner::SandboxRunner,
    traced::Once,
    verify,
};
use crate::{
    cache::TraceRecord,
    model::SnapshotRef,
    runner::{ExecutorInput, Limits, RunnerError, RunnerErrorKind, StepContext, TraceLookup, TraceReuse, TracedResult},
    store::StoreError,
    tree::FileTime,
};

/// What a step that passed read, and the answers to that.
#[derive(Debug)]
pub(super) struct ReadByStep {
    pub(super) asked: Trace,
    pub(super) answers: Vec<Answer>,
    /// The time that a file would have got when it started.
    pub(super) started_at: FileTime,
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
            let zygote = self.zygote(&store).await?;
            let once = Once { store: &store, zygote: &zygote, ctx, input: &input, limits: &limits };
            let matching = self.look_up_records(once, &reuse.project).await?;
            if matching.records.is_empty() {
                return Ok(TraceLookup::Missed(matching.mismatch));
            }
            let parent = input.parent_snapshot.clone();
            let (in_store, is_kept) = (Arc::clone(&store), reuse.verification.is_none());
            let found = RunnerError::blocking("look for the result of a step", move || {
                let keyed =
                    matching.records.iter().map(|it| (result_key(&matching.key, &it.bytes, parent.as_ref()), it));
                let results: Vec<_> = keyed.collect();
                let found = store.steps().read(|reader| {
                    results.iter().find(|(key, _)| reader.get(key).is_some()).map(|(key, it)| (*key, *it))
                })?;
                let Some((key, found)) = found else {
                    return Ok(place(&store, &matching, parent.as_ref(), is_kept)?);
                };
                store.traces().touch(&matching.key, &found.bytes)?;
                if found.record.parent != parent {
                    // What it was put over this parent from is in use, too.
                    store.steps().touch(&[result_key(&matching.key, &found.bytes, found.record.parent.as_ref())])?;
                }
                Ok(TraceLookup::Found(key))
            });
            match is_kept {
                true => found.await,
                false => verify::expected(&in_store, ctx, found.await?).await,
            }
        }
        .boxed()
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
            Ok(Ok((asked, answers))) => Some(ReadByStep { asked, answers, started_at }),
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
            let key = self.static_key(once, &self.base_of(once).await?, &reuse.project);
            let (ReadByStep { asked, answers, .. }, WrittenByStep { digest: layer, layer: written }) = (read, written);
            let (parent_of, run, step) = (parent.cloned(), input.run_id, input.step.key.to_string());
            let record = TraceRecord { asked, answers, layer, parent: parent_of, written, run, step };
            let encoded = record.encode().map_err(|error| {
                RunnerError::infrastructure(
                    "keep what a step read",
                    StoreError::io("encode a record for", store.dir(), error),
                )
            })?;
            // What has no stored form is too large.
            Ok(encoded.map(|record| TracedResult { result: result_key(&key, &record, parent), key, record }))
        };
        kept.await.inspect_err(|error| warn_unless_cancelled(once, error)).ok().flatten().map(Box::new)
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
