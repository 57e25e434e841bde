//! Rules of the source tree that its text shows: which module may import which, how comments read, and sizes.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// The modules of `src/`, from the bottom up. A module imports only modules that stand before it, so there
/// are no circles.
const ORDER: &[&str] = &[
    "model",
    "blocking",
    "sync",
    "backoff",
    "size",
    "tls",
    "hex",
    "format",
    "elf",
    "built_in",
    "locate",
    "build",
    "tree",
    "streams",
    "step",
    "awake",
    "jail",
    "guest",
    "open_files",
    "quote",
    "ir",
    "project",
    "programs",
    "outputs",
    "log_file",
    "store",
    "image",
    "source",
    "userns",
    "network",
    "event",
    "outcome",
    "remote",
    "transfer",
    "saved_cache",
    "cache",
    "runner",
    "plan",
    "remote_cache",
    "schedule",
    "backend",
    "engine",
    "service",
    "worker",
    "conformance",
];

#[test]
fn modules_import_only_modules_below_them() {
    let place = |module: &str| ORDER.iter().position(|name| *name == module);
    let mut wrong = String::new();
    for (path, text) in sources(&["src"]) {
        let parts = module_path(&path);
        let Some(module) = parts.first().filter(|first| !["bin", "lib"].contains(&first.as_str())) else { continue };
        if parts.iter().any(|part| part == "tests") {
            continue;
        }
        let Some(own) = place(module) else {
            let _ = writeln!(wrong, "{}: `{module}` has no place in ORDER", path.display());
            continue;
        };
        for import in imports(code(&text), parts.len()) {
            if place(&import).is_some_and(|other| other > own) {
                let _ = writeln!(wrong, "{}: `{module}` imports `{import}`, which is above it", path.display());
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// Returns the path of the module in a file below `src/`.
fn module_path(path: &Path) -> Vec<String> {
    let below = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    // The crate below the others has modules of its own, which the crate above names as if they were its own.
    let below = below.strip_prefix("step").unwrap_or(&below);
    let mut parts: Vec<String> = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    parts.pop_if(|last| last == "mod");
    parts
}

/// Returns the code without comments and without the tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| line.to_owned() + "\n").collect()
}

/// Returns the names that follow `crate::`, or as many `super::` as lead from a module at `depth` to the
/// crate.
fn imports(code: String, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for prefix in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&prefix) {
            if code[..at].ends_with(|before: char| before.is_alphanumeric() || "_:".contains(before)) {
                continue;
            }
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => found.extend(heads(list)),
                None => found.extend(heads(rest).into_iter().take(1)),
            }
        }
    }
    found
}

/// Returns the first name of each path in a list of paths that ends with `}`.
fn heads(list: &str) -> Vec<String> {
    let (mut names, mut depth, mut name, mut is_head) = (Vec::new(), 0_u32, String::new(), true);
    for char in list.chars() {
        match char {
            _ if is_head && depth == 0 && (char.is_alphanumeric() || char == '_') => name.push(char),
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(std::mem::take(&mut name));
                is_head = true;
            }
            _ if char.is_whitespace() && name.is_empty() => {}
            _ => is_head = false,
        }
        if !is_head && depth == 0 && char == ';' {
            break;
        }
    }
    names.push(name);
    names.retain(|name| name != "super");
    names
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::{a, b::{c, d}, e::f as g};\nuse super::super::h::i; crate::j::k(super::l); use super::super::{m::n, o};";
    assert_eq!(imports(code.to_owned(), 2), ["a", "b", "e", "j", "h", "m", "o"]);
    assert!(imports("a_crate::b; super::super::super::c".to_owned(), 2).is_empty());
}

/// The most columns of a line of comment.
const COLUMNS: usize = 110;

#[test]
fn comments_are_plain_and_fit() {
    let mut wrong = String::new();
    for (path, text) in sources(&["src", "tests", "macros", "benches", "examples", "fuzz"]) {
        let mut is_diagram = false;
        let mut heading = "";
        for (number, line) in (1..).zip(text.lines()) {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                heading = "";
                continue;
            };
            let comment = comment.trim_start_matches(['/', '!']).trim();
            is_diagram ^= comment.starts_with("```");
            if is_diagram {
                continue;
            }
            let mut mistake = mistake(comment);
            if line.chars().count() > COLUMNS && !line.contains("://") {
                mistake = Some("is too long");
            }
            if heading == "# Errors" && comment.starts_with("Where") {
                mistake = Some("says where, not if");
            }
            if let Some(mistake) = mistake {
                let _ = writeln!(wrong, "{}:{number} {mistake}: {comment}", path.display());
            }
            heading = if comment.is_empty() { heading } else { comment };
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// Returns what makes a comment hard to read.
fn mistake(comment: &str) -> Option<&'static str> {
    let words: String = comment.split('`').step_by(2).collect::<Vec<_>>().join(" ").to_lowercase();
    let has =
        |searched: &[&str]| words.split(|char: char| !char.is_alphanumeric()).any(|word| searched.contains(&word));
    if has(&["somebody", "nobody", "whoever"]) {
        Some("does not name who acts")
    } else if comment.starts_with("Of ") || comment.contains(". Of ") {
        Some("starts a sentence with \"Of\"")
    } else if words.contains("none of ours") {
        Some("is no plain English")
    } else {
        None
    }
}

#[test]
fn files_over_500_lines_give_a_reason() {
    let is_long = |text: &str| text.lines().count() > 500 && !text.contains("//! Over 500 lines because");
    let long: Vec<_> = sources(&["src", "macros", "tests", "benches", "examples"])
        .into_iter()
        .filter_map(|(path, text)| is_long(&text).then_some(path))
        .collect();
    assert_eq!(long, [] as [PathBuf; 0]);
}

#[test]
fn the_store_has_its_methods_in_few_files() {
    let with = |text: &String| text.lines().any(|line| line == "impl Store {");
    let count = sources(&["src"]).into_iter().filter(|(_, text)| with(text)).count();
    assert!(count <= 8, "`impl Store` is in {count} files");
}

#[test]
fn few_items_depend_on_features() {
    let attributes = |text: String| {
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let starts = ["#[cfg(", "#![cfg(", "#[cfg_attr(", "#![cfg_attr("];
        let all = starts.iter().flat_map(|start| code.match_indices(start).map(|(at, it)| at + it.len()));
        all.filter(|at| !code[*at..].starts_with("test)")).count()
    };
    let count: usize = sources(&["src", "macros/src"]).into_iter().map(|(_, text)| attributes(text)).sum();
    assert!(count <= 100, "{count} attributes `#[cfg]` besides `cfg(test)`");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all Rust files in these directories, with their text.
fn sources(directories: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = directories.iter().map(|directory| root().join(directory)).collect();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}
