//! Events of a run whose steps pass, and what its readers get.

use std::path::Path;

use hm_exec::{
    BuildEvent, BuildStatus, EventStream, StepStatus,
    event::{self, EventBus, EventWriter, RunDir, RunMeta, StateEvent, StdStream, step_id},
    plan::StepIndex,
    runner::Secrets,
};
use uuid::Uuid;

use super::run_meta::run_meta;

pub(crate) const RUN: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

pub(crate) fn meta(steps: u32) -> RunMeta {
    run_meta(RUN, steps)
}

pub(crate) fn id(step: u32) -> Uuid {
    step_id(RUN, StepIndex(step))
}

pub(crate) fn create(steps: u32) -> (EventWriter, EventBus, EventStream) {
    event::create(RunDir::Temporary, meta(steps), &Secrets::new()).unwrap()
}

pub(crate) fn create_in(dir: &Path, steps: u32) -> (EventWriter, EventBus, EventStream) {
    event::create(RunDir::Kept(dir.into()), meta(steps), &Secrets::new()).unwrap()
}

pub(crate) fn start(writer: &mut EventWriter, step: u32) {
    writer.emit(0, StateEvent::StepStart { step: StepIndex(step), attempt: 1 });
}

pub(crate) fn end(writer: &mut EventWriter, step: u32) {
    writer.emit(
        5,
        StateEvent::StepEnd {
            step: StepIndex(step),
            attempt: 1,
            status: StepStatus::Passed,
            exit_code: 0,
            duration_ms: 5 + u64::from(step),
            snapshot: None,
            message: None,
            artifacts: vec![],
            details: Default::default(),
        },
    );
}

pub(crate) fn end_build(mut writer: EventWriter) {
    writer.emit(9, StateEvent::BuildEnd { status: BuildStatus::Passed, duration_ms: 9 });
    writer.flush().unwrap();
}

/// Returns the lines of one step and stream, in order.
pub(crate) fn lines(events: &[BuildEvent], of: u32, from: StdStream) -> Vec<String> {
    let line = |event: &BuildEvent| match event {
        BuildEvent::StepLog { step_id, stream, line, .. } if *step_id == id(of) && *stream == from => {
            Some(line.clone())
        }
        _ => None,
    };
    events.iter().filter_map(line).collect()
}

pub(crate) fn kinds(events: &[BuildEvent]) -> Vec<String> {
    let kind = |event| serde_json::to_value(event).unwrap()["kind"].as_str().unwrap().to_owned();
    events.iter().map(kind).collect()
}

pub(crate) fn replay(dir: &Path) -> Vec<BuildEvent> {
    event::open(dir).unwrap().map(Result::unwrap).collect()
}
