//! The documents: their sizes, their links, and the commands that they show.

#[cfg(feature = "cli")]
mod commands;
pub(crate) mod markdown;
mod migrating;
#[cfg(feature = "cli")]
pub(crate) mod sessions;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use markdown::Document;

/// The documents outside of `docs` whose links are checked.
const TOP_LEVEL: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"];

/// The largest sizes, in bytes: a reader gets an overview in a few minutes.
const SIZES: [(&str, u64); 2] = [("README.md", 6_000), ("ARCHITECTURE.md", 8_000)];

/// How code spans begin that name a file or directory of the repository.
const DIRS: [&str; 8] = [".ci/", ".hm/demo", "benches/", "docs/", "fuzz/", "macros/", "src/", "tests/"];

/// The file that lists the pages of the book.
const SUMMARY: &str = "docs/SUMMARY.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the paths of all Markdown files in `docs`, relative to the repository.
fn pages() -> Vec<PathBuf> {
    let (mut pages, mut dirs) = (Vec::new(), vec![PathBuf::from("docs")]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root().join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    assert!(pages.len() > 20, "the documents were not found: {pages:?}");
    pages
}

/// Returns the documents whose commands are checked: README, and the pages of the guide.
#[cfg(feature = "cli")]
fn shown_to_users() -> Vec<Document> {
    let guide = pages().into_iter().filter(|page| page.starts_with("docs/guide"));
    [PathBuf::from("README.md")].into_iter().chain(guide).map(|path| Document::read(&path)).collect()
}

#[test]
fn overviews_are_short() {
    for (name, limit) in SIZES {
        let size = fs::metadata(root().join(name)).unwrap().len();
        assert!(size <= limit, "{name} has {size} bytes, and {limit} are allowed: move details to docs");
    }
}

#[test]
fn the_code_map_names_every_module() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let sources = fs::read_dir(root().join("src")).unwrap().map(|entry| PathBuf::from(entry.unwrap().file_name()));
    let modules = sources.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    let missing: Vec<_> = modules
        .filter(|name| !matches!(&**name, "lib" | "bin"))
        .filter(|name| !map.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not name {missing:?}");
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut broken = Vec::new();
    let top_level = TOP_LEVEL.into_iter().map(PathBuf::from);
    for path in top_level.chain(pages()) {
        for link in Document::read(&path).links() {
            if let Err(why) = check_link(&path, &link) {
                broken.push(format!("{}: {link}: {why}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Checks a link in the document at `path`.
fn check_link(path: &Path, link: &str) -> Result<(), String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = if file.is_empty() { path.to_owned() } else { path.parent().unwrap().join(file) };
    let real = root().join(&target).canonicalize().map_err(|error| error.to_string())?;
    let docs = root().join("docs").canonicalize().unwrap();
    if path.starts_with("docs") && !real.starts_with(&docs) {
        return Err("it leads out of the book".into());
    }
    match anchor {
        Some(anchor) if !Document::read(&target).anchors().contains(anchor) => Err("there is no such heading".into()),
        _ => Ok(()),
    }
}

#[test]
fn paths_of_the_repository_exist() {
    let mut missing = Vec::new();
    let top_level = TOP_LEVEL.into_iter().map(PathBuf::from);
    for path in top_level.chain(pages()) {
        let document = Document::read(&path);
        let is_path = |code: &&str| {
            DIRS.iter().any(|dir| code.starts_with(dir)) && !code.contains([' ', '*', '{', '<']) && !code.contains("::")
        };
        let named = document.code_spans().filter(is_path).filter(|code| !root().join(code).exists());
        missing.extend(named.map(|code| format!("{}: `{code}`", path.display())));
    }
    assert!(missing.is_empty(), "there is no\n{}", missing.join("\n"));
}

#[test]
fn every_page_is_in_the_book() {
    let listed: BTreeSet<PathBuf> =
        Document::read(Path::new(SUMMARY)).links().into_iter().map(|link| Path::new("docs").join(link)).collect();
    let missing: Vec<_> =
        pages().into_iter().filter(|page| page != Path::new(SUMMARY) && !listed.contains(page)).collect();
    assert!(missing.is_empty(), "{SUMMARY} does not list {missing:?}");
}
