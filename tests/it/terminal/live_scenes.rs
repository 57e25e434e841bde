//! The scenes that show what a run waits for, at a moment that the test holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use serde_json::json;

use super::{
    check, expect_scene,
    scenes::{check_last_lines, paste},
};
use crate::support::{
    backends::usable,
    filesystem::Filesystem,
    gated_link::GatedLink,
    images::{Image, Layer, has_busybox},
    project::{Project, ir},
    qemu::Bench,
    registry::Registry,
    terminal::{Terminal, size},
};

/// Runs `hm ARGS` without colours on a terminal of 24 rows and 80 columns.
fn open(project: &Project, args: &[&str]) -> Terminal {
    Terminal::open_with(project, args, |hm| {
        hm.env("NO_COLOR", "1");
    })
}

/// Returns the path of a file that steps of runner `process` wait for, and the argument that names it.
fn gate(project: &Project) -> (PathBuf, String) {
    let path = project.store.with_file_name("go");
    let argument = format!("GO={}", path.display());
    (path, argument)
}

#[track_caller]
fn expect_end(terminal: &mut Terminal, code: i32) -> Vec<String> {
    let (ended, screen) = terminal.end();
    assert_eq!(ended, Some(code), "{screen:#?}");
    screen
}

#[test]
fn thirty_steps_at_ten_rows_and_then_at_forty_columns() {
    let command = "echo compiling a crate with a name that takes more columns than a narrow terminal has; \
                   until [ -e $GO ]; do sleep 0.05; done";
    let keys: Vec<String> = (10..40).map(|number| format!("crate-{number}")).collect();
    let steps: Vec<_> = keys.iter().map(|key| (key.as_str(), command, None)).collect();
    let project = Project::with_steps(&steps);
    let (go, argument) = gate(&project);
    let args = ["run", "--runner", "process", "-j", "30", "-e", &argument];
    let mut terminal = Terminal::open_sized(&project, &args, size(10, 120), |hm| {
        hm.env("NO_COLOR", "1");
    });
    expect_scene("thirty steps", &mut terminal);
    terminal.resize(10, 40);
    expect_scene("a narrow terminal", &mut terminal);
    fs::write(go, "").unwrap();
    let screen = expect_end(&mut terminal, 0);
    assert!(screen.iter().all(|row| row.chars().count() <= 40), "{screen:#?}");
    // The line takes two rows here.
    assert!(screen.iter().any(|row| row.starts_with("passed · 30 steps · ")), "{screen:#?}");
}

/// Returns an image that takes some megabytes however it is compressed.
fn large_image() -> Image {
    let mut image = Image::shell();
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    });
    let noise: Vec<u8> = noise.take(8_000_000).collect();
    image.layers.push(Layer::new().file("data/noise", 0o644, noise).bytes());
    image
}

#[test]
fn a_pull() {
    if !has_busybox() {
        return;
    }
    let Some(registry) = Registry::start(false) else { return };
    registry.push(&large_image(), "tools:1", None);
    let link = GatedLink::start(&registry.host, 4_000_000);
    let project = Project::new();
    let image = format!("{}/tools:1", link.host);
    let step = json!({ "key": "deps", "cmd": "true", "image": image });
    let graph = json!({
        "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [],
    });
    project.file(".hm/ci.json", &json!({ "version": "0", "graph": graph }).to_string());
    let mut terminal = open(&project, &["run", "--runner", "sandbox"]);
    if terminal.ends_before(|row| row.contains("pulling an image")) {
        let (code, screen) = terminal.end();
        assert!(!usable("the sandbox", code != Some(3), &screen.join("\n")), "no pull: {screen:#?}");
        return;
    }
    // The download stands still, so its rate falls to less than a tenth of a megabyte at some time.
    expect_scene("a pull", &mut terminal);
    link.open();
    let screen = expect_end(&mut terminal, 0);
    assert!(screen[0].starts_with("✓ deps passed"), "{screen:#?}");
}

#[test]
fn a_boot() {
    // Machines can be made here.
    if Bench::new().is_none() {
        return;
    }
    let project = Project::with_steps(&[("build", "uname -s", None)]);
    let mut terminal = open(&project, &["run", "--runner", "vm"]);
    expect_scene("a boot", &mut terminal);
    let screen = expect_end(&mut terminal, 0);
    assert!(screen[0].starts_with("✓ build passed"), "{screen:#?}");
}

