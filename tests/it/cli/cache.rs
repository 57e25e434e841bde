//! `hm cache`.

use serde_json::Value;

use crate::support::{
    filesystem::Filesystem,
    project::{Ended, Project, eventually},
};

fn du(project: &Project) -> Value {
    let ended = Ended::of(&mut project.hm(&["cache", "du", "--format", "json"])).expect(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn du_shows_what_uses_the_space() {
    let project = Project::with_steps(&[("big", "dd if=/dev/zero bs=1024 count=500", None)]);
    project.file("large", &"x".repeat(300_000));
    project.run(&["ci"]).expect(0);
    let usage = du(&project);
    let bytes = |kind: &str| usage["kinds"][kind].as_u64().unwrap_or_default();
    assert!(bytes("sources") >= 300_000 && bytes("journals") >= 500 * 1024, "{usage}");
    let total: u64 = usage["kinds"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(usage["bytes"], total);
    let text = Ended::of(&mut project.hm(&["cache", "du"])).expect(0).stdout;
    assert!(text.contains("sources") && text.contains("free on the filesystem"), "{text}");
}

fn json(project: &Project, args: &[&str]) -> Value {
    let ended = Ended::of(project.hm(&["cache"]).args(args).args(["--format", "json"])).expect(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn clean_forgets_results_and_gc_reports_what_it_removed() {
    let project = Project::with_steps(&[("step", "true", None)]);
    project.file("large", &"x".repeat(300_000));
    project.run(&["ci"]).expect(0);
    let text = Ended::of(&mut project.hm(&["cache", "gc", "--min-free", "0"])).expect(0).stdout;
    assert!(text.contains("nothing to remove") && text.contains("the store uses"), "{text}");
    let dry = json(&project, &["clean", "--all", "--dry-run"]);
    assert!(dry["sources"]["count"] == 1 && dry["sources"]["bytes"].as_u64() >= Some(300_000), "{dry}");
    assert!(du(&project)["kinds"]["sources"].as_u64() >= Some(300_000));
    let gone = Ended::of(&mut project.hm(&["cache", "clean", "--all"])).expect(0).stdout;
    assert!(gone.contains("removed: sources") && gone.contains("freed"), "{gone}");
    let usage = du(&project);
    assert!(usage["kinds"]["sources"].as_u64() < Some(50_000), "{usage}");
    project.run(&["ci"]).expect(0);
}

#[test]
fn limits_come_from_arguments_or_the_environment() {
    let project = Project::with_steps(&[("step", "true", None)]);
    project.file("large", &"x".repeat(300_000));
    project.run(&["ci"]).expect(0);
    let mut gc = project.hm(&["cache", "gc", "--dry-run", "--format", "json"]);
    let report: Value = serde_json::from_str(&Ended::of(gc.env("HM_CACHE_MAX_SIZE", "100K")).expect(0).stdout).unwrap();
    assert_eq!(report["sources"]["count"], 1);
    let report = json(&project, &["gc", "--max-size", "100M", "--min-free", "0", "--max-age", "14d"]);
    assert_eq!(report["sources"]["count"], 0);
    let wrong = Ended::of(&mut project.hm(&["cache", "gc", "--max-size", "much"])).expect(2);
    assert!(wrong.stderr.contains("500M, 10G"), "{}", wrong.stderr);
}

#[test]
fn a_run_collects_garbage_over_a_limit_unless_it_is_disabled() {
    let project = Project::with_steps(&[("step", "true", None)]);
    project.file("large", &"x".repeat(300_000));
    let sources = || du(&project)["kinds"]["sources"].as_u64().unwrap_or_default();
    let run = |gc: &str| {
        let mut hm = project.hm(&["run", "--runner", "process", "ci"]);
        Ended::of(hm.env("HM_CACHE_MAX_SIZE", "100K").env("HM_CACHE_MIN_FREE", "0").env("HM_CACHE_GC", gc)).expect(0)
    };
    run("off");
    assert!(sources() >= 300_000);
    project.file("other", "x");
    run("on");
    eventually("the source to be collected", || sources() < 50_000);
    let mut hm = project.hm(&["run", "--runner", "process", "ci"]);
    let said = Ended::of(hm.env("HM_CACHE_MAX_SIZE", "much").env("HM_CACHE_GC", "on")).expect(0).stderr;
    assert!(said.contains("HM_CACHE_MAX_SIZE"), "{said}");
}

#[test]
fn gc_reports_the_files_of_a_killed_run_once() {
    let project = Project::with_steps(&[("step", "echo up; sleep 4242", None)]);
    let log = std::fs::File::create(project.dir.with_file_name("log")).unwrap();
    let mut hm = project.hm(&["run", "--runner", "process", "--format", "human"]).stdout(log).spawn().unwrap();
    let log = || std::fs::read_to_string(project.dir.with_file_name("log")).unwrap();
    eventually("the step to be up", || log().contains("| up\n"));
    hm.kill().unwrap();
    hm.wait().unwrap();
    let report = json(&project, &["gc"]);
    assert_eq!(report["reaped"]["killed processes"], 1, "{report}");
    assert!(json(&project, &["gc"])["reaped"].as_object().unwrap().is_empty());
}

#[test]
fn du_agrees_with_the_filesystem() {
    for filesystem in [Filesystem::tmpfs(256), Filesystem::ext4(256)].into_iter().flatten() {
        let mut project = Project::with_steps(&[("big", "dd if=/dev/urandom bs=1024 count=5000", None)]);
        project.store = filesystem.dir().into();
        for n in 0..300 {
            project.file(&format!("dir-{}/file-{n}", n % 20), &"x".repeat(100_000 + n));
        }
        project.run(&["ci"]).expect(0);
        project.file("dir-0/file-0", "changed");
        project.run(&["ci"]).expect(0);
        let usage = du(&project);
        let said = usage["bytes"].as_u64().unwrap();
        let used = rustix::fs::statvfs(filesystem.dir()).map(|of| (of.f_blocks - of.f_bfree) * of.f_frsize).unwrap();
        assert!(used > 30_000_000 && said.abs_diff(used) * 20 < used, "du says {said}, the system {used}: {usage}");
    }
}
