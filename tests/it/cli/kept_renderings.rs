//! Rendered pipelines that are found by what was read: each rendering prints another token, so that one that
//! was found is told from one that ran.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hm_exec::cache::check_traces;
use rusqlite::Connection;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{
    backends::usable,
    filesystem::Filesystem,
    hostile_project::{Hostile, python},
    project::{Ended, PATIENCE},
};

/// What may depend on everything that the tests edit.
const SCRIPT: &str = r"
import _parts
print('token', os.urandom(8).hex())
print('sees', open('data.txt').read(), sorted(os.listdir('things')), os.path.exists('flag'), os.readlink('link'),
      oct(os.stat('data.txt').st_mode), _parts.NAME, os.environ.get('GITHUB_SHA'), open('link').read())
harmont.pipeline('ci')
";

struct Auto {
    hostile: Hostile,
}

impl Auto {
    /// Makes a project with mode `auto`. Prints a note and returns `None` if nothing can be traced here.
    fn new() -> Option<Self> {
        let hostile = Hostile::new()?;
        let traces = check_traces();
        if !usable("traces", traces.is_ok(), &traces.err().unwrap_or_default()) {
            return None;
        }
        let it = Self { hostile };
        it.mode("auto");
        let wrapper = it.wrapper();
        let marks = it.hostile.around.path().join("marks");
        // Leaves a directory for each start outside of the sandbox.
        let text = format!("#!/bin/sh\nmkdir {}/$$ 2>/dev/null\nexec {} \"$@\"\n", marks.display(), python().display());
        fs::write(&wrapper, text).unwrap();
        fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let project = &it.hostile.project;
        for (path, text) in [
            (".hm/_parts.py", "NAME = 'parts'\n"),
            ("data.txt", "data"),
            ("things/a", ""),
            ("x", "x"),
            ("unread/file", ""),
        ] {
            project.file(path, text);
        }
        symlink("data.txt", project.dir.join("link")).unwrap();
        it.hostile.script(SCRIPT);
        Some(it)
    }

    fn mode(&self, mode: &str) {
        let config = self.hostile.around.path().join("home/.config/hm/hm.toml");
        fs::write(config, format!("[cache]\nmode = \"{mode}\"\n")).unwrap();
    }

    fn wrapper(&self) -> std::path::PathBuf {
        self.hostile.around.path().join("python")
    }

    fn hm(&self, args: &[&str]) -> Command {
        let mut hm = self.hostile.hm(args);
        hm.env("HM_PYTHON", self.wrapper()).env_remove("GITHUB_SHA");
        hm
    }

    /// Returns how often the user's interpreter was asked for its paths.
    fn asked(&self) -> usize {
        self.hostile.marks().len()
    }

    /// Renders, and returns what the rendering printed.
    #[track_caller]
    fn render(&self) -> String {
        printed(&mut self.hm(&["render"]))
    }

    /// Renders until everything is found, which is the case once its files are two seconds old. Returns what
    /// the rendering printed.
    #[track_caller]
    fn settled(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.render();
        loop {
            let asked = self.asked();
            let next = self.render();
            if next == last && self.asked() == asked {
                return next;
            }
            assert!(Instant::now() < deadline, "never found: {next}");
            last = next;
        }
    }

    /// Renders for longer than it takes until a rendering can be kept, and checks that each one runs.
    #[track_caller]
    fn never_found(&self, args: &[&str], code: i32) {
        let start = Instant::now();
        let mut last = String::new();
        while start.elapsed() < Duration::from_secs(4) {
            let next = Ended::of(&mut self.hm(args)).expect(code).stderr;
            assert!(next.contains("token ") && next != last, "{next}");
            last = next;
        }
    }

    fn records(&self) -> i64 {
        let index = Connection::open(self.hostile.project.store.join("index.db")).unwrap();
        index.query_row("SELECT count(*) FROM traces", [], |row| row.get(0)).unwrap()
    }
}

