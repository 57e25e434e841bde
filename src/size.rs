//! Sizes in bytes, as people write and read them.

/// A text is not the size of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// The text does not have the form of a size.
    #[error("write a size such as 500M, 10G or 1T")]
    Malformed,
    /// The size does not fit into 64 bits.
    #[error("that is too much")]
    TooLarge,
}

/// Parses `10G`, `512MiB`, `2 TB` or `1048576`: powers of 1024, in any case.
///
/// # Errors
/// Returns an error if the text is not a size.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix("ib").or(text.strip_suffix('b')).unwrap_or(&text);
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'm') => (&text[..text.len() - 1], 20),
        Some(b'g') => (&text[..text.len() - 1], 30),
        Some(b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let digits = digits.trim_end();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::Malformed);
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

/// Formats a size as pulls show it: whole megabytes, or tenths if it is less than 10 MB.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    if tenths < 100 { format!("{}.{} MB", tenths / 10, tenths % 10) } else { format!("{} MB", tenths / 10) }
}

/// Formats a number of bytes: `0 B`, `4.0 KiB`, `1.5 GiB`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn show(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for larger in ["MiB", "GiB", "TiB", "PiB"] {
        // A value that would be shown as 1024.0 becomes 1.0 of the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_the_ways_that_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("10G", 10 << 30),
            ("512MiB", 512 << 20),
            ("2 TB", 2 << 40),
            ("512m", 512 << 20),
            (" 7b", 7),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "b", "1.5G", "-1", "+1", "10X", "1GG", "1bb", "é"] {
            assert_eq!(parse(wrong), Err(SizeError::Malformed), "{wrong}");
        }
        for large in ["99999999999999999999", "99999999T"] {
            assert_eq!(parse(large), Err(SizeError::TooLarge), "{large}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        let shown = [0, 1023, 1024, 4096, (1 << 20) - 1, 3 << 29, 5 << 40, 5 << 50].map(show);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "4.0 KiB", "1.0 MiB", "1.5 GiB", "5.0 TiB", "5.0 PiB"]);
    }
}
