//! Text for people: output that cannot control their terminal, and readable durations.

use std::{borrow::Cow, env, sync::LazyLock, time::Duration};

use unicode_width::UnicodeWidthChar;

/// Appends one line of foreign text to `out` so that it can only show characters on a terminal and, with
/// `colors`, colour them. Other escape sequences are removed, control characters are shown as `^X`, and text
/// that a carriage return would have overwritten is left out. A line feed, which no line has, is shown as a
/// blank. Colours are reset at the end.
pub(crate) fn push_clean(out: &mut String, line: &str, colors: bool) {
    // Checks every byte without an early exit, so that the loop can be vectorized.
    if line.bytes().fold(true, |plain, byte| plain & is_plain_byte(byte)) {
        out.push_str(line);
        return;
    }
    let mut chars = last_shown(line).chars();
    let mut colored = false;
    while let Some(c) = chars.next() {
        match c {
            '\t' => out.push('\t'),
            '\n' => out.push(' '),
            '\x1b' => colored |= skip_sequence(out, &mut chars, colors),
            '\u{9b}' => colored |= control_sequence(out, &mut chars, colors),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => skip_string(&mut chars),
            '\0'..='\x1f' => out.extend(['^', char::from(c as u8 + b'@')]),
            '\x7f' => out.push_str("^?"),
            // The other C1 controls, and the characters that change the text direction.
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            _ => out.push(c),
        }
    }
    if colored {
        out.push_str("\x1b[0m");
    }
}

/// Appends text of several lines like [`push_clean`], without colours. Lines after the first are indented, so
/// that none of them looks like one of hm's own.
pub(crate) fn push_clean_lines(out: &mut String, text: &str) {
    for (at, line) in text.lines().enumerate() {
        if at > 0 {
            out.push_str("\n    ");
        }
        push_clean(out, line.trim_end(), false);
    }
}

/// Returns `line` as [`push_clean`] writes it, without colours.
pub(crate) fn clean(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    push_clean(&mut out, line, false);
    out
}

/// Returns the visible part of a line with carriage returns: the last part that shows anything. A line that
/// ends with control characters (`\r\n`, or a colour between the two) loses nothing, and a progress bar is
/// shown once.
pub(super) fn last_shown(line: &str) -> &str {
    let mut parts = line.trim_end_matches(['\r', '\n']).rsplit('\r');
    let last = parts.next().unwrap_or_default();
    if shows_something(last) { last } else { parts.find(|part| shows_something(part)).unwrap_or(last) }
}

/// Returns whether `text` has more than control characters, escape sequences, and blanks.
fn shows_something(text: &str) -> bool {
    let (mut chars, mut unused) = (text.chars(), String::new());
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => skip_sequence(&mut unused, &mut chars, false),
            c if c.is_whitespace() || c.is_control() => false,
            _ => return true,
        };
    }
    false
}

/// Returns whether [`push_clean`] would change nothing in any of the lines of `text`.
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & (is_plain_byte(byte) | (byte == b'\n')))
}

fn is_plain_byte(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\t')
}

/// Reads to the end of the sequence after an escape character. Keeps it if it only sets colours.
fn skip_sequence(out: &mut String, chars: &mut std::str::Chars<'_>, colors: bool) -> bool {
    match chars.next() {
        Some('[') => return control_sequence(out, chars, colors),
        Some(']' | 'P' | 'X' | '^' | '_') => skip_string(chars),
        // An escape with intermediate characters, such as a choice of character set, ends with one more.
        Some(' '..='/') => drop(chars.by_ref().find(|c| !matches!(c, ' '..='/'))),
        _ => {}
    }
    false
}

/// Reads a control sequence to its end. Keeps it if it only sets colours.
fn control_sequence(out: &mut String, chars: &mut std::str::Chars<'_>, colors: bool) -> bool {
    let start = chars.as_str();
    let Some(end) = start.find(|c| !matches!(c, ' '..='?')) else {
        *chars = "".chars();
        return false;
    };
    let (parameters, rest) = start.split_at(end);
    let last = rest.chars().next();
    *chars = rest[last.map_or(0, char::len_utf8)..].chars();
    let is_color = last == Some('m') && parameters.bytes().all(|b| matches!(b, b'0'..=b'9' | b';' | b':'));
    if is_color && colors {
        out.push_str("\x1b[");
        out.push_str(parameters);
        out.push('m');
    }
    is_color && colors
}

/// Skips a control string (a window title, a hyperlink, a clipboard write, ...) to its end.
fn skip_string(chars: &mut std::str::Chars<'_>) {
    while let Some(c) = chars.next() {
        match c {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                if chars.as_str().starts_with('\\') {
                    chars.next();
                }
                return;
            }
            _ => {}
        }
    }
}

