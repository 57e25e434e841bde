//! The state that the reporters for people keep of a build: its steps, their last lines, and how they ended.

use std::{collections::HashMap, sync::Arc, time::Instant};

use hm_exec::{BuildEvent, BuildRef, StepStatus, event::LogLines, plan::StepIndex};
use uuid::Uuid;

use super::{plan_view::PlanView, reports, style::Style, tail::Tail, text};

/// The maximum number of failures whose output is kept; the others are only named.
pub(super) const MAX_FAILURES: usize = 10;

/// The maximum number of cancelled steps whose output is kept.
const MAX_STOPPED: usize = 3;

/// The maximum number of characters of a label that are shown.
const LABEL_CHARS: usize = 60;

/// The steps of a build, collected from its events.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) plan: PlanView,
    pub(super) run: Uuid,
    started: Instant,
    by_id: HashMap<Uuid, u32>,
    infos: Vec<Info>,
    running: HashMap<Uuid, Running>,
    pub(super) ended: Tally,
    /// The steps that passed only when repeated, and the failures that are allowed.
    pub(super) remarks: Vec<String>,
    pub(super) failures: Vec<FailedStep>,
    /// The failed steps that are not among `failures`: their keys, and how they ended.
    pub(super) more_failures: Vec<(Arc<str>, StepStatus, i32)>,
    /// The first cancelled steps that ran. If the build could not go on, they show what it did last.
    pub(super) stopped: Vec<FailedStep>,
    /// The keys of the skipped steps.
    pub(super) skipped: Vec<Arc<str>>,
    /// How long cached steps took when they last ran, as far as that is known, in milliseconds.
    pub(super) saved_ms: u64,
    /// The step that had the most memory, and how much, in bytes.
    pub(super) hungriest: Option<(Arc<str>, u64)>,
    /// The processor time of all steps, in milliseconds.
    pub(super) cpu_ms: u64,
    /// The keys of the steps that received data from the network.
    pub(super) networked: Vec<Arc<str>>,
    /// What the steps left for the user: results of tests, and outputs.
    pub(super) reports: Vec<String>,
}

/// The data of a step.
#[derive(Debug)]
struct Info {
    key: Arc<str>,
    /// The key, safe to print and coloured.
    name: Arc<str>,
    /// The label and the key, safe to print and coloured. `None` if there is no label.
    title: Option<Arc<str>>,
    took_ms: u64,
    status: Option<StepStatus>,
    is_networked: bool,
}

/// A step in a list of all.
#[derive(Debug)]
pub(super) struct ListedStep<'a> {
    /// The label and the key, coloured.
    pub(super) title: &'a str,
    pub(super) status: Option<StepStatus>,
    pub(super) took_ms: u64,
}

/// An attempt that runs.
#[derive(Debug)]
struct Running {
    runner: Arc<str>,
    image: Option<Arc<str>>,
    tail: Tail,
}

/// A failed or cancelled step, with its last lines.
#[derive(Debug)]
pub(super) struct FailedStep {
    pub(super) index: StepIndex,
    pub(super) key: Arc<str>,
    pub(super) title: Arc<str>,
    pub(super) status: StepStatus,
    pub(super) exit_code: i32,
    pub(super) duration_ms: u64,
    pub(super) attempt: u32,
    pub(super) message: Option<Arc<str>>,
    pub(super) runner: Option<Arc<str>>,
    /// What the step started from: its image, or its parent's key.
    pub(super) base: Option<Arc<str>>,
    pub(super) tail: Tail,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) flaky: usize,
    pub(super) cached: usize,
    pub(super) failed_allowed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    pub(super) canceled: usize,
}

impl Steps {
    pub(super) fn new(plan: PlanView) -> Self {
        Self {
            plan,
            run: Uuid::nil(),
            started: Instant::now(),
            by_id: HashMap::new(),
            infos: Vec::new(),
            running: HashMap::new(),
            ended: Tally::default(),
            remarks: Vec::new(),
            failures: Vec::new(),
            more_failures: Vec::new(),
            stopped: Vec::new(),
            skipped: Vec::new(),
            saved_ms: 0,
            hungriest: None,
            cpu_ms: 0,
            networked: Vec::new(),
            reports: Vec::new(),
        }
    }

