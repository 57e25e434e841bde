//! The ignore rules of a source: which rules apply in a directory, and whether they exclude a path.
//!
//! The nearest `.ignore` with a matching rule decides; then the nearest `.gitignore`, up to the top of the
//! repository; then the repository's `info/exclude`; then the user's global excludes. A repository within the
//! tree starts anew for git's files. The `ignore` crate does the matching itself. Rule files are regular
//! files of a limited size. Anything else has no effect.

use std::{path::Path, sync::Arc};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

use crate::project::{common_dir, read_plain};

/// The maximum size of a rule file, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// The rule files found in a directory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RuleFiles {
    pub(super) git: bool,
    pub(super) gitignore: bool,
    pub(super) ignore: bool,
}

impl RuleFiles {
    /// Records an entry's name.
    pub(super) fn note(&mut self, name: &[u8]) {
        match name {
            b".git" => self.git = true,
            b".gitignore" => self.gitignore = true,
            b".ignore" => self.ignore = true,
            _ => {}
        }
    }

    pub(super) fn any(self) -> bool {
        self.git || self.gitignore || self.ignore
    }
}

/// The rules for the entries directly in one directory.
#[derive(Debug, Clone)]
pub(super) struct IgnoreRules {
    /// Rules of the `.ignore` files, the nearest one last.
    ignores: Vec<Arc<Gitignore>>,
    /// Rules of the `.gitignore` files, the nearest one last.
    levels: Vec<Arc<Gitignore>>,
    exclude: Option<Arc<Gitignore>>,
    global: Option<Arc<Gitignore>>,
}

impl IgnoreRules {
    /// Returns the rules of the directories above `source`, which is absolute. Returns no rules outside of a
    /// repository.
    pub(super) fn above(source: &Path) -> Self {
        let (global, error) = GitignoreBuilder::new(source).build_global();
        warn(error);
        let mut rules = Self { ignores: Vec::new(), levels: Vec::new(), exclude: None, global: kept(global) };
        let above: Vec<&Path> = source.ancestors().skip(1).collect();
        let is_top = |dir: &Path| dir.join(".git").symlink_metadata().is_ok();
        // Rules of `.ignore` files also apply in nested repositories.
        if let Some(outermost) = above.iter().rposition(|dir| is_top(dir)) {
            let dirs = above[..=outermost].iter().rev();
            rules.ignores.extend(dirs.filter_map(|dir| read(dir, &dir.join(".ignore"))));
        }
        if is_top(source) {
            return rules;
        }
        if let Some(top) = above.iter().position(|dir| is_top(dir)) {
            rules.exclude = exclude_of(above[top]);
            for dir in above[..=top].iter().rev() {
                rules.levels.extend(read(dir, &dir.join(".gitignore")));
            }
        }
        rules
    }

    /// Returns the rules within `dir`, which contains the `found` rule files.
    pub(super) fn within(&self, dir: &Path, found: RuleFiles) -> Self {
        let mut rules = self.clone();
        if found.git {
            rules.levels.clear();
            rules.exclude = exclude_of(dir);
        }
        if found.gitignore {
            rules.levels.extend(read(dir, &dir.join(".gitignore")));
        }
        if found.ignore {
            rules.ignores.extend(read(dir, &dir.join(".ignore")));
        }
        rules
    }

    /// Returns whether there are no rules.
    pub(super) fn is_empty(&self) -> bool {
        self.ignores.is_empty() && self.levels.is_empty() && self.exclude.is_none() && self.global.is_none()
    }

    /// Returns whether the absolute `path` is excluded. None of its parents may be excluded.
    pub(super) fn ignore(&self, path: &Path, is_dir: bool) -> bool {
        let nearest_first =
            self.ignores.iter().rev().chain(self.levels.iter().rev()).chain(&self.exclude).chain(&self.global);
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

/// Returns the rules of one file, which apply below `dir`. Returns `None` if there is no such file.
fn read(dir: &Path, file: &Path) -> Option<Arc<Gitignore>> {
    let text = match read_plain(file, MAX_BYTES) {
        Ok(text) => text?,
        Err(error) => {
            tracing::warn!(%error, "failed to read an ignore file; its rules have no effect");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&text);
    let mut builder = GitignoreBuilder::new(dir);
    for line in text.strip_prefix('\u{feff}').unwrap_or(&text).lines() {
        warn(builder.add_line(Some(file.to_owned()), line).err());
    }
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

/// Returns the excludes of the repository whose top is `dir`.
fn exclude_of(dir: &Path) -> Option<Arc<Gitignore>> {
    match common_dir(dir, &dir.join(".git")) {
        Ok(git) => read(dir, &git.join("info/exclude")),
        Err(error) => {
            tracing::debug!(%error, "no repository, and no excludes of one");
            None
        }
    }
}

fn warn(error: Option<ignore::Error>) {
    if let Some(error) = error {
        tracing::warn!(%error, "invalid rule in an ignore file; it has no effect");
    }
}
