//! What a run waits for, in its journal.
//!
//! It is recorded only if a reader asked for it. While an attempt waits, its future is polled beside a timer,
//! and each time that one fires, a record of some twenty bytes follows. So nothing must end an activity: a
//! reader takes it as over when it is not repeated.

use std::{future::Future, pin::pin, sync::atomic::Ordering::Relaxed};

use uuid::Uuid;

use super::{EventBus, attempt::Attempts, record::Record};
use crate::model::{Activity, ActivityCount, REPORTED_EVERY};

impl EventBus {
    /// Sets whether the journal gets what the run waits for. By default it does not.
    pub fn want_progress(&self, wanted: bool) {
        self.shared.wants_progress.store(wanted, Relaxed);
    }

    /// Returns whether the journal gets what the run waits for.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        self.shared.wants_progress.load(Relaxed)
    }

    /// Waits for `work`. Meanwhile `activity` says what it is doing, again and again, if a reader wants to
    /// know that.
    ///
    /// # Cancel safety
    /// As that of `work`.
    pub(crate) async fn reporting<T>(
        &self,
        step: Option<Uuid>,
        activity: impl Fn() -> Option<(Activity, Option<ActivityCount>)>,
        work: impl Future<Output = T>,
    ) -> T {
        if !self.wants_progress() {
            return work.await;
        }
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(REPORTED_EVERY) => {
                    if let Some((activity, count)) = activity() {
                        self.progress(step, activity, count);
                    }
                }
            }
        }
    }

    /// Records what the run, or a step whose attempt has not ended, waits for. Call it several times a second
    /// while that lasts. Does nothing unless a reader [wants to know it](Self::want_progress).
    pub fn progress(&self, step: Option<Uuid>, activity: Activity, count: Option<ActivityCount>) {
        let shared = &*self.shared;
        if !self.wants_progress() {
            return;
        }
        let step = match step.map(|step| shared.run.step_index(step)) {
            None => None,
            Some(Some(step)) => Some(step.0),
            Some(None) => return,
        };
        let is_open = |attempts: &Attempts| match step {
            Some(step) => attempts.is_open(step, self.attempt),
            None => attempts.is_running(),
        };
        let (activity, count) = (activity_code(activity), count.map(|count| (count.done, count.total)));
        shared.append(is_open, |at_ms| Record::Progress { at_ms, step, activity, count });
    }
}

const fn activity_code(activity: Activity) -> u8 {
    match activity {
        Activity::ReadingSource => 0,
        Activity::CopyingSource => 1,
        Activity::PullingImage => 2,
        Activity::UnpackingImage => 3,
        Activity::Booting => 4,
        Activity::StartingServices => 5,
        Activity::ResolvingImage => 6,
        Activity::WaitingForImage => 7,
    }
}

/// Returns the activity with this code. Returns `None` for one of a later version.
pub(super) const fn activity_of(code: u8) -> Option<Activity> {
    Some(match code {
        0 => Activity::ReadingSource,
        1 => Activity::CopyingSource,
        2 => Activity::PullingImage,
        3 => Activity::UnpackingImage,
        4 => Activity::Booting,
        5 => Activity::StartingServices,
        6 => Activity::ResolvingImage,
        7 => Activity::WaitingForImage,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{
        BuildEvent, EventStream, EventWriter, PlanSummary, RunDir, RunMeta, StateEvent, StepMeta, create, step_id,
    };
    use crate::model::{BuildRef, BuildStatus, Secrets, StepIndex};

    const RUN: Uuid = Uuid::from_u128(0xfeed);

    fn journal() -> (EventWriter, EventBus, EventStream) {
        let step =
            StepMeta { key: "a".into(), display_name: "a".into(), chain_idx: 0, parent: None, image: None, runner: 0 };
        let meta = RunMeta {
            build: BuildRef { run_id: RUN, number: None, org: None, pipeline: "ci".into() },
            details: Default::default(),
            plan: PlanSummary { step_count: 1, chain_count: 1, default_runner: "noop".into() },
            started_at: chrono::DateTime::UNIX_EPOCH,
            steps: vec![step],
            runners: vec!["noop".into()],
            server: None,
        };
        create(RunDir::Temporary, meta, &Secrets::new()).unwrap()
    }

    /// Returns what the events say that the run waited for.
    async fn activities(mut events: EventStream) -> Vec<(Option<Uuid>, Activity, Option<ActivityCount>)> {
        let mut activities = Vec::new();
        while let Some(event) = events.next().await {
            if let BuildEvent::Progress { step_id, activity, count, .. } = event {
                activities.push((step_id, activity, count));
            }
        }
        activities
    }

    /// Waits for a second as a step and as the whole run, and then ends the build.
    async fn waited(wanted: bool) -> Vec<(Option<Uuid>, Activity, Option<ActivityCount>)> {
        let (mut writer, bus, events) = journal();
        bus.want_progress(wanted);
        let step = step_id(RUN, StepIndex(0));
        let second = || tokio::time::sleep(Duration::from_secs(1));
        bus.reporting(Some(step), || Some((Activity::Booting, None)), second()).await;
        let counted = Some((Activity::CopyingSource, Some(ActivityCount::new(1, 2))));
        bus.reporting(None, || counted, second()).await;
        bus.reporting(None, || None, second()).await;
        bus.reporting(None, || counted, tokio::time::sleep(REPORTED_EVERY / 2)).await;
        writer.emit(0, StateEvent::BuildEnd { status: BuildStatus::Passed, duration_ms: 0 });
        bus.progress(Some(step), Activity::Booting, None);
        bus.progress(None, Activity::ReadingSource, None);
        drop(writer);
        activities(events).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_repeated_until_it_is_over() {
        let step = step_id(RUN, StepIndex(0));
        let booting = [(Some(step), Activity::Booting, None); 3];
        let copying = [(None, Activity::CopyingSource, Some(ActivityCount::new(1, 2))); 3];
        assert_eq!(waited(true).await, [booting, copying].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_recorded_if_no_reader_wants_it() {
        assert_eq!(waited(false).await, []);
    }

    #[tokio::test]
    async fn a_step_that_has_ended_and_an_unknown_one_wait_for_nothing() {
        let (mut writer, bus, events) = journal();
        bus.want_progress(true);
        bus.progress(Some(Uuid::nil()), Activity::Booting, None);
        let step = StepIndex(0);
        writer.emit(0, StateEvent::StepRetry { step, attempt: 1, backoff_ms: 0, message: "x".into(), exit_code: None });
        bus.progress(Some(step_id(RUN, step)), Activity::Booting, None);
        bus.for_attempt(2).progress(Some(step_id(RUN, step)), Activity::PullingImage, None);
        drop(writer);
        assert_eq!(activities(events).await, [(Some(step_id(RUN, step)), Activity::PullingImage, None)]);
    }

    #[test]
    fn every_activity_survives_its_code() {
        let known: Vec<_> = (0..=u8::MAX).filter_map(|code| Some((code, activity_of(code)?))).collect();
        assert!(known.iter().all(|(code, activity)| activity_code(*activity) == *code));
        assert_eq!(known.len(), 8);
    }
}