    /// Updates the state from `event`. Call it for every event, before any other method.
    pub(super) fn learn(&mut self, event: &BuildEvent, style: Style) {
        match event {
            BuildEvent::BuildStart { run_id, .. } => self.run = *run_id,
            BuildEvent::StepQueued { step_id, key, display_name, .. } => self.add(*step_id, key, display_name, style),
            BuildEvent::StepStart { step_id, runner, image, .. } => {
                let (runner, image) = (Arc::clone(runner), image.clone());
                let tail = self.tail(*step_id);
                self.running.insert(*step_id, Running { runner, image, tail });
            }
            BuildEvent::StepLog { step_id, stream, line, .. } => {
                if let Some(running) = self.running.get_mut(step_id) {
                    running.tail.push(*stream, line);
                }
            }
            BuildEvent::StepEnd { step_id, .. } => self.end(*step_id, event, style),
            BuildEvent::Connection { step_id, connection, .. } if connection.received > 0 => {
                if let Some(&index) = self.by_id.get(step_id)
                    && let Some(info) = self.infos.get_mut(index as usize)
                    && !std::mem::replace(&mut info.is_networked, true)
                {
                    self.networked.push(Arc::clone(&info.key));
                }
            }
            _ => {}
        }
    }

    /// Updates the state from lines of output.
    pub(super) fn learn_lines(&mut self, lines: &LogLines<'_>) {
        if let Some(running) = self.running.get_mut(&lines.step_id) {
            running.tail.push_all(lines);
        }
    }

    /// Returns the tail of an attempt that has printed nothing yet.
    fn tail(&self, step_id: Uuid) -> Tail {
        let args = self.index(step_id).and_then(|index| {
            let key = &self.infos.get(index as usize)?.key;
            self.plan.step(StepIndex(index), key)?.runner_args.as_ref()
        });
        let services = args.and_then(|args| args.get("services")?.as_object());
        Tail::of_step(services.into_iter().flatten().map(|(name, _)| name))
    }

    /// Returns the position of a step in its pipeline.
    pub(super) fn index(&self, step_id: Uuid) -> Option<u32> {
        self.by_id.get(&step_id).copied()
    }

    fn add(&mut self, step_id: Uuid, key: &Arc<str>, display_name: &Arc<str>, style: Style) {
        let Ok(index) = u32::try_from(self.infos.len()) else { return };
        let clean = text::clean(key);
        let name: Arc<str> = if !style.colors && clean == **key { Arc::clone(key) } else { style.name(&clean).into() };
        // Without the plan, the displayed name may be the beginning of the command, but then it helps, too.
        let label = match self.plan.step(StepIndex(index), key) {
            // The displayed name is the label, with secrets masked.
            Some(step) => step.label.as_deref().filter(|label| !label.trim().is_empty()).map(|_| &**display_name),
            None => Some(&**display_name),
        };
        let label = label.map(str::trim).filter(|label| !label.is_empty() && !text::is_key(label, key));
        let title = label.map(|label| {
            let label = text::clean(label.lines().next().unwrap_or_default());
            format!("{} ({name})", text::cut(&label, LABEL_CHARS)).into()
        });
        self.by_id.insert(step_id, index);
        self.infos.push(Info { key: Arc::clone(key), name, title, took_ms: 0, status: None, is_networked: false });
    }

