//! A moment of TAI in units of 2^-64 s.

use crate::clock::NANOS_PER_SEC;

/// TAI since 1970-01-01 00:00:00 TAI, in units of 2^-64 s: 54 zeptoseconds.
///
/// Seconds are an `i64`, before 1970 negative, and every pair of `i64` seconds
/// and 64 bits of fraction is a value: arithmetic that leaves that range is
/// checked. Linux's CLOCK_TAI counts the same seconds, provided that somebody
/// told the kernel the offset.
///
/// ```
/// use kvm_xen::clock::tai::Tai;
/// let tai = Tai::from_ns(1_500_000_000).unwrap();
/// assert_eq!((tai.sec(), tai.frac()), (1, 1 << 63));
/// assert_eq!(tai.ns_floor(), 1_500_000_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tai(i128);

impl Tai {
    /// From whole seconds and units of 2^-64 s.
    #[must_use]
    pub const fn new(sec: i64, frac: u64) -> Self {
        Self(((sec as i128) << 64) | frac as i128)
    }

    /// From units of 2^-64 s.
    #[must_use]
    pub const fn from_units(units: i128) -> Self {
        Self(units)
    }

    /// From nanoseconds, rounded down to 2^-64 s. `None` beyond 64 bits of
    /// seconds.
    #[must_use]
    pub fn from_ns(ns: i128) -> Option<Self> {
        let second = i128::from(NANOS_PER_SEC);
        let sec = i64::try_from(ns.div_euclid(second)).ok()?;
        let frac = (ns.rem_euclid(second) << 64) / second;
        Some(Self::new(sec, u64::try_from(frac).ok()?))
    }

    /// In units of 2^-64 s.
    #[must_use]
    pub const fn units(self) -> i128 {
        self.0
    }

    /// Whole seconds, rounded down.
    #[must_use]
    pub const fn sec(self) -> i64 {
        (self.0 >> 64) as i64
    }

    /// The fraction of a second in units of 2^-64 s.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    #[expect(clippy::cast_sign_loss, reason = "two's complement: the fraction counts upwards")]
    pub const fn frac(self) -> u64 {
        self.0 as u64
    }

    /// Nanoseconds, rounded down. Below 2^93 in magnitude.
    #[must_use]
    pub fn ns_floor(self) -> i128 {
        let nanos = (u128::from(self.frac()) * u128::from(NANOS_PER_SEC)) >> 64;
        // Below 10^9.
        i128::from(self.sec()) * i128::from(NANOS_PER_SEC) + i128::try_from(nanos).unwrap_or(0)
    }

    /// Later by `units` of 2^-64 s; `None` beyond the range.
    #[must_use]
    pub const fn checked_add(self, units: i128) -> Option<Self> {
        match self.0.checked_add(units) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Later by `units` of 2^-64 s, held at the ends of the range.
    #[must_use]
    pub const fn saturating_add(self, units: i128) -> Self {
        Self(self.0.saturating_add(units))
    }

    /// Later by whole seconds, held at the ends of the range.
    #[must_use]
    pub const fn saturating_add_sec(self, sec: i64) -> Self {
        self.saturating_add((sec as i128) << 64)
    }

    /// `self − earlier` in units of 2^-64 s, held at the ends of `i128`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> i128 {
        self.0.saturating_sub(earlier.0)
    }

    /// `|self − other|` in ns, rounded up.
    #[must_use]
    pub fn distance_ns(self, other: Self) -> u128 {
        units_to_ns_ceil(self.0.abs_diff(other.0))
    }
}

/// Units of 2^-64 s to ns, rounded up.
pub(crate) fn units_to_ns_ceil(units: u128) -> u128 {
    let nanos = u128::from(NANOS_PER_SEC);
    let part = (units & u128::from(u64::MAX)) * nanos;
    (units >> 64) * nanos + (part >> 64) + u128::from(part & u128::from(u64::MAX) != 0)
}

/// Nanoseconds to units of 2^-64 s, rounded up; at most 2^94.
pub(crate) fn ns_to_units_ceil(ns: u64) -> u128 {
    (u128::from(ns) << 64).div_ceil(u128::from(NANOS_PER_SEC))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn boundaries() {
        for (ns, sec, frac) in [
            (0, 0, 0),
            (-1, -1, 18_446_744_055_262_807_542),
            (1, 0, 18_446_744_073),
            (999_999_999, 0, 18_446_744_055_262_807_542),
            (1_000_000_000, 1, 0),
            (-1_000_000_000, -1, 0),
            (i128::from(i64::MAX) * 1_000_000_000, i64::MAX, 0),
            (i128::from(i64::MIN) * 1_000_000_000, i64::MIN, 0),
        ] {
            let tai = Tai::from_ns(ns).unwrap();
            assert_eq!((tai.sec(), tai.frac()), (sec, frac), "{ns} ns");
        }
        assert_eq!(Tai::from_ns((i128::from(i64::MAX) + 1) * 1_000_000_000), None);
        assert_eq!(Tai::from_ns(i128::MAX), None);
        assert_eq!(Tai::from_ns(i128::MIN), None);
        assert_eq!(Tai::new(i64::MAX, u64::MAX).checked_add(1), None);
        assert_eq!(Tai::new(i64::MAX, u64::MAX).units(), i128::MAX);
        assert_eq!(Tai::new(i64::MIN, 0).units(), i128::MIN);
        assert_eq!(units_to_ns_ceil(0), 0);
        assert_eq!(units_to_ns_ceil(1), 1);
        assert_eq!(units_to_ns_ceil(1 << 64), 1_000_000_000);
        assert_eq!(ns_to_units_ceil(1_000_000_000), 1 << 64);
    }

    proptest! {
        #[test]
        fn nanoseconds_come_back_within_one(ns in -(1i128 << 92)..1i128 << 92) {
            let tai = Tai::from_ns(ns).unwrap();
            prop_assert!((ns - 1..=ns).contains(&tai.ns_floor()));
            prop_assert_eq!(Tai::new(tai.sec(), tai.frac()), tai);
        }
    }
}
