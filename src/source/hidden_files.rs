//! Patterns of files of a source that steps do not see, in the syntax of `.gitignore` files.

use std::{fmt, sync::Arc};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use serde::{Deserialize, Deserializer, de};

use super::{
    SourceTimes,
    manifest::{Manifest, ManifestEntry},
};

/// The most patterns of a list. Each path of a source is compared with all of them.
const MAX_PATTERNS: usize = 1000;

/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1000;

/// Patterns of files in a source, as in a `.gitignore` file at its top: a later pattern wins, `!` shows
/// again, and what is in a directory that matches is hidden with it.
#[derive(Clone)]
pub struct HiddenFiles {
    patterns: Arc<[String]>,
    matcher: Arc<Gitignore>,
}

/// How a source is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SourceOptions {
    /// Which times of files steps see.
    pub times: SourceTimes,
    /// What is left out besides what ignore files name.
    pub ignore: Option<HiddenFiles>,
}

impl SourceOptions {
    /// Returns options with these times of files.
    #[must_use]
    pub fn with_times(times: SourceTimes) -> Self {
        Self { times, ignore: None }
    }

    /// Leaves files out besides what ignore files name.
    #[must_use]
    pub fn leaving_out(self, ignore: Option<HiddenFiles>) -> Self {
        Self { ignore: ignore.filter(|ignore| !ignore.is_empty()), ..self }
    }
}

/// A list of patterns that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HiddenFilesError {
    /// There are too many.
    #[error("at most {MAX_PATTERNS} patterns are possible, and these are {count}")]
    TooMany {
        /// Their number.
        count: usize,
    },
    /// One is not valid.
    #[error("wrong pattern `{}`: {reason}", .pattern.escape_debug())]
    Invalid {
        /// The beginning of the pattern.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
}

impl HiddenFiles {
    /// Reads a list of patterns.
    ///
    /// # Errors
    /// Returns an error if there are too many, or if one of them is not valid, or could not match anything.
    pub fn new(patterns: Vec<String>) -> Result<Self, HiddenFilesError> {
        if patterns.len() > MAX_PATTERNS {
            return Err(HiddenFilesError::TooMany { count: patterns.len() });
        }
        // Paths of a source are relative.
        let mut builder = GitignoreBuilder::new(".");
        let invalid = |pattern: &str, reason: String| HiddenFilesError::Invalid {
            pattern: pattern.chars().take(60).collect(),
            reason,
        };
        for pattern in &patterns {
            if let Some(reason) = mistake(pattern) {
                return Err(invalid(pattern, reason));
            }
            builder.add_line(None, pattern).map_err(|error| invalid(pattern, error.to_string()))?;
        }
        let first = patterns.first().map(String::as_str).unwrap_or_default();
        let matcher = builder.build().map_err(|error| invalid(first, error.to_string()))?;
        Ok(Self { patterns: patterns.into(), matcher: Arc::new(matcher) })
    }

    /// Returns the patterns.
    #[must_use]
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Returns whether there are no patterns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Returns a digest of the patterns.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"hm-exec hidden files 1\n");
        for pattern in &*self.patterns {
            hasher.update(&(pattern.len() as u64).to_le_bytes()).update(pattern.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Returns whether a path, relative to the source, is hidden itself. None of the directories above it may
    /// be hidden.
    pub(super) fn hides(&self, path: &std::path::Path, is_dir: bool) -> bool {
        self.matcher.matched(path, is_dir).is_ignore()
    }

    /// Returns whether a path, relative to the source, would be hidden if something were there.
    pub(crate) fn may_hide(&self, path: &std::path::Path) -> bool {
        [false, true].iter().any(|is_dir| self.matcher.matched_path_or_any_parents(path, *is_dir).is_ignore())
    }

    /// Returns what is in a source and not hidden, and the paths of what is hidden, without what is in hidden
    /// directories.
    pub(super) fn split<'a>(&self, source: &'a Manifest) -> (Manifest, Vec<ManifestEntry<'a>>) {
        let (mut shown, mut hidden) = (Manifest::default(), Vec::<ManifestEntry<'a>>::new());
        for entry in source.entries() {
            let is_within = hidden.last().is_some_and(|dir| {
                dir.is_dir() && entry.path.strip_prefix(dir.path).is_some_and(|rest| rest.starts_with(b"/"))
            });
            if is_within {
                continue;
            }
            // The source itself is always there.
            if !entry.path.is_empty() && self.hides(entry.as_path(), entry.is_dir()) {
                hidden.push(entry);
            } else {
                shown.push(entry);
            }
        }
        (shown, hidden)
    }
}

/// Returns what is wrong with a pattern that would match nothing, or other files than it says.
fn mistake(pattern: &str) -> Option<String> {
    let text = pattern.strip_prefix('!').unwrap_or(pattern).trim();
    let reason = if pattern.len() > MAX_PATTERN_BYTES {
        format!("it is longer than {MAX_PATTERN_BYTES} bytes")
    } else if text.is_empty() {
        "write the name of a file, such as \"README.md\", or a pattern, such as \"docs/**\"".into()
    } else if pattern.starts_with('#') {
        "it is a comment; write `\\#` for a name that begins with `#`".into()
    } else if pattern.contains(['\n', '\r', '\0']) {
        "write each pattern as an entry of its own".into()
    } else if text.split('/').any(|name| name == "..") {
        "only files of the source can be hidden, so leave `..` out".into()
    } else {
        return None;
    };
    Some(reason)
}

impl fmt::Debug for HiddenFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HiddenFiles").field(&self.patterns).finish()
    }
}

