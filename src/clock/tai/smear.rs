//! UTC with a leap second smeared over hours, for those who ask for it.
//!
//! A VMClock page is never smeared; it hints which smear its surroundings use.
//! A smeared clock runs at another rate for a while and shows no 23:59:60:
//!
//! | | from | to | rate, positive leap second |
//! | --- | --- | --- | --- |
//! | [`Smear::NoonLinear`] | noon before | noon after | 86400 / 86401 |
//! | [`Smear::UtcSls`] | 1000 UTC seconds before the midnight | midnight | 1000 / 1001 |

use super::leap::DAY;
use super::{CounterPeriod, LeapKind, LeapSecond, Tai, TaiLine, TaiLineError};

/// How UTC is smeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Smear {
    /// Not at all: 23:59:60 is shown as 23:59:59 again.
    #[default]
    Strict,
    /// Linearly from noon to noon UTC, as large clouds do.
    NoonLinear,
    /// Linearly over the last 1000 s of the day.
    UtcSls,
}

/// Smeared UTC over a stretch of one rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmearedLine {
    /// Counter to smeared UTC; [`TaiLine::at`] gives UTC since 1970 here.
    pub utc: TaiLine,
    /// The first counter value of the next stretch.
    pub until: Option<u64>,
}

/// The stretch in which a smear runs: in TAI, and its length in UTC seconds.
fn window(smear: Smear, leap: LeapSecond) -> Option<(Tai, Tai, u64)> {
    let (before, after): (i64, i64) = match smear {
        Smear::Strict => return None,
        Smear::NoonLinear => (DAY / 2, DAY / 2),
        Smear::UtcSls => (1_000, 0),
    };
    let start = leap.utc_midnight.saturating_sub(before).saturating_add(leap.offset_before.into());
    let end = leap.tai_midnight().saturating_add_sec(after);
    Some((Tai::new(start, 0), end, before.unsigned_abs() + after.unsigned_abs()))
}

/// TAI seconds in a stretch of `utc` seconds with this leap second.
const fn tai_seconds(utc: u64, kind: LeapKind) -> u64 {
    match kind {
        LeapKind::Positive => utc + 1,
        LeapKind::Negative => utc - 1,
    }
}

/// Smeared UTC at `tai`, since 1970, rounded down to 2^-64 s.
///
/// # Range
/// Held at the ends of [`Tai`]; exact to one unit elsewhere.
#[must_use]
pub fn utc_at(tai: Tai, leap: LeapSecond, smear: Smear) -> Tai {
    let plain = |offset: i16| tai.saturating_add_sec(-i64::from(offset));
    let Some((start, end, utc)) = window(smear, leap) else {
        let after = tai >= leap.tai_start();
        return plain(if after { leap.offset_after() } else { leap.offset_before });
    };
    if tai < start {
        return plain(leap.offset_before);
    }
    if tai >= end {
        return plain(leap.offset_after());
    }
    // Less than 86 401 s of 2^64 units, times 86 400: 98 bits.
    let into = tai.since(start) * i128::from(utc) / i128::from(tai_seconds(utc, leap.kind));
    start.saturating_add_sec(-i64::from(leap.offset_before)).saturating_add(into)
}

