//! Amounts of memory as people write them: `2GiB`, `512MiB`, `4096`.

/// Smallest first; binary and decimal names as they are used everywhere else.
const UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
    ("", 1),
];

/// Bytes of `2GiB`, `1.5 GB` or `4096`. Zero is refused.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let refused = || format!("{text:?} is not an amount of memory; write 2GiB, 512MiB or a number of bytes");
    let text_trimmed = text.trim();
    let digits = text_trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| refused())?;
    let unit = unit.trim().to_ascii_uppercase();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
    let bytes = number * *factor as f64;
    // 2^60 is more than any machine has, and far from where counts overflow.
    if (1.0..=(1u64 << 60) as f64).contains(&bytes) { Ok(bytes as u64) } else { Err(refused()) }
}

/// `1.50 GiB`
pub(crate) fn show(bytes: u64) -> String {
    let named = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match named.iter().find(|(_, factor)| bytes >= *factor) {
        Some((name, factor)) => format!("{:.2} {name}", bytes as f64 / *factor as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("2GiB", Some(2 << 30)),
            ("512 mib", Some(512 << 20)),
            ("1.5GB", Some(1_500_000_000)),
            ("4096", Some(4096)),
            ("0", None),
            ("-1", None),
            ("2 gigs", None),
            ("", None),
            ("1e300", None),
            ("99999999TiB", None),
        ] {
            assert_eq!(parse(text).ok(), bytes, "{text}");
        }
        assert_eq!(show(1536 << 20), "1.50 GiB");
        assert_eq!(show(12), "12 B");
    }
}
