//! The last lines of a running step, which the last screen shows if the step fails.
//!
//! Input: the step's lines, one by one or many at once. Output: an [`Excerpt`], which always has the last
//! lines of stderr, also if a flood on stdout follows them. Lines of services are left out: what they print
//! while they end would push out why the step failed.

use std::collections::VecDeque;

use hm_exec::event::{LogLines, StdStream};

/// The maximum number of lines that an excerpt can have.
pub(super) const MAX_LINES: usize = 8;

/// The number of lines of stderr that every excerpt has, if there are as many.
const MAX_ERRORS: usize = 3;

/// The maximum number of bytes that are kept of a line.
const LINE_BYTES: usize = 2000;

/// The end of a step's output.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The number of lines so far.
    count: u64,
    last: VecDeque<Line>,
    /// The last lines of stderr, whether or not they are among the last lines.
    errors: VecDeque<Line>,
    /// What lines of the step's services begin with.
    services: Vec<String>,
}

/// A line, and its position in the output, from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line {
    number: u64,
    pub(super) is_error: bool,
    pub(super) text: String,
}

/// A few lines of a step's output, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Excerpt {
    /// The number of lines that are left out.
    pub(super) earlier: u64,
    /// The lines. `None` stands for lines that are left out.
    pub(super) lines: Vec<Option<Line>>,
}

impl Tail {
    /// Creates the tail of a step with these services.
    pub(super) fn of_step<'a>(services: impl Iterator<Item = &'a String>) -> Self {
        Self { services: services.map(|name| format!("[{name}] ")).collect(), ..Self::default() }
    }

    /// Appends a line.
    pub(super) fn push(&mut self, stream: StdStream, text: &str) {
        if self.services.iter().any(|service| text.starts_with(service)) {
            return;
        }
        let is_error = stream == StdStream::Stderr;
        keep(&mut self.last, MAX_LINES, self.count, is_error, text);
        if is_error {
            keep(&mut self.errors, MAX_ERRORS, self.count, true, text);
        }
        self.count += 1;
    }

    /// Appends lines that arrived together. Copies only those that may be shown.
    pub(super) fn push_all(&mut self, lines: &LogLines<'_>) {
        self.push_text(lines.stream, lines.count, &lines.text);
    }

    /// Appends `count` lines with their ends.
    fn push_text(&mut self, stream: StdStream, count: u64, text: &str) {
        let mut start = 0;
        // Otherwise the last lines of a flood may all be those of services.
        if self.services.is_empty() {
            let before_last_end = &text.as_bytes()[..text.len().saturating_sub(1)];
            start = memchr::memrchr_iter(b'\n', before_last_end).nth(MAX_LINES - 1).map_or(0, |end| end + 1);
            self.count += count.saturating_sub(MAX_LINES as u64);
        }
        for line in text[start..].split_terminator('\n') {
            self.push(stream, line.strip_suffix('\r').unwrap_or(line));
        }
    }

    /// Returns the last line.
    pub(super) fn last_line(&self) -> Option<&str> {
        self.last.back().map(|line| line.text.as_str())
    }

    /// Returns the last lines, at most `limit`, with the last lines of stderr among them.
    pub(super) fn excerpt(&self, limit: usize) -> Excerpt {
        let limit = limit.min(MAX_LINES);
        let first_of = |newest: usize| self.last.len().saturating_sub(newest);
        let missing = |newest: usize| {
            let oldest = self.last.get(first_of(newest)).map_or(self.count, |line| line.number);
            self.errors.iter().filter(move |line| line.number < oldest)
        };
        let newest = (0..=limit).rev().find(|&newest| newest + missing(newest).count() <= limit).unwrap_or(0);
        // With a limit below the number of lines of stderr, the newest of them are shown.
        let errors: Vec<&Line> = missing(newest).collect();
        let errors = &errors[errors.len().saturating_sub(limit - newest.min(limit))..];
        let mut excerpt = Excerpt { earlier: 0, lines: Vec::new() };
        let mut expected = None;
        for line in errors.iter().copied().chain(self.last.range(first_of(newest)..)) {
            match expected {
                Some(number) if number < line.number => excerpt.lines.push(None),
                _ => {}
            }
            expected = Some(line.number + 1);
            excerpt.lines.push(Some(line.clone()));
        }
        excerpt.earlier = self.count - excerpt.lines.iter().flatten().count() as u64;
        excerpt
    }
}

