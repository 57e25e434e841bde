//! The host image's overlays, which steps of one build pass on to each other.

use std::fs;

use hm_exec::{
    runner::{CancelReason, StepRunner},
    store::Store,
};

use crate::support::{
    backends::skip,
    processes::{eventually, is_asleep, marker},
    sandbox::{Ask, Bench, Run},
    users::{RANGE, is_root},
};

/// Returns the directories of mounts: those of overlays, and those of the screens below some overlays.
fn mounts(store: &Store) -> impl Iterator<Item = std::path::PathBuf> {
    let dirs = |dir: std::path::PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    dirs(store.dir().join("tmp")).flat_map(dirs).filter(|home| home.join("on").is_dir())
}

/// Counts the overlays on the disk. Overlayfs makes a directory for each overlay that can be written to.
fn overlays(store: &Store) -> usize {
    mounts(store).filter(|home| home.join("work/work").is_dir()).count()
}

/// Returns whether a process whose mounts are visible to this process has mounted something of the store.
fn is_mounted(store: &Store) -> bool {
    let store = store.dir().to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let tables = processes.filter_map(|process| fs::read_to_string(process.path().join("mountinfo")).ok());
    tables.into_iter().any(|table| table.contains(store))
}

async fn printed(bench: &Bench, run: &mut Run, cmd: &str) -> String {
    let ask = Ask::new(format!("({cmd}) > /workspace/said 2>&1"));
    let result = bench.step(run, ask).await.unwrap();
    let snapshot = bench.store.snapshots().get(&result.committed_snapshot.unwrap()).unwrap();
    fs::read_to_string(bench.store.layers().dir(&snapshot.layers[0]).join("workspace/said")).unwrap()
}

#[tokio::test]
async fn overlays_are_reused_after_steps_that_write_to_no_system_directory() {
    let bench = Bench::new();
    let mut run = bench.run();
    let devices = printed(&bench, &mut run, "stat -c %d /usr /etc").await;
    let made = overlays(&bench.store);
    assert!(made > 0);
    for _ in 0..3 {
        assert_eq!(printed(&bench, &mut run, "stat -c %d /usr /etc").await, devices);
        assert_eq!(overlays(&bench.store), made);
    }
    // A child over a parent that wrote elsewhere uses the same overlays.
    let parent = bench.step(&mut run, Ask::new("echo > /workspace/f")).await.unwrap();
    bench.step(&mut run, Ask::new(":").after(&parent)).await.unwrap();
    assert_eq!(overlays(&bench.store), made);
    if is_root() {
        assert!(is_mounted(&bench.store), "a test of what follows");
    }
    run.ctx.end_build().await;
    eventually("the build's overlays are gone", || mounts(&bench.store).count() == 0).await;
    assert!(!is_mounted(&bench.store));
}

#[tokio::test]
async fn no_two_steps_use_the_same_overlay_at_the_same_time() {
    let bench = Bench::new();
    let mut run = bench.run();
    // One overlay of each kind waits, and all three steps want it.
    bench.step(&mut run, Ask::new(":")).await.unwrap();
    let made = overlays(&bench.store);
    let asks = ["a", "b", "c"].map(|name| {
        run.input(Ask::new(format!(
            "echo {name} > /opt/hm-{name}; sleep 0.3; [ \"$(cd /opt; echo hm-*)\" = hm-{name} ]"
        )))
    });
    let [a, b, c] = asks.map(|input| bench.runner.execute(&run.ctx, input));
    let ended = tokio::join!(a, b, c);
    let ended = [ended.0, ended.1, ended.2].map(Result::unwrap);
    assert_eq!(ended.each_ref().map(|result| result.exit_code), [0; 3]);
    assert_eq!(overlays(&bench.store), 3 * (made - 1), "what was written is in the layers, the rest waits");
    for (parent, name) in ended.iter().zip(["a", "b", "c"]) {
        let child = Ask::new(format!("cd /opt; [ \"$(echo hm-*)\" = hm-{name} ] && [ \"$(cat hm-*)\" = {name} ]"));
        assert_eq!(bench.step(&mut run, child.after(parent)).await.unwrap().exit_code, 0, "{name}");
    }
    assert_eq!(bench.step(&mut run, Ask::new("cd /opt; [ \"$(echo hm-*)\" = 'hm-*' ]")).await.unwrap().exit_code, 0);
}

#[tokio::test]
async fn files_that_a_step_wrote_and_removed_are_visible_to_no_other_step() {
    let bench = Bench::new();
    let mut run = bench.run();
    let looks = "stat -c '%a %u %g %y' /opt /var /var/lib";
    let before = printed(&bench, &mut run, looks).await;
    let passing = bench.step(&mut run, Ask::new("touch /opt/f && rm /opt/f")).await.unwrap();
    let snapshot = bench.store.snapshots().get(passing.committed_snapshot.as_ref().unwrap()).unwrap();
    assert!(snapshot.layers.is_empty(), "{snapshot:?}");
    assert_eq!(printed(&bench, &mut run, looks).await, before);
}