/// Formats `duration` for people: `0.42s`, `12.3s`, `3m05s`, `1h02m`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.2}s", duration.as_secs_f64()),
        10..=59 => format!("{:.1}s", duration.as_secs_f64()),
        60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Formats a count with its noun: `1 step`, `2 steps`.
pub(crate) fn count(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Returns the first characters of `text`, at most `chars`, and `…` if more follow.
pub(crate) fn cut(text: &str, chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

/// Returns `text`, or its beginning and its end with `…` between them if it has more than `chars`
/// characters.
pub(crate) fn cut_inside(text: &str, chars: usize) -> Cow<'_, str> {
    let count = text.chars().count();
    if count <= chars {
        return Cow::Borrowed(text);
    }
    let end = chars / 3;
    let tail = text.char_indices().nth(count - end).map_or(text.len(), |(at, _)| at);
    Cow::Owned(format!("{} {}", cut(text, chars - end), &text[tail..]))
}

/// Returns the beginning of a text without colours that takes at most `limit` columns, with `…` if more
/// follows.
pub(super) fn fit(text: &str, limit: usize) -> Cow<'_, str> {
    if columns(text) <= limit {
        return Cow::Borrowed(text);
    }
    let mut taken = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        taken += width(c);
        (taken >= limit).then_some(at)
    });
    Cow::Owned(format!("{}…", &text[..end.unwrap_or(0)]))
}

/// Returns the number of columns of a character. Which one a tab leads to is not known.
fn width(c: char) -> usize {
    c.width().unwrap_or(1)
}

/// Returns the number of columns that a clean line takes: those of all but its colours.
pub(crate) fn columns(line: &str) -> usize {
    let (mut chars, mut count) = (line.chars(), 0);
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // A clean line has no other sequences.
            chars.find(|c| *c == 'm');
        } else {
            count += width(c);
        }
    }
    count
}

/// Returns a line of `hm` itself with symbols that the locale has.
pub(crate) fn symbols(line: &str) -> Cow<'_, str> {
    if has_symbols() { Cow::Borrowed(line) } else { Cow::Owned(in_ascii(line)) }
}

/// Returns whether the locale has more symbols than ASCII: whether its character set is UTF-8. If no variable
/// names a locale, it is assumed to be: most terminals, and what reads logs, expect UTF-8.
pub(super) fn has_symbols() -> bool {
    static HAS_SYMBOLS: LazyLock<bool> = LazyLock::new(|| {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable);
        locale.is_none_or(|locale| is_utf8(&locale.to_string_lossy()))
    });
    *HAS_SYMBOLS
}

fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

fn in_ascii(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '─' | '·' => out.push('-'),
            '│' | '├' => out.push('|'),
            '└' => out.push('`'),
            '→' => out.push_str("->"),
            '…' => out.push_str("..."),
            '✓' => out.push('+'),
            '✗' => out.push('x'),
            c => out.push(c),
        }
    }
    out
}

