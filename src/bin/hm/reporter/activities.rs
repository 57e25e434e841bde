//! What a run and its steps wait for, as live lines show it.
//!
//! Events repeat an activity while it lasts, so one that is not repeated is over.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use hm_exec::{
    BuildEvent,
    event::{Activity, ActivityCount},
    size::megabytes,
};
use uuid::Uuid;

/// How long an activity is shown after its last event.
const SHOWN_FOR: Duration = Duration::from_millis(800);

/// The activities of a build; that of the whole run has no step.
#[derive(Debug, Default)]
pub(super) struct Activities(HashMap<Option<Uuid>, Seen>);

#[derive(Debug)]
struct Seen {
    activity: Activity,
    count: Option<ActivityCount>,
    /// When it began, and how much was done by then.
    first: (DateTime<Utc>, u64),
    ts: DateTime<Utc>,
    at: Instant,
}

impl Activities {
    /// Updates the state from `event`.
    pub(super) fn learn(&mut self, event: &BuildEvent) {
        match event {
            &BuildEvent::Progress { step_id, ts, activity, count, .. } => {
                let done = count.map_or(0, |count| count.done);
                let same = self.0.get(&step_id).filter(|seen| seen.activity == activity);
                let first = same.map_or((ts, done), |seen| seen.first);
                self.0.insert(step_id, Seen { activity, count, first, ts, at: Instant::now() });
            }
            BuildEvent::StepEnd { step_id, .. } => drop(self.0.remove(&Some(*step_id))),
            _ => {}
        }
    }

    /// Describes what a step waits for, or the whole run. Returns `None` if it waits for nothing that is
    /// known.
    pub(super) fn text(&self, step_id: Option<Uuid>, runner: &str) -> Option<String> {
        let seen = self.0.get(&step_id).filter(|seen| seen.at.elapsed() < SHOWN_FOR)?;
        Some(seen.text(runner))
    }
}

impl Seen {
    fn text(&self, runner: &str) -> String {
        let of = |unit: fn(u64) -> String, noun: &str| match self.count {
            Some(count) if count.total > 0 => format!(": {} of {}{noun}", unit(count.done), unit(count.total)),
            _ => String::new(),
        };
        match self.activity {
            Activity::ReadingSource => format!("reading the source{}", of(number, " files")),
            Activity::CopyingSource => format!("freezing the source{}", of(number, " files")),
            Activity::PullingImage => {
                let rate = self.rate().map(|rate| format!(", {}/s", megabytes(rate))).unwrap_or_default();
                format!("pulling an image{}{rate}", of(megabytes, ""))
            }
            Activity::ResolvingImage => "looking up an image in its registry".into(),
            Activity::WaitingForImage => "waiting for an image".into(),
            Activity::UnpackingImage => format!("unpacking an image{}", of(megabytes, "")),
            Activity::Booting if runner == "docker" => "starting a container".into(),
            Activity::Booting => "booting a machine".into(),
            Activity::StartingServices => "waiting for its services".into(),
            _ => "waiting".into(),
        }
    }

    /// Returns how much was done in a second, since the activity began. Returns `None` if that is not known
    /// yet.
    fn rate(&self) -> Option<u64> {
        let millis = u64::try_from((self.ts - self.first.0).num_milliseconds()).ok()?;
        let done = self.count?.done.checked_sub(self.first.1)?;
        done.checked_mul(1000)?.checked_div(millis)
    }
}

/// Formats a number with separators: `50,000`.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    /// When it was reported, what it is, and how much of it is done, of how much.
    type Reported = (i64, Activity, Option<(u64, u64)>);

    fn learned(events: &[Reported]) -> Activities {
        let mut activities = Activities::default();
        for &(ms, activity, count) in events {
            let ts = DateTime::UNIX_EPOCH + TimeDelta::milliseconds(ms);
            let count = count.map(|(done, total)| ActivityCount::new(done, total));
            activities.learn(&BuildEvent::Progress { seq: 0, step_id: None, ts, activity, count });
        }
        activities
    }

    #[test]
    fn activities_are_described_with_what_is_done() {
        let files = Some((12_345, 50_000));
        for (activity, count, text) in [
            (Activity::ReadingSource, files, "reading the source: 12,345 of 50,000 files"),
            (Activity::CopyingSource, files, "freezing the source: 12,345 of 50,000 files"),
            (Activity::CopyingSource, None, "freezing the source"),
            (Activity::UnpackingImage, Some((0, 0)), "unpacking an image"),
            (Activity::Booting, None, "booting a machine"),
            (Activity::StartingServices, None, "waiting for its services"),
        ] {
            assert_eq!(learned(&[(0, activity, count)]).text(None, "vm").as_deref(), Some(text));
        }
        assert_eq!(learned(&[(0, Activity::Booting, None)]).text(None, "docker").unwrap(), "starting a container");
        assert_eq!(learned(&[]).text(None, "vm"), None);
    }

    #[test]
    fn a_pull_has_a_rate_from_its_second_event_on() {
        let pulling = |done| Some((done, 120_000_000));
        let first = (1_000, Activity::PullingImage, pulling(1_500_000));
        assert_eq!(learned(&[first]).text(None, "").unwrap(), "pulling an image: 1.5 MB of 120 MB");
        let second = (3_000, Activity::PullingImage, pulling(35_000_000));
        let text = learned(&[first, second]).text(None, "").unwrap();
        assert_eq!(text, "pulling an image: 35 MB of 120 MB, 16 MB/s");
        // A broken download starts again.
        let third = (4_000, Activity::PullingImage, pulling(0));
        let text = learned(&[first, second, third]).text(None, "").unwrap();
        assert_eq!(text, "pulling an image: 0.0 MB of 120 MB");
    }

    #[test]
    fn what_is_not_repeated_is_over() {
        let mut activities = learned(&[(0, Activity::Booting, None)]);
        if let Some(seen) = activities.0.get_mut(&None)
            && let Some(before) = seen.at.checked_sub(SHOWN_FOR)
        {
            seen.at = before;
        }
        assert_eq!(activities.text(None, "vm"), None);
    }
}
