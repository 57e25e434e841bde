//! What git would ignore: which rules hold in a directory, and what they say of a path.
//!
//! The nearest `.gitignore` with an opinion decides, up to the top of the repository; then its `info/exclude`; then the
//! user's own excludes. A repository within the tree starts anew. Matching itself is the `ignore` crate's.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

/// The rules for what is directly in one directory.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Those of the `.gitignore` files, the nearest one last.
    levels: Vec<Arc<Gitignore>>,
    exclude: Option<Arc<Gitignore>>,
    global: Option<Arc<Gitignore>>,
}

impl Rules {
    /// What the directories above `source` say, which is absolute. Nothing outside of a repository.
    pub(super) fn above(source: &Path) -> Self {
        let (global, error) = GitignoreBuilder::new(source).build_global();
        warn(error);
        let mut rules = Self { levels: Vec::new(), exclude: None, global: kept(global) };
        let above: Vec<&Path> = source.ancestors().skip(1).collect();
        let is_top = |dir: &Path| dir.join(".git").symlink_metadata().is_ok();
        if is_top(source) {
            return rules;
        }
        if let Some(top) = above.iter().position(|dir| is_top(dir)) {
            rules.exclude = exclude_of(above[top]);
            for dir in above[..=top].iter().rev() {
                if dir.join(".gitignore").symlink_metadata().is_ok() {
                    rules.levels.extend(read(dir, &dir.join(".gitignore")));
                }
            }
        }
        rules
    }

    /// The rules within `dir`, which has a `.git` or a `.gitignore` or both.
    pub(super) fn within(&self, dir: &Path, has_git: bool, has_gitignore: bool) -> Self {
        let mut rules = self.clone();
        if has_git {
            rules.levels.clear();
            rules.exclude = exclude_of(dir);
        }
        if has_gitignore {
            rules.levels.extend(read(dir, &dir.join(".gitignore")));
        }
        rules
    }

    /// Whether there is no rule at all.
    pub(super) fn is_empty(&self) -> bool {
        self.levels.is_empty() && self.exclude.is_none() && self.global.is_none()
    }

    /// Whether git would ignore the absolute `path`, none of whose parents is ignored.
    pub(super) fn ignore(&self, path: &Path, is_dir: bool) -> bool {
        let nearest_first = self.levels.iter().rev().chain(&self.exclude).chain(&self.global);
        for rules in nearest_first {
            match rules.matched(path, is_dir) {
                Match::None => {}
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
            }
        }
        false
    }
}

/// The rules of one file, which hold below `dir`.
fn read(dir: &Path, file: &Path) -> Option<Arc<Gitignore>> {
    let mut builder = GitignoreBuilder::new(dir);
    warn(builder.add(file));
    match builder.build() {
        Ok(rules) => kept(rules),
        Err(error) => {
            warn(Some(error));
            None
        }
    }
}

fn kept(rules: Gitignore) -> Option<Arc<Gitignore>> {
    (!rules.is_empty()).then(|| Arc::new(rules))
}

/// The excludes of the repository whose top is `dir`.
fn exclude_of(dir: &Path) -> Option<Arc<Gitignore>> {
    let file = git_dir(dir).join("info/exclude");
    file.is_file().then(|| read(dir, &file)).flatten()
}

/// Where a repository's own files are: worktrees and submodules name another place in a file `.git`.
fn git_dir(top: &Path) -> PathBuf {
    let git = top.join(".git");
    let Ok(text) = fs::read_to_string(&git) else { return git };
    let Some(named) = text.strip_prefix("gitdir:") else { return git };
    let named = top.join(named.trim());
    match fs::read_to_string(named.join("commondir")) {
        Ok(common) => named.join(common.trim()),
        Err(_) => named,
    }
}

fn warn(error: Option<ignore::Error>) {
    if let Some(error) = error {
        tracing::warn!(%error, "a rule of an ignore file is wrong and has no effect");
    }
}
