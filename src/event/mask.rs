//! Removes secrets from bytes, also if a secret is spread over several chunks.
//!
//! The result does not depend on the chunks, and is the same as for all bytes at once: leftmost match first,
//! and the longest one there. So between chunks, exactly the longest end of the text that could still become
//! a secret is held back.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use aho_corasick::{AhoCorasick, BuildError, MatchKind};

use crate::model::Secrets;

/// The replacement of a secret.
const REPLACEMENT: &[u8] = b"***";

/// The minimum length of a line that is masked on its own, in bytes, for secrets of several lines. (To mask
/// shorter lines, such as a lone brace, would remove innocent text.)
const MIN_LINE_BYTES: usize = 8;

/// A run's secrets. They are never shown, not in `Debug` either.
pub(super) struct Masker {
    finder: AhoCorasick,
    /// Searches in whole texts, in upper and lower case: names of hosts are recorded in lower case.
    texts: AhoCorasick,
    /// Used to search for the beginning of a secret at the end of a chunk.
    prefixes: Vec<Pattern>,
}

/// Returns `text` as a run with these secrets would record it: with each secret replaced.
#[must_use]
pub fn mask<'a>(secrets: &Secrets, text: &'a str) -> Cow<'a, str> {
    match Masker::new(secrets) {
        Ok(None) => Cow::Borrowed(text),
        Ok(Some(masker)) => masker.mask_text(text),
        // No run starts with such secrets.
        Err(_) => Cow::Borrowed("***"),
    }
}

/// A search for secrets in the names of files.
#[cfg(feature = "sandbox")]
pub(crate) struct SecretSearch(Option<Masker>);

#[cfg(feature = "sandbox")]
impl SecretSearch {
    pub(crate) fn new(secrets: &Secrets) -> Result<Self, BuildError> {
        Masker::new(secrets).map(Self)
    }

    /// Returns where in `bytes` there are secrets, in any case.
    pub(crate) fn find(&self, bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
        let Some(masker) = &self.0 else { return Vec::new() };
        masker.texts.find_iter(bytes).map(|found| found.range()).collect()
    }
}

/// The bytes of a stream that are held back between two chunks.
#[derive(Default)]
pub(crate) struct Held(Vec<u8>);

impl Masker {
    /// Returns a masker for these secrets, or `None` if there is nothing to mask.
    pub(super) fn new(secrets: &Secrets) -> Result<Option<Self>, BuildError> {
        let mut patterns = BTreeSet::new();
        for (_, value) in secrets.iter() {
            // Without the trailing line end that secret files have, because programs print the value without
            // it.
            let value = trim_line_ends(value);
            patterns.insert(value);
            let lines = value.split(|&byte| byte == b'\n').map(trim_line_ends);
            patterns.extend(lines.filter(|line| line.len() >= MIN_LINE_BYTES));
        }
        patterns.remove(&b""[..]);
        if patterns.is_empty() {
            return Ok(None);
        }
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns)?;
        let texts = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .ascii_case_insensitive(true)
            .build(&patterns)?;
        // One-byte patterns have no proper prefix.
        let prefixes =
            patterns.iter().filter(|pattern| pattern.len() > 1).map(|pattern| Pattern::new(pattern)).collect();
        Ok(Some(Self { finder, texts, prefixes }))
    }

    /// Appends to `out` the part of the held-back bytes and `chunk` that is decided: masked, or certainly not
    /// a secret.
    pub(super) fn push(&self, held: &mut Held, chunk: &[u8], out: &mut Vec<u8>) {
        let joined;
        let text = if held.0.is_empty() {
            chunk
        } else {
            held.0.extend_from_slice(chunk);
            joined = std::mem::take(&mut held.0);
            &joined
        };
        let starts = self.open_starts(text);
        let mut starts = starts.iter().copied().peekable();
        let mut from = 0;
        for found in self.finder.find_iter(text) {
            while starts.next_if(|&start| start < from).is_some() {}
            if starts.peek().is_some_and(|&start| start <= found.start()) {
                break; // A later chunk may complete a longer or an earlier match.
            }
            out.extend_from_slice(&text[from..found.start()]);
            out.extend_from_slice(REPLACEMENT);
            from = found.end();
        }
        while starts.next_if(|&start| start < from).is_some() {}
        let open = starts.next().unwrap_or(text.len());
        out.extend_from_slice(&text[from..open]);
        held.0 = text[open..].to_vec();
    }

    /// Appends the bytes that were held back. No more chunks follow.
    pub(super) fn finish(&self, held: &mut Held, out: &mut Vec<u8>) {
        mask_whole(&self.finder, &std::mem::take(&mut held.0), out);
    }

    /// Masks a complete text.
    pub(super) fn mask_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if !self.texts.is_match(text) {
            return Cow::Borrowed(text);
        }
        let mut out = Vec::with_capacity(text.len());
        mask_whole(&self.texts, text.as_bytes(), &mut out);
        // A secret may be a part of a character.
        Cow::Owned(String::from_utf8_lossy(&out).into_owned())
    }

    /// Returns every position from which `text` to its end is a proper prefix of a secret, in ascending
    /// order.
    fn open_starts(&self, text: &[u8]) -> Vec<usize> {
        let mut starts = Vec::new();
        for pattern in &self.prefixes {
            pattern.open_starts(text, &mut starts);
        }
        starts.sort_unstable();
        starts
    }
}

