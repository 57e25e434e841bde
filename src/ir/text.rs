//! The display of a pipeline's text in errors: on one line, of bounded length, and without terminal control
//! characters.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

/// The maximum lengths of a name, of a message about a value, and of a list of names in an error.
const NAME_CHARS: usize = 80;
const MESSAGE_CHARS: usize = 200;
const SHOWN_NAMES: usize = 16;

/// Displays a name in backticks.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", Name(self.0))
    }
}

/// Displays a name as a part of a text in backticks.
pub(super) struct Name<'a>(pub(super) &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_cut(f, self.0, NAME_CHARS)
    }
}

/// Displays a decoder's message, which may quote a value of any length.
pub(super) struct Message<'a>(pub(super) &'a str);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_cut(f, self.0, MESSAGE_CHARS)
    }
}

fn write_cut(f: &mut fmt::Formatter<'_>, text: &str, chars: usize) -> fmt::Result {
    for (at, char) in text.chars().enumerate() {
        if at == chars {
            return f.write_str("…");
        }
        if is_shown_as_it_is(char) { f.write_char(char)? } else { write!(f, "{}", char.escape_default())? }
    }
    Ok(())
}

/// Returns whether a character neither controls a terminal nor changes the text direction.
fn is_shown_as_it_is(char: char) -> bool {
    !char.is_control() && !matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Displays "`a`, `b` and `c`", with a bounded number of names.
pub(super) struct List<'a, T>(pub(super) &'a [T]);

impl<T: AsRef<str>> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let shown = &self.0[..self.0.len().min(SHOWN_NAMES)];
        let hidden = self.0.len() - shown.len();
        for (at, name) in shown.iter().enumerate() {
            let separator = match at {
                0 => "",
                _ if at + 1 == shown.len() && hidden == 0 => " and ",
                _ => ", ",
            };
            write!(f, "{separator}{}", Quoted(name.as_ref()))?;
        }
        if hidden > 0 { write!(f, " and {hidden} more") } else { Ok(()) }
    }
}

/// Displays "`a` -> `b` -> `a`", with the middle omitted if it is long.
pub(super) struct Path<'a>(pub(super) &'a [Arc<str>]);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.0.len().saturating_sub(SHOWN_NAMES);
        let head = if hidden == 0 { self.0.len() } else { SHOWN_NAMES / 2 };
        self.0[..head].iter().try_for_each(|key| write!(f, "{} -> ", Quoted(key)))?;
        if hidden > 0 {
            write!(f, "({hidden} more) -> ")?;
        }
        self.0[head + hidden..].iter().try_for_each(|key| write!(f, "{} -> ", Quoted(key)))?;
        self.0.first().map_or(Ok(()), |first| Quoted(first).fmt(f))
    }
}

pub(super) struct DidYouMean<'a>(pub(super) &'a Option<Arc<str>>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |nearest| write!(f, ", did you mean `{nearest}`?"))
    }
}
