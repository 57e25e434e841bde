//! Builds whose engine stands still for a while, as a stopped process does: time passes, and no timer fires.

use std::time::Duration;

use hm_exec::{BuildOutcome, BuildStatus, Plan, StepStatus};
use proptest::prelude::*;
use tokio::time::{Instant, advance, sleep};

use crate::support::{
    graphs::{Graph, cases},
    scripted::{Act, Scripted, request, statuses},
};

/// The parameters of a build, in milliseconds.
#[derive(Debug, Clone, Default)]
struct Case {
    /// The act of the only step.
    act: Option<Act>,
    step_limit: Option<u64>,
    build_limit: Option<u64>,
    cancel_at: Option<u64>,
    /// When the engine stands still, and for how long.
    stands_still: (u64, u64),
}

/// Runs it in virtual time. Returns how it ended, after how long, and whether the engine gave up on the
/// runner.
fn play(case: &Case) -> (BuildOutcome, u64, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let started = Instant::now();
        let scripted = Scripted::new([("s0", case.act.clone().into_iter().collect())]);
        let graph = Graph { len: 1, edges: vec![] };
        let mut request = request(&graph);
        if let Some(ms) = case.step_limit {
            let json = graph.to_ir_json_with(|_| format!(r#","timeout_seconds":{}"#, ms / 1_000));
            request.plan = Plan::parse(json).unwrap();
        }
        request.options.timeout = case.build_limit.map(Duration::from_millis);
        let (from, lasts) = case.stands_still;
        let standing_still = async {
            sleep(Duration::from_millis(from)).await;
            advance(Duration::from_millis(lasts)).await;
        };
        let (mut events, control) = scripted.engine().build().unwrap().start(request).await.unwrap().into_parts();
        let cancelling = async {
            if let Some(ms) = case.cancel_at {
                sleep(Duration::from_millis(ms)).await;
                control.cancel();
            }
        };
        let reading = async { while events.next().await.is_some() {} };
        let running = async { tokio::join!(reading, cancelling) };
        // The standstill may outlast the build.
        tokio::select! {
            _ = running => {}
            () = async { standing_still.await; std::future::pending().await } => {}
        }
        let took = started.elapsed().as_millis();
        let is_dropped = !scripted.memory.lock().unwrap().dropped.is_empty();
        (control.wait().await.unwrap(), u64::try_from(took).unwrap(), is_dropped)
    })
}

fn passes_after(after_ms: u64) -> Option<Act> {
    Some(Act::Exit { code: 0, after_ms })
}

#[test]
fn a_step_that_ended_in_time_passes() {
    for (step_limit, build_limit) in [(Some(4_000), None), (None, Some(4_000)), (Some(4_000), Some(4_000))] {
        let case =
            Case { act: passes_after(2_000), step_limit, build_limit, stands_still: (1_000, 5_000), ..Case::default() };
        let (outcome, ..) = play(&case);
        assert_eq!((outcome.status, statuses(&outcome)), (BuildStatus::Passed, vec![StepStatus::Passed]), "{case:?}");
    }
}

#[test]
fn a_grace_period_does_not_pass_while_the_engine_is_stopped() {
    // Two seconds of grace, and ten in which the runner must return.
    let act = Some(Act::Linger { ms: 3_000 });
    let (outcome, took, is_dropped) =
        play(&Case { act, cancel_at: Some(500), stands_still: (1_000, 60_000), ..Case::default() });
    assert_eq!(outcome.status, BuildStatus::Canceled);
    assert_eq!((took, is_dropped), (61_000, false));
}

proptest! {
    #![proptest_config(cases(300))]

    /// To the millisecond: a step that ends by itself within its time, not counting the standstill, passes. A
    /// step that does not is interrupted, and not before that time is over.
    #[test]
    fn limits_count_only_the_time_in_which_the_engine_runs(
        is_step in any::<bool>(),
        limit in 1..100_u64,
        from in 0..100_000_u64,
        lasts in 2_000..1_000_000_u64,
        ends in 0..1_000_000_u64,
    ) {
        let limit = limit * 1_000;
        prop_assume!(from < limit && ends.abs_diff(limit) > 1 && ends.abs_diff(from + lasts) > 1);
        let (step_limit, build_limit) = if is_step { (Some(limit), None) } else { (None, Some(limit)) };
        let case = Case { act: passes_after(ends), step_limit, build_limit, stands_still: (from, lasts), ..Case::default() };
        let (outcome, took, _) = play(&case);
        let slice = (limit / 64).max(1_000);
        let is_over_by = |ms: u64| limit + lasts + ms;
        match statuses(&outcome)[..] {
            [StepStatus::Passed] => {
                prop_assert_eq!(took, if ends < from || ends > from + lasts { ends } else { from + lasts });
                prop_assert!(ends <= is_over_by(101));
            }
            [StepStatus::TimedOut] => {
                prop_assert!(ends > limit && ends > from + lasts, "{:?}", case);
                // The slice in which the engine stood still may be counted as a whole.
                prop_assert!(took + slice >= is_over_by(0) && took <= is_over_by(101), "{} {:?}", took, case);
            }
            ref other => prop_assert!(false, "{:?}", other),
        }
    }
}