/// Returns what a rendering printed, with its token.
#[track_caller]
fn printed(hm: &mut Command) -> String {
    let ended = Ended::of(hm).expect(0);
    assert!(ended.stdout.contains("\"cmd\""), "{}", ended.stdout);
    assert!(ended.stderr.contains("token "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    ended.stderr
}

#[test]
fn an_unchanged_project_starts_no_python_and_prints_the_same() {
    let Some(auto) = Auto::new() else { return };
    let kept = auto.settled();
    let asked = auto.asked();
    assert!(asked > 0);
    for args in [&["render"][..], &["plan"], &["ls"], &["run", "--dry-run"]] {
        let ended = Ended::of(&mut auto.hm(args)).expect(0);
        assert!(ended.stderr.contains(&kept), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(auto.asked(), asked, "the interpreter was not asked");
    assert_eq!(auto.records(), 2, "of the interpreter and of the rendering");
}

#[test]
fn each_edit_renders_again_and_undone_it_is_found() {
    let Some(auto) = Auto::new() else { return };
    let dir = &auto.hostile.project.dir;
    fs::set_permissions(dir.join("data.txt"), fs::Permissions::from_mode(0o644)).unwrap();
    let (kept, asked) = (auto.settled(), auto.asked());
    let at = |path: &str| dir.join(path);
    // With the time that it had: times of files are compared by their order.
    let write = |path: &str, text: &str| {
        let time = fs::metadata(at(path)).unwrap().modified().unwrap();
        fs::write(at(path), text).unwrap();
        fs::File::options().write(true).open(at(path)).unwrap().set_modified(time).unwrap();
    };
    let new = |path: &str, text: &str| fs::write(at(path), text).unwrap();
    let remove = |path: &str| fs::remove_file(at(path)).unwrap();
    let mode = |mode| fs::set_permissions(at("data.txt"), fs::Permissions::from_mode(mode)).unwrap();
    let relink = |target: &str| {
        remove("link");
        symlink(target, at("link")).unwrap();
    };
    let package = || {
        fs::create_dir(at("_parts")).unwrap();
        new("_parts/__init__.py", "NAME = 'package'\n");
    };
    let script = fs::read_to_string(at(".hm/ci.py")).unwrap();
    let parts = fs::read_to_string(at(".hm/_parts.py")).unwrap();
    let pycache = at(".hm/__pycache__");
    type Edit<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());
    let edits: [Edit<'_>; 13] = [
        ("the file", &|| write(".hm/ci.py", &format!("{script}#")), &|| write(".hm/ci.py", &script)),
        ("an import", &|| write(".hm/ci.py", &format!("import json\n{script}")), &|| write(".hm/ci.py", &script)),
        ("an imported file", &|| write(".hm/_parts.py", "NAME = 'other'\n"), &|| write(".hm/_parts.py", &parts)),
        ("an import shadowed by a file", &|| new("_parts.py", "NAME = 'new'\n"), &|| remove("_parts.py")),
        ("an import shadowed by a package", &package, &|| fs::remove_dir_all(at("_parts")).unwrap()),
        ("a __pycache__", &|| fs::create_dir(&pycache).unwrap(), &|| fs::remove_dir(&pycache).unwrap()),
        ("content", &|| write("data.txt", "more data"), &|| write("data.txt", "data")),
        ("content of the same size", &|| write("data.txt", "atad"), &|| write("data.txt", "data")),
        ("the mode", &|| mode(0o600), &|| mode(0o644)),
        ("a link", &|| relink("x"), &|| relink("data.txt")),
        ("a listed name", &|| new("things/b", ""), &|| remove("things/b")),
        ("what was absent", &|| new("flag", ""), &|| remove("flag")),
        ("another pipeline", &|| new(".hm/z.py", "print('token z')"), &|| remove(".hm/z.py")),
    ];
    for (what, edit, undo) in edits {
        edit();
        assert_ne!(auto.render(), kept, "{what}");
        undo();
        assert_eq!(auto.render(), kept, "{what}, undone");
    }
    for (name, value) in [("GITHUB_SHA", "abc"), ("NO_COLOR", "1"), ("PYTHONHASHSEED", "1")] {
        assert_ne!(printed(auto.hm(&["render"]).env(name, value)), kept, "{name}");
    }
    // What is not read does not count.
    new("unread/file", "edited");
    new("unread/other", "");
    assert_eq!(auto.render(), kept);
    assert_eq!(auto.asked(), asked + 1, "again with PYTHONHASHSEED alone");
    fs::write(auto.wrapper(), fs::read_to_string(auto.wrapper()).unwrap() + "\n").unwrap();
    assert_eq!((auto.render(), auto.asked()), (kept, asked + 2), "the interpreter was replaced");
}

#[test]
fn what_cannot_be_traced_or_has_failed_is_never_found() {
    let Some(auto) = Auto::new() else { return };
    let fifo = auto.hostile.project.dir.join("fifo");
    mknodat(CWD, fifo, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    for (script, code) in [
        ("open('/proc/uptime').read()", 0),
        ("os.close(os.open('fifo', os.O_RDONLY | os.O_NONBLOCK))", 0),
        ("print('x' * 70_000)", 0),
        ("raise ValueError('no')", 2),
    ] {
        auto.hostile.script(&format!("print('token', os.urandom(8).hex())\n{script}\nharmont.pipeline('ci')"));
        auto.never_found(&["render"], code);
    }
    assert!(auto.records() <= 1, "that of the interpreter");
}

#[test]
fn nothing_is_kept_or_found_by_default() {
    let Some(auto) = Auto::new() else { return };
    auto.mode("declared");
    auto.never_found(&["render"], 0);
    assert!(!auto.hostile.project.store.join("index.db").exists(), "no store is opened");
    auto.mode("auto");
    auto.settled();
    auto.mode("off");
    auto.never_found(&["render"], 0);
}

#[test]
fn a_rendering_is_renewed_when_that_is_asked_for() {
    let Some(auto) = Auto::new() else { return };
    let mut last = auto.settled();
    for args in [&["render", "--no-cache"][..], &["render", "--refresh"], &["run", "--no-cache", "--runner", "process"]]
    {
        let asked = auto.asked();
        let ended = Ended::of(&mut auto.hm(args)).expect(0);
        assert!(!ended.stderr.contains(&last), "{args:?}: {}", ended.stderr);
        assert_eq!(auto.asked(), asked + 1, "{args:?}");
        let next = auto.render();
        assert!(ended.stderr.contains(&next), "{args:?}: it is kept");
        last = next;
    }
}

#[test]
fn consent_is_asked_of_what_was_found() {
    let Some(auto) = Auto::new() else { return };
    auto.hostile.script(
        "print('token', os.urandom(8).hex())\nharmont.pipeline('ci')\n\
         harmont.pipelines[0]['definition']['graph']['nodes'][0]['step']['runner'] = 'process'",
    );
    let kept = auto.settled();
    for _ in 0..2 {
        let ended = Ended::of(&mut auto.hm(&["run"])).expect(2);
        assert!(ended.stderr.contains("hm trust"), "{}", ended.stderr);
        assert!(kept.lines().all(|line| !line.starts_with("token") || ended.stderr.contains(line)), "{}", ended.stderr);
    }
    Ended::of(&mut auto.hm(&["run", "--trust"])).expect(0);
}

#[test]
fn a_damaged_record_is_none() {
    let Some(auto) = Auto::new() else { return };
    let kept = auto.settled();
    let index = Connection::open(auto.hostile.project.store.join("index.db")).unwrap();
    assert_eq!(index.execute("UPDATE traces SET record = substr(record, 1, 100)", []).unwrap(), 2);
    let again = auto.render();
    assert_ne!(again, kept);
    assert_eq!(auto.render(), again);
}

#[test]
fn processes_at_once_and_killed_ones_leave_what_can_be_used() {
    let Some(auto) = Auto::new() else { return };
    auto.settled();
    for round in 0..12 {
        let mut hm = auto.hm(&["render", "--no-cache"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // At any moment of it.
        thread::sleep(Duration::from_millis(40 * round));
        hm.kill().unwrap();
        hm.wait().unwrap();
    }
    let all: Vec<_> = (0..4)
        .map(|_| auto.hm(&["render", "--no-cache"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    let printed: Vec<String> =
        all.into_iter().map(|hm| Ended::from(hm.wait_with_output().unwrap()).expect(0).stderr).collect();
    let found = auto.render();
    assert!(printed.contains(&found), "{found}: {printed:?}");
    assert_eq!(auto.render(), found);
}

#[test]
fn on_a_full_disk_everything_is_rendered_as_without_this() {
    let Some(auto) = Auto::new() else { return };
    let Some(disk) = Filesystem::tmpfs(8) else { return };
    let store = disk.dir().join("store");
    let render = || Ended::of(auto.hm(&["render"]).env("HM_CACHE_DIR", &store)).expect(0);
    render();
    disk.fill(0);
    let start = Instant::now();
    let mut all = BTreeSet::new();
    while start.elapsed() < Duration::from_secs(4) {
        let ended = render();
        assert!(ended.stdout.contains("\"cmd\"") && ended.stderr.contains("token "), "{}", ended.stderr);
        assert!(!ended.stderr.contains("WARN"), "{}", ended.stderr);
        assert!(all.insert(ended.stderr), "it was kept on a full disk");
    }
    disk.free();
    let kept = render().stderr;
    assert_eq!(render().stderr, kept);
}

/// Renders, and calls `swap` when the rendering has read the file `v`. Returns what it printed.
fn render_and_swap(auto: &Auto, swap: impl FnOnce()) -> String {
    let mut hm = auto.hm(&["render"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(hm.stderr.take().unwrap()).lines().map(Result::unwrap);
    let read = lines.by_ref().find(|line| line.contains("token ")).unwrap();
    swap();
    lines.for_each(drop);
    assert!(hm.wait().unwrap().success());
    read
}

#[test]
fn a_directory_that_is_replaced_while_it_renders_is_read_again() {
    let Some(auto) = Auto::new() else { return };
    let script = "import sys, time\nprint('token', open('sub/gen/v').read(), file=sys.stderr, flush=True)\n\
                  time.sleep(1)\nharmont.pipeline('ci')\n";
    auto.hostile.script(script);
    let project = &auto.hostile.project;
    let dir = &project.dir;
    for (round, old) in ["old", "new"].into_iter().enumerate() {
        let new = format!("{}{round}", if old == "old" { "new" } else { "newer" });
        // In the project, with a later change of the content, or the project itself.
        let swap: Box<dyn FnOnce()> = match old {
            "old" => {
                project.file("sub/gen/v", old);
                project.file("sub/gen.new/v", &new);
                Box::new(|| {
                    fs::rename(dir.join("sub/gen"), dir.join("sub/gen.old")).unwrap();
                    fs::rename(dir.join("sub/gen.new"), dir.join("sub/gen")).unwrap();
                    project.file("sub/gen/stamp", "");
                    project.file("sub/stamp", "");
                })
            }
            _ => {
                let copied = Command::new("cp").arg("-a").arg(dir).arg(dir.with_extension("new")).status().unwrap();
                assert!(copied.success());
                fs::write(dir.with_extension("new").join("sub/gen/v"), &new).unwrap();
                Box::new(|| {
                    fs::rename(dir, dir.with_extension("old")).unwrap();
                    fs::rename(dir.with_extension("new"), dir).unwrap();
                })
            }
        };
        // All files are older than what counts as just changed.
        thread::sleep(Duration::from_millis(2500));
        render_and_swap(&auto, swap);
        for _ in 0..2 {
            let printed = auto.render();
            assert!(printed.contains(&format!("token {new}")), "round {round}: {printed}");
        }
    }
}
