//! `--open`: which program opens a page, and where the page is if none does.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::support::project::{Ended, Project};

/// Writes a program that notes in `FILE.opened` how it was run.
fn browser(path: &Path) -> PathBuf {
    let note = path.with_extension("opened");
    let script = format!(
        "#!/bin/sh\n{{ pwd; echo \"$PATH\"; printf '%s\\n' \"$@\"; }} > '{0}.half'\nmv '{0}.half' '{0}'\n",
        note.display()
    );
    program(path, &script);
    note
}

fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Returns what a program noted: its directory, its search path, and its arguments.
#[track_caller]
fn noted(note: &Path) -> (String, String, Vec<String>) {
    let text = fs::read_to_string(note).unwrap();
    fs::remove_file(note).unwrap();
    let mut lines = text.lines().map(str::to_owned);
    (lines.next().unwrap(), lines.next().unwrap(), lines.collect())
}

/// Returns the page in the directory of the only run.
fn page(project: &Project) -> PathBuf {
    let runs: Vec<_> = fs::read_dir(project.store.join("runs")).unwrap().collect();
    let [Ok(run)] = &runs[..] else { panic!("{runs:?}") };
    run.path().join("report.html")
}

/// Removes what this machine has of displays.
fn without_display(hm: &mut Command) -> &mut Command {
    for variable in ["DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "SSH_TTY"] {
        hm.env_remove(variable);
    }
    hm
}

#[test]
fn a_run_is_opened_in_the_users_browser_when_it_has_ended() {
    let project = Project::with_steps(&[("a", "echo output; exit 3", None)]);
    let script = project.store.with_file_name("my browser");
    let (note, link) = (browser(&script), project.store.with_file_name("browse"));
    std::os::unix::fs::symlink(&script, &link).unwrap();
    let mut hm = project.hm(&["run", "--runner", "process", "--open"]);
    let ended = Ended::of(hm.env("BROWSER", format!("{} --new-tab %s", link.display()))).expect(1);
    let page = page(&project);
    assert!(ended.stderr.contains(&format!("opened {}\n", page.display())), "{}", ended.stderr);
    let (dir, _, arguments) = noted(&note);
    assert_eq!((&*dir, arguments), ("/", vec!["--new-tab".to_owned(), format!("file://{}", page.display())]));
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.contains("output") && html.ends_with("</html>\n"));
    assert_eq!(fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o600);

    // Later, in the run's directory again, or in a file that the user names, whatever its name.
    let mut hm = project.hm(&["report", "--open"]);
    Ended::of(hm.env("BROWSER", &link)).expect(0);
    assert_eq!(noted(&note).2, [format!("file://{}", page.display())]);
    let mut hm = project.hm(&["report", "--html", "a %s#b.html", "--open"]);
    Ended::of(hm.env("BROWSER", &link)).expect(0);
    assert_eq!(noted(&note).2, [format!("file://{}/a%20%25s%23b.html", project.dir.display())]);
    let refused = Ended::of(&mut project.hm(&["report", "--html", "-", "--open"])).expect(2);
    assert!(refused.stderr.contains("a page on stdout cannot be opened") && refused.stdout.is_empty());
    for other in ["--dry-run", "--watch"] {
        Ended::of(&mut project.hm(&["run", "--open", other])).expect(2);
    }

    // The page goes with its run.
    Ended::of(&mut project.hm(&["cache", "clean", "--all"])).expect(0);
    assert!(!page.exists());
}

#[test]
fn a_checkout_has_no_browser() {
    let project = Project::with_steps(&[("a", "true", None)]);
    project.run(&[]).expect(0);
    let planted = browser(&project.dir.join("bin/xdg-open"));
    let users = project.store.with_file_name("users-bin");
    let note = browser(&users.join("xdg-open"));
    let checkout = project.dir.join("bin");
    let path = format!("bin:.:{}:{}:/usr/bin:/bin", checkout.display(), users.display());
    let mut hm = project.hm(&["report", "--open"]);
    Ended::of(without_display(&mut hm).env("DISPLAY", ":0").env("PATH", &path)).expect(0);
    let (dir, path, _) = noted(&note);
    assert_eq!((&*dir, path), ("/", format!("{}:/usr/bin:/bin", users.display())));
    // A relative path in the user's variable would lead there, too.
    let ended = Ended::of(hm.env("BROWSER", "bin/xdg-open")).expect(0);
    assert!(ended.stderr.contains("because `bin/xdg-open` is not in PATH"), "{}", ended.stderr);
    assert!(!planted.exists());
}

#[test]
fn without_a_browser_the_user_reads_where_the_page_is() {
    let project = Project::with_steps(&[("a", "true", None)]);
    project.run(&[]).expect(0);
    let mut hm = project.hm(&["report", "--open"]);
    let said = |hm: &mut Command| Ended::of(hm).expect(0).stderr;
    let why = |why: &str| {
        let page = page(&project);
        format!(
            "the page is {}\nnote: it was not opened, because {why}: open or copy this file, or set BROWSER\n",
            page.display()
        )
    };
    assert_eq!(said(without_display(&mut hm)), why("there is no display"));
    hm.env("DISPLAY", ":0").env("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22");
    assert_eq!(said(&mut hm), why("this is an SSH session"));
    assert_eq!(said(hm.env("BROWSER", "no-such-browser")), why("`no-such-browser` is not in PATH"));
    let bad = project.store.with_file_name("bad");
    program(&bad, "#!/bin/sh\nexit 4\n");
    let failed = format!("`{}` failed (exit status: 4)", bad.display());
    assert_eq!(said(hm.env("BROWSER", &bad)), why(&failed));
    // The next one of the list.
    let good = project.store.with_file_name("good");
    let note = browser(&good);
    let ended = said(hm.env("BROWSER", format!("{}:{}", bad.display(), good.display())));
    assert!(ended.starts_with("opened ") && noted(&note).2.len() == 1, "{ended}");
    // One that stays open does not keep hm.
    let slow = project.store.with_file_name("slow");
    program(&slow, "#!/bin/sh\nexec sleep 60\n");
    let began = Instant::now();
    assert!(said(hm.env("BROWSER", &slow)).starts_with("opened "));
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
}

#[test]
fn a_page_that_cannot_be_written_does_not_change_a_runs_result() {
    let project = Project::new();
    let runs = project.store.join("runs");
    let block = |code| format!("for run in {}/*; do mkdir $run/report.html; done; exit {code}", runs.display());
    for code in [0, 3] {
        let project_ir = crate::support::project::ir(&[("a", &block(code), None)]);
        project.file(".hm/ci.json", &project_ir);
        let ended = Ended::of(project.hm(&["run", "--runner", "process", "--open"]).env("BROWSER", "true"));
        let ended = ended.expect(i32::from(code > 0));
        assert_eq!(ended.stderr.matches("warning: failed to write ").count(), 1, "{}", ended.stderr);
        assert!(!ended.stderr.contains("opened"), "{}", ended.stderr);
        fs::remove_dir_all(&runs).unwrap();
    }
}
