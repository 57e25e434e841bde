//! What a step must not see, and where a step's secrets must not appear.

use std::fs;

use uuid::Uuid;

use crate::{
    conformance::harness::{Broken, Done, Harness, Step, expect},
    model::{Secrets, StdStream},
};

pub(in crate::conformance) async fn host_files(harness: &Harness<'_>) -> Result<(), Broken> {
    let outside = harness.outside();
    fs::create_dir(&outside)?;
    fs::write(outside.join("file"), "of this machine\n")?;
    let mut paths = vec![outside.join("file"), outside.clone(), harness.source(), "/run/docker.sock".into()];
    if let Some(home) = std::env::var_os("HOME").map(std::path::PathBuf::from) {
        paths.extend([".ssh", ".docker", ".cargo", ".netrc", ".aws"].map(|name| home.join(name)));
    }
    // The paths are passed in variables, so that the shell does not interpret them.
    let step = (0..)
        .zip(&paths)
        .fold(Step::new(""), |step, (at, path)| step.env(&format!("PATH_{at}"), path.to_string_lossy()));
    let looks: Vec<_> =
        (0..paths.len()).map(|at| format!("if test -e \"$PATH_{at}\"; then echo \"$PATH_{at}\"; fi")).collect();
    let cmd = format!(
        "{}; cat \"/proc/1/root$PATH_0\" 2>/dev/null; echo x 2>/dev/null > \"$PATH_1/written\"; true",
        looks.join("; ")
    );
    expect("files of this machine that the step sees", harness.sh(step.cmd(cmd)).await?, Vec::<String>::new())?;
    expect("whether the step wrote to this machine", outside.join("written").exists(), false)
}

pub(in crate::conformance) async fn host_processes(harness: &Harness<'_>) -> Result<(), Broken> {
    let engine = std::env::current_exe()?;
    let Some(engine) = engine.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    let step = Step::new("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'");
    let seen = harness.sh(step).await?.into_iter().any(|line| line.rsplit('/').next() == Some(engine));
    expect("whether the step sees the engine's process", seen, false)
}

/// Checks that a secret is a file for the command, and appears in no event.
pub(in crate::conformance) async fn secrets(harness: &Harness<'_>) -> Result<(), Broken> {
    let (secrets, value) = some_secret();
    let mut run = harness.run_with(secrets)?;
    let cmd = "wc -c < /run/secrets/token | tr -d ' '; cat /run/secrets/token; echo; cat /run/secrets/token >&2; \
               v=$(cat /run/secrets/token); printf %s \"${v%???????}\"; sleep 0.1 || sleep 1; \
               printf '%s\\n' \"${v#\"${v%???????}\"}\"";
    let done = run.step(harness.runner, Step::new(cmd)).await?;
    done.passed()?;
    expect("the length of the secret's file", done.lines(StdStream::Stdout).first(), Some(&value.len().to_string()))?;
    expect("the number of lines", done.lines(StdStream::Stdout).len(), 3)?;
    unseen(&done, &value)?;
    let done = run.step(harness.runner, Step::new("cat /run/secrets/token; exit 3")).await?;
    expect("the exit code", done.exit_code()?, 3)?;
    unseen(&done, &value)?;
    let done = run.step(harness.runner, Step::new("cat /run/secrets/token").after(&"none:none".into())).await?;
    unseen(&done, &value)
}

/// Checks that a child in a run without secrets finds none, and that the file is not in the snapshot.
pub(in crate::conformance) async fn secrets_stay(harness: &Harness<'_>) -> Result<(), Broken> {
    let (secrets, value) = some_secret();
    let mut run = harness.run_with(secrets)?;
    let parent = run.step(harness.runner, Step::new("test -s /run/secrets/token").commit()).await?.snapshot()?;
    let look = "ls -A /run/secrets 2>/dev/null; grep -rs \"$VALUE\" /run /tmp /root /workspace; true";
    // The value is passed in halves, because variables are in a file in `/proc`, and it is not a secret in
    // this run.
    let step = Step::new(format!("VALUE=\"$A$B\"; {look}")).env("A", &value[..8]).env("B", &value[8..]).after(&parent);
    expect("what a later run finds of the secret", harness.sh(step).await?, Vec::<String>::new())
}

fn some_secret() -> (Secrets, String) {
    let value = format!("conformance-{}", Uuid::new_v4().simple());
    let mut secrets = Secrets::new();
    secrets.insert("token", value.as_str());
    (secrets, value)
}

/// Checks that no event and no error contains the value.
fn unseen(done: &Done, value: &str) -> Result<(), Broken> {
    for event in &done.events {
        let json = serde_json::to_string(event).map_err(std::io::Error::from)?;
        expect("whether an event has the secret", json.contains(value), false)?;
    }
    let error = done.result.as_ref().err().map(|error| format!("{error:?} {}", error.to_line()));
    expect("whether an error has the secret", error.is_some_and(|error| error.contains(value)), false)
}
