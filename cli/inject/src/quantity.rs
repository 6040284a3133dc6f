//! Amounts as Kubernetes writes them: `100m`, `0.5`, `256Mi`, `1e3`. Those of one size are one
//! amount, however they are written.

/// Digits behind the point that count, as in Kubernetes.
const DIGITS: usize = 9;

/// An amount in billionths; `None` for what is none, is negative, or is beyond all reason.
pub(crate) fn parse(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if part.contains('.') || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let (part, rest) = part.split_at(part.len().min(DIGITS));
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u128 = format!("{part:0<DIGITS$}").parse().ok()?;
    // Less than a billionth is rounded up.
    let more = u128::from(rest.bytes().any(|digit| digit != b'0'));
    let amount = whole.checked_mul(1_000_000_000)?.checked_add(part)?.checked_add(more)?;
    let binary = |power: u32| amount.checked_mul(1024_u128.checked_pow(power)?);
    match unit {
        "n" => decimal(amount, -9),
        "u" => decimal(amount, -6),
        "m" => decimal(amount, -3),
        "" => Some(amount),
        "k" => decimal(amount, 3),
        "M" => decimal(amount, 6),
        "G" => decimal(amount, 9),
        "T" => decimal(amount, 12),
        "P" => decimal(amount, 15),
        "E" => decimal(amount, 18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => decimal(amount, unit.strip_prefix(['e', 'E'])?.parse().ok()?),
    }
}

fn decimal(amount: u128, exponent: i32) -> Option<u128> {
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    if exponent < 0 { Some(amount.div_ceil(power)) } else { amount.checked_mul(power) }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn one_amount_is_written_in_many_ways() {
        for same in [
            &["1", "1000m", "1.0", "+1", "1e0", "1000000u", "1000000000n", "0.001k", "1."][..],
            &["500m", "0.5", ".5", "5e-1", "5E-1"],
            &["1Gi", "1024Mi", "1073741824", "1048576Ki"],
            &["1G", "1000M", "1e9", "1E9"],
            &["0", "0Mi", "0.0"],
        ] {
            for other in same {
                assert!(parse(other).is_some(), "{other}");
                assert_eq!(parse(other), parse(same[0]), "{other}");
            }
        }
        assert!(parse("1Gi") > parse("1G"));
        assert!(parse("64Mi") < parse("0.1Gi"));
        assert!(parse("0.0000000001") > parse("0"));
        assert!(parse("9Ei") > parse("9E"));
    }

    #[test]
    fn what_is_no_amount_is_none() {
        for text in [
            "",
            ".",
            "Mi",
            "1 Gi",
            "1Gib",
            "-1",
            "1..2",
            "1.2.3",
            "1e",
            "1e99",
            "1ee3",
            "0x10",
            "NaN",
            "inf",
            "99999999999999999999999999999999999999999",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
