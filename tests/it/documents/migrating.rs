//! The page for users of the published `hm`: what it names exists, and the change that it shows is small.

use std::fs;

use super::root;

fn page() -> String {
    fs::read_to_string(root().join("docs/guide/migrating.md")).unwrap()
}

#[test]
fn named_items_are_public() {
    let api = fs::read_to_string(root().join("tests/public-api/hm_exec.txt")).unwrap();
    let is_part = |char: char| char.is_alphanumeric() || char == '_' || char == ':';
    let is_public = |item: &str| {
        let mut places = api.match_indices(item);
        places.any(|(at, _)| !api[at + item.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_'))
    };
    let page = page();
    let (mut count, mut missing) = (0, Vec::new());
    for (at, _) in page.match_indices("`hm_exec::") {
        let rest = &page[at + 1..];
        let item = &rest[..rest.find(|char| !is_part(char)).unwrap()];
        count += 1;
        if !is_public(item) {
            missing.push(item);
        }
    }
    assert!(count > 30 && missing.is_empty(), "{count}, {missing:?}");
}

#[test]
fn a_runner_moves_in_at_most_20_changed_lines_and_the_page_shows_them() {
    let page = page();
    let shown = page.split_once("```diff\n").unwrap().1.split_once("```").unwrap().0;
    let (mut before, mut after, mut changed) = (String::new(), String::new(), 0);
    for line in shown.lines().filter(|line| !line.starts_with("@@")) {
        let (kind, text) = line.split_at_checked(1).unwrap_or((" ", ""));
        changed += usize::from(kind == "+");
        for (text_of, other) in [(&mut before, "+"), (&mut after, "-")] {
            if kind != other {
                *text_of += text;
                *text_of += "\n";
            }
        }
    }
    assert!((1..=20).contains(&changed), "{changed}");
    for (name, shown) in [("before.rs", before), ("after.rs", after)] {
        let file = fs::read_to_string(root().join("tests/fixtures/migrate").join(name)).unwrap();
        let is_in_order = shown.lines().try_fold(file.as_str(), |rest, line| Some(rest.split_once(line)?.1));
        assert!(is_in_order.is_some(), "{name} differs from what the page shows");
    }
}
