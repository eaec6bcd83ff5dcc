//! What single values mean: flags, numbers, words, durations, sizes, shares and status codes.
//!
//! Each function takes a TOML value, or makes a function that does, and returns what it means or what would have been
//! right. Bounds are part of the message. Nothing here panics or reads anything but its argument.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use crate::config::reader::{Expected, nearest};
use crate::config::{MinHealthy, StatusRange};

/// Reads a duration such as `250ms`, `1m 30s` or `0`.
///
/// # Errors
/// What would have been right. Unlike the parser beneath, which panics on some texts that overflow, this one may be
/// given anything.
pub fn parse_duration(text: &str) -> Result<Duration, Expected> {
    const LONGEST: usize = 64;
    const MOST_DIGITS: usize = 9;
    // A sum of at most 32 terms below 10^9 years each stays far from overflow.
    let is_tame =
        text.len() <= LONGEST && !text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > MOST_DIGITS);
    let wrong = || Expected::from("a duration such as \"250ms\", \"30s\" or \"1m 30s\"");
    if is_tame { humantime::parse_duration(text).map_err(|_| wrong()) } else { Err(wrong()) }
}

/// Reads a size such as `64KiB`, `10MB` or `0`.
///
/// # Errors
/// What would have been right.
pub fn parse_size(text: &str) -> Result<u64, Expected> {
    let wrong = || Expected::from("a size such as \"64KiB\", \"10MB\" or \"0\"");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Octets, shown in the largest unit that needs no fraction.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (factor, unit) = match self.0 {
            0 => (1, ""),
            octets if octets.is_multiple_of(1 << 30) => (1 << 30, "GiB"),
            octets if octets.is_multiple_of(1 << 20) => (1 << 20, "MiB"),
            octets if octets.is_multiple_of(1 << 10) => (1 << 10, "KiB"),
            _ => (1, ""),
        };
        write!(f, "{}{unit}", self.0 / factor)
    }
}

pub(crate) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Result<Duration, Expected> {
    move |value| {
        let meant = value.as_str().and_then(|text| parse_duration(text).ok());
        meant.filter(|duration| range.contains(duration)).ok_or_else(|| duration_expected(value, &range))
    }
}

fn duration_expected(value: &DeValue<'_>, range: &RangeInclusive<Duration>) -> Expected {
    let (from, to) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
    let example = match value.as_integer() {
        Some(seconds) => format!("\"{seconds}s\""),
        None => "\"30s\" or \"250ms\"".to_owned(),
    };
    format!("a duration from {from} to {to} such as {example}").into()
}

pub(crate) fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<u64, Expected> {
    move |value| {
        let meant = match value {
            DeValue::String(text) => parse_size(text).ok(),
            value => value.as_integer().and_then(unsigned),
        };
        meant.filter(|size| range.contains(size)).ok_or_else(|| {
            let (from, to) = (Size(*range.start()), Size(*range.end()));
            format!("a size from {from} to {to} such as \"64KiB\"").into()
        })
    }
}

pub(crate) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<T, Expected> {
    move |value| {
        let meant = value.as_integer().and_then(unsigned).filter(|number| range.contains(number));
        meant.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            let is_quoted = value.as_str().is_some_and(|text| text.parse::<u64>().is_ok());
            if is_quoted { format!("{expected}, without quotes").into() } else { expected.into() }
        })
    }
}

fn unsigned(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

pub(crate) fn flag(value: &DeValue<'_>) -> Result<bool, Expected> {
    value.as_bool().ok_or_else(|| match value.as_str() {
        Some("true" | "false") => "true or false, without quotes".into(),
        _ => "true or false".into(),
    })
}

/// One of a few words, each with its meaning.
pub(crate) fn word<T: Clone>(words: &'static [(&'static str, T)]) -> impl Fn(&DeValue<'_>) -> Result<T, Expected> {
    move |value| {
        let text = value.as_str().unwrap_or_default();
        let meant = words.iter().find(|(word, _)| *word == text).map(|(_, meant)| meant.clone());
        meant.ok_or_else(|| words_expected(text, words.iter().map(|(word, _)| *word)))
    }
}