    fn end(&mut self, step_id: Uuid, event: &BuildEvent, style: Style) {
        let BuildEvent::StepEnd { status, attempt, exit_code, duration_ms, message, usage, artifacts, tests, .. } =
            event
        else {
            return;
        };
        let running = self.running.remove(&step_id);
        let count = match status {
            StepStatus::Passed => &mut self.ended.passed,
            StepStatus::Flaky => &mut self.ended.flaky,
            StepStatus::FailedAllowed => &mut self.ended.failed_allowed,
            StepStatus::CacheHit => &mut self.ended.cached,
            StepStatus::Skipped => &mut self.ended.skipped,
            StepStatus::Canceled => &mut self.ended.canceled,
            _ => &mut self.ended.failed,
        };
        *count += 1;
        let Some(&index) = self.by_id.get(&step_id) else { return };
        let title = self.title(step_id);
        let Some(info) = self.infos.get_mut(index as usize) else { return };
        info.took_ms = *duration_ms;
        info.status = Some(*status);
        let key = Arc::clone(&info.key);
        self.reports.extend(reports::lines(&title, artifacts, tests.as_deref(), style));
        if let Some(usage) = usage {
            self.cpu_ms = self.cpu_ms.saturating_add(usage.cpu_ms);
            if self.hungriest.as_ref().is_none_or(|(_, peak)| usage.peak_memory_bytes > *peak) {
                self.hungriest = Some((Arc::clone(&key), usage.peak_memory_bytes));
            }
        }
        match status {
            StepStatus::Flaky | StepStatus::FailedAllowed => {
                let ending = ending(*status, *attempt, *exit_code, *duration_ms, message.as_deref());
                self.remarks.push(format!("{title} {}", style.odd(&ending)));
            }
            StepStatus::CacheHit => {
                let known = self.plan.durations.get(&key).map_or(0, |took| took.as_millis());
                self.saved_ms = self.saved_ms.saturating_add(u64::try_from(known).unwrap_or(u64::MAX));
            }
            StepStatus::Skipped => self.skipped.push(key),
            status if is_failure(*status) && self.failures.len() == MAX_FAILURES => {
                self.more_failures.push((key, *status, *exit_code));
            }
            status if is_failure(*status) => {
                let failure = self.failed_step(StepIndex(index), (key, title), running, event);
                self.failures.extend(failure);
            }
            StepStatus::Canceled if running.is_some() && self.stopped.len() < MAX_STOPPED => {
                let stopped = self.failed_step(StepIndex(index), (key, title), running, event);
                self.stopped.extend(stopped);
            }
            _ => {}
        }
    }

    /// Returns what is shown of a step at the end of the build. Returns `None` unless `event` is its end.
    fn failed_step(
        &self,
        index: StepIndex,
        (key, title): (Arc<str>, Arc<str>),
        running: Option<Running>,
        event: &BuildEvent,
    ) -> Option<FailedStep> {
        let BuildEvent::StepEnd { status, attempt, exit_code, duration_ms, message, .. } = event else { return None };
        let (runner, image, tail) = match running {
            Some(Running { runner, image, tail }) => (Some(runner), image, tail),
            None => (None, None, Tail::default()),
        };
        let parent = self.plan.dag.as_ref().and_then(|dag| dag.lineage_parent(index));
        let parent = parent.and_then(|parent| self.infos.get(parent.get()));
        Some(FailedStep {
            index,
            key,
            title,
            status: *status,
            exit_code: *exit_code,
            duration_ms: *duration_ms,
            attempt: *attempt,
            message: message.clone(),
            runner,
            base: parent.map(|parent| Arc::clone(&parent.key)).or(image),
            tail,
        })
    }

    /// Returns a step's key, safe to print and coloured.
    pub(super) fn name(&self, step_id: Uuid) -> Arc<str> {
        self.info(step_id).map_or_else(|| step_id.to_string().into(), |info| Arc::clone(&info.name))
    }

    /// Returns a step's label and key, or its key if it has no label, safe to print and coloured.
    pub(super) fn title(&self, step_id: Uuid) -> Arc<str> {
        let title = self.info(step_id).and_then(|info| info.title.clone());
        title.unwrap_or_else(|| self.name(step_id))
    }

    fn info(&self, step_id: Uuid) -> Option<&Info> {
        self.by_id.get(&step_id).and_then(|&index| self.infos.get(index as usize))
    }

    /// Returns the key of a step by its index.
    pub(super) fn key(&self, index: StepIndex) -> &str {
        self.infos.get(index.get()).map_or("", |info| &info.key)
    }

