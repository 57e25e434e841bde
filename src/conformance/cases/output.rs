//! Output must be complete and in order, however it is written.

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::StdStream,
};

pub(in crate::conformance) async fn order(harness: &Harness<'_>) -> Result<(), Broken> {
    let cmd = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let done = harness.step(Step::new(cmd)).await?;
    done.passed()?;
    for (stream, name) in [(StdStream::Stdout, "out"), (StdStream::Stderr, "err")] {
        let expected: Vec<_> = (0..500).map(|line| format!("{name} {line}")).collect();
        same_lines(name, &done.lines(stream), &expected)?;
    }
    Ok(())
}

/// Reports the first line that differs.
fn same_lines(stream: &str, found: &[String], expected: &[String]) -> Result<(), Broken> {
    for (number, (found, expected)) in (1..).zip(found.iter().zip(expected)) {
        expect(&format!("line {number} of {stream}"), found, expected)?;
    }
    expect(&format!("the number of lines of {stream}"), found.len(), expected.len())
}

pub(in crate::conformance) async fn split_characters(harness: &Harness<'_>) -> Result<(), Broken> {
    // Three writes with time between them: the crab arrives in halves.
    let cmd = "printf 'a \\360\\237'; sleep 0.1 || sleep 1; printf '\\246\\200 crab, \\303'; sleep 0.1 || sleep 1; printf '\\251\\n'";
    expect("the line", harness.sh(Step::new(cmd)).await?, ["a \u{1f980} crab, \u{e9}"])
}

pub(in crate::conformance) async fn no_trailing_newline(harness: &Harness<'_>) -> Result<(), Broken> {
    let done = harness.step(Step::new("printf 'one\\ntwo'; printf ' \\n\\nend' >&2")).await?;
    done.passed()?;
    expect("the lines of stdout", done.lines(StdStream::Stdout), ["one", "two"])?;
    expect("the lines of stderr", done.lines(StdStream::Stderr), [" ", "", "end"])
}

pub(in crate::conformance) async fn long_line(harness: &Harness<'_>) -> Result<(), Broken> {
    const BYTES: usize = 10 << 20;
    let cmd = format!("head -c {BYTES} /dev/zero | tr '\\0' x; echo; echo after");
    let lines = harness.sh(Step::new(cmd)).await?;
    expect("the number of lines", lines.len(), 2)?;
    expect("the length of the long line", lines[0].len(), BYTES)?;
    expect("whether all of it is there", lines[0].bytes().all(|byte| byte == b'x'), true)?;
    expect("the line after it", lines[1].as_str(), "after")
}

pub(in crate::conformance) async fn many_lines(harness: &Harness<'_>) -> Result<(), Broken> {
    let lines = harness.sh(Step::new("seq 1 100000")).await?;
    let expected: Vec<_> = (1..=100_000).map(|number| number.to_string()).collect();
    same_lines("stdout", &lines, &expected)
}

/// Checks that a command that closes its output continues to run.
pub(in crate::conformance) async fn closed(harness: &Harness<'_>) -> Result<(), Broken> {
    let done = harness.step(Step::new("echo first; exec >&- 2>&-; sleep 0.2 || sleep 1; exit 7")).await?;
    expect("the exit code", done.exit_code()?, 7)?;
    expect("the output", done.lines(StdStream::Stdout), ["first"])
}
