//! Steps that run although they are found by what they read: what they leave is compared with the result,
//! entry by entry. See `docs/design/trace-cache.md`.

use std::sync::Arc;

use super::{
    runner::SandboxRunner,
    shadow::{Written, exited_with, tell, written},
    traced::Once,
};
use crate::{
    model::{ShadowVerdict, SnapshotRef, VerifiedStep},
    runner::{Expected, RunnerError, RunnerErrorKind, StepContext, StepRunner, TraceLookup},
    store::{Cached, LayerComparison, LayerDifference, LayerId, Store, compare_layers},
};

/// How many files that differ are kept of a step.
const MAX_FILES: usize = 100;
/// How many files that differ a warning names.
const NAMED: usize = 5;

/// Returns the snapshot that a look-up found, for a comparison. One that is not kept is removed at the end of
/// the run.
pub(super) async fn expected(
    store: &Arc<Store>,
    ctx: &StepContext,
    found: TraceLookup,
) -> Result<TraceLookup, RunnerError> {
    match found {
        TraceLookup::Found(key) => {
            let store = Arc::clone(store);
            RunnerError::blocking("look at the result of a step", move || {
                Ok(match store.steps().cached(&key)? {
                    Cached::Found { snapshot, .. } => TraceLookup::Expected(snapshot),
                    Cached::Damaged { reason } => TraceLookup::Missed(Some(reason)),
                    Cached::Absent => TraceLookup::Missed(Some("its result was removed".to_owned())),
                })
            })
            .await
        }
        TraceLookup::Expected(made) => {
            let (store, name) = (Arc::clone(store), made.clone());
            ctx.at_build_end(async move {
                let removing =
                    RunnerError::blocking("remove a result", move || Ok(store.snapshots().remove(&[name])?));
                if let Err(error) = removing.await {
                    tracing::warn!(error = error.to_line(), "a snapshot stays in the store");
                }
            });
            Ok(TraceLookup::Expected(made))
        }
        missed @ TraceLookup::Missed(_) => Ok(missed),
    }
}

impl SandboxRunner {
    /// Compares what a step did with its result. Returns the snapshot that counts as the step's: in a run
    /// that only compares, that is the result.
    pub(super) async fn verified(
        &self,
        once: Once<'_>,
        expected: &Expected,
        (code, snapshot): (Option<i32>, Option<SnapshotRef>),
    ) -> Option<SnapshotRef> {
        verify(once, expected, (code, snapshot.as_ref())).await;
        if !expected.verification.is_alone() {
            return snapshot;
        }
        self.reap_snapshots(vec![snapshot?]).await;
        Some(expected.snapshot.clone())
    }
}

/// Compares what a step did with the result that it would have been found with. Its end is none if it was
/// interrupted, or could not run.
async fn verify(once: Once<'_>, expected: &Expected, (code, snapshot): (Option<i32>, Option<&SnapshotRef>)) {
    let Once { input, ctx, .. } = once;
    // It is not the command that takes this time.
    ctx.stop_limit();
    let step = &input.step.key;
    let compared = match (code, snapshot) {
        (Some(0), Some(snapshot)) => compare(once, expected, snapshot).await,
        (Some(0), None) => Ok(Err("its files could not be kept")),
        (Some(code), _) => {
            let difference = Some(exited_with(code));
            Ok(Ok(VerifiedStep { difference, ..VerifiedStep::same(Arc::clone(step), 0) }))
        }
        (None, _) if ctx.cancel.is_cancelled() => Err(ctx.interrupted()),
        (None, _) => Ok(Err("it has no end")),
    };
    let verification = &expected.verification;
    let why = match compared {
        Ok(Ok(verdict)) => {
            let difference = verdict.difference.clone();
            tell(once, &ShadowVerdict { found: true, difference, ..ShadowVerdict::default() });
            return verification.add(verdict);
        }
        Ok(Err(why)) => why.to_owned(),
        Err(error) if error.kind() == RunnerErrorKind::Cancelled => "the run was cancelled".to_owned(),
        Err(error) => error.to_line(),
    };
    verification.add_failure();
    if !ctx.cancel.is_cancelled() {
        tracing::warn!("step {step} was not compared with its result: {why}");
    }
    verification.add(VerifiedStep::not_compared(Arc::clone(step), why));
}

/// Compares the layer that a step wrote with that of a result. Returns why, if that is not possible.
async fn compare(
    once: Once<'_>,
    expected: &Expected,
    snapshot: &SnapshotRef,
) -> Result<Result<VerifiedStep, &'static str>, RunnerError> {
    let Once { store, input, ctx, .. } = once;
    let (parent, result, own) = (input.parent_snapshot.clone(), expected.snapshot.clone(), snapshot.clone());
    let store = Arc::clone(store);
    let compared = RunnerError::blocking("compare what a step wrote", move || {
        let parent = parent.map(|parent| store.snapshots().get(&parent)).transpose()?;
        let below: &[LayerId] = parent.as_deref().map_or(&[], |parent| &parent.layers);
        let (result, own) = (store.snapshots().get(&result)?, store.snapshots().get(&own)?);
        let own_layer = match written(&store, below, &own.layers) {
            Written::Nothing => None,
            Written::Layer(layer) => Some(layer),
            Written::Merged => return Ok(Err("its layer was merged with others")),
        };
        let Some(above) = result.layers.strip_suffix(below) else {
            return Ok(Err("its result is over other layers than its parent's"));
        };
        // What follows it is a delta of the source.
        let layer = above.first().filter(|layer| !layer.is_of_content());
        Ok(Ok(compare_layers(&store, (layer, own_layer.as_ref()), own.id_map)?))
    });
    let step = Arc::clone(&input.step.key);
    let verdict = |LayerComparison { entries, differences }| {
        let mask = |text: String| ctx.event_bus.masked_text(&text).into_owned();
        let files: Vec<String> = differences.iter().take(MAX_FILES).map(in_words).map(mask).collect();
        let difference = (!files.is_empty()).then(|| {
            let mut named = files[..files.len().min(NAMED)].to_vec();
            if differences.len() > NAMED {
                named.push(format!("and {} more", differences.len() - NAMED));
            }
            format!("it wrote other files: {}", named.join(", "))
        });
        VerifiedStep { difference, differences: differences.len(), files, ..VerifiedStep::same(step, entries) }
    };
    Ok(compared.await?.map(verdict))
}

/// Returns a path, as a step sees it, and what differs of it.
fn in_words(difference: &LayerDifference) -> String {
    let LayerDifference { path, what } = difference;
    // A path may contain the end of a line.
    let path = String::from_utf8_lossy(path).replace('\n', "\\n");
    format!("/{path} ({})", what.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_its_path_and_what_differs() {
        let difference = LayerDifference { path: b"workspace/out".to_vec(), what: vec!["content", "mode"] };
        assert_eq!(in_words(&difference), "/workspace/out (content, mode)");
    }
}
