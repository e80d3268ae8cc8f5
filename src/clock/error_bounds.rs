//! How far the published line may be from the exact one.
//!
//! Let ρ be the exact ns per tick, r = mul × 2^shift / 2^32 the published, and
//! ε = r − ρ. After d ticks the guest reads ⌊⌊d × 2^shift⌋ × mul / 2^32⌋ and the
//! exact line ⌊d × ρ⌋. A right shift drops less than one ns, each floor less
//! than one: the difference lies above d·ε − 2 (d·ε − 1 without a right shift)
//! and below d·ε + 1. For whole nanoseconds that means
//! ⌊d·ε⌋ − [shift < 0] ≤ difference ≤ ⌈d·ε⌉.

use super::SystemTimeLine;
use super::line::shl;
use super::wide::{mul_div, mul_div_ceil};

/// Relative error of the published rate, exactly: `numerator / denominator`.
///
/// Positive where the guest's clock runs fast. Not reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateError {
    numerator: i128,
    denominator: u128,
}

impl RateError {
    /// Numerator; positive where the published rate is fast.
    #[must_use]
    pub const fn numerator(self) -> i128 {
        self.numerator
    }

    /// Denominator, above 0.
    #[must_use]
    pub const fn denominator(self) -> u128 {
        self.denominator
    }

    /// Attoseconds per second (10^-18), rounded away from 0, so that the
    /// magnitude is a bound.
    #[must_use]
    pub fn attoseconds_per_second(self) -> i128 {
        const ATTOS_PER_SEC: u64 = 1_000_000_000_000_000_000;
        // At most 10^18 in magnitude: the rate is within a factor of 2.
        let size = mul_div_ceil(ATTOS_PER_SEC, self.numerator.unsigned_abs(), self.denominator)
            .and_then(|size| i128::try_from(size).ok())
            .unwrap_or(i128::MAX);
        if self.numerator < 0 { -size } else { size }
    }
}

impl SystemTimeLine {
    /// Relative error of the published rate against the exact frequency.
    #[must_use]
    pub fn rate_error(&self) -> RateError {
        // The constructor proved that both terms fit and differ by less than 2^127.
        let (published, exact) = self.rate_terms().unwrap_or((1, 1));
        let size = i128::try_from(published.abs_diff(exact)).unwrap_or(i128::MAX);
        let numerator = if published < exact { -size } else { size };
        RateError { numerator, denominator: exact }
    }

    /// Published less exact system time at `guest_tsc`, ns. Within
    /// [`published_error_bound_ns`](Self::published_error_bound_ns) as long as
    /// the guest's arithmetic holds; beyond that it shows the guest's wrap.
    #[must_use]
    pub fn rounding_error_ns(&self, guest_tsc: u64) -> i128 {
        let published = i128::from(self.system_time_ns(guest_tsc));
        // Below 2^75.
        let exact = i128::try_from(self.exact_system_time_ns(guest_tsc)).unwrap_or(i128::MAX);
        published - exact
    }

    /// The largest possible magnitude of the rounding error `elapsed_ticks`
    /// after the base, ns: `⌈elapsed × |ε|⌉`, plus 1 where the guest shifts
    /// right. Saturates at `u64::MAX`.
    #[must_use]
    pub fn published_error_bound_ns(&self, elapsed_ticks: u64) -> u64 {
        self.drift_ns(elapsed_ticks)
            .and_then(|drift| drift.checked_add(u64::from(self.shift() < 0)))
            .unwrap_or(u64::MAX)
    }

    /// `⌈ticks × |ε|⌉` in ns.
    fn drift_ns(&self, ticks: u64) -> Option<u64> {
        let (published, exact) = self.rate_terms()?;
        let right = u32::from(self.shift().min(0).unsigned_abs());
        // ε = (published − exact) / (num × 2^(32 + right)); num < 2^88.6, right <= 7.
        let denominator = shl(self.frequency().num(), 32 + right)?;
        let (floor, rest) = mul_div(ticks, published.abs_diff(exact), denominator)?;
        u64::try_from(floor).ok()?.checked_add(u64::from(rest != 0))
    }
}

#[cfg(test)]
mod tests {
    use crate::clock::{SystemTimeLine, TscFrequency, linux_tsc_khz};

    fn line(khz: u64) -> SystemTimeLine {
        SystemTimeLine::new(TscFrequency::from_khz(khz).unwrap(), 0, 0).unwrap()
    }

