//! The sessions that README and the guide show are run, and print what is shown.
//!
//! A console block with output has a comment before it. `<!-- run: NAME -->` runs it in the project NAME;
//! blocks of a document with the same name share one. `<!-- file: NAME PATH -->` before another block writes
//! it to that project. The project `demo` has the demo pipeline of this repository.
//!
//! Shown lines must be among those that were printed, in any order, because steps run side by side. Numbers,
//! ids, rules and runs of blanks count as equal, and `...` stands for any lines.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

use super::{
    markdown::{Block, Document},
    root, shown_to_users,
};
use crate::support::{
    backends::usable,
    programs::hm,
    project::{Ended, Project},
    python::python_with_harmont,
};

#[test]
fn blocks_with_output_are_marked_to_be_run() {
    for document in shown_to_users() {
        for block in document.blocks.iter().filter(|block| block.language == "console") {
            let place = format!("{}, line {}", document.name, block.line);
            assert!(
                block.mark.as_ref().is_some_and(|mark| mark.starts_with("run: ")),
                "{place}: no `<!-- run: ... -->`"
            );
        }
    }
}

#[test]
fn the_readmes_sessions_print_what_is_shown() {
    run_sessions(|name| name == "README.md");
}

#[test]
fn the_guides_sessions_print_what_is_shown() {
    run_sessions(|name| name != "README.md");
}

fn run_sessions(wanted: impl Fn(&str) -> bool) {
    let python = python_with_harmont();
    for document in shown_to_users().iter().filter(|document| wanted(&document.name)) {
        let mut sessions = BTreeMap::<&str, Session>::new();
        for block in &document.blocks {
            let Some((what, value)) = block.mark.as_deref().and_then(|mark| mark.split_once(": ")) else { continue };
            // Those are compared with a terminal: see `terminal`.
            if what == "screen" {
                continue;
            }
            let (name, path) = value.split_once(' ').unwrap_or((value, ""));
            let session = sessions.entry(name).or_insert_with(|| Session::new(name, python.as_deref()));
            match what {
                "file" => session.write(path, block),
                "run" => session.run(document, block),
                other => panic!("{}, line {}: what is `{other}`?", document.name, block.line),
            }
        }
    }
}

/// A project in which the blocks of a document are run.
struct Session {
    project: Project,
    python: Option<String>,
    /// Whether something is missing on this machine, so that its blocks are not run.
    is_skipped: bool,
}

impl Session {
    fn new(name: &str, python: Option<&str>) -> Self {
        let project = Project::new();
        if name == "demo" {
            for dir in [".hm", "examples/tally/src", "examples/tally/test"] {
                copy_files(&root().join(dir), &project.dir.join(dir));
            }
        }
        // The command line calls `hm`, which must be the program of this build.
        let bin = project.dir.with_file_name("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(hm(), bin.join("hm")).unwrap();
        Self { project, python: python.map(String::from), is_skipped: false }
    }

    fn write(&mut self, path: &str, block: &Block) {
        self.is_skipped |= path.ends_with(".py") && self.python.is_none();
        self.project.file(path, &format!("{}\n", block.lines.join("\n")));
    }

    fn run(&mut self, document: &Document, block: &Block) {
        let mut lines = block.lines.iter().peekable();
        while let Some(line) = lines.next() {
            let place = format!("{}, block at line {}: {line}", document.name, block.line);
            let command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("{place}: not a command"));
            let mut shown = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                shown.push(&**line);
            }
            if self.is_skipped {
                continue;
            }
            let ended = self.shell(command);
            // 3: this machine has no sandbox.
            self.is_skipped = !usable("the sandbox", ended.code != Some(3), &ended.stdout);
            if !self.is_skipped {
                check(&place, &shown, &ended.stdout);
            }
        }
    }

    /// Runs a command line. Returns both streams as one.
    fn shell(&self, command: &str) -> Ended {
        let Project { dir, store, .. } = &self.project;
        let path = env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", dir.with_file_name("bin").display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 2>&1 </dev/null\n{command}")]).current_dir(dir).env("PATH", path);
        shell.env("HM_CACHE_DIR", store).env("HM_CACHE_GC", "off").env("XDG_CONFIG_HOME", dir.with_file_name("config"));
        for variable in ["CLICOLOR_FORCE", "FORCE_COLOR", "HM_PYTHON", "VIRTUAL_ENV", "GITHUB_ACTIONS", "GITLAB_CI"] {
            shell.env_remove(variable);
        }
        Ended::of(shell.envs(self.python.iter().map(|python| ("HM_PYTHON", python))))
    }
}

/// Copies the files of a directory, without directories in it.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Fails if a shown line was not printed, or if a printed line is not shown and no `...` stands for it.
#[track_caller]
fn check(place: &str, shown: &[&str], printed: &str) {
    let mut rest: Vec<String> = printed.lines().map(normal).collect();
    for line in shown.iter().filter(|line| **line != "...") {
        let wanted = normal(line);
        let at = rest.iter().position(|line| *line == wanted);
        let at = at.unwrap_or_else(|| panic!("{place}\nis shown with: {line}\nand printed:\n{printed}"));
        rest.remove(at);
    }
    assert!(shown.contains(&"...") || rest.is_empty(), "{place}\nis shown without: {rest:#?}\nand printed:\n{printed}");
}

/// Returns a line with numbers, ids and runs of blanks in a canonical form. Which of the steps that run at
/// once are on the critical path depends on their times.
pub(crate) fn normal(line: &str) -> String {
    if let Some((before, path)) = line.split_once("critical path ") {
        let time = path.rsplit(' ').next().unwrap_or_default();
        return format!("{} critical path {}", normal(before), numbers(time));
    }
    let words = line.split_whitespace().map(|word| {
        let core = word.trim_end_matches([',', ':', ')']);
        // The length of a rule depends on what stands before it.
        if !word.is_empty() && word.chars().all(|c| c == '─') {
            return "─".into();
        }
        let is_id =
            |text: &str| text.len() >= 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-' | b':'));
        match word.split_once('/') {
            _ if is_id(core) => "ID".into(),
            // The step of a run.
            Some((run, step)) if is_id(run) => format!("ID/{}", numbers(step)),
            _ => numbers(word),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns a word with `0` for each number, decimal point included.
fn numbers(word: &str) -> String {
    let mut out = String::new();
    for c in word.chars() {
        match c {
            '0'..='9' if out.ends_with('0') => {}
            '0'..='9' => out.push('0'),
            c => out.push(c),
        }
    }
    // `1.29s`, `12.3s` and `3m05s` are durations alike.
    out.replace("0m0s", "0.0s").replace("0h0m", "0.0s")
}

#[test]
fn lines_that_differ_in_numbers_alone_are_equal() {
    assert_eq!(normal("=> build passed in 12.3s"), normal("=> build  passed in 0.05s"));
    assert_eq!(normal("4.10s · critical path a → b 3.9s"), normal("1.12s · critical path a → c 0.82s"));
    assert_eq!(normal("in 1m05s (3 passed)"), normal("in 9.10s (12 passed)"));
    assert_eq!(normal("run be757652 made it on 2026-11-26 at"), normal("run 01234567-89ab made it on 2027-01-02 at"));
    assert_eq!(normal("hm logs 0a1b2c3d/unit-1"), normal("hm logs 12345678/unit-2"));
    assert_ne!(normal("build passed"), normal("build failed"));
}