pub(crate) fn words_expected(text: &str, words: impl Iterator<Item = &'static str> + Clone) -> Expected {
    let quoted: Vec<_> = words.clone().map(|word| format!("{word:?}")).collect();
    let expected = match &quoted[..] {
        few @ ([] | [_] | [_, _]) => few.join(" or "),
        many => format!("one of {}", many.join(", ")),
    };
    match nearest(text, words) {
        Some(meant) => format!("{expected}; did you mean {meant:?}?").into(),
        None => expected.into(),
    }
}

/// Any text that is not empty.
pub(crate) fn text(value: &DeValue<'_>) -> Result<String, Expected> {
    match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("a text in quotes that is not empty".into()),
    }
}

/// A path of the file system; a relative one starts at the working directory.
pub(crate) fn path(value: &DeValue<'_>) -> Result<PathBuf, Expected> {
    match value.as_str() {
        Some(text) if !text.is_empty() && !text.contains('\0') => Ok(PathBuf::from(text)),
        _ => Err("a path in quotes".into()),
    }
}

/// `"all"`, a number of endpoints, or a share such as `"50%"`.
pub(crate) fn min_healthy(value: &DeValue<'_>) -> Result<MinHealthy, Expected> {
    const MOST: usize = 1_000_000;
    let meant = match value {
        DeValue::String(text) if *text == "all" => Some(MinHealthy::All),
        DeValue::String(text) => percent(text).map(MinHealthy::Percent),
        value => value.as_integer().and_then(unsigned).and_then(|count| count.try_into().ok()).map(MinHealthy::Count),
    };
    let is_sane = |meant: &MinHealthy| match meant {
        MinHealthy::All => true,
        MinHealthy::Count(count) => (1..=MOST).contains(count),
        MinHealthy::Percent(percent) => (1..=100).contains(percent),
    };
    meant.filter(is_sane).ok_or_else(|| "\"all\", a number from 1 such as 2, or a share such as \"50%\"".into())
}