fn mask_whole(finder: &AhoCorasick, text: &[u8], out: &mut Vec<u8>) {
    let mut from = 0;
    for found in finder.find_iter(text) {
        out.extend_from_slice(&text[from..found.start()]);
        out.extend_from_slice(REPLACEMENT);
        from = found.end();
    }
    out.extend_from_slice(&text[from..]);
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masker").finish_non_exhaustive()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

/// A secret with its Knuth-Morris-Pratt table: the length of the longest proper border of every prefix.
struct Pattern {
    bytes: Box<[u8]>,
    borders: Box<[usize]>,
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut borders = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[matched] != bytes[at] {
                matched = borders[matched - 1];
            }
            matched += usize::from(bytes[matched] == bytes[at]);
            borders[at] = matched;
        }
        Self { bytes: bytes.into(), borders: borders.into() }
    }

    /// Adds the positions from which `text` to its end is a proper prefix of this secret.
    fn open_starts(&self, text: &[u8], starts: &mut Vec<usize>) {
        let tail = &text[text.len().saturating_sub(self.bytes.len() - 1)..];
        let mut matched = 0;
        for &byte in tail {
            while matched > 0 && self.bytes[matched] != byte {
                matched = self.borders[matched - 1];
            }
            matched += usize::from(self.bytes[matched] == byte);
        }
        while matched > 0 {
            starts.push(text.len() - matched);
            matched = self.borders[matched - 1];
        }
    }
}

