//! What a person sees of a build on a terminal: the screens of `docs/guide/terminal.md`.
//!
//! A block with the comment `<!-- screen: NAME -->` before it is what the terminal shows at the end of the
//! scene NAME, below its first line, which is the command. Numbers, ids, rules and runs of blanks count as
//! equal.

mod live_scenes;
mod scenes;

use std::path::Path;

use crate::{
    documents::{markdown::Document, sessions::normal},
    support::{
        backends::usable,
        project::{Project, wait_for},
        terminal::Terminal,
    },
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

/// Waits until the terminal shows what the guide does: a moment of a run.
#[track_caller]
fn expect_scene(name: &str, terminal: &mut Terminal) {
    let (_, shown) = shown_in_guide(name);
    let wanted: Vec<String> = shown.iter().map(|line| still(line)).collect();
    let mut last = Vec::new();
    let mut is_shown = false;
    wait_for(|| {
        // First, so that all that was shown is looked at.
        let has_ended = terminal.has_ended();
        let screen = terminal.screen();
        let fits = screen.iter().map(|line| still(line)).collect::<Vec<_>>() == wanted;
        // A later moment may be the end, which says nothing of what was missing.
        if fits || last.is_empty() || screen.len() == shown.len() {
            last = screen;
        }
        is_shown = fits;
        fits || has_ended
    });
    assert!(is_shown, "the scene {name} of {PAGE} is not shown, but this is:\n{}", last.join("\n"));
}

/// Returns a line with the same picture of every spinner.
fn still(line: &str) -> String {
    normal(line).chars().map(|c| if ('\u{2800}'..='\u{28ff}').contains(&c) { '⠋' } else { c }).collect()
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
