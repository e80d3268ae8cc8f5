//! Periods at the ends of their range, and against big rationals.

use super::*;
use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::prelude::*;

fn exact(period: CounterPeriod) -> BigRational {
    BigRational::new(period.frac.into(), BigInt::from(1) << (64 + u32::from(period.shift)))
}

fn two_to(power: u32) -> BigRational {
    BigRational::from(BigInt::from(1) << power)
}

/// `value` is `exact` rounded down by less than 2^-63 of it.
fn just_below(value: &BigRational, exact: &BigRational) -> bool {
    value <= exact && (exact - value) * two_to(63) < *exact
}

#[test]
fn ends_of_the_range() {
    let of = |hz| CounterPeriod::of_frequency(TscFrequency::from_hz(hz).unwrap());
    assert_eq!(of(1_000_000).shift(), 19);
    assert_eq!(of(100_000_000_000).shift(), 36);
    for (frac, shift, named) in [
        (0, 0, false),
        (1, 0, false),
        (u64::MAX, 0, false),
        (1 << 33, 0, true),
        (1 << 63, 30, true),
        (1, 255, false),
        (1 << 63, 255, false),
    ] {
        assert_eq!(CounterPeriod::new(frac, shift).is_ok(), named, "{frac} {shift}");
    }
    // The same period in another scale is the same.
    assert_eq!(CounterPeriod::new(1 << 33, 1), CounterPeriod::new(1 << 63, 31));
}

#[test]
fn no_rate_is_named() {
    for (units, ticks) in [(0, 1), (-1, 1), (1, 0), (i128::MAX, 1), (1, u64::MAX), (i128::MIN, 3)] {
        let error = CounterPeriod::measured(units, ticks).unwrap_err();
        assert_eq!(error, PeriodError::NoRate { units, ticks });
    }
    let period = CounterPeriod::new(1 << 63, 30).unwrap();
    assert!(period.times(0, 1).is_err());
    assert!(period.times(1, 0).is_err());
    assert!(period.times(u64::MAX, 1).is_err());
}

#[test]
fn ticks_saturate() {
    let period = CounterPeriod::new(1 << 63, 31).unwrap();
    assert_eq!(period.ticks_to_reach(0), 0);
    assert_eq!(period.ticks_to_reach(u128::MAX), u64::MAX);
    assert_eq!(period.units_in(u64::MAX), u128::from(u64::MAX) << 32);
    assert_eq!(period.rate_units(u64::MAX), u64::MAX);
    assert_eq!(period.rate_units(ATTOS_PER_SEC), 1 << 63);
    assert_eq!(period.distance_attos(period), 0);
    assert_eq!(
        period.distance_attos(period.times(1_000_000, 1_001_000).unwrap()),
        1_000_000_000_000_001
    ); // rounded up
}

proptest! {
    #[test]
    fn of_frequencies(num in 1_000_000u64..100_000_000_000, den in 1u64..1000) {
        let Ok(frequency) = TscFrequency::from_ratio(num, den) else { return Ok(()) };
        let period = CounterPeriod::of_frequency(frequency);
        prop_assert_eq!(period.frac() >> 63, 1);
        prop_assert!(just_below(&exact(period), &BigRational::new(den.into(), num.into())));
    }

    #[test]
    fn measured_rates(ticks in 1u64.., hz in 1_000_000u64..100_000_000_000, extra in 0u64..1 << 30) {
        let units = (u128::from(ticks) << 64) / u128::from(hz) + u128::from(extra);
        let units = i128::try_from(units).unwrap();
        if let Ok(period) = CounterPeriod::measured(units, ticks) {
            let rate = BigRational::new(units.into(), BigInt::from(ticks)) / two_to(64);
            prop_assert!(just_below(&exact(period), &rate));
        } else {
            // Only where so few ticks got so much time.
            prop_assert!(ticks < 1 << 31, "{units} in {ticks}");
        }
    }

    #[test]
    fn scaled_rates(khz in 100_000u32..8_000_000, guest in 100_000u32..8_000_000, intel: bool) {
        let frac_bits = if intel { 48 } else { 32 };
        let scaling = TscScaling::for_khz(guest, khz, frac_bits, 0).unwrap();
        let host = CounterPeriod::of_frequency(TscFrequency::from_khz(khz.into()).unwrap());
        let period = host.through(&scaling).unwrap();
        let rate = exact(host) * two_to(frac_bits.into()) / BigInt::from(scaling.ratio());
        prop_assert!(just_below(&exact(period), &rate));
    }

    #[test]
    fn reaching_is_the_inverse(frac in 1u64 << 63.., shift in 19u8..37, ticks: u64) {
        let period = CounterPeriod::new(frac, shift).unwrap();
        let units = period.units_in(ticks);
        let first = period.ticks_to_reach(units);
        prop_assert!(first <= ticks);
        prop_assert!(period.units_in(first) >= units);
        prop_assert!(first == 0 || period.units_in(first - 1) < units);
    }
}
