//! The environment and the input of a command.

use std::collections::BTreeSet;

use crate::conformance::harness::{Broken, Harness, Step, expect};

pub(in crate::conformance) async fn environment(harness: &Harness<'_>) -> Result<(), Broken> {
    let values =
        [("LETTERS", "gr\u{fc}\u{df}e \u{1f980}"), ("LINES", "a\nb\n\nc"), ("QUOTES", "it's \"$HOME\" \\ * `x` ")];
    let step = values.iter().fold(Step::new(""), |step, (name, value)| step.env(name, *value)).env("EMPTY", "");
    for (name, value) in values {
        let step = step.clone().cmd(format!("printf '[%s]\\n' \"${name}\""));
        expect(name, harness.sh(step).await?.join("\n"), format!("[{value}]"))?;
    }
    let step = step.cmd("echo \"[${EMPTY-unset}] [${ABSENT-unset}]\"; test -n \"$PATH\" && test -n \"$HOME\"");
    expect("an empty variable and an unset one", harness.sh(step).await?, ["[] [unset]"])
}

/// Checks that no variable of the engine's own environment is passed on by accident.
pub(in crate::conformance) async fn environment_of_the_engine(harness: &Harness<'_>) -> Result<(), Broken> {
    // The variables that a shell, a container or a runner sets itself, or that a runner may pass on.
    const USUAL: [&str; 11] =
        ["PATH", "HOME", "LANG", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME", "TERM", "CI"];
    let found: BTreeSet<String> = harness.sh(Step::new("env")).await?.into_iter().collect();
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        if !USUAL.contains(&name) && found.contains(&format!("{name}={value}")) {
            return Err(Broken::new(format!("the step has the engine's variable `{name}`")));
        }
    }
    Ok(())
}

pub(in crate::conformance) async fn large(harness: &Harness<'_>) -> Result<(), Broken> {
    const BYTES: usize = 100_000;
    let mut step = Step::new(format!(": {}; echo ${{#A}} ${{#B}} ${{#C}}", "x".repeat(BYTES)));
    for name in ["A", "B", "C"] {
        step = step.env(name, "v".repeat(BYTES));
    }
    expect("the lengths of the variables", harness.sh(step).await?, ["100000 100000 100000"])
}

/// Checks that a command that reads standard input immediately gets its end.
pub(in crate::conformance) async fn standard_input(harness: &Harness<'_>) -> Result<(), Broken> {
    let lines = harness.sh(Step::new("cat; if read -r line; then echo \"read $line\"; else echo end; fi")).await?;
    expect("what the command read", lines, ["end"])
}

pub(in crate::conformance) async fn workdir(harness: &Harness<'_>) -> Result<(), Broken> {
    std::fs::write(harness.source().join("here"), "")?;
    expect("the work directory, and what is in it", harness.sh(Step::new("pwd; ls")).await?, ["/workspace", "here"])
}
