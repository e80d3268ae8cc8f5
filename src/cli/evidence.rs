//! What a guest reports of its clocks, held against the exact line.
//!
//! Guests print lines `KVMXEN topic key=value …`. A Linux guest samples
//! CLOCK_MONOTONIC_RAW between two readings of its TSC. With `clocksource` xen
//! that clock is system time minus a constant that Linux chose at boot, so the
//! samples are right if, and only if, one constant fits all brackets.

use std::collections::HashMap;

use crate::clock::SystemTimeLine;
use crate::host::RealtimePair;
use crate::kvm::GuestTsc;

const PREFIX: &str = "KVMXEN ";

/// One line of a guest's report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The word after the prefix.
    pub topic: String,
    fields: HashMap<String, String>,
}

impl Report {
    /// Reads one console line; `None` where it is no report.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.get(line.find(PREFIX)? + PREFIX.len()..)?.trim_end();
        let (topic, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let fields = rest
            .split(' ')
            .filter_map(|field| field.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Self { topic: topic.to_owned(), fields })
    }

    /// A field's text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }

    /// A field as a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }
}

/// A guest clock's reading between two readings of its TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Guest TSC before.
    pub before_tsc: u64,
    /// What the clock said, in nanoseconds.
    pub clock_ns: u64,
    /// Guest TSC after.
    pub after_tsc: u64,
}

/// How a set of samples stands to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// How many samples.
    pub samples: usize,
    /// The clock is the line minus a constant if this is 0; otherwise the least
    /// number of nanoseconds by which the clock must have strayed.
    pub strayed_ns: u64,
    /// The narrowest bracket: what the samples could tell apart, in nanoseconds.
    pub resolution_ns: u64,
}

/// The samples among a guest's reports.
pub fn samples<'a>(reports: impl Iterator<Item = &'a Report>) -> Vec<Sample> {
    reports
        .filter(|report| report.topic == "sample")
        .filter_map(|report| {
            Some(Sample {
                before_tsc: report.number("before_tsc")?,
                clock_ns: report.number("raw_ns")?,
                after_tsc: report.number("after_tsc")?,
            })
        })
        .collect()
}

/// What a report `realtime` shows: guest UTC minus host UTC at one guest TSC, and
/// how well that is known, in nanoseconds. `pair` is the host's reading when the
/// report arrived.
pub fn realtime_error(
    line: &SystemTimeLine,
    guest_tsc: GuestTsc,
    said: &Report,
    pair: &RealtimePair,
) -> Option<(i128, i128)> {
    let (before, after) = (said.number("before_tsc")?, said.number("after_tsc")?);
    let guest_ns = i128::from(said.number("realtime_ns")?);
    let ns = |tsc: u64| i128::from(line.system_time_ns(tsc));
    // The host's reading came later; system time tells by how much.
    let elapsed = ns(guest_tsc.from_host(pair.host_tsc)) - ns(before.midpoint(after));
    Some((guest_ns - (pair.utc_ns - elapsed), (ns(after) - ns(before)) / 2))
}

/// Holds samples against a line; `None` if there are none.
pub fn agreement(line: &SystemTimeLine, samples: &[Sample]) -> Option<Agreement> {
    // constant = line(at) - clock_ns for some `at` in the bracket.
    let at =
        |tsc, sample: &Sample| i128::from(line.system_time_ns(tsc)) - i128::from(sample.clock_ns);
    let least = samples.iter().map(|sample| at(sample.before_tsc, sample)).max()?;
    let most = samples.iter().map(|sample| at(sample.after_tsc, sample)).min()?;
    let resolution = samples
        .iter()
        .map(|sample| at(sample.after_tsc, sample) - at(sample.before_tsc, sample))
        .min()?;
    let positive = |value: i128| u64::try_from(value.max(0)).unwrap_or(u64::MAX);
    Some(Agreement {
        samples: samples.len(),
        strayed_ns: positive(least - most),
        resolution_ns: positive(resolution),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TscFrequency;

    fn line() -> SystemTimeLine {
        SystemTimeLine::new(TscFrequency::from_khz(1_000_000).unwrap(), 1_000, 0).unwrap()
    }

    fn sample(before_tsc: u64, clock_ns: u64, after_tsc: u64) -> Sample {
        Sample { before_tsc, clock_ns, after_tsc }
    }

    #[test]
    fn reports_are_found_behind_other_text() {
        let report = Report::parse("[0.1] KVMXEN clock cpus=2 backward=0\r\n").unwrap();
        assert_eq!(report.topic, "clock");
        assert_eq!(report.number("cpus"), Some(2));
        assert_eq!(report.number("nothing"), None);
        assert_eq!(Report::parse("nothing of ours"), None);
        assert_eq!(Report::parse("KVMXEN ").unwrap().topic, "");
    }

    #[test]
    fn a_constant_that_fits_is_agreement() {
        // 1 GHz: one tick is one nanosecond; the constant is 500.
        let samples = [sample(2_000, 510, 2_020), sample(5_000, 3_505, 5_010)];
        let found = agreement(&line(), &samples).unwrap();
        assert_eq!((found.strayed_ns, found.resolution_ns), (0, 10));
    }

    #[test]
    fn a_step_is_seen() {
        let samples = [sample(2_000, 510, 2_020), sample(5_000, 3_600, 5_010)];
        // The second clock reads 3600 where at most 3520 fits the first.
        assert_eq!(agreement(&line(), &samples).unwrap().strayed_ns, 80);
        assert_eq!(agreement(&line(), &[]), None);
    }
}
