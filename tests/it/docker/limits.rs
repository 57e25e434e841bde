//! Limits that the daemon enforces without reporting that they were reached.

use hm_exec::{BuildEvent, StepStatus};
use serde_json::json;

use crate::support::docker::{Bench, chain, step};

#[tokio::test]
async fn exceeding_the_limit_on_processes_is_reported() {
    let Some(bench) = Bench::new() else { return };
    // The first shell stays for a while without starting another process: the limit's counter goes with the
    // container.
    let forks = "mkfifo /tmp/none; exec 3<>/tmp/none
        (i=0; while [ $i -lt 60 ]; do sleep 30 & i=$((i+1)); done; wait); read -t 3 none <&3; exit 1";
    for (cmd, expected) in [(forks, true), ("sleep 0; exit 3", false)] {
        let mut only = step("only", cmd);
        only["step"]["runner_args"] = json!({ "pids": 16 });
        let built = bench.build(&chain(&[only])).await;
        let end = built.events.iter().find_map(|event| match event {
            BuildEvent::StepEnd { status, message, .. } => Some((*status, message.as_deref().map(str::to_owned))),
            _ => None,
        });
        let told = expected.then(|| "the limit of 16 processes was reached".to_owned());
        assert_eq!(end, Some((StepStatus::Failed, told)), "{cmd}: {:#?}", built.events);
    }
}