#[test]
fn a_source_of_fifty_thousand_files() {
    // On a filesystem in memory, if there is one.
    let memory = Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("hm-test").tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap();
    for dir in 0..100 {
        let dir = made.path().join(format!("dir-{dir}"));
        fs::create_dir(&dir).unwrap();
        (0..500).for_each(|file| fs::write(dir.join(format!("file-{file}")), "x").unwrap());
    }
    let project = Project::with_steps(&[("count", "find . -type f | wc -l", None)]);
    let source = made.path().display().to_string();
    let pipeline = project.dir.join(".hm/ci.json").display().to_string();
    let store = made.path().join("store");
    let mut terminal =
        Terminal::open_with(&project, &["run", "--runner", "process", "-d", &source, "-f", &pipeline], |hm| {
            hm.env("NO_COLOR", "1").env("HM_CACHE_DIR", &store);
        });
    expect_scene("a large source", &mut terminal);
    // The rest takes long without showing anything new.
    terminal.signal(Signal::INT);
    let screen = expect_end(&mut terminal, 130);
    assert!(screen.last().unwrap().starts_with("── cancelled: 1 cancelled"), "{screen:#?}");
}

#[test]
fn a_retry() {
    let project = Project::new();
    let command = "mkdir $GO-tried 2>/dev/null || { until [ -e $GO ]; do sleep 0.05; done; exit 0; }; \
                   echo connection reset by peer >&2; exit 7";
    let step = json!({ "key": "e2e", "label": "End to end", "cmd": command, "runner_args": { "retries": 3 } });
    let graph = json!({
        "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [],
    });
    let ir = json!({ "version": "0", "default_image": "host", "graph": graph });
    project.file(".hm/ci.json", &ir.to_string());
    let (go, argument) = gate(&project);
    let mut terminal = open(&project, &["run", "--runner", "process", "-e", &argument]);
    expect_scene("a retry", &mut terminal);
    fs::write(go, "").unwrap();
    expect_end(&mut terminal, 0);
}

#[test]
fn a_service() {
    let project = Project::new();
    let service = json!({ "image": "host", "cmd": "exec sleep 600", "ready": "sleep 5" });
    let step = json!({ "key": "test", "cmd": "true", "runner_args": { "services": { "db": service } } });
    let graph = json!({
        "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [],
    });
    let ir = json!({ "version": "0", "default_image": "host", "graph": graph });
    project.file(".hm/ci.json", &ir.to_string());
    let mut terminal = open(&project, &["run"]);
    if terminal.ends_before(|row| row.contains("its services")) {
        let (code, screen) = terminal.end();
        assert!(!usable("the sandbox", code != Some(3), &screen.join("\n")), "no service: {screen:#?}");
        return;
    }
    expect_scene("a service", &mut terminal);
    let screen = expect_end(&mut terminal, 0);
    assert!(screen[0].starts_with("✓ test passed"), "{screen:#?}");
}

#[test]
fn a_full_disk() {
    let Some(disk) = Filesystem::tmpfs(12) else { return };
    let mut project = Project::with_steps(&[("noisy", "echo archiving >&2; seq 9999999", None)]);
    // The path is part of the screen.
    project.store = Path::new("/tmp").join(format!("hm-full-{}", std::process::id()));
    std::os::unix::fs::symlink(disk.dir(), &project.store).unwrap();
    let _link = Removed(project.store.clone());
    let mut terminal = open(&project, &["run", "--runner", "process"]);
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(3), "{screen:#?}");
    // What is left depends on the last write.
    let shown: Vec<String> = screen.iter().map(|row| row.replace("(0 B free", "(4.0 KiB free")).collect();
    check("a full disk", &shown);
    let wanted = ["STOPPED  noisy", "exit 130", "$ echo archiving", "stderr │ archiving"];
    check_last_lines(&project, &screen, &wanted, 3);
    let hint = screen.last().unwrap();
    let command = hint.split('`').nth(1).unwrap_or_else(|| panic!("no command in {hint:?}"));
    paste(&project, command).expect(0);
    project.file(".hm/ci.json", &ir(&[("small", "true", None)]));
    project.run(&[]).expect(0);
}

/// Removes a link when it is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}