/// The line of smeared UTC that holds at `counter`.
///
/// The error terms are those of `line`; a rate of 1000/1001 changes them by a
/// thousandth, which the terms of a refreshed line do not show.
///
/// # Errors
/// [`TaiLineError`] where the smeared rate is out of range.
pub fn line_at(
    line: &TaiLine,
    counter: u64,
    leap: LeapSecond,
    smear: Smear,
) -> Result<SmearedLine, TaiLineError> {
    let tai = line.at(counter);
    let utc = utc_at(tai, leap, smear);
    let old = line.period();
    let (edges, period): (&[Tai], CounterPeriod) = match window(smear, leap) {
        None => (&[leap.tai_start()], old),
        Some((start, end, _)) if tai < start || tai >= end => (&[start, end], old),
        Some((_, end, utc)) => (&[end], old.times(utc, tai_seconds(utc, leap.kind))?),
    };
    let bent = line.bent(
        counter.max(line.base()),
        old,
        line.errors().rate_attos,
        line.errors().rate_est_attos,
    )?;
    let until = edges.iter().filter(|edge| **edge > tai).min().map(|edge| {
        // Positive: it lies ahead.
        let ahead = u128::try_from(edge.since(tai)).unwrap_or(0);
        counter.wrapping_add(old.ticks_to_reach(ahead))
    });
    Ok(SmearedLine { utc: TaiLine::new(counter, utc, period, bent.errors()), until })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TscFrequency;
    use crate::clock::tai::TaiErrors;
    use proptest::prelude::*;

    const MIDNIGHT: i64 = 20_000 * DAY;

    fn leap(kind: LeapKind) -> LeapSecond {
        LeapSecond { kind, utc_midnight: MIDNIGHT, offset_before: 37 }
    }

    #[test]
    fn noon_to_noon() {
        let leap = leap(LeapKind::Positive);
        let utc = |tai: i64| utc_at(Tai::new(tai, 0), leap, Smear::NoonLinear);
        let noon = MIDNIGHT - DAY / 2 + 37;
        assert_eq!(utc(noon - 1), Tai::new(MIDNIGHT - DAY / 2 - 1, 0));
        assert_eq!(utc(noon), Tai::new(MIDNIGHT - DAY / 2, 0));
        assert_eq!(utc(noon + 86_401), Tai::new(MIDNIGHT + DAY / 2, 0));
        // Half way: half a second less.
        let half = Tai::new(noon + 43_200, 1 << 63);
        assert_eq!(utc_at(half, leap, Smear::NoonLinear), Tai::new(MIDNIGHT, 0));
    }

    #[test]
    fn utc_sls_ends_at_midnight() {
        for (kind, seconds, after) in
            [(LeapKind::Positive, 1_001, 38), (LeapKind::Negative, 999, 36)]
        {
            let leap = leap(kind);
            let start = MIDNIGHT - 1_000 + 37;
            let utc = |tai: i64| utc_at(Tai::new(tai, 0), leap, Smear::UtcSls);
            assert_eq!(utc(start), Tai::new(MIDNIGHT - 1_000, 0));
            assert_eq!(utc(start + seconds), Tai::new(MIDNIGHT, 0));
            assert_eq!(leap.tai_midnight(), Tai::new(MIDNIGHT + after, 0));
        }
    }

    #[test]
    fn strict_repeats_a_second_or_leaves_one_out() {
        let utc = |kind, tai: i64| utc_at(Tai::new(tai, 0), leap(kind), Smear::Strict).sec();
        let positive: Vec<_> =
            (35..40).map(|s| utc(LeapKind::Positive, MIDNIGHT + s) - MIDNIGHT).collect();
        assert_eq!(positive, [-2, -1, -1, 0, 1]);
        let negative: Vec<_> =
            (34..39).map(|s| utc(LeapKind::Negative, MIDNIGHT + s) - MIDNIGHT).collect();
        assert_eq!(negative, [-3, -2, 0, 1, 2]);
    }

    proptest! {
        /// Continuous, never back, and the line says what the function says.
        #[test]
        fn lines_follow_the_function(positive: bool, sls: bool, khz in 100_000u64..8_000_000,
                                     from in -90_000i64..90_000, after in 0u64..1 << 40) {
            let kind = if positive { LeapKind::Positive } else { LeapKind::Negative };
            let smear = if sls { Smear::UtcSls } else { Smear::NoonLinear };
            let period = CounterPeriod::of_frequency(TscFrequency::from_khz(khz).unwrap());
            let line = TaiLine::new(1_000, Tai::new(MIDNIGHT + from, 0), period, TaiErrors::default());
            let counter = 1_000 + after;
            let smeared = line_at(&line, counter, leap(kind), smear).unwrap();
            prop_assert_eq!(smeared.utc.at(counter), utc_at(line.at(counter), leap(kind), smear));
            let probe = |counter: u64| {
                let exact = utc_at(line.at(counter), leap(kind), smear);
                smeared.utc.at(counter).distance_ns(exact)
            };
            match smeared.until {
                None => prop_assert!(probe(counter + (1 << 44)) <= 1),
                Some(until) => {
                    prop_assert!(until > counter);
                    prop_assert!(probe(until - 1) <= 1);
                    let later = line_at(&line, until, leap(kind), smear).unwrap();
                    prop_assert!(later.utc.period() != smeared.utc.period());
                    // No jump.
                    prop_assert!(later.utc.time().distance_ns(smeared.utc.at(until)) <= 1);
                }
            }
        }
    }
}
