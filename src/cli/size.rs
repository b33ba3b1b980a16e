//! Sizes as people write and read them.
//!
//! Promise: K, M, G, T mean powers of 1024; a size that does not fit in 64 bits, or is not one, is refused.
//! Called by: `options`, `init`, `status`. On failure: the sentence that clap shows.

/// Reads `10G`, `500M`, `4096`, `1GiB`.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: write bytes, or a number with K, M, G or T, such as 500M");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is more than 64 bits hold"))
}

/// The same, but zero is refused.
pub fn parse_some(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("0 would allow nothing: leave the option out for no limit".to_owned()),
        n => Ok(n),
    }
}

/// Shows a size to three figures or so.
pub fn show(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("10G"), Ok(10 << 30));
        assert_eq!(parse("500m"), Ok(500 << 20));
        assert_eq!(parse("1KiB"), Ok(1024));
        assert_eq!(parse("2T"), Ok(2 << 40));
        assert_eq!(parse("0"), Ok(0));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "-1", "1.5G", "10X", "10 G", "+1", "99999999999999999999", "17179869184G", "1GB"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_some("0").is_err());
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show(17), "17 bytes");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(10 << 30), "10.0 GiB");
        assert_eq!(show(u64::MAX), "16.0 EiB");
    }
}
