//! Commands that runners of other crates start.

use std::{fs, path::Path, sync::Arc, time::Duration};

use hm_exec::runner::{RunnerError, RunnerErrorKind, StepContext, command::StepCommand};
use uuid::Uuid;

use crate::support::{attempt::attempt, programs::hm};

const STEP: Uuid = Uuid::from_u128(2);

/// Runs a command with a supervisor and without, and returns how it ended.
async fn run(command: impl Fn() -> StepCommand, ctx: &StepContext) -> Result<i32, RunnerError> {
    let watched = command().run(ctx, STEP).await;
    let supervised = command().helper(hm()).run(ctx, STEP).await;
    assert_eq!(format!("{watched:?}"), format!("{supervised:?}"));
    supervised
}

#[tokio::test]
async fn a_command_has_a_clean_environment_its_directories_and_its_arguments() {
    let (ctx, _) = attempt();
    let dir = tempfile::tempdir().unwrap();
    let names = "env | cut -d= -f1 | grep -vx -e LANG -e PWD -e SHLVL -e _ -e OLDPWD | sort > names";
    let shell = || StepCommand::shell(names).current_dir(dir.path()).env("CC", "gcc");
    assert_eq!(run(shell, &ctx).await.unwrap(), 0);
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("names"), "CC\nCI\nHM_STEP_MARK\nPATH\n");

    let scratch = dir.path().join("scratch");
    let private = || {
        let script = r#"printf '%s\n' "$HOME" "$TMPDIR" "$0" "$@" > words; touch "$HOME/a" "$TMPDIR/b""#;
        StepCommand::shell(script).args(["one", "two words"]).current_dir(dir.path()).scratch_dir(&scratch)
    };
    assert_eq!(run(private, &ctx).await.unwrap(), 0);
    let scratch = scratch.display();
    assert_eq!(read("words"), format!("{scratch}/home\n{scratch}/tmp\n/bin/sh\none\ntwo words\n"));
}

#[tokio::test]
async fn a_command_ends_with_its_exit_code_or_its_signal() {
    let (ctx, _) = attempt();
    assert_eq!(run(|| StepCommand::shell("exit 7"), &ctx).await.unwrap(), 7);
    assert_eq!(run(|| StepCommand::shell("kill -9 $$"), &ctx).await.unwrap(), 137);
    let long: Arc<str> = format!("exit 3 # {}", "x".repeat(300_000)).into();
    assert_eq!(run(|| StepCommand::shell(Arc::clone(&long)), &ctx).await.unwrap(), 3);
    for name in ["watched", "supervised"] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = StepCommand::shell(Arc::clone(&long)).scratch_dir(dir.path().join("new"));
        if name == "supervised" {
            command = command.helper(hm());
        }
        assert_eq!(command.run(&ctx, STEP).await.unwrap(), 3, "{name}");
    }
    assert_eq!(run(|| StepCommand::new("sh").arg("-c").arg("exit 4"), &ctx).await.unwrap(), 4);
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/sh", dir.path().join("-odd name")).unwrap();
    let relative = || StepCommand::new("./-odd name").args(["-c", "exit 5"]).current_dir(dir.path());
    assert_eq!(run(relative, &ctx).await.unwrap(), 5);

    let error = StepCommand::new("no-such-program-at-all").run(&ctx, STEP).await.unwrap_err();
    assert_eq!(error.to_line(), "failed to prepare the command: PATH has no program `no-such-program-at-all`");
}

#[tokio::test]
async fn a_cancelled_command_gets_term_and_leaves_nothing() {
    let (ctx, _) = attempt();
    let dir = tempfile::tempdir().unwrap();
    for helper in [None, Some(hm())] {
        let begun = dir.path().join("begun");
        let _ = fs::remove_file(&begun);
        let ctx = StepContext::new(ctx.event_bus.clone(), ctx.archives.clone(), Arc::default(), Default::default());
        let script = "trap 'echo TERM >> got; exit' TERM; touch begun; while :; do sleep 0.1; done";
        let mut command = StepCommand::shell(script).current_dir(dir.path());
        if let Some(helper) = helper {
            command = command.helper(helper);
        }
        let cancel = async {
            while !begun.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ctx.cancel.cancel();
        };
        let (ended, ()) = tokio::join!(command.run(&ctx, STEP), cancel);
        assert_eq!(ended.unwrap_err().kind(), RunnerErrorKind::Cancelled);
    }
    assert_eq!(fs::read_to_string(Path::new(dir.path()).join("got")).unwrap(), "TERM\nTERM\n");
}
