//! JSON in a `<script>` of HTML.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Serializer, ser::Formatter};

/// Writes `value` so that no parser of HTML finds anything in it, and so that it is a literal of JavaScript.
pub(super) fn write(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, InHtml)).map_err(io::Error::from)
}

struct InHtml;

impl Formatter for InHtml {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, special) = rest.split_at(at);
            let mut chars = special.chars();
            let code = chars.next().map_or(0, u32::from);
            write!(out, "{plain}\\u{code:04x}")?;
            rest = chars.as_str();
        }
        out.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_data_and_survives() {
        for text in ["</script><script>alert(1)</script>", "<!-- <script", "]]>&amp;\u{2028}\u{2029}\0\"\\\u{1f980}"] {
            let mut bytes = Vec::new();
            write(&mut bytes, &[text]).unwrap();
            let written = String::from_utf8(bytes).unwrap();
            assert!(!written.contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\0']), "{written}");
            assert_eq!(serde_json::from_str::<Vec<String>>(&written).unwrap(), [text]);
        }
    }
}
