//! The state that the reporters for people keep of a build: its steps, and how many ended how.

use std::{collections::HashMap, sync::Arc};

use hm_exec::{BuildEvent, BuildRef, BuildStatus, StepStatus, runner::StepUsage, size};
use uuid::Uuid;

use super::{style::Style, text};

/// Less memory than this is not worth a line.
const MUCH_MEMORY: u64 = 256 << 20;
/// Less processor time than this is not worth a line, in milliseconds.
const MUCH_CPU_MS: u64 = 10_000;

/// The steps of a build, collected from its events.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// The steps' keys, safe to print and coloured.
    names: HashMap<Uuid, Arc<str>>,
    ended: Tally,
    /// The steps that passed only when repeated, and the failures that are allowed.
    remarks: Vec<String>,
    failures: Vec<String>,
    /// The step that had the most memory, and what all steps used together.
    hungriest: Option<(Uuid, StepUsage)>,
    cpu_ms: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    passed: usize,
    flaky: usize,
    cached: usize,
    failed_allowed: usize,
    failed: usize,
    skipped: usize,
    canceled: usize,
}

impl Steps {
    /// Updates the state from `event`. Call it for every event, before any other method.
    pub(super) fn learn(&mut self, event: &BuildEvent, style: Style) {
        match event {
            BuildEvent::StepQueued { step_id, key, .. } => {
                self.names.insert(*step_id, style.name(&text::clean(key)).into());
            }
            BuildEvent::StepEnd { step_id, status, attempt, exit_code, duration_ms, message, usage, .. } => {
                if let Some(usage) = usage {
                    self.used(*step_id, *usage);
                }
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
                let is_remarkable = matches!(status, StepStatus::Flaky | StepStatus::FailedAllowed);
                if is_remarkable || is_failure(*status) {
                    let ending = ending(*status, *attempt, *exit_code, *duration_ms, message.as_deref());
                    let name = self.name(*step_id);
                    let (lines, ending) = match is_remarkable {
                        true => (&mut self.remarks, style.odd(&ending)),
                        false => (&mut self.failures, style.bad(&ending)),
                    };
                    lines.push(format!("{name} {ending}"));
                }
            }
            _ => {}
        }
    }

    fn used(&mut self, step_id: Uuid, usage: StepUsage) {
        self.cpu_ms = self.cpu_ms.saturating_add(usage.cpu_ms);
        if self.hungriest.is_none_or(|(_, most)| usage.peak_memory_bytes > most.peak_memory_bytes) {
            self.hungriest = Some((step_id, usage));
        }
    }

    /// Describes what the steps used, if it is much.
    fn usage(&self) -> Option<String> {
        let (step, StepUsage { peak_memory_bytes: peak, .. }) = self.hungriest?;
        if peak < MUCH_MEMORY && self.cpu_ms < MUCH_CPU_MS {
            return None;
        }
        let cpu = text::duration(std::time::Duration::from_millis(self.cpu_ms));
        Some(format!("  used {cpu} of CPU time, and at most {} of memory in {}", size::show(peak), self.name(step)))
    }

    /// Returns a step's key, safe to print and coloured.
    pub(super) fn name(&self, step_id: Uuid) -> Arc<str> {
        self.names.get(&step_id).map_or_else(|| step_id.to_string().into(), Arc::clone)
    }

    /// Returns how many steps there are.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns how many steps have ended.
    pub(super) fn ended(&self) -> usize {
        let Tally { passed, flaky, cached, failed_allowed, failed, skipped, canceled } = self.ended;
        passed + flaky + cached + failed_allowed + failed + skipped + canceled
    }

    /// Returns the last lines of a build: which steps failed or were flaky, what they used, and the verdict.
    pub(super) fn summary(&self, status: BuildStatus, duration_ms: u64, style: Style) -> Vec<String> {
        let mut lines: Vec<String> =
            self.remarks.iter().chain(&self.failures).map(|line| format!("  {line}")).collect();
        lines.extend(self.usage());
        let counts = [
            (self.ended.passed, "passed"),
            (self.ended.flaky, "flaky"),
            (self.ended.cached, "cached"),
            (self.ended.failed, "failed"),
            (self.ended.failed_allowed, "failed (allowed)"),
            (self.ended.skipped, "skipped"),
            (self.ended.canceled, "cancelled"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let verdict = match status {
            BuildStatus::Passed => style.good("passed"),
            BuildStatus::Failed => style.bad("failed"),
            BuildStatus::Canceled => style.odd("cancelled"),
            BuildStatus::TimedOut => style.bad("timed out"),
            _ => style.bad("could not run"),
        };
        let steps = text::count(self.len(), "step");
        let took = text::duration(std::time::Duration::from_millis(duration_ms));
        lines.push(format!("{verdict}: {steps} in {took} ({})", counts.collect::<Vec<_>>().join(", ")));
        lines
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
        // A shell reports 128 + n if signal n ended the command.
        _ if (129..=192).contains(&exit_code) => {
            format!("failed with exit code {exit_code} (signal {}) after {took}", exit_code - 128)
        }
        _ => format!("failed with exit code {exit_code} after {took}"),
    };
    if let Some(message) = message {
        ending.push_str(": ");
        text::push_clean(&mut ending, message, false);
    }
    ending
}
