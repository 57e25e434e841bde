//! How commands end by themselves.

use crate::conformance::lab::{Broken, Lab, Step, expect};
use crate::event::StdStream;

/// How many steps are started at once where one case has many.
const AT_ONCE: usize = 8;

pub(in crate::conformance) async fn codes(lab: &Lab<'_>) -> Result<(), Broken> {
    let steps = (0..=255).map(|code| Step::new(format!("exit {code}"))).collect();
    let done = lab.run()?.steps(lab.runner, steps, AT_ONCE).await?;
    for (code, done) in (0..=255).zip(done) {
        expect("the exit code", done.exit_code()?, code)?;
    }
    Ok(())
}

pub(in crate::conformance) async fn signals(lab: &Lab<'_>) -> Result<(), Broken> {
    for (cmd, code) in [
        ("kill -KILL $$", 128 + 9),
        ("kill -TERM $$", 128 + 15),
        ("kill -SEGV $$", 128 + 11),
        ("kill -INT $$", 128 + 2),
        ("sh -c 'kill -KILL $$'", 128 + 9),
    ] {
        expect(&format!("the exit code of `{cmd}`"), lab.step(Step::new(cmd)).await?.exit_code()?, code)?;
    }
    Ok(())
}

pub(in crate::conformance) async fn many_at_once(lab: &Lab<'_>) -> Result<(), Broken> {
    let steps = (0..32).map(|step| Step::new(format!("echo {step} > mine; cat mine"))).collect();
    let done = lab.run()?.steps(lab.runner, steps, 32).await?;
    for (step, done) in (0..32).zip(done) {
        done.passed()?;
        expect("what a step printed", done.lines(StdStream::Stdout), [step.to_string()])?;
    }
    Ok(())
}
