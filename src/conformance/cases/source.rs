//! The user's source tree, as steps see it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::StdStream,
};

pub(in crate::conformance) async fn is_there(harness: &Harness<'_>) -> Result<(), Broken> {
    fs::create_dir(harness.source().join("dir"))?;
    fs::write(harness.source().join("dir/file"), "from the source\n")?;
    fs::write(harness.source().join("script"), "#!/bin/sh\necho it runs\n")?;
    fs::set_permissions(harness.source().join("script"), fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::symlink("dir/file", harness.source().join("link"))?;
    let lines = harness.sh(Step::new("cat link; ./script; readlink link; rm -r dir; echo changed > script")).await?;
    expect("what the step saw", lines, ["from the source", "it runs", "dir/file"])?;
    let script = fs::read_to_string(harness.source().join("script"))?;
    expect("the user's file after the step", script.as_str(), "#!/bin/sh\necho it runs\n")?;
    expect("whether the user's directory is there", harness.source().join("dir/file").exists(), true)
}

pub(in crate::conformance) async fn root_steps_are_apart(harness: &Harness<'_>) -> Result<(), Broken> {
    let mut run = harness.run()?;
    let steps = (0..8).map(|step| Step::new(format!("echo x > mine-{step}; ls | wc -l"))).collect();
    for done in run.steps(harness.runner, steps, 4).await? {
        done.passed()?;
        let found = done.lines(StdStream::Stdout).concat();
        expect("the number of files in a step's workspace", found.trim(), "1")?;
    }
    Ok(())
}

/// Checks that files edited or deleted since a parent ran win over the parent's copies, and that files made
/// or changed by the parent stay.
pub(in crate::conformance) async fn edited(harness: &Harness<'_>) -> Result<(), Broken> {
    for name in ["edited", "removed", "same"] {
        fs::write(harness.source().join(name), "old\n")?;
    }
    let parent =
        harness.snapshot(Step::new("cat edited removed same > built; echo changed | tee edited > same")).await?;
    fs::write(harness.source().join("edited"), "newer\n")?;
    fs::remove_file(harness.source().join("removed"))?;
    fs::write(harness.source().join("added"), "added\n")?;
    let look = "cat edited same added built; test -e removed && echo removed; true";
    let lines = harness.sh(Step::new(look).after(&parent)).await?;
    expect("what a child under newer source saw", lines, ["newer", "changed", "added", "old", "old", "old"])
}

/// Checks that a file that was edited since a parent ran is newer than what the parent built from it, even if
/// its time is old.
pub(in crate::conformance) async fn edited_with_an_old_time(harness: &Harness<'_>) -> Result<(), Broken> {
    let edited = harness.source().join("edited");
    fs::write(&edited, "old\n")?;
    let parent = harness.snapshot(Step::new("cp edited built")).await?;
    fs::write(&edited, "newer\n")?;
    fs::File::open(&edited)?.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000))?;
    let make = "if [ edited -nt built ]; then cp edited built; fi; cat built";
    let lines = harness.sh(Step::new(make).after(&parent)).await?;
    expect("what a child built", lines, ["newer"])
}
