//! Quotes the words of a command so that a user can paste it into a shell.

use std::borrow::Cow;

/// Returns `word` quoted for a POSIX shell. Plain names are not quoted.
#[must_use]
pub fn quote(word: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"%+,-./:@_".contains(&byte);
    // `~` and `#` are special only at the start, and `=` only in the first word. Quoting them is always
    // correct.
    if !word.is_empty() && word.bytes().all(is_plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

/// Quotes words that a command must take as operands, not as options. If any of them begins with `-`, `--`
/// comes first.
#[must_use]
pub fn operands<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    let ends = words.iter().any(|word| word.starts_with('-')).then_some("--".into());
    ends.into_iter().chain(words.into_iter().map(quote)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_a_quoted_word_as_it_was() {
        for word in [
            "", "unit", "a b", "it's", "-rf", "$HOME", "`x`", "a\nb", "~", "#", "a=b", "\\", "\"", "*", "ü", "!x", "é;",
        ] {
            let command = format!("printf %s. {}", operands([word]));
            let command = command.replace("printf %s. --", "printf -- %s.");
            let output = Command::new("/bin/sh").args(["-c", &command]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{word}."), "{command}");
        }
        assert_eq!(quote("compile:x86_64"), "compile:x86_64");
    }

    #[test]
    fn what_looks_like_an_option_comes_after_the_end_of_options() {
        assert_eq!(operands(["-rf"]), "-- -rf");
        assert_eq!(operands(["a b", "x"]), "'a b' x");
    }
}
