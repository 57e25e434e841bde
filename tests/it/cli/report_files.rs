//! Files of reports on a full disk, and after their writer was killed.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::Stdio,
};

use hm_exec::{
    StepStatus,
    event::{self, RunDir, StateEvent, StdStream},
    plan::StepIndex,
    runner::Secrets,
    store::{NewRun, Store},
};

use crate::support::{
    events::{self as run_events, RUN},
    filesystem::Filesystem,
    project::{Ended, Project},
};

/// Returns the files of a directory, by name.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn on_a_full_disk_an_old_report_stays_and_nothing_is_left() {
    let Some(disk) = Filesystem::tmpfs(4) else { return };
    let project = Project::with_steps(&[("a", "exit 3", None)]);
    project.run(&[]).expect(1);
    for (option, name) in [("--html", "a.html"), ("--junit", "a.xml"), ("--trace", "a.json")] {
        let path = disk.dir().join(name);
        fs::write(&path, "old").unwrap();
        let before = names(disk.dir());
        disk.fill(0);
        let report = |path: &Path| Ended::of(&mut project.hm(&["report", option, path.to_str().unwrap()])).expect(2);
        for path in [&path, &disk.dir().join("new")] {
            let failed = report(path).stderr;
            let said = format!("error: failed to write {}: No space left on device", path.display());
            assert!(failed.starts_with(&said), "{failed}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "{option}");
        disk.free();
        assert_eq!(names(disk.dir()), before, "{option}");
        Ended::of(&mut project.hm(&["report", option, path.to_str().unwrap()])).expect(0);
        assert_ne!(fs::read_to_string(&path).unwrap(), "old", "{option}");
    }
}

#[test]
fn a_page_that_does_not_fit_into_the_store_is_not_opened() {
    let Some(disk) = Filesystem::tmpfs(16) else { return };
    let project = Project::with_steps(&[("a", "true", None)]);
    let store = disk.dir().join("store");
    Ended::of(project.hm(&["run", "--runner", "process"]).env("HM_CACHE_DIR", &store)).expect(0);
    let opened = project.store.with_file_name("opened");
    let browser = format!("touch {}", opened.display());
    let mut report = project.hm(&["report", "--open"]);
    report.env("HM_CACHE_DIR", &store).env("BROWSER", browser);
    let run = store.join("runs").join(&names(&store.join("runs"))[0]);
    let before = names(&run);
    disk.fill(0);
    let failed = Ended::of(&mut report).expect(3).stderr;
    assert!(failed.contains("No space left on device") || failed.contains("no space left on"), "{failed}");
    assert_eq!((names(&run), opened.exists()), (before, false));
    disk.free();
    Ended::of(&mut report).expect(0);
    assert!(opened.exists() && run.join("report.html").is_file());
}

/// Records a run whose page has many logs.
async fn long_run(project: &Project) {
    let store = Store::open(&project.store).unwrap();
    let source_dir = &*project.dir;
    store.runs().begin(&NewRun { id: RUN, source_dir, pipeline: "ci", started_at: 1_800_000_000_000 }).unwrap();
    let dir = RunDir::Kept(store.runs().dir(RUN));
    let (mut writer, bus, _events) = event::create(dir, run_events::meta(100), &Secrets::new()).unwrap();
    let log = "a line of a long log\n".repeat(4000);
    for index in 0..100 {
        let step = StepIndex(index);
        writer.emit(0, StateEvent::StepStart { step, attempt: 1 });
        bus.output(run_events::id(index), StdStream::Stdout, log.as_bytes()).await;
        let end = StateEvent::StepEnd {
            step,
            attempt: 1,
            status: StepStatus::Passed,
            exit_code: 0,
            duration_ms: 1,
            snapshot: None,
            message: None,
            artifacts: vec![],
            details: Default::default(),
        };
        writer.emit(1, end);
    }
    run_events::end_build(writer);
    store.runs().end(RUN, 0).unwrap();
}

#[tokio::test]
async fn a_writer_that_is_killed_leaves_the_old_report() {
    let project = Project::with_steps(&[("a", "true", None)]);
    long_run(&project).await;
    let out = project.dir.join("out");
    fs::create_dir(&out).unwrap();
    let page = out.join("report.html");
    fs::write(&page, "old").unwrap();
    fs::set_permissions(&page, fs::Permissions::from_mode(0o640)).unwrap();
    // It has no name, but the process has it open.
    let writes = |pid: u32| -> bool {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.map(|entry| entry.path()).any(|file| {
            fs::read_link(&file).is_ok_and(|name| name.starts_with(&out) && name != page)
                && file.metadata().is_ok_and(|file| file.len() > 0)
        })
    };
    let mut killed = 0;
    // The writer may be faster than the test.
    for _ in 0..50 {
        let mut hm = project.hm(&["report", "--html", "out/report.html"]).stderr(Stdio::null()).spawn().unwrap();
        while !writes(hm.id()) && hm.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        // It fails if the writer has ended.
        let _ = hm.kill();
        let status = hm.wait().unwrap();
        let text = fs::read_to_string(&page).unwrap();
        if status.signal().is_some() && text == "old" {
            killed += 1;
            assert_eq!(names(&out), ["report.html"]);
        } else {
            assert!(text.starts_with("<!doctype html>") && text.ends_with("</html>\n"), "{} bytes", text.len());
            fs::write(&page, "old").unwrap();
        }
        if killed == 3 {
            break;
        }
    }
    assert_eq!(killed, 3, "no writer was killed in the middle");
    assert_eq!(names(&out), ["report.html"]);
    Ended::of(&mut project.hm(&["report", "--html", "out/report.html"])).expect(0);
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("<!doctype html>") && text.ends_with("</html>\n") && text.len() > 4 << 20);
    assert_eq!(fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(names(&out), ["report.html"]);
}
