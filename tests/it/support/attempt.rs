//! What a runner needs to run without an engine. The allocation test and the dispatch benchmark include it
//! too.

use std::{num::NonZeroU32, sync::Arc};

use hm_exec::{
    ExecutorInput,
    event::{RunDir, create},
    ir::CommandStep,
    runner::{ArchiveId, Secrets, StepContext},
    source::RunSource,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::run_meta::run_meta;

/// Returns the first attempt of a step `build`, in a separate run.
pub(crate) fn attempt() -> (StepContext, ExecutorInput) {
    let run_id = Uuid::from_u128(1);
    let meta = run_meta(run_id, 0);
    let (_, event_bus, _) = create(RunDir::Temporary, meta, &Secrets::new()).expect("a temporary journal");
    let archive = ArchiveId(run_id);
    let archives = Arc::new(RunSource::new(archive, "/nonexistent"));
    let step = CommandStep {
        key: "build".into(),
        label: None,
        cmd: "true".into(),
        image: Some("host".into()),
        env: None,
        timeout_seconds: NonZeroU32::new(60),
        cache: None,
        runner: None,
        runner_args: None,
    };
    let input = ExecutorInput::new(Arc::new(step), archive, run_id, Uuid::from_u128(2));
    (StepContext::new(event_bus, archives, Arc::default(), CancellationToken::new()), input)
}