/// Returns whether a label says no more than the key, as `Unit tests` and `unit-tests`.
pub(crate) fn is_key(label: &str, key: &str) -> bool {
    let alike = |(a, b): (char, char)| a.eq_ignore_ascii_case(&b) || (!a.is_alphanumeric() && !b.is_alphanumeric());
    label.chars().count() == key.chars().count() && label.chars().zip(key.chars()).all(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_after_a_character_and_colors_take_no_columns() {
        assert_eq!(cut("grün", 4), "grün");
        assert_eq!(cut("grüne", 3), "grü…");
        assert_eq!(columns("\x1b[1;36mgrün\x1b[0m x"), 6);
        // Wide characters take two columns, and combining ones none.
        assert_eq!((columns("世界 ─…·"), columns("u\u{308}")), (8, 1));
        assert_eq!((fit("grün", 4), fit("grüne", 4), fit("世界!", 5)), ("grün".into(), "grü…".into(), "世界!".into()));
        assert_eq!((fit("世界!", 4), fit("世界!", 0)), ("世…".into(), "…".into()));
    }

    #[test]
    fn symbols_have_ascii_for_locales_without_them() {
        assert_eq!(in_ascii("── FAILED  a · 1s … ✓ ✗ a → b"), "-- FAILED  a - 1s ... + x a -> b");
        assert_eq!(in_ascii("├─ a\n│  └─ b"), "|- a\n|  `- b");
        for (locale, expected) in
            [("C", false), ("POSIX", false), ("de_DE", false), ("C.UTF-8", true), ("de_DE.utf8", true)]
        {
            assert_eq!(is_utf8(locale), expected, "{locale}");
        }
    }

    fn with_colors(line: &str) -> String {
        let mut out = String::new();
        push_clean(&mut out, line, true);
        out
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        for line in ["", "hello", "a\tb", "grüße, 世界 🦀"] {
            assert_eq!(clean(line), line);
        }
    }

    #[test]
    fn colors_stay_where_they_are_wanted_and_end_with_the_line() {
        assert_eq!(with_colors("\x1b[1;31mred"), "\x1b[1;31mred\x1b[0m");
        assert_eq!(with_colors("\x1b[38:5:1mred\x1b[m."), "\x1b[38:5:1mred\x1b[m.\x1b[0m");
        assert_eq!(clean("\x1b[1;31mred\x1b[0m"), "red");
    }

    #[test]
    fn everything_else_that_moves_or_sets_the_terminal_goes() {
        for (hostile, shown) in [
            ("\x1b[2Jcleared", "cleared"),
            ("\x1b[1A\x1b[2Kover", "over"),
            ("\x1b]0;title\x07text", "text"),
            ("\x1b]52;c;ZXZpbA==\x1b\\text", "text"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1bPdevice\x1b\\text", "text"),
            ("\x1bcreset", "reset"),
            ("\x1b(0charset", "charset"),
            ("\u{9b}2Jc1", "c1"),
            ("\u{9d}0;title\u{9c}c1", "c1"),
            ("\x1b[?25lhidden", "hidden"),
            ("\x1b[>4;1mkeyboard", "keyboard"),
            ("unfinished\x1b[1;", "unfinished"),
            ("unfinished\x1b]0;title", "unfinished"),
            ("unfinished\x1b", "unfinished"),
            ("bell\x07 and back\x08", "bell^G and back^H"),
            ("nul\0del\x7f", "nul^@del^?"),
            ("\u{202e}turned", "\u{fffd}turned"),
        ] {
            assert_eq!(with_colors(hostile), shown, "{hostile:?}");
        }
    }

    #[test]
    fn a_long_text_keeps_its_end() {
        assert_eq!(cut_inside("abcdef", 6), "abcdef");
        assert_eq!(cut_inside("äbcdefghïj", 6), "äbcd… ïj");
        assert_eq!(cut_inside("", 0), "");
    }

    #[test]
    fn text_of_several_lines_is_indented_and_cannot_look_like_a_line_of_its_own() {
        let mut out = "error: ".to_owned();
        push_clean_lines(&mut out, "one  \ntwo\n\n\x1b[2Jhint: run this\n");
        assert_eq!(out, "error: one\n    two\n    \n    hint: run this");
        assert_eq!(clean("one\ntwo\n"), "one two");
    }

    #[test]
    fn a_carriage_return_shows_what_a_terminal_would_show_last() {
        assert_eq!(clean("10%\r50%\r100%"), "100%");
        assert_eq!(clean("10%\r50%\r100%\r"), "100%");
        assert_eq!(clean("\r 10%\r 50%\r\x1b[K"), " 50%");
    }

    #[test]
    fn a_line_that_ends_in_a_carriage_return_is_kept_whole() {
        for end in ["", "\r", "\r\r", "\r\n", "\r\x1b[0m", "\r\x1b[0m\r", "\r ", "\r\x1b]0;title\x07", "\r\x1b(B\x1b[m"]
        {
            assert_eq!(clean(&format!("windows{end}")), "windows", "{end:?}");
        }
        assert_eq!(with_colors("\x1b[31mred\r\x1b[0m"), "\x1b[31mred\x1b[0m");
        for blank in ["", "\r", "\r\r", "\x1b[0m\r"] {
            assert_eq!(clean(blank), "", "{blank:?}");
        }
    }

    #[test]
    fn no_escape_survives_cleaning() {
        proptest::proptest!(|(line in "(\\PC|[\\x00-\\x1f\\x7f-\\u{9f}]|\\x1b[\\[\\]P(]?){0,40}")| {
            let shown = clean(&line);
            assert!(!shown.chars().any(|c| c.is_control() && c != '\t'), "{line:?} -> {shown:?}");
        });
    }

    #[test]
    fn durations_have_the_precision_that_matters() {
        let of = |ms| duration(Duration::from_millis(ms));
        assert_eq!(
            [of(4), of(420), of(12_345), of(185_000), of(3_720_000)],
            ["0.00s", "0.42s", "12.3s", "3m05s", "1h02m"]
        );
    }
}