fn trim_line_ends(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masker<T: AsRef<[u8]>>(values: &[T]) -> Option<Masker> {
        let mut secrets = Secrets::new();
        for (at, value) in values.iter().enumerate() {
            secrets.insert(format!("S{at}"), value.as_ref());
        }
        Masker::new(&secrets).unwrap()
    }

    fn mask_chunks<'a>(masker: &Masker, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let (mut held, mut out) = (Held::default(), Vec::new());
        for chunk in chunks {
            masker.push(&mut held, chunk, &mut out);
        }
        masker.finish(&mut held, &mut out);
        out
    }

    #[test]
    fn a_secret_split_over_two_chunks_is_masked() {
        let masker = masker(&["hunter2"]).unwrap();
        assert_eq!(mask_chunks(&masker, [&b"pw=hun"[..], b"ter2!"]), b"pw=***!");
    }

    #[test]
    fn only_what_may_become_a_secret_is_held_back() {
        let masker = masker(&["hunter2"]).unwrap();
        let (mut held, mut out) = (Held::default(), Vec::new());
        masker.push(&mut held, b"the hu", &mut out);
        assert_eq!(out, b"the ");
        masker.push(&mut held, b"m", &mut out);
        assert_eq!(out, b"the hum");
    }

    #[test]
    fn a_longer_secret_is_waited_for() {
        let masker = masker(&["ab", "abcd", "xabY"]).unwrap();
        assert_eq!(mask_chunks(&masker, [&b"-ab"[..], b"cd-"]), b"-***-");
        assert_eq!(mask_chunks(&masker, [&b"-ab"[..], b"ce-"]), b"-***ce-");
        assert_eq!(mask_chunks(&masker, [&b"-xab"[..], b"Y-"]), b"-***-");
        assert_eq!(mask_chunks(&masker, [&b"-xab"[..], b"y-"]), b"-x***y-");
    }

    #[test]
    fn long_lines_of_a_secret_are_masked_by_themselves_and_its_line_end_is_no_part_of_it() {
        let masker = masker(&["-----BEGIN KEY\r\nMIIEow\r\nIBAAKCAQEA\r\n"]).unwrap();
        assert_eq!(mask_chunks(&masker, [&b"IBAAKCAQEA\n"[..]]), b"***\n");
        assert_eq!(mask_chunks(&masker, [&b"MIIEow\n"[..]]), b"MIIEow\n");
        assert_eq!(mask_chunks(&masker, [&b"-----BEGIN KEY\r\nMIIEow\r\nIBAAKCAQEA\r\n"[..]]), b"***\r\n");
    }

    #[test]
    fn nothing_to_mask_is_no_masker() {
        assert!(masker::<&str>(&[]).is_none());
        assert!(masker(&["", "\n"]).is_none());
    }

    #[test]
    fn debug_shows_no_secret() {
        let masker = masker(&["hunter2"]).unwrap();
        let mut held = Held::default();
        masker.push(&mut held, b"hunter", &mut Vec::new());
        assert!(!format!("{masker:?} {held:?}").contains("hunter"));
    }

    #[test]
    fn a_secret_that_is_not_whole_characters_leaves_valid_text() {
        let masker = masker(&[&[0xc3u8][..]]).unwrap();
        assert_eq!(masker.mask_text("ä"), "***\u{fffd}");
        assert_eq!(masker.mask_text("a"), "a");
    }

    /// A small alphabet, so that secrets overlap each other, repeat, and nest.
    fn letters(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(&b"abc\n"[..]), len)
    }

    /// The naive algorithm: at every position, the longest secret there, otherwise one byte.
    fn mask_simply(patterns: &BTreeSet<&[u8]>, mut text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while let [first, rest @ ..] = text {
            match patterns.iter().filter(|pattern| text.starts_with(pattern)).map(|pattern| pattern.len()).max() {
                Some(len) => {
                    out.extend_from_slice(REPLACEMENT);
                    text = &text[len..];
                }
                None => {
                    out.push(*first);
                    text = rest;
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn any_chunking_masks_like_the_whole(
            secrets in prop::collection::vec(letters(1..12), 1..5),
            text in letters(0..80),
            cuts in prop::collection::vec(0usize..80, 0..10),
        ) {
            let Some(masker) = masker(&secrets) else { return Ok(()) };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunked = mask_chunks(&masker, cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]));

            let mut patterns: BTreeSet<&[u8]> = secrets.iter().map(|secret| trim_line_ends(secret)).collect();
            for secret in &secrets {
                patterns.extend(secret.split(|&byte| byte == b'\n').filter(|line| line.len() >= MIN_LINE_BYTES));
            }
            patterns.remove(&b""[..]);
            prop_assert_eq!(&chunked, &mask_simply(&patterns, &text));
            for pattern in &patterns {
                prop_assert!(!chunked.windows(pattern.len()).any(|window| window == *pattern));
            }
        }
    }
}
