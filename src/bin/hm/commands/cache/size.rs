//! Sizes, as people write and read them.

/// A number of bytes for people: `0 B`, `4.0 KiB`, `1.5 GiB`.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn show(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for larger in ["MiB", "GiB", "TiB"] {
        // What would be shown as 1024.0 is 1.0 of the next one.
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
    fn sizes_are_shown_in_the_unit_that_fits() {
        let shown = [0, 1023, 1024, 4096, (1 << 20) - 1, 3 << 29, 5 << 40].map(show);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "4.0 KiB", "1.0 MiB", "1.5 GiB", "5.0 TiB"]);
    }
}
