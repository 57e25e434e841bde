//! Programs beside a step: [`Limits::services`](crate::runner::Limits).

use std::time::Duration;

use serde_json::json;

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::StdStream,
};

/// Checks that a service starts before the step, ends after it, and fails it if it ends too early.
pub(in crate::conformance) async fn beside(harness: &Harness<'_>) -> Result<(), Broken> {
    let with = |cmd: &str, service: &str| {
        let service = json!({ "image": harness.image(), "cmd": service, "ready": "test -e /tmp/up" });
        Step::new(cmd).args(json!({ "network": "private", "services": { "it": service } }))
    };
    let service = "trap 'echo down; exit 0' TERM; echo up; touch /tmp/up; while :; do sleep 1; done";
    let mut run = harness.run()?;
    // The service's last line depends on it, and a runner may need a while to deliver TERM.
    run.ctx.grace = Duration::from_secs(60);
    let done = run.step(harness.runner, with("echo ran; ls /tmp/up 2> /dev/null || true", service)).await?;
    done.passed()?;
    expect("the output", done.lines(StdStream::Stdout), vec!["[it] up".to_owned(), "ran".into(), "[it] down".into()])?;
    let done = harness.step(with("sleep 60", "touch /tmp/up; sleep 1; exit 0")).await?;
    expect("the exit code of a step whose service has ended", done.exit_code()?, 1)
}