impl PartialEq for HiddenFiles {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

impl Eq for HiddenFiles {}

impl<'de> Deserialize<'de> for HiddenFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::manifest::EntryKind, *};

    fn hidden(patterns: &[&str]) -> Result<HiddenFiles, HiddenFilesError> {
        HiddenFiles::new(patterns.iter().map(|pattern| (*pattern).to_owned()).collect())
    }

    /// Returns a source with these files, whose directories are given by a slash at the end.
    fn source(paths: &[&str]) -> Manifest {
        let mut manifest = Manifest::default();
        for path in paths {
            let kind = match path.is_empty() || path.ends_with('/') {
                true => EntryKind::Directory,
                false => EntryKind::File { size_bytes: 0, hash: &[0; 32] },
            };
            let path = path.trim_end_matches('/').as_bytes();
            manifest.push(ManifestEntry { path, mode: 0o644, mtime: (0, 0), kind });
        }
        manifest
    }

    #[test]
    fn what_is_hidden_is_as_in_a_gitignore_file_at_the_top() {
        const TREE: [&str; 9] =
            ["", "README.md", "docs/", "docs/a.md", "docs/b.txt", "docs-old", "src/", "src/README.md", "src/docs/"];
        for (patterns, expected) in [
            (&["*.md"][..], &["README.md", "docs/a.md", "src/README.md"][..]),
            (&["/*.md"], &["README.md"]),
            (&["docs/"], &["docs", "src/docs"]),
            (&["/docs"], &["docs"]),
            (&["docs/**"], &["docs/a.md", "docs/b.txt"]),
            (&["*.md", "!src/*.md"], &["README.md", "docs/a.md"]),
            (&["docs", "!docs/a.md"], &["docs", "src/docs"]),
            (&["**"], &["README.md", "docs", "docs-old", "src"]),
            (&["/"], &[]),
            (&["nothing"], &[]),
            (&[], &[]),
        ] {
            let source = source(&TREE);
            let (shown, found) = hidden(patterns).unwrap().split(&source);
            let paths: Vec<_> = found.iter().map(|entry| std::str::from_utf8(entry.path).unwrap()).collect();
            assert_eq!(paths, expected, "{patterns:?}");
            assert!(shown.is_well_formed(), "{patterns:?}");
            let is_below = |path: &[u8]| {
                expected.iter().any(|dir| path == dir.as_bytes() || path.starts_with(format!("{dir}/").as_bytes()))
            };
            let visible = source.entries().filter(|entry| !is_below(entry.path)).map(|entry| entry.path);
            assert_eq!(shown.entries().map(|entry| entry.path).collect::<Vec<_>>(), visible.collect::<Vec<_>>());
        }
    }

    #[test]
    fn patterns_that_match_nothing_or_take_too_long_are_refused() {
        let long = "x".repeat(MAX_PATTERN_BYTES + 1);
        for wrong in ["", " ", "!", "#x", "../x", "a/../b", "!..", "..", "a\nb", "a\0", "[z-a]", "{a", &long] {
            let error = hidden(&["docs", wrong]).unwrap_err().to_string();
            assert!(error.starts_with("wrong pattern `") && error.len() < 300, "{error}");
        }
        let many: Vec<String> = (0..10_000).map(|number| format!("*{number}*")).collect();
        assert_eq!(HiddenFiles::new(many.clone()).unwrap_err(), HiddenFilesError::TooMany { count: 10_000 });
        let most = HiddenFiles::new(many.into_iter().take(MAX_PATTERNS).collect()).unwrap();
        assert!(most.hides("x999x".as_ref(), false) && !most.hides("x".as_ref(), false));
    }

    #[test]
    fn each_list_has_a_digest_of_its_own() {
        let lists = [&["a", "b"][..], &["b", "a"], &["ab"], &["a"], &[]];
        let digests: std::collections::BTreeSet<_> = lists.iter().map(|list| hidden(list).unwrap().digest()).collect();
        assert_eq!(digests.len(), lists.len());
    }
}
