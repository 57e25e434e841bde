//! What a person sees of a build on a terminal: the screens of `docs/guide/terminal.md`.
//!
//! A block with the comment `<!-- screen: NAME -->` before it is what the terminal shows at the end of the
//! scene NAME, below its first line, which is the command. Numbers, ids, rules and runs of blanks count as
//! equal.

mod scenes;

use std::path::Path;

use crate::{
    documents::{markdown::Document, sessions::normal},
    support::{backends::usable, project::Project, terminal::Terminal},
};

const PAGE: &str = "docs/guide/terminal.md";

/// Returns the lines of a scene's block: its command, and what is shown.
fn shown_in_guide(name: &str) -> (String, Vec<String>) {
    let page = Document::read(Path::new(PAGE));
    let mark = format!("screen: {name}");
    let block = page.blocks.iter().find(|block| block.mark.as_deref() == Some(&mark));
    let lines = &block.unwrap_or_else(|| panic!("{PAGE} does not show the scene {name}")).lines;
    let command = lines[0].strip_prefix("$ ").unwrap_or_else(|| panic!("{name}: the first line is no command"));
    (command.to_owned(), lines[1..].to_vec())
}

/// Fails unless the screen shows what the guide does.
#[track_caller]
fn check(name: &str, screen: &[String]) {
    let (_, shown) = shown_in_guide(name);
    let normalized = |lines: &[String]| lines.iter().map(|line| normal(line)).collect::<Vec<_>>();
    assert_eq!(normalized(screen), normalized(&shown), "the scene {name} of {PAGE} is:\n{}", screen.join("\n"));
}

/// Runs the command of a scene to its end, and compares the screen. Returns the screen, or `None` if this
/// machine has no sandbox.
#[track_caller]
fn play(name: &str, project: &Project, code: i32) -> Option<Vec<String>> {
    let mut terminal = open(name, project);
    let (ended, screen) = terminal.end();
    if !usable("the sandbox", ended != Some(3), &screen.join("\n")) {
        return None;
    }
    assert_eq!(ended, Some(code), "{}", screen.join("\n"));
    check(name, &screen);
    Some(screen)
}

/// Starts the command of a scene on a terminal.
fn open(name: &str, project: &Project) -> Terminal {
    let (command, _) = shown_in_guide(name);
    let words: Vec<&str> = command.split(' ').collect();
    assert_eq!(words[0], "hm", "{command}");
    Terminal::open_with(project, &words[1..], |hm| {
        hm.env("NO_COLOR", "1").env_remove("CLICOLOR_FORCE");
    })
}
