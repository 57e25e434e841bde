//! Builds of 100,000 steps.

use std::{thread, time::Duration};

use hm_exec::{BuildEvent, BuildStatus, StepStatus};
use rustix::time::{ClockId, clock_gettime};

use crate::support::{
    graphs::Graph,
    scripted::{Scripted, request},
};

/// Runs a build on a thread with a stack of 256 KiB. Returns how much processor time it took.
fn cpu_time_of(graph: Graph) -> Duration {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let begin = thread_time();
        let outcome = runtime.block_on(async {
            let engine = Scripted::new([]).engine().build().unwrap();
            let (mut events, control) = engine.start(request(&graph)).await.unwrap().into_parts();
            let mut ends = 0;
            while let Some(event) = events.next().await {
                ends += usize::from(matches!(event, BuildEvent::StepEnd { status: StepStatus::Passed, .. }));
            }
            assert_eq!(ends, graph.len);
            control.wait().await.unwrap()
        });
        assert_eq!(outcome.status, BuildStatus::Passed);
        thread_time() - begin
    };
    thread::Builder::new().stack_size(256 * 1024).spawn(run).unwrap().join().unwrap()
}

/// Returns processor time, because the machine may be busy with other tests.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap())
}

#[test]
fn a_chain_and_a_fan_of_100_000_steps_need_no_stack_and_linear_time() {
    for shape in [Graph::chain, Graph::fan] {
        let (small, large) = (cpu_time_of(shape(10_000)), cpu_time_of(shape(100_000)));
        assert!(large < small * 30, "ten times the steps took {large:?} instead of {small:?}");
    }
}
