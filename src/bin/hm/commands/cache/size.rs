//! Sizes in bytes, parsed from arguments and formatted for people.

/// Parses `10G`, `512MiB`, `1048576`: powers of 1024.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = text[digits..].trim().trim_end_matches(['b', 'B']).trim_end_matches('i');
    let power = match unit {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        _ => return Err("expected a size such as 500M, 10G or 1T".into()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "expected a size such as 500M, 10G or 1T")?;
    1024_u64.pow(power).checked_mul(number).ok_or_else(|| "the size is too large".into())
}

/// Formats a number of bytes for people: `0 B`, `4.0 KiB`, `1.5 GiB`.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn show(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for larger in ["MiB", "GiB", "TiB"] {
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
        for (text, bytes) in
            [("0", 0), ("1048576", 1 << 20), ("10G", 10 << 30), ("512MiB", 512 << 20), ("2 TB", 2 << 40)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "1.5G", "-1", "10X", "99999999999999999999", "99999999T", "1GG"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        let shown = [0, 1023, 1024, 4096, (1 << 20) - 1, 3 << 29, 5 << 40].map(show);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "4.0 KiB", "1.0 MiB", "1.5 GiB", "5.0 TiB"]);
    }
}