fn percent(text: &str) -> Option<u8> {
    let digits = text.strip_suffix('%')?;
    if digits.bytes().all(|octet| octet.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// A status such as `200`, or a class such as `"2xx"`.
pub(crate) fn status(value: &DeValue<'_>) -> Result<StatusRange, Expected> {
    let meant = match value {
        DeValue::String(text) => class(text),
        value => value.as_integer().and_then(unsigned).and_then(code),
    };
    meant.ok_or_else(|| "a status from 200 to 599 or a class such as \"2xx\"".into())
}

fn class(text: &str) -> Option<StatusRange> {
    let [digit @ b'2'..=b'5', b'x', b'x'] = text.as_bytes() else { return None };
    let from = u16::from(digit - b'0') * 100;
    Some(StatusRange { from, to: from + 99 })
}

fn code(number: u64) -> Option<StatusRange> {
    let code = u16::try_from(number).ok().filter(|code| (200..=599).contains(code))?;
    Some(StatusRange { from: code, to: code })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    fn read<T>(toml: &str, kind: impl Fn(&DeValue<'_>) -> Result<T, Expected>) -> Result<T, String> {
        let value = DeValue::parse(toml).expect("TOML of the test is good");
        kind(value.get_ref()).map_err(|expected| expected.to_string())
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", " ", "5", "s", "-1s", "1 fortnight", "1.s", "1e3s", "1s,2s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_duration_that_overflows_is_refused_and_does_not_panic() {
        assert!(parse_duration("18446744073709551615s 1000ms").is_err());
        assert!(parse_duration(&"999999999y".repeat(6)).is_ok());
        assert!(parse_duration(&"9".repeat(100)).is_err());
    }

    #[test]
    fn a_duration_outside_its_bounds_names_them() {
        let kind = duration(Duration::from_millis(1)..=Duration::from_secs(3600));
        assert_eq!(read("'1h'", &kind), Ok(Duration::from_secs(3600)));
        let expected = "expected a duration from 1ms to 1h such as \"30s\" or \"250ms\"";
        assert_eq!(read("'0s'", &kind), Err(expected.to_owned()));
        assert_eq!(read("'61m'", &kind), Err(expected.to_owned()));
        assert_eq!(read("5", &kind), Err("expected a duration from 1ms to 1h such as \"5s\"".to_owned()));
    }

    #[test]
    fn sizes_are_read_in_both_kinds_of_units() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("512 B"), Ok(512));
        assert_eq!(parse_size("64KiB"), Ok(65536));
        assert_eq!(parse_size("64 kb"), Ok(64000));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for bad in ["", "KiB", "-1", "1.5MiB", "1k", "1 TiB", "18446744073709551615KiB", "1KiB1", "٣KiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_are_read_in_every_radix_and_never_from_text() {
        let kind = whole::<u32>(0..=1024);
        assert_eq!(read("1_000", &kind), Ok(1000));
        assert_eq!(read("0x10", &kind), Ok(16));
        assert_eq!(read("-1", &kind), Err("expected a whole number from 0 to 1024".to_owned()));
        assert_eq!(read("99999999999999999999999", &kind), Err("expected a whole number from 0 to 1024".to_owned()));
        assert_eq!(read("'4'", &kind), Err("expected a whole number from 0 to 1024, without quotes".to_owned()));
        assert_eq!(read("300", whole::<u8>(0..=1024)), Err("expected a whole number from 0 to 1024".to_owned()));
    }

    #[test]
    fn a_misspelt_word_is_recognised() {
        let kind = word(&[("text", 1), ("json", 2)]);
        assert_eq!(read("'json'", &kind), Ok(2));
        assert_eq!(read("'jsom'", &kind), Err("expected \"text\" or \"json\"; did you mean \"json\"?".to_owned()));
        assert_eq!(read("1", &kind), Err("expected \"text\" or \"json\"".to_owned()));
    }

    #[test]
    fn a_share_of_healthy_endpoints() {
        assert_eq!(read("'all'", min_healthy), Ok(MinHealthy::All));
        assert_eq!(read("2", min_healthy), Ok(MinHealthy::Count(2)));
        assert_eq!(read("'50%'", min_healthy), Ok(MinHealthy::Percent(50)));
        for bad in ["0", "'0%'", "'101%'", "'+5%'", "'%'", "'half'", "-1", "2.5", "true", "'2'"] {
            assert!(read(bad, min_healthy).is_err(), "{bad}");
        }
    }

    #[test]
    fn statuses_and_classes() {
        assert_eq!(read("204", status), Ok(StatusRange { from: 204, to: 204 }));
        assert_eq!(read("'2xx'", status), Ok(StatusRange { from: 200, to: 299 }));
        for bad in ["199", "600", "65736", "'1xx'", "'2XX'", "'2x'", "'200'", "true"] {
            assert!(read(bad, status).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_being_shown(nanos in 0..Duration::from_secs(7 * 86400).as_nanos() as u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&humantime::format_duration(duration).to_string()), Ok(duration));
        }

        #[test]
        fn a_size_survives_being_shown(octets: u64, shift in 0..64_u32) {
            let octets = octets >> shift << (shift / 2);
            prop_assert_eq!(parse_size(&Size(octets).to_string()), Ok(octets));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", numbers in "([0-9]{1,22}(\\.[0-9]{1,4})? ?(ns|us|ms|s|m|h|d|w|M|y|KiB|GB)? ?){1,4}") {
            for text in [&text, &numbers] {
                let _ = parse_duration(text);
                let _ = parse_size(text);
                let _ = percent(text);
            }
        }
    }
}
