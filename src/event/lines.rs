//! Splits a stream of bytes into lines, independently of its chunks. The module does not know events.

use super::MAX_LINE_BYTES;

/// Splits one stream. Stores at most the beginning of one line, up to [`MAX_LINE_BYTES`] and a character.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    /// The beginning of a line whose end has not arrived yet.
    begun: Vec<u8>,
    /// The length of the last returned part, which is still in `begun`.
    taken: usize,
}

/// A line, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The bytes without the line's end.
    pub(super) bytes: &'a [u8],
    /// The kind of the line's end.
    pub(super) end: LineEnd,
}

/// The kind of a line's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnd {
    /// `\n`.
    Lf,
    /// `\r\n`.
    CrLf,
    /// The line exceeded the maximum length: the next part follows.
    Cut,
    /// The end of the stream.
    Eof,
}

impl LineSplitter {
    /// Returns the next line of `input`, and advances `input` past it. Returns `None` when all of `input` is
    /// consumed.
    pub(super) fn next<'a, 'input: 'a>(&'a mut self, input: &mut &'input [u8]) -> Option<Line<'a>> {
        self.begun.drain(..std::mem::take(&mut self.taken));
        // One byte more than the maximum length shows whether the line must be cut.
        let room = (MAX_LINE_BYTES + 1).saturating_sub(self.begun.len()).min(input.len());
        let Some(len) = memchr::memchr(b'\n', &input[..room]) else {
            self.begun.extend_from_slice(&input[..room]);
            *input = &input[room..];
            if self.begun.len() <= MAX_LINE_BYTES {
                return None;
            }
            self.taken = char_boundary(&self.begun, MAX_LINE_BYTES);
            return Some(Line { bytes: &self.begun[..self.taken], end: LineEnd::Cut });
        };
        let (line, rest) = (&input[..len], &input[len + 1..]);
        *input = rest;
        let bytes = if self.begun.is_empty() {
            line
        } else {
            self.begun.extend_from_slice(line);
            self.taken = self.begun.len();
            &self.begun
        };
        Some(match bytes {
            [bytes @ .., b'\r'] => Line { bytes, end: LineEnd::CrLf },
            bytes => Line { bytes, end: LineEnd::Lf },
        })
    }

    /// Returns whether the next byte is the first of a line.
    pub(super) fn is_at_line_start(&self) -> bool {
        self.begun.len() == self.taken
    }

    /// Returns the bytes after the last line end. The splitter is empty afterwards.
    pub(super) fn finish(&mut self) -> Option<Line<'_>> {
        self.begun.drain(..std::mem::take(&mut self.taken));
        self.taken = self.begun.len();
        (self.taken > 0).then_some(Line { bytes: &self.begun, end: LineEnd::Eof })
    }
}

/// Returns the last position up to `at` that is not inside a UTF-8 character, or `at` if the bytes there are
/// not UTF-8.
fn char_boundary(bytes: &[u8], at: usize) -> usize {
    let is_continuation = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    (at.saturating_sub(3)..=at).rev().find(|&position| !is_continuation(bytes[position])).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<(Vec<u8>, LineEnd)> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for mut chunk in chunks {
            while let Some(line) = splitter.next(&mut chunk) {
                lines.push((line.bytes.to_vec(), line.end));
            }
            assert!(chunk.is_empty());
        }
        lines.extend(splitter.finish().map(|line| (line.bytes.to_vec(), line.end)));
        assert_eq!(splitter.finish(), None);
        lines
    }

    #[test]
    fn lines_survive_chunks_that_end_anywhere() {
        let lines = split([&b"on"[..], b"e\ntwo\r", b"\n\nth", b"ree"]);
        let expected: [(&[u8], LineEnd); 4] =
            [(b"one", LineEnd::Lf), (b"two", LineEnd::CrLf), (b"", LineEnd::Lf), (b"three", LineEnd::Eof)];
        assert_eq!(lines, expected.map(|(bytes, end)| (bytes.to_vec(), end)));
    }

    #[test]
    fn a_line_of_just_the_maximum_is_whole_and_one_more_byte_makes_two_parts() {
        let mut text = vec![b'x'; MAX_LINE_BYTES];
        text.push(b'\n');
        assert_eq!(split([&text[..]]), [(text[..MAX_LINE_BYTES].to_vec(), LineEnd::Lf)]);
        text.insert(0, b'x');
        let lines = split([&text[..]]);
        assert_eq!(lines[0], (vec![b'x'; MAX_LINE_BYTES], LineEnd::Cut));
        assert_eq!(lines[1..], [(b"x".to_vec(), LineEnd::Lf)]);
    }

    #[test]
    fn a_hundred_megabytes_without_a_line_end_take_bounded_memory() {
        let mut splitter = LineSplitter::default();
        let (chunk, mut total) = (vec![b'x'; 1 << 16], 0);
        for _ in 0..1600 {
            let mut input = &chunk[..];
            while let Some(line) = splitter.next(&mut input) {
                assert_eq!(line.end, LineEnd::Cut);
                total += line.bytes.len();
            }
            assert!(splitter.begun.capacity() <= 4 * MAX_LINE_BYTES);
        }
        total += splitter.finish().map_or(0, |line| line.bytes.len());
        assert_eq!(total, 1600 << 16);
    }

    #[test]
    fn a_cut_spares_characters() {
        let text = "ä".repeat(MAX_LINE_BYTES);
        for shift in 0..2 {
            let shifted = ["x".repeat(shift), text.clone()].concat();
            for (bytes, _) in split([shifted.as_bytes()]) {
                assert!(std::str::from_utf8(&bytes).is_ok());
            }
        }
    }

    fn rejoin(lines: &[(Vec<u8>, LineEnd)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (line, end) in lines {
            bytes.extend_from_slice(line);
            bytes.extend_from_slice(match end {
                LineEnd::Lf => b"\n",
                LineEnd::CrLf => b"\r\n",
                LineEnd::Cut | LineEnd::Eof => b"",
            });
        }
        bytes
    }

    proptest! {
        #[test]
        fn lines_joined_again_are_the_bytes_whatever_the_chunks(
            chunks in prop::collection::vec(
                prop::collection::vec(prop::sample::select(&b"ab\r\n\n\xc3\xa4"[..]), 0..20), 0..12),
            filler in prop::sample::select(&[0, MAX_LINE_BYTES - 3, MAX_LINE_BYTES, 2 * MAX_LINE_BYTES + 1][..]),
        ) {
            let mut chunks = chunks;
            chunks.insert(chunks.len() / 2, vec![b'x'; filler]);
            let whole = chunks.concat();
            let lines = split(chunks.iter().map(Vec::as_slice));
            prop_assert_eq!(rejoin(&lines), &whole[..]);
            prop_assert_eq!(lines, split([&whole[..]]));
        }
    }
}