#[tokio::test]
async fn files_of_steps_that_did_not_pass_are_discarded() {
    let bench = Bench::new();
    let mut run = bench.run();
    let failed = bench.step(&mut run, Ask::new("echo > /opt/hm-left; exit 3")).await.unwrap();
    assert_eq!(failed.exit_code, 3);
    let unwritten = || Ask::new("[ ! -e /opt/hm-left ]");
    assert_eq!(bench.step(&mut run, unwritten()).await.unwrap().exit_code, 0);

    let marker = marker();
    let write = |and: &str| Ask::new(format!("trap '' TERM; echo > /opt/hm-left; {and} sleep {marker}"));
    let input = run.input(write(&format!("sleep {marker};")));
    // Part of the same build, but interrupted alone.
    let mut attempt = run.ctx.clone();
    attempt.cancel = run.ctx.cancel.child_token();
    let watch = async {
        eventually("the command runs", || is_asleep(&marker)).await;
        attempt.interrupt(CancelReason::Cancelled);
    };
    let (ended, ()) = tokio::join!(bench.runner.execute(&attempt, input), watch);
    ended.unwrap_err();
    assert_eq!(bench.step(&mut run, unwritten()).await.unwrap().exit_code, 0);

    // Dropped while it runs: nothing reports when its processes are dead.
    let input = run.input(write(""));
    {
        let dropped = bench.runner.execute(&run.ctx, input);
        let started = eventually("the command runs", || is_asleep(&marker));
        tokio::select! {
            ended = dropped => panic!("{ended:?}"),
            () = started => {}
        }
    }
    assert_eq!(bench.step(&mut run, unwritten()).await.unwrap().exit_code, 0);
}

#[tokio::test]
async fn a_layer_that_this_user_cannot_read_is_an_error() {
    if is_root() {
        // Root can read every directory.
        return;
    }
    let bench = Bench::new();
    let mut run = bench.run();
    let parent = bench.step(&mut run, Ask::new("mkdir -p /var/lib/hm && chmod 0 /var")).await.unwrap();
    let error = bench.step(&mut run, Ask::new(":").after(&parent)).await.unwrap_err();
    let line = error.to_line();
    assert!(line.contains("root/var/") && line.contains("Permission denied"), "{line}");
}

#[tokio::test]
async fn attributes_of_a_system_directory_are_inherited_by_children_only() {
    let bench = Bench::new();
    let mut run = bench.run();
    let one_id = printed(&bench, &mut run, "cat /proc/self/uid_map").await.split_whitespace().last() == Some("1");
    assert!(!(one_id && std::env::var_os(RANGE).is_some()), "this user was given more ids");
    let before = printed(&bench, &mut run, "stat -c '%a %u %g' /opt").await;
    let owner = if one_id { "0 0" } else { "7 8" };
    let chown = if one_id { ":" } else { "chown 7:8 /opt" };
    let parent = bench.step(&mut run, Ask::new(format!("chmod 2751 /opt; {chown}"))).await.unwrap();
    let check = |what: &str| Ask::new(format!("[ \"$(stat -c '%a %u %g' /opt)\" = '{what}' ]"));
    let expected = format!("2751 {owner}");
    // One child that changes the directory further, and one that does not.
    let child = bench.step(&mut run, check(&expected).after(&parent)).await.unwrap();
    assert_eq!(child.exit_code, 0);
    let mut writing = check(&expected).after(&child);
    writing.cmd += " && echo text > /opt/hm-file";
    let child = bench.step(&mut run, writing).await.unwrap();
    assert_eq!(child.exit_code, 0);
    let mut reading = check(&expected).after(&child);
    reading.cmd += " && [ \"$(cat /opt/hm-file)\" = text ]";
    assert_eq!(bench.step(&mut run, reading).await.unwrap().exit_code, 0);
    assert_eq!(printed(&bench, &mut run, "stat -c '%a %u %g' /opt").await, before);
}

#[tokio::test]
async fn files_below_var_are_inherited_with_their_directories_unchanged() {
    let bench = Bench::new();
    let mut run = bench.run();
    let looks = "stat -c '%a %u %g' /var /var/lib";
    let before = printed(&bench, &mut run, looks).await;
    let Some(dir) =
        ["/var/lib/dpkg", "/var/lib/rpm", "/var/lib/pacman"].into_iter().find(|dir| fs::metadata(dir).is_ok())
    else {
        skip("this machine has no database of packages that is known here");
        return;
    };
    let parent = bench.step(&mut run, Ask::new(format!("echo text > {dir}/hm-file"))).await.unwrap();
    assert_eq!(parent.exit_code, 0);
    let mut check =
        Ask::new(format!("[ \"$(cat {dir}/hm-file)\" = text ] && {looks} > /workspace/looks")).after(&parent);
    // The machine's files there are visible beside it.
    check.cmd += &format!(" && [ $(ls {dir} | wc -l) -gt 1 ]");
    let child = bench.step(&mut run, check).await.unwrap();
    assert_eq!(child.exit_code, 0);
    let snapshot = bench.store.snapshots().get(child.committed_snapshot.as_ref().unwrap()).unwrap();
    let looks = fs::read_to_string(bench.store.layers().dir(&snapshot.layers[0]).join("workspace/looks")).unwrap();
    assert_eq!(looks, before);
}
