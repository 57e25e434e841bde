//! Patterns of paths: which entries of a tree match, and in which directories something may.
//!
//! A set of patterns is matched on the way down. A directory has, for each pattern, the set of the parts that
//! its entries are compared with, so each entry costs the same however deep it is.

use glob::{MatchOptions, Pattern};

/// The most parts of a pattern: the parts of a set are bits of a word.
const MOST_PARTS: usize = 62;

/// The most patterns of a step.
pub const MOST_PATTERNS: usize = 64;

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// Patterns of paths.
#[derive(Debug, Clone)]
pub struct PathPatterns(Vec<Vec<Part>>);

#[derive(Debug, Clone)]
enum Part {
    /// `**`: any number of directories.
    Any,
    Name(Pattern),
}

/// A directory on the way down: for each pattern, the parts that its entries are compared with, as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathState(Vec<u64>);

/// The result for an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathMatch {
    /// Whether the entry itself matches.
    pub is_match: bool,
    /// The state of the entry if it is a directory in which something may match.
    pub below: Option<PathState>,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// It has no names.
    #[error("a pattern of files, such as \"reports/**/*.xml\"")]
    Empty,
    /// It leads upwards.
    #[error("a pattern without `..`")]
    Up,
    /// It has too many parts.
    #[error("a pattern with at most 62 names")]
    TooLong,
    /// A name has unbalanced brackets, or stars that stand for nothing.
    #[error("a pattern of `*`, `?`, `[a-z]` and `**`")]
    Malformed,
}

impl PathPatterns {
    /// Parses patterns. Slashes at their start and end, and parts `.`, do not matter.
    ///
    /// # Errors
    /// Returns the first pattern that is wrong, with the reason.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, (&'a str, PatternError)> {
        let all = patterns.into_iter().map(|pattern| parts(pattern).map_err(|error| (pattern, error)));
        all.collect::<Result<_, _>>().map(Self)
    }

    /// Returns the state of the top directory.
    #[must_use]
    pub fn top(&self) -> PathState {
        PathState(self.0.iter().map(|parts| closure(parts, 1)).collect())
    }

    /// Matches an entry of a directory.
    #[must_use]
    pub fn entry(&self, state: &PathState, name: &str) -> PathMatch {
        let mut is_match = false;
        let mut below = Vec::with_capacity(self.0.len());
        for (parts, state) in self.0.iter().zip(&state.0) {
            let mut next = 0;
            for (at, part) in parts.iter().enumerate().filter(|(at, _)| state >> at & 1 == 1) {
                match part {
                    Part::Any => next |= 1 << at,
                    Part::Name(pattern) if pattern.matches_with(name, OPTIONS) => next |= 1 << (at + 1),
                    Part::Name(_) => {}
                }
            }
            let next = closure(parts, next);
            is_match |= next >> parts.len() & 1 == 1;
            below.push(next & !(1 << parts.len()));
        }
        let leads_on = below.iter().any(|state| *state != 0);
        PathMatch { is_match, below: leads_on.then_some(PathState(below)) }
    }
}

impl PathPatterns {
    /// Returns whether a path, or a directory on the way to it, matches.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let mut state = self.top();
        for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
            match self.entry(&state, name) {
                PathMatch { is_match: true, .. } => return true,
                PathMatch { below: Some(below), .. } => state = below,
                PathMatch { below: None, .. } => return false,
            }
        }
        false
    }
}

/// Returns the path that everything which matches `pattern` is below, or is itself: its first names, up to
/// one with a wildcard.
#[must_use]
pub fn literal_path(pattern: &str) -> String {
    let names = pattern.split('/').filter(|name| !matches!(*name, "" | "."));
    let literal = names.take_while(|name| !name.contains(['*', '?', '[']));
    literal.collect::<Vec<_>>().join("/")
}

/// Adds the parts behind each `**`, which may stand for nothing.
fn closure(parts: &[Part], mut state: u64) -> u64 {
    for (at, part) in parts.iter().enumerate() {
        if matches!(part, Part::Any) && state >> at & 1 == 1 {
            state |= 1 << (at + 1);
        }
    }
    state
}

fn parts(pattern: &str) -> Result<Vec<Part>, PatternError> {
    let mut parts = Vec::new();
    for name in pattern.split('/').filter(|name| !matches!(*name, "" | ".")) {
        match name {
            ".." => return Err(PatternError::Up),
            "**" => parts.push(Part::Any),
            name if name.contains("**") || name.contains('\0') => return Err(PatternError::Malformed),
            name => parts.push(Part::Name(Pattern::new(name).map_err(|_| PatternError::Malformed)?)),
        }
    }
    match parts.len() {
        0 => Err(PatternError::Empty),
        1..=MOST_PARTS => Ok(parts),
        _ => Err(PatternError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns whether a path matches, level by level, and whether the way to it was open.
    fn matches(patterns: &PathPatterns, path: &str) -> bool {
        let mut state = Some(patterns.top());
        let mut is_match = false;
        for name in path.split('/') {
            let Some(here) = state else { return false };
            let found = patterns.entry(&here, name);
            (is_match, state) = (found.is_match, found.below);
        }
        is_match
    }

    /// The same by definition.
    fn model(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((&"**", rest)), None) => model(rest, path),
            (Some((&"**", rest)), Some((_, below))) => model(rest, path) || model(pattern, below),
            (Some(_), None) => false,
            (Some((part, rest)), Some((name, below))) => {
                Pattern::new(part).unwrap().matches_with(name, OPTIONS) && model(rest, below)
            }
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_defined(
            pattern in prop::collection::vec(prop::sample::select(vec!["**", "*", "a", "b*", "[ab]", "?"]), 1..6),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b", "ba", ".c"]), 1..7),
        ) {
            let text = pattern.join("/");
            let patterns = PathPatterns::parse([&*text]).unwrap();
            prop_assert_eq!(matches(&patterns, &path.join("/")), model(&pattern, &path), "{}", text);
        }
    }

    #[test]
    fn a_walk_enters_only_where_something_may_match() {
        let patterns = PathPatterns::parse(["target/nextest/*.xml", "/docs/"]).unwrap();
        let top = patterns.top();
        assert_eq!(patterns.entry(&top, "src").below, None);
        let target = patterns.entry(&top, "target");
        assert!(!target.is_match);
        assert_eq!(patterns.entry(&target.below.unwrap(), "debug").below, None);
        assert!(patterns.entry(&top, "docs").is_match);
    }

    #[test]
    fn what_is_below_a_match_is_covered() {
        let patterns = PathPatterns::parse(["a/*.d", "/b"]).unwrap();
        let covered = ["a/x.d", "a/x.d/y/z", "b", "b/c"];
        assert_eq!(["a", "a/x", "x/a/y.d", "bb"].map(|path| patterns.covers(path)), [false; 4]);
        assert_eq!(covered.map(|path| patterns.covers(path)), [true; 4]);
        let literal = ["/a/./b/*.xml", "a/b", "**/a", "a/[b]/c", "/"].map(literal_path);
        assert_eq!(literal, ["a/b", "a/b", "", "a", ""]);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let error = |text| PathPatterns::parse([text]).unwrap_err().1;
        assert_eq!(
            (error(""), error("/./"), error("a/../b")),
            (PatternError::Empty, PatternError::Empty, PatternError::Up)
        );
        assert_eq!((error("[a"), error("a**b")), (PatternError::Malformed, PatternError::Malformed));
        assert_eq!(error(&"a/".repeat(63)), PatternError::TooLong);
    }
}