/// Appends a line to `lines`, which keeps at most `limit` of them and reuses their memory.
fn keep(lines: &mut VecDeque<Line>, limit: usize, number: u64, is_error: bool, text: &str) {
    let mut line = if lines.len() == limit { lines.pop_front().unwrap_or_default() } else { Line::default() };
    line.number = number;
    line.is_error = is_error;
    line.text.clear();
    let text = super::text::last_shown(text);
    line.text.push_str(&text[..text.floor_char_boundary(LINE_BYTES)]);
    lines.push_back(line);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(tail: &Tail, limit: usize) -> (u64, Vec<String>) {
        let excerpt = tail.excerpt(limit);
        let line = |line: &Option<Line>| line.as_ref().map_or_else(|| "…".into(), |line| line.text.clone());
        (excerpt.earlier, excerpt.lines.iter().map(line).collect())
    }

    #[test]
    fn what_a_progress_bar_is_overwritten_with_is_kept() {
        let bar = "downloading\r".repeat(2000) + "ERROR: disk is broken";
        let mut tail = Tail::default();
        tail.push(StdStream::Stdout, &bar);
        assert_eq!(shown(&tail, 1), (0, vec!["ERROR: disk is broken".to_owned()]));
    }

    fn of(lines: &[&str]) -> Tail {
        let mut tail = Tail::default();
        for line in lines {
            let stream = if line.starts_with('!') { StdStream::Stderr } else { StdStream::Stdout };
            tail.push(stream, line);
        }
        tail
    }

    #[test]
    fn the_last_lines_are_shown_and_the_others_counted() {
        assert_eq!(shown(&of(&[]), 8), (0, vec![]));
        assert_eq!(shown(&of(&["a", "b"]), 8), (0, vec!["a".into(), "b".into()]));
        let numbers: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        assert_eq!(shown(&of(&numbers), 3), (97, vec!["97".into(), "98".into(), "99".into()]));
        assert_eq!(shown(&of(&numbers), 100).1.len(), MAX_LINES);
    }

    #[test]
    fn stderr_before_a_flood_is_shown() {
        let mut lines = vec!["!1", "!2", "!3", "!4"];
        lines.extend(["x"; 50]);
        let (earlier, excerpt) = shown(&of(&lines), 8);
        assert_eq!(earlier, 46);
        assert_eq!(excerpt, ["!2", "!3", "!4", "…", "x", "x", "x", "x", "x"]);
        assert_eq!(shown(&of(&lines), 1), (53, vec!["!4".into()]));
        lines.push("!5");
        assert_eq!(shown(&of(&lines), 3).1, ["!3", "!4", "…", "!5"]);
    }

    #[test]
    fn lines_of_services_are_left_out() {
        let mut tail = Tail::of_step(["db".to_owned()].iter());
        tail.push(StdStream::Stderr, "why");
        tail.push_text(StdStream::Stdout, 3, "[db] one\n[d] own\n[db]\n");
        tail.push_text(StdStream::Stderr, 20, &"[db] down\n".repeat(20));
        assert_eq!(shown(&tail, 8), (0, vec!["why".into(), "[d] own".into(), "[db]".into()]));
    }

    proptest! {
        #[test]
        fn an_excerpt_fits_and_has_the_newest_line_of_stderr(
            errors in prop::collection::vec(any::<bool>(), 0..60),
            limit in 1..=MAX_LINES,
        ) {
            let mut tail = Tail::default();
            for (number, is_error) in errors.iter().enumerate() {
                tail.push(if *is_error { StdStream::Stderr } else { StdStream::Stdout }, &number.to_string());
            }
            let excerpt = tail.excerpt(limit);
            let lines: Vec<&Line> = excerpt.lines.iter().flatten().collect();
            prop_assert_eq!(lines.len(), limit.min(errors.len()));
            prop_assert!(lines.windows(2).all(|pair| pair[0].number < pair[1].number));
            if let Some(newest) = errors.iter().rposition(|is_error| *is_error) {
                prop_assert!(lines.iter().any(|line| line.text == newest.to_string() && line.is_error));
            }
            prop_assert_eq!(excerpt.earlier, (errors.len() - lines.len()) as u64);
        }

        #[test]
        fn lines_that_arrive_together_are_as_if_they_had_arrived_one_by_one(
            batches in prop::collection::vec((any::<bool>(), prop::collection::vec("[ab]{0,3}\r?", 1..20)), 0..6),
        ) {
            let (mut one_by_one, mut together) = (Tail::default(), Tail::default());
            for (is_error, lines) in &batches {
                let stream = if *is_error { StdStream::Stderr } else { StdStream::Stdout };
                let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
                for line in lines {
                    one_by_one.push(stream, line.strip_suffix('\r').unwrap_or(line));
                }
                together.push_text(stream, lines.len() as u64, &text);
            }
            prop_assert_eq!(one_by_one.count, together.count);
            prop_assert_eq!(one_by_one.excerpt(MAX_LINES), together.excerpt(MAX_LINES));
        }
    }
}
