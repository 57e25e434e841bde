//! Matches a name against a pattern, as Python's `fnmatch` does: `*`, `?` and `[..]`.

/// Returns whether a name of a path is a pattern.
pub(super) fn has_magic(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// Returns whether a name matches a pattern, as Python's `fnmatch` does.
pub(super) fn matches(pattern: &[char], name: &[u8]) -> bool {
    let name: Vec<char> = String::from_utf8_lossy(name).chars().collect();
    let (mut p, mut n) = (0, 0);
    // The position to resume from if what follows the last `*` does not match.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('?') => Some(p + 1),
            Some('[') => match class(pattern, p, name[n]) {
                Some((end, true)) => Some(end),
                Some((_, false)) => None,
                // Without a closing bracket it is a literal bracket.
                None => (name[n] == '[').then_some(p + 1),
            },
            Some(c) => (*c == name[n]).then_some(p + 1),
            None => None,
        };
        match (step, star) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Returns the end of the class at `start`, and whether it contains `c`. Returns `None` if the class is not
/// closed.
fn class(pattern: &[char], start: usize, c: char) -> Option<(usize, bool)> {
    let is_negated = pattern.get(start + 1) == Some(&'!');
    let first = start + 1 + usize::from(is_negated);
    // A closing bracket at the very beginning is part of the class.
    let end = (first + 1..pattern.len()).find(|at| pattern[*at] == ']')?;
    let set = &pattern[first..end];
    let (mut at, mut has_it) = (0, false);
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == '-' {
            has_it |= (set[at]..=set[at + 2]).contains(&c);
            at += 3;
        } else {
            has_it |= set[at] == c;
            at += 1;
        }
    }
    Some((end + 1, has_it != is_negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_python() {
        let is_match = |pattern: &str, name: &str| matches(&pattern.chars().collect::<Vec<_>>(), name.as_bytes());
        for (pattern, name) in [
            ("*", ".hidden"),
            ("*.c", "a.c"),
            ("*a*a*", "banana"),
            ("?", "é"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]]", "]"),
            ("[!]]", "a"),
            ("[", "["),
            ("a[b", "a[b"),
            ("[a-]", "-"),
            ("**", "anything"),
            ("a\\*", "a\\b"),
            ("{a,b}", "{a,b}"),
            ("[^a]", "^"),
        ] {
            assert!(is_match(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.c", "a.cc"),
            ("?", ""),
            ("?", "ab"),
            ("[a-c]", "d"),
            ("[c-a]", "b"),
            ("[!a]", "a"),
            ("a", "A"),
            ("", "a"),
        ] {
            assert!(!is_match(pattern, name), "{pattern} {name}");
        }
        // The time of a match is at most quadratic in the length of the name.
        assert!(!is_match(&"*a".repeat(60), &"a".repeat(59)));
    }
}
