//! Reads the URL of `origin` from the text of a `.git/config`, as git does, without includes.

/// The error for a text that git would not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) line: usize,
}

/// Returns the URL of the remote `origin`: the first one, as git fetches from it.
pub(super) fn origin_url(text: &str) -> Result<Option<String>, Malformed> {
    let mut reader = Reader { text: text.strip_prefix('\u{feff}').unwrap_or(text), at: 0 };
    let (mut is_origin, mut found) = (false, None);
    while let Some(c) = reader.next() {
        match c {
            _ if c.is_ascii_whitespace() => {}
            '#' | ';' => reader.skip_line(),
            '[' => is_origin = reader.section()?,
            _ if c.is_ascii_alphabetic() => {
                let (name, value) = reader.variable(c)?;
                if is_origin && name == "url" {
                    match value {
                        // An empty value removes the previous ones.
                        Some(url) if url.is_empty() => found = None,
                        Some(url) if found.is_none() => found = Some(url),
                        _ => {}
                    }
                }
            }
            _ => return Err(reader.malformed()),
        }
    }
    Ok(found)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    /// Reads the next character. A line ends in LF or CR LF.
    fn next(&mut self) -> Option<char> {
        if self.text[self.at..].starts_with("\r\n") {
            self.at += 1;
        }
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn malformed(&self) -> Malformed {
        Malformed { line: 1 + self.text[..self.at].matches('\n').count() }
    }

    fn skip_line(&mut self) {
        while self.next().is_some_and(|c| c != '\n') {}
    }

    /// Reads the rest of `[section "subsection"]`, and returns whether it is the remote `origin`.
    fn section(&mut self) -> Result<bool, Malformed> {
        let mut name = String::new();
        loop {
            match self.next() {
                Some(']') => return Ok(name == "remote.origin"),
                Some(c) if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') => name.push(c.to_ascii_lowercase()),
                Some(' ' | '\t') => break,
                _ => return Err(self.malformed()),
            }
        }
        while matches!(self.peek(), Some(' ' | '\t')) {
            self.at += 1;
        }
        if self.next() != Some('"') {
            return Err(self.malformed());
        }
        let mut subsection = String::new();
        loop {
            match self.next() {
                Some('"') => break,
                Some('\\') => subsection.push(self.next().filter(|c| *c != '\n').ok_or_else(|| self.malformed())?),
                Some('\n') | None => return Err(self.malformed()),
                Some(c) => subsection.push(c),
            }
        }
        if self.next() != Some(']') {
            return Err(self.malformed());
        }
        Ok(name == "remote" && subsection == "origin")
    }

    /// Reads the rest of `name = value`. There is no value if there is no `=`.
    fn variable(&mut self, first: char) -> Result<(String, Option<String>), Malformed> {
        let mut name = String::from(first.to_ascii_lowercase());
        loop {
            match self.next() {
                Some(c) if c.is_ascii_alphanumeric() || c == '-' => name.push(c.to_ascii_lowercase()),
                Some(' ' | '\t') => {}
                Some('=') => return Ok((name, Some(self.value()?))),
                Some('\n') | None => return Ok((name, None)),
                Some('#' | ';') => {
                    self.skip_line();
                    return Ok((name, None));
                }
                Some(_) => return Err(self.malformed()),
            }
        }
    }

    fn value(&mut self) -> Result<String, Malformed> {
        let (mut value, mut kept, mut is_quoted) = (String::new(), 0, false);
        loop {
            match self.next() {
                None | Some('\n') if is_quoted => return Err(self.malformed()),
                None | Some('\n') => break,
                Some('#' | ';') if !is_quoted => {
                    self.skip_line();
                    break;
                }
                Some('"') => {
                    is_quoted = !is_quoted;
                    kept = value.len();
                }
                Some('\\') => {
                    match self.next() {
                        Some('\n') => continue,
                        Some('n') => value.push('\n'),
                        Some('t') => value.push('\t'),
                        Some('b') => value.push('\u{8}'),
                        Some(c @ ('\\' | '"')) => value.push(c),
                        _ => return Err(self.malformed()),
                    }
                    kept = value.len();
                }
                Some(c) if !is_quoted && c.is_ascii_whitespace() => {
                    if !value.is_empty() {
                        value.push(c);
                    }
                }
                Some(c) => {
                    value.push(c);
                    kept = value.len();
                }
            }
        }
        // Trailing white space counts only in quotes.
        value.truncate(kept);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Option<String> {
        origin_url(text).unwrap()
    }

    #[test]
    fn the_url_of_origin_is_found_as_git_finds_it() {
        for text in [
            "[remote \"origin\"]\n\turl = https://h/r\n",
            "[core]\n bare = false\n[remote \"upstream\"]\nurl=https://h/no\n[remote \"origin\"]\nurl=https://h/r",
            "[ReMote \"origin\"]\r\n\tURL = https://h/r\r\n\tfetch = +refs/*\r\n",
            "[remote.origin]\nurl = https://h/r # a comment\n",
            "[remote   \"or\\igin\"] url = \"https://h\"/r ; a comment\n",
            "\u{feff}# one\n; two\n[remote \"origin\"]\nurl = https:\\\n//h/r\nurl = https://h/second\n",
            "[remote \"origin\"]\nmirror\nurl = https://h/first\nurl =\nurl = https://h/r\n",
            "[remote \"origin\"]\nurl = https://h/r   \t\n[include]\npath = /dev/zero\n",
            "[remote \"origin\"]\nprune # no value\nurl = https://h/r\n",
        ] {
            assert_eq!(url(text).as_deref(), Some("https://h/r"), "{text}");
        }
        for text in ["", "[remote \"Origin\"]\nurl = x\n", "[remote]\nurl = x\n", "[remote \"origin\"]\npushurl = x\n"]
        {
            assert_eq!(url(text), None, "{text}");
        }
        assert_eq!(url("[remote \"origin\"]\nurl = \"a b \"\n").as_deref(), Some("a b "));
    }

    #[test]
    fn what_git_refuses_is_refused() {
        for (text, line) in [
            ("[remote \"origin\"]\nurl = \"open\n", 3),
            ("[remote \"origin\nurl = x\n", 2),
            ("[remote \"origin\" x]", 1),
            ("[remote origin]", 1),
            ("\n= x", 2),
            ("[a]\nurl = \\x\n", 2),
            ("[a]\nu_l = x\n", 2),
        ] {
            assert_eq!(origin_url(text), Err(Malformed { line }), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\[|\\]|\"|\\\\|\n|\r|=|#| |remote|origin|url|é|x){0,30}") {
            let _ = origin_url(&text);
        }
    }
}
