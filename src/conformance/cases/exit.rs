//! How commands end by themselves.

use crate::conformance::harness::{Broken, Harness, Step, expect};
use crate::model::StdStream;

/// The number of concurrent steps in cases with many steps.
const AT_ONCE: usize = 8;

pub(in crate::conformance) async fn codes(harness: &Harness<'_>) -> Result<(), Broken> {
    // The sample has 0, as well as 145 and 174, which signals would give, and ends with 232.
    let codes = || (0..=255).step_by(if harness.sampled { 29 } else { 1 });
    let steps = codes().map(|code| Step::new(format!("exit {code}"))).collect();
    let done = harness.run()?.steps(harness.runner, steps, AT_ONCE).await?;
    for (code, done) in codes().zip(done) {
        expect("the exit code", done.exit_code()?, code)?;
    }
    Ok(())
}

pub(in crate::conformance) async fn signals(harness: &Harness<'_>) -> Result<(), Broken> {
    for (cmd, code) in [
        ("kill -KILL $$", 128 + 9),
        ("kill -TERM $$", 128 + 15),
        ("kill -SEGV $$", 128 + 11),
        ("kill -INT $$", 128 + 2),
        ("sh -c 'kill -KILL $$'", 128 + 9),
    ] {
        expect(&format!("the exit code of `{cmd}`"), harness.step(Step::new(cmd)).await?.exit_code()?, code)?;
    }
    Ok(())
}

pub(in crate::conformance) async fn many_at_once(harness: &Harness<'_>) -> Result<(), Broken> {
    let count = if harness.sampled { AT_ONCE } else { 32 };
    let steps = (0..count).map(|step| Step::new(format!("echo {step} > mine; cat mine"))).collect();
    let done = harness.run()?.steps(harness.runner, steps, count).await?;
    for (step, done) in (0..count).zip(done) {
        done.passed()?;
        expect("what a step printed", done.lines(StdStream::Stdout), [step.to_string()])?;
    }
    Ok(())
}
