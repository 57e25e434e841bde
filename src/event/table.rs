//! A run's constant data as readers of its events use it: the steps' fields in columns.
//!
//! A large run has much of it, and most events need little: the start of a step needs four bytes, which stay
//! in the processor's cache, instead of a record that does not.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};

use uuid::Uuid;

use super::{BuildRef, PlanSummary, RunMeta, ServerRun, StepMeta, meta};
use crate::model::StepIndex;

/// The constant data of a run.
#[derive(Debug)]
pub(super) struct RunTable {
    pub(super) build: BuildRef,
    pub(super) plan: PlanSummary,
    pub(super) started_at: DateTime<Utc>,
    /// The URL of a page that shows the build, if a server has one.
    pub(super) watch_url: Option<String>,
    /// Empty unless a server assigned the ids.
    ids: StepIds,
    keys: Vec<Arc<str>>,
    display_names: Vec<Arc<str>>,
    chains: Vec<u32>,
    /// [`NONE`] if the step has no parent.
    parents: Vec<u32>,
    /// By step: an index into `grounds`.
    ground_of: Vec<u32>,
    grounds: Vec<Ground>,
}

const NONE: u32 = u32::MAX;

/// The number of steps after which the memory of their former records is given back.
const BATCH: usize = 1 << 16;

/// What a step starts on. Few steps differ in it.
#[derive(Debug)]
pub(super) struct Ground {
    /// The runner's name. `None` if the run has no such runner.
    pub(super) runner: Option<Arc<str>>,
    /// The image, if the step boots from one.
    pub(super) image: Option<Arc<str>>,
}

impl RunTable {
    /// Returns the number of steps.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns a step's id in events.
    pub(super) fn step_id(&self, step: StepIndex) -> Uuid {
        self.ids.by_step.get(step.get()).copied().unwrap_or_else(|| meta::step_id(self.build.run_id, step))
    }

    /// Returns the step with this id, or `None` if the run has no such step.
    pub(super) fn step_index(&self, step_id: Uuid) -> Option<StepIndex> {
        let assigned = self.ids.by_id.get(&step_id).copied();
        assigned.or_else(|| meta::step_index(self.build.run_id, step_id))
    }

    /// Returns a step's key.
    pub(super) fn key(&self, step: StepIndex) -> Option<&Arc<str>> {
        self.keys.get(step.get())
    }

    /// Returns a step's name for users.
    pub(super) fn display_name(&self, step: StepIndex) -> Option<&Arc<str>> {
        self.display_names.get(step.get())
    }

    /// Returns a step's chain.
    pub(super) fn chain(&self, step: StepIndex) -> Option<usize> {
        self.chains.get(step.get()).map(|&chain| chain as usize)
    }

    /// Returns the key of a step's `builds_in` parent.
    pub(super) fn parent_key(&self, step: StepIndex) -> Option<&Arc<str>> {
        self.key(StepIndex(*self.parents.get(step.get())?))
    }

    /// Returns what a step starts on.
    pub(super) fn ground(&self, step: StepIndex) -> Option<&Ground> {
        self.grounds.get(*self.ground_of.get(step.get())? as usize)
    }
}

/// The ids that a server assigned to steps.
#[derive(Debug, Default)]
struct StepIds {
    by_step: Vec<Uuid>,
    by_id: HashMap<Uuid, StepIndex>,
}

impl From<Vec<Uuid>> for StepIds {
    fn from(by_step: Vec<Uuid>) -> Self {
        let by_id = by_step.iter().zip(0..).map(|(id, step)| (*id, StepIndex(step))).collect();
        Self { by_step, by_id }
    }
}

impl From<RunMeta> for RunTable {
    fn from(RunMeta { build, plan, started_at, mut steps, runners, server, .. }: RunMeta) -> Self {
        let len = steps.len();
        let ServerRun { watch_url, step_ids } = server.unwrap_or_default();
        let mut table = Self {
            build,
            plan,
            started_at,
            watch_url,
            ids: step_ids.into(),
            keys: Vec::with_capacity(len),
            display_names: Vec::with_capacity(len),
            chains: Vec::with_capacity(len),
            parents: Vec::with_capacity(len),
            ground_of: Vec::with_capacity(len),
            grounds: Vec::new(),
        };
        let mut known: HashMap<(u16, Option<Arc<str>>), u32> = HashMap::new();
        // Most steps start on the same as the one before, and need no look into the map.
        let mut last: Option<(u16, Option<Arc<str>>, u32)> = None;
        // From the end, so that the memory of records that are done can be given back.
        while let Some(StepMeta { key, display_name, chain_idx, parent, image, runner }) = steps.pop() {
            table.keys.push(key);
            table.display_names.push(display_name);
            table.chains.push(u32::try_from(chain_idx).unwrap_or(u32::MAX));
            table.parents.push(parent.map_or(NONE, |parent| parent.0));
            let ground = match &last {
                Some((of, on, ground)) if *of == runner && *on == image => *ground,
                _ => {
                    let ground = *known.entry((runner, image.clone())).or_insert_with_key(|(runner, image)| {
                        let runner = runners.get(usize::from(*runner)).cloned();
                        table.grounds.push(Ground { runner, image: image.clone() });
                        (table.grounds.len() - 1) as u32
                    });
                    last = Some((runner, image, ground));
                    ground
                }
            };
            table.ground_of.push(ground);
            if steps.len().is_multiple_of(BATCH) {
                steps.shrink_to_fit();
            }
        }
        table.keys.reverse();
        table.display_names.reverse();
        table.chains.reverse();
        table.parents.reverse();
        table.ground_of.reverse();
        table
    }
}
