//! `hm cp`: copies files out of the filesystems of steps.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

use crate::support::{
    backends::usable,
    programs::hm,
    project::{Ended, Project, failed, ir},
};

fn cp(project: &Project, from: &str, to: &str) -> Ended {
    Ended::of(&mut project.hm(&["cp", from, to]))
}

#[test]
fn the_report_of_a_failed_step_is_copied_out() {
    let Some(project) = failed("mkdir -p out/deep; echo broken > out/report.txt; echo x > out/deep/x; exit 7") else {
        return;
    };
    let read = |path: &str| fs::read_to_string(project.dir.join(path)).unwrap();
    cp(&project, "test:out/report.txt", ".").expect(0);
    assert_eq!(read("report.txt"), "broken\n");
    fs::write(project.dir.join("renamed"), "old, and longer than the new one").unwrap();
    cp(&project, "test:/workspace/out/report.txt", "renamed").expect(0);
    assert_eq!(read("renamed"), "broken\n");
    // From the layers of earlier steps, from the source and from the image.
    cp(&project, "test:artifact", "a").expect(0);
    cp(&project, "test:source.txt", "s").expect(0);
    cp(&project, "test:/etc/passwd", "passwd").expect(0);
    assert_eq!((read("a"), read("s")), ("built\n".into(), "from the source\n".into()));
    assert!(read("passwd").contains("root"));
    // A directory: into an existing directory under its own name, under a new name, and its content alone.
    fs::create_dir(project.dir.join("there")).unwrap();
    cp(&project, "test:out", "there").expect(0);
    cp(&project, "test:out/", "new").expect(0);
    cp(&project, "test:out/.", "there").expect(0);
    for path in ["there/out/deep/x", "new/deep/x", "there/deep/x"] {
        assert_eq!(read(path), "x\n", "{path}");
    }
}

#[test]
fn links_modes_and_removals_are_copied_and_symlinks_are_not_followed() {
    let command = "mkdir d; echo 1 > d/f; chmod 4751 d/f; ln d/f d/hard; ln -s /etc/passwd d/out; ln -s d d2; \
                   touch -d @1000000000 d/f; mkfifo d/pipe; rm source.txt; name=$(printf 'n%0200d' 1); echo long > d/$name; \
                   ln -s $name d/l$name; chmod 500 d; exit 1";
    let Some(project) = failed(command) else { return };
    let (dir, path) = (&project.dir, |path: &str| project.dir.join(path));
    cp(&project, "test:d", "d").expect(0);
    let meta = fs::symlink_metadata(path("d/f")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.nlink()), (0o751, 1_000_000_000, 2), "no set-id bits");
    assert_eq!(fs::symlink_metadata(path("d")).unwrap().mode() & 0o7777, 0o500);
    assert_eq!(fs::read_link(path("d/out")).unwrap().to_str(), Some("/etc/passwd"));
    let name = format!("n{:0200}", 1);
    assert_eq!(fs::read_to_string(path("d").join(format!("l{name}"))).unwrap(), "long\n");
    fs::set_permissions(path("d"), fs::Permissions::from_mode(0o700)).unwrap();
    // A user's symlink in the place of a destination directory is not followed. A symlink in the place of a
    // file is replaced.
    fs::create_dir(path("outside")).unwrap();
    fs::create_dir(path("into")).unwrap();
    std::os::unix::fs::symlink(path("outside"), path("into/d")).unwrap();
    let ended = cp(&project, "test:d", "into").expect(2);
    assert!(ended.stderr.contains("into/d"), "{}", ended.stderr);
    assert_eq!(fs::read_dir(path("outside")).unwrap().count(), 0);
    fs::write(path("outside/f"), "mine").unwrap();
    fs::remove_file(path("d/f")).unwrap();
    std::os::unix::fs::symlink(path("outside/f"), path("d/f")).unwrap();
    cp(&project, "test:d/.", "d").expect(0);
    assert_eq!(fs::read_to_string(path("outside/f")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(path("d/f")).unwrap(), "1\n");
    // Symlinks within the step resolve as they did in the step. A symlink that is named itself is copied as a
    // symlink.
    cp(&project, "test:d2/f", "through").expect(0);
    assert_eq!(fs::read_to_string(path("through")).unwrap(), "1\n");
    cp(&project, "test:d2", "link").expect(0);
    assert_eq!(fs::read_link(path("link")).unwrap().to_str(), Some("d"));
    let ended = cp(&project, "test:source.txt", "removed").expect(2);
    assert!(ended.stderr.contains("/workspace/source.txt") && !path("removed").exists(), "{}", ended.stderr);
    assert!(dir.join("source.txt").exists());
}

#[test]
fn a_dash_writes_a_tar_stream() {
    let Some(project) = failed("mkdir d; echo 1 > d/f; exit 1") else { return };
    let output = project.hm(&["cp", "test:d", "-"]).output().unwrap();
    let mut archive = tar::Archive::new(&output.stdout[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["d", "d/f"]);
    // A reader that closes its end early is no error.
    let mut early = Command::new("sh");
    early.args(["-c", "\"$0\" cp test:/usr/bin - | head -c 100 > /dev/null"]).arg(hm());
    Ended::of(early.current_dir(&project.dir).env("HM_CACHE_DIR", &project.store)).expect(0);
}

#[test]
fn missing_steps_runs_and_files_are_reported_with_a_hint() {
    let Some(project) = failed("exit 1") else { return };
    let expect = |from: &str, texts: &[&str]| {
        let ended = cp(&project, from, "to").expect(2);
        for text in texts {
            assert!(ended.stderr.contains(text), "{from}: {}", ended.stderr);
        }
    };
    expect("tset:f", &["no step named `tset`", "did you mean `test`?"]);
    expect("ffffffff/test:f", &["no run", "ffffffff"]);
    expect("build:artifact", &["were not kept", "hm run --keep"]);
    expect("test:missing", &["/workspace/missing", "No such file"]);
    expect("test", &["has no path"]);
    expect("test:", &["the path is empty", "use `.` for the step's work directory"]);
    project.file(".hm/more.json", &ir(&[("a", "exit 1", None), ("b", "true", Some(0)), ("c", "true", None)]));
    Ended::of(&mut project.hm(&["run", "more", "-j1", "--format", "human"])).expect(1);
    expect("b:f", &["did not run"]);
    // The last run of each pipeline is searched.
    expect("test:missing", &["/workspace/missing"]);
    let elsewhere = Project::new();
    let ended = Ended::of(elsewhere.hm(&["cp", "test:f", "to"]).env("HM_CACHE_DIR", &project.store)).expect(2);
    assert!(ended.stderr.contains("no runs of pipelines"), "{}", ended.stderr);
    let runs = fs::read_dir(project.store.join("runs")).unwrap();
    let ids: Vec<String> = runs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(ids.len(), 2);
    // A run id works from any directory.
    let found = ids.iter().filter(|id| {
        let from = format!("{}/test:/etc/passwd", &id[..13]);
        Ended::of(elsewhere.hm(&["cp", &from, "p"]).env("HM_CACHE_DIR", &project.store)).code == Some(0)
    });
    assert_eq!(found.count(), 1);
}

#[test]
fn with_keep_passed_steps_are_found_too() {
    let project = Project::with_steps(&[("build", "echo built > artifact", None)]);
    let ended = Ended::of(&mut project.hm(&["run", "--keep", "--format", "human"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    ended.expect(0);
    cp(&project, "build:artifact", ".").expect(0);
    assert_eq!(fs::read_to_string(project.dir.join("artifact")).unwrap(), "built\n");
}
