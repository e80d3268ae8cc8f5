//! Durations, rates and steps as a person writes them, and times as one reads
//! them. Integers only.

use crate::clock::lab::NtpStretch;

/// A day, s.
const DAY: u64 = 86_400;
/// A Julian year, s.
const YEAR: u64 = 31_557_600;
/// The longest time that can be asked for, s. A TSC wraps long before.
const LONGEST: u64 = 10_000 * YEAR;

/// What NTP does, in the order in which it does it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ntp(pub Vec<NtpStretch>);

/// Whole days, as seconds.
pub fn parse_days(text: &str) -> Result<u64, String> {
    let days: Option<u64> = text.parse().ok().filter(|days| (1..=LONGEST / DAY).contains(days));
    days.map(|days| days * DAY).ok_or_else(|| "give a whole number of days from 1 up".to_owned())
}

/// A duration with its unit, as seconds, 1 at least.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", DAY), ("y", YEAR)];
    units
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .and_then(|(number, seconds)| number.parse::<u64>().ok()?.checked_mul(seconds))
        .filter(|seconds| (1..=LONGEST).contains(seconds))
        .ok_or_else(|| "give a whole number with s, m, h, d or y, such as 90m".to_owned())
}

/// A history of NTP, or `@` and the name of a file with one.
pub fn parse_ntp(text: &str) -> Result<Ntp, String> {
    let (stretches, separator) = match text.strip_prefix('@') {
        Some(path) => {
            (std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?, '\n')
        }
        None => (text.to_owned(), ','),
    };
    let lines = stretches.split(separator).map(str::trim);
    // A file may have empty lines and remarks.
    let told = lines.filter(|line| separator == ',' || !(line.is_empty() || line.starts_with('#')));
    told.map(parse_stretch).collect::<Result<_, _>>().map(Ntp)
}

fn parse_stretch(text: &str) -> Result<NtpStretch, String> {
    let mut parts = text.split(':').map(str::trim);
    let seconds = parse_duration(parts.next().unwrap_or_default())
        .map_err(|how| format!("{text:?}: duration: {how}"))?;
    let rate = parts.next().unwrap_or_default();
    let ppb = scaled(rate, &[("ppm", 1_000), ("ppb", 1)])
        .and_then(|ppb| i32::try_from(ppb).ok())
        .filter(|ppb| ppb.unsigned_abs() <= 100_000_000)
        .ok_or_else(|| {
            format!("{text:?}: rate: give a number with ppm or ppb, 10 % at most, such as -20ppm")
        })?;
    let step_ns = match parts.next() {
        None => 0,
        Some(step) => {
            scaled(step, &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)])
                .ok_or_else(|| {
                    format!(
                        "{text:?}: step: give a whole number with ns, us, ms or s, such as +5ms"
                    )
                })?
        }
    };
    if parts.next().is_some() {
        return Err(format!("{text:?}: give DURATION:RATE or DURATION:RATE:STEP"));
    }
    Ok(NtpStretch { seconds, ppb, step_ns })
}

/// A signed whole number with one of these units, the longer ones first.
fn scaled(text: &str, units: &[(&str, i64)]) -> Option<i64> {
    let (number, unit) =
        units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))?;
    number.parse::<i64>().ok()?.checked_mul(unit)
}

/// `ns` for a person, rounded to a thousandth of its unit, from ns to s.
pub fn show_ns(ns: i128) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let size = ns.unsigned_abs();
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")];
    match units.into_iter().find(|(unit, _)| size >= *unit) {
        None => format!("{sign}{size} ns"),
        Some((unit, name)) => {
            let rest = size % unit * 1_000 + unit / 2;
            let (whole, rest) = (size / unit + rest / unit / 1_000, rest / unit % 1_000);
            format!("{sign}{whole}.{rest:03} {name}")
        }
    }
}

/// `seconds` for a person, in the largest unit that is whole.
pub fn show_seconds(seconds: u64) -> String {
    let units = [(YEAR, "year"), (DAY, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let (unit, name) = units
        .into_iter()
        .find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit))
        .unwrap_or((1, "second"));
    let count = seconds / unit;
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in
            [("1s", 1), ("90m", 5_400), ("2h", 7_200), ("3d", 3 * DAY), ("1y", YEAR)]
        {
            assert_eq!(parse_duration(text), Ok(seconds), "{text}");
        }
        for text in
            ["", "s", "0s", "1", "-1s", "1.5h", "1w", "99999999999999999999s", "10001y", "1 h"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_days("7"), Ok(7 * DAY));
        for text in ["0", "-1", "x", "1d", "99999999999999999999"] {
            assert!(parse_days(text).is_err(), "{text}");
        }
    }

    #[test]
    fn histories() {
        let stretch = |seconds, ppb, step_ns| NtpStretch { seconds, ppb, step_ns };
        assert_eq!(
            parse_ntp("1h:+500ppm, 30m:-20ppb:-5ms,1s:0ppm:+1s").unwrap().0,
            [
                stretch(3_600, 500_000, 0),
                stretch(1_800, -20, -5_000_000),
                stretch(1, 0, 1_000_000_000)
            ]
        );
        for text in [
            "",
            "1h",
            "1h:",
            "1h:5",
            "1h:5%",
            "1h:1ppm:1",
            "1h:1ppm:1ms:1",
            "1h:1ppm,",
            "1h:100001ppm",
            "1h:9999999999ppm",
            "1h:1ppm:99999999999999s",
            "@/nonexistent/history",
        ] {
            assert!(parse_ntp(text).is_err(), "{text}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# an hour\n\n1h:+1ppm\n2h:-1ppm:+1ms\n").unwrap();
        let read = parse_ntp(&format!("@{}", file.path().display())).unwrap();
        assert_eq!(read.0, [stretch(3_600, 1_000, 0), stretch(7_200, -1_000, 1_000_000)]);
    }

    #[test]
    fn times_for_people() {
        for (ns, text) in [
            (0, "0 ns"),
            (-999, "-999 ns"),
            (1_000, "1.000 µs"),
            (34_555_233, "34.555 ms"),
            (1_439_801, "1.440 ms"),
            (999_999_999, "1000.000 ms"),
            (-1_800_000_000, "-1.800 s"),
        ] {
            assert_eq!(show_ns(ns), text);
        }
        let _ = show_ns(i128::MIN);
        for (seconds, text) in [
            (0, "0 seconds"),
            (60, "1 minute"),
            (61, "61 seconds"),
            (DAY, "1 day"),
            (2 * YEAR, "2 years"),
        ] {
            assert_eq!(show_seconds(seconds), text);
        }
    }
}