    #[test]
    fn powers_of_two_are_exact() {
        for khz in [1_000_000, 2_000_000, 4_000_000, 8_000_000] {
            let line = line(khz);
            assert_eq!(line.rate_error().attoseconds_per_second(), 0, "{khz} kHz");
            assert_eq!(line.published_error_bound_ns(u64::MAX), 0, "{khz} kHz");
            assert_eq!(line.rounding_error_ns(line.max_elapsed_ticks()), 0, "{khz} kHz");
        }
    }

    #[test]
    fn worked_rates() {
        // 2.5 GHz: mul is 0.2 above 3435973836.8; 0.2 / 3435973836.8 = 58.2 × 10^-12.
        assert_eq!(line(2_500_000).rate_error().attoseconds_per_second(), 58_207_661);
        // 3 GHz: 1/3 above 2863311530.67.
        assert_eq!(line(3_000_000).rate_error().attoseconds_per_second(), 116_415_322);
        let floor =
            SystemTimeLine::new_keeping_linux_khz(TscFrequency::from_khz(3_000_000).unwrap(), 0, 0)
                .unwrap();
        assert_eq!(floor.mul(), 2_863_311_530);
        assert_eq!(floor.rate_error().attoseconds_per_second(), -232_830_644);
    }

    /// The table in `docs/clock.md`.
    #[test]
    fn worked_example() {
        let line = line(2_500_000);
        for (seconds, error, bound) in [(1, 0, 2), (3_600, 209, 211), (86_400, 5_029, 5_031)] {
            let ticks = seconds * 2_500_000_000;
            assert_eq!(line.rounding_error_ns(ticks), error, "after {seconds} s");
            assert_eq!(line.published_error_bound_ns(ticks), bound, "after {seconds} s");
        }
        let year = 31_557_600 * 2_500_000_000;
        assert_eq!(line.rounding_error_ns(year), 1_836_894);
        assert_eq!(line.rounding_error_ns(100 * year), 183_689_408);
    }

    /// The second table in `docs/clock.md`.
    #[test]
    fn worked_frequencies() {
        let table: &[(u64, u32, i8, i128, u64, u64)] = &[
            (100_000, 2_684_354_560, 4, 0, 365, 100_000),
            (1_000_000, 2_147_483_648, 1, 0, 292, 1_000_000),
            (2_100_000, 2_045_222_522, 0, 4_023, 278, 2_099_999),
            (2_400_000, 3_579_139_413, -1, -8_047, 243, 2_400_000),
            (2_500_000, 3_435_973_837, -1, 5_029, 233, 2_499_998),
            (3_000_000, 2_863_311_531, -1, 10_058, 194, 2_999_998),
            (4_000_000, 1_073_741_824, 0, 0, 146, 4_000_000),
            (8_000_000, 536_870_912, 0, 0, 73, 8_000_000),
        ];
        for &(khz, mul, shift, day_ns, years, linux_khz) in table {
            let line = line(khz);
            assert_eq!((line.mul(), line.shift()), (mul, shift), "{khz} kHz");
            assert_eq!(line.rounding_error_ns(86_400_000 * khz), day_ns, "{khz} kHz");
            assert_eq!(line.validity_ns() / 31_557_600_000_000_000, years, "{khz} kHz");
            assert_eq!(linux_tsc_khz(mul, shift), Some(linux_khz));
        }
    }

    #[test]
    fn no_published_rate_is_above_a_quarter_ppb() {
        // 2^-32 is 232.9 × 10^-12.
        for khz in (100_000..8_000_000).step_by(7_919) {
            let error = line(khz).rate_error().attoseconds_per_second();
            assert!(error.abs() <= 232_830_644, "{khz} kHz: {error}");
        }
    }

    #[test]
    fn bound_saturates() {
        let frequency = TscFrequency::from_hz(1_000_000).unwrap();
        let (mul, shift) = (u32::MAX, 10); // 2.4 % fast
        let fast = SystemTimeLine::with_published(frequency, 0, 0, mul, shift).unwrap();
        assert_eq!(fast.published_error_bound_ns(0), 0);
        assert_eq!(fast.published_error_bound_ns(1), 24);
        assert!(fast.published_error_bound_ns(u64::MAX) == u64::MAX);
    }
}
