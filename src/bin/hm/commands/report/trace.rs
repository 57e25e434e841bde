//! A run as a trace of Chrome: a timeline with as many lanes as steps ran at once.

use hm_exec::event::StepRecord;
use serde_json::{Value, json};

use super::Report;
use crate::{
    failure::{Failure, Outcome},
    find_step::describe,
};

/// Returns the trace.
pub(super) fn json(report: &Report<'_>) -> Outcome<String> {
    let (run, steps) = (report.run, &report.record.steps);
    let mut events = vec![
        json!({ "ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": { "name": format!("hm {}", run.pipeline) } }),
    ];
    let mut lanes = Lanes::default();
    let mut ran: Vec<(u64, u64, &StepRecord)> =
        steps.iter().filter_map(|step| Some((step.started_ms?, step.duration_ms.unwrap_or(0), step))).collect();
    ran.sort_by_key(|(start, ..)| *start);
    for (start, duration, step) in ran {
        let lane = lanes.take(start, duration);
        events.push(json!({
            "ph": "X",
            "cat": "step",
            "pid": 1,
            "tid": lane,
            "name": step.key,
            "ts": start.saturating_mul(1000),
            "dur": duration.saturating_mul(1000),
            "args": arguments(step),
        }));
    }
    for lane in 1..=lanes.ends.len() {
        let args = json!({ "name": format!("lane {lane}") });
        events.push(json!({ "ph": "M", "pid": 1, "tid": lane, "name": "thread_name", "args": args }));
    }
    let run = json!({ "run": run.id, "pipeline": run.pipeline, "started_at_ms": run.started_at });
    let trace = json!({ "traceEvents": events, "displayTimeUnit": "ms", "otherData": run });
    serde_json::to_string(&trace).map_err(|error| Failure::infrastructure("failed to write JSON").because(error))
}

fn arguments(step: &StepRecord) -> Value {
    json!({
        "name": step.display_name,
        "runner": step.runner,
        "result": describe(step),
        "exit_code": step.exit_code,
        "attempts": step.attempts,
    })
}

/// The lanes of a timeline, numbered from 1.
#[derive(Debug, Default)]
struct Lanes {
    /// When the last step in each lane ended.
    ends: Vec<u64>,
}

impl Lanes {
    /// Returns the first lane that is free. Steps must come in the order in which they started.
    fn take(&mut self, start: u64, duration: u64) -> usize {
        let end = start.saturating_add(duration);
        match self.ends.iter().position(|free| *free <= start) {
            Some(lane) => {
                self.ends[lane] = end;
                lane + 1
            }
            None => {
                self.ends.push(end);
                self.ends.len()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_run_at_once_have_lanes_of_their_own() {
        let mut lanes = Lanes::default();
        let taken: Vec<usize> =
            [(0, 10), (2, 3), (5, 1), (6, 9), (10, 1)].map(|(start, duration)| lanes.take(start, duration)).into();
        assert_eq!(taken, [1, 2, 2, 2, 1]);
    }
}