    /// Returns the step that took the longest, and its time in milliseconds, if several steps ran.
    pub(super) fn slowest(&self) -> Option<(&str, u64)> {
        let mut ran = self.infos.iter().filter(|info| info.took_ms > 0);
        let first = ran.next()?;
        let second = ran.next()?;
        let slowest = [first, second].into_iter().chain(ran).max_by_key(|info| info.took_ms)?;
        Some((&slowest.key, slowest.took_ms))
    }

    /// Returns how long a step took, by its index, in milliseconds. 0 if it has not run.
    pub(super) fn took_ms(&self, index: StepIndex) -> u64 {
        self.infos.get(index.get()).map_or(0, |info| info.took_ms)
    }

    /// Returns the time since the state was created, in milliseconds.
    pub(super) fn age_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the last line of a running step.
    pub(super) fn last_line(&self, step_id: Uuid) -> Option<&str> {
        self.running.get(&step_id)?.tail.last_line()
    }

    /// Returns the runner of a running step.
    pub(super) fn runner(&self, step_id: Uuid) -> &str {
        self.running.get(&step_id).map_or("", |running| &running.runner)
    }

    /// Returns all steps in the order of the plan.
    pub(super) fn all(&self) -> impl Iterator<Item = ListedStep<'_>> {
        self.infos.iter().map(|info| ListedStep {
            title: info.title.as_ref().unwrap_or(&info.name),
            status: info.status,
            took_ms: info.took_ms,
        })
    }

    /// Returns how many steps there are.
    pub(super) fn len(&self) -> usize {
        self.infos.len()
    }

    /// Returns how many steps run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Returns how many steps have ended.
    pub(super) fn ended(&self) -> usize {
        let Tally { passed, flaky, cached, failed_allowed, failed, skipped, canceled } = self.ended;
        passed + flaky + cached + failed_allowed + failed + skipped + canceled
    }
}

/// Describes a build that a server runs.
pub(super) fn accepted(build: &BuildRef, url: &str) -> String {
    let number = build.number.map(|number| format!(" #{number}")).unwrap_or_default();
    format!("=> build{number} of {}: {}", text::clean(&build.pipeline), text::clean(url))
}

/// Returns whether the step itself failed, and the pipeline does not allow that.
pub(super) fn is_failure(status: StepStatus) -> bool {
    !status.is_success() && !matches!(status, StepStatus::FailedAllowed | StepStatus::Skipped | StepStatus::Canceled)
}

/// Describes how a step ended: `passed in 1.2s`, `failed with exit code 2 after 0.4s`.
pub(super) fn ending(
    status: StepStatus,
    attempt: u32,
    exit_code: i32,
    duration_ms: u64,
    message: Option<&str>,
) -> String {
    let took = text::duration(std::time::Duration::from_millis(duration_ms));
    let mut ending = match status {
        StepStatus::Passed => format!("passed in {took}"),
        StepStatus::Flaky => format!("flaky: passed on attempt {attempt} after {took}"),
        StepStatus::CacheHit => "was cached".into(),
        StepStatus::FailedAllowed => format!("failed (allowed) with exit code {exit_code} after {took}"),
        StepStatus::Skipped => "skipped".into(),
        StepStatus::Canceled if duration_ms == 0 => "cancelled".into(),
        StepStatus::Canceled => format!("cancelled after {took}"),
        StepStatus::TimedOut => format!("timed out after {took}"),
        StepStatus::OutOfMemory => format!("ran out of memory after {took}"),
        StepStatus::Infrastructure => format!("could not run, gave up after {took}"),
        _ => match signal(exit_code) {
            Some(signal) => format!("failed with exit code {exit_code} (signal {signal}) after {took}"),
            None => format!("failed with exit code {exit_code} after {took}"),
        },
    };
    if let Some(message) = message {
        ending.push_str(": ");
        text::push_clean(&mut ending, message, false);
    }
    ending
}

/// Returns the signal that ended a command with this exit code: a shell reports 128 + n for signal n.
pub(super) fn signal(exit_code: i32) -> Option<i32> {
    (129..=192).contains(&exit_code).then(|| exit_code - 128)
}
