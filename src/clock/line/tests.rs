//! The line against boundaries and against a naive oracle in big rationals.

use super::*;
use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::prelude::*;

fn khz(khz: u64) -> TscFrequency {
    TscFrequency::from_khz(khz).unwrap()
}

#[test]
fn boundaries_at_the_base() {
    for base_tsc in [0, 1, u64::MAX - 1, u64::MAX] {
        for base_ns in [0, 1, u64::MAX] {
            let line = SystemTimeLine::new(khz(2_000_000), base_tsc, base_ns).unwrap();
            assert_eq!(line.system_time_ns(base_tsc), base_ns);
            assert_eq!(line.exact_system_time_ns(base_tsc), u128::from(base_ns));
            assert_eq!(line.rounding_error_ns(base_tsc), 0);
            assert_eq!(line.guest_tsc_at(base_ns), Ok(base_tsc));
            assert_eq!(line.guest_tsc_at(0), Ok(base_tsc));
            assert_eq!(line.system_time_ns(base_tsc.wrapping_add(2)), base_ns.wrapping_add(1));
        }
    }
}

#[test]
fn before_the_base_reads_as_nearly_a_wrap_later() {
    let line = SystemTimeLine::new(khz(2_000_000), 1_000, 500).unwrap();
    assert_eq!(line.elapsed_ticks(999), u64::MAX);
    // The guest's sum: 500 + ⌊(2^64 − 1) / 2⌋.
    assert_eq!(line.system_time_ns(999), 500 + (u64::MAX >> 1));
}

#[test]
fn last_nanosecond() {
    // 1 GHz needs shift 1: half of the counter's range, 292 years.
    let line = SystemTimeLine::new(khz(1_000_000), 0, 0).unwrap();
    assert_eq!(line.max_elapsed_ticks(), u64::MAX >> 1);
    assert_eq!(line.validity_ns(), u64::MAX >> 1);
    assert_eq!(line.checked_system_time_ns(u64::MAX >> 1), Some(u64::MAX >> 1));
    assert_eq!(line.checked_system_time_ns((u64::MAX >> 1) + 1), None);
    assert_eq!(line.guest_tsc_at(u64::MAX >> 1), Ok(u64::MAX >> 1));
    let last_ns = u64::MAX >> 1;
    assert_eq!(
        line.guest_tsc_at(last_ns + 1),
        Err(LineError::Beyond { system_time_ns: last_ns + 1, last_ns })
    );

    // Near the end of system time the sum overflows first.
    let line = SystemTimeLine::new(khz(2_000_000), 7, u64::MAX - 1).unwrap();
    assert_eq!(line.max_elapsed_ticks(), 3);
    assert_eq!(line.guest_tsc_at(u64::MAX), Ok(9));
    assert_eq!(line.checked_system_time_ns(10), Some(u64::MAX));
    assert_eq!(line.checked_system_time_ns(11), None);
    assert_eq!(line.system_time_ns(11), 0); // as a guest would compute
}

#[test]
fn a_hundred_years_and_where_the_counter_ends() {
    const YEAR_NS: u64 = 31_557_600 * super::super::NANOS_PER_SEC;
    // 100 years fit up to 5.8 GHz; above, the 64-bit TSC itself wraps earlier.
    for (frequency_khz, years) in
        [(100_000, 365), (999_999, 292), (3_000_000, 194), (5_800_000, 100), (8_000_000, 73)]
    {
        let line = SystemTimeLine::new(khz(frequency_khz), 0, 0).unwrap();
        assert_eq!(line.validity_ns() / YEAR_NS, years, "{frequency_khz} kHz");
    }
}

#[test]
fn published_lines_are_checked() {
    let frequency = khz(2_500_000);
    let published = |mul, shift| SystemTimeLine::with_published(frequency, 0, 0, mul, shift);
    for (mul, shift) in [(0, 0), (1, 32), (1, -32), (u32::MAX, i8::MIN), (u32::MAX, i8::MAX)] {
        assert_eq!(published(mul, shift), Err(LineError::NoClock { mul, shift }));
    }
    for (mul, shift) in [(1, 0), (u32::MAX, 0), (1, -31), (u32::MAX, 31)] {
        let error = published(mul, shift).unwrap_err();
        assert_eq!(error, LineError::RateTooFar { mul, shift, frequency });
        assert!(error.to_string().contains("2500000000 Hz"));
    }
    // KVM's own choice for the truncated 2 499 999 kHz.
    assert!(published(3_435_975_211, -1).is_ok());
}

#[test]
fn keeping_linux_khz_matters_where_nearest_rounds_up() {
    for frequency_khz in [2_000_000, 2_100_000, 2_400_000, 2_500_000, 3_000_000, 3_600_000] {
        let line = SystemTimeLine::new_keeping_linux_khz(khz(frequency_khz), 0, 0).unwrap();
        assert_eq!(linux_tsc_khz(line.mul(), line.shift()), Some(frequency_khz));
    }
}

#[test]
fn published_rates_are_bounded() {
    // 2^-32 and 1.5 × 2^-31, in attoseconds per second, rounded up.
    const NEAREST: i128 = 232_830_644;
    const KEEPING_KHZ: i128 = 698_491_932;
    // Every frequency of 100 MHz to 8 GHz on a grid that meets no power of two.
    for frequency_khz in (100_000..=8_000_000).step_by(997) {
        let rate = |line: SystemTimeLine| line.rate_error().attoseconds_per_second().abs();
        let nearest = rate(SystemTimeLine::new(khz(frequency_khz), 0, 0).unwrap());
        assert!(nearest <= NEAREST, "{frequency_khz} kHz: {nearest}");
        let keeping =
            rate(SystemTimeLine::new_keeping_linux_khz(khz(frequency_khz), 0, 0).unwrap());
        assert!(keeping <= KEEPING_KHZ, "{frequency_khz} kHz: {keeping}");
    }
}

/// Any frequency that the clock has to serve: 100 MHz to 8 GHz, whole kHz,
/// whole Hz, thirds of Hz and hardware-scaled.
fn frequencies() -> impl Strategy<Value = TscFrequency> {
    let scaled = (100_000u64..8_000_000, 1u64 << 46..1u64 << 50).prop_filter_map(
        "scaled into the range",
        |(host, ratio)| {
            let guest = khz(host).scaled(ratio, 48).ok()?;
            (100_000..8_000_000).contains(&guest.khz_floor()).then_some(guest)
        },
    );
    prop_oneof![
        (100_000u64..=8_000_000).prop_map(khz),
        (100_000_000u64..=8_000_000_000).prop_map(|hz| TscFrequency::from_hz(hz).unwrap()),
        (300_000_000u64..=24_000_000_000).prop_map(|n| TscFrequency::from_ratio(n, 3).unwrap()),
        scaled,
    ]
}

prop_compose! {
    /// A line and an elapsed count inside 100 years and inside the line's validity.
    fn lines_and_elapsed()(
        frequency in frequencies(),
        base_tsc: u64,
        base_ns in prop_oneof![Just(0u64), 0u64..1 << 62],
        keep_khz: bool,
        life in prop_oneof![0u64..=4, any::<u64>(), (0u32..64, any::<u64>()).prop_map(|(s, e)| e >> s)],
    ) -> (SystemTimeLine, u64) {
        let make = if keep_khz { SystemTimeLine::new_keeping_linux_khz } else { SystemTimeLine::new };
        let line = make(frequency, base_tsc, base_ns).unwrap();
        let century = 100 * 31_557_600 * frequency.num() / u128::from(frequency.den());
        let most = u64::try_from(century).unwrap_or(u64::MAX).min(line.max_elapsed_ticks());
        (line, if most == u64::MAX { life } else { life % (most + 1) })
    }
}

/// The exact system time, in big rationals and nothing else.
fn oracle(line: &SystemTimeLine, elapsed: u64) -> BigRational {
    let frequency = line.frequency();
    let hertz = BigRational::new(frequency.num().into(), frequency.den().into());
    let elapsed_ns = BigRational::from(BigInt::from(elapsed) * 1_000_000_000) / hertz;
    BigRational::from(BigInt::from(line.base_system_time_ns())) + elapsed_ns
}

/// The guest's arithmetic in big rationals: shift with floor, product, floor.
fn guest_oracle(line: &SystemTimeLine, elapsed: u64) -> BigInt {
    let two = BigRational::from(BigInt::from(2));
    let shifted = (BigRational::from(BigInt::from(elapsed)) * two.pow(line.shift().into())).floor();
    let scaled = shifted * BigRational::from(BigInt::from(line.mul())) / two.pow(32);
    scaled.floor().to_integer() + line.base_system_time_ns()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn agrees_with_the_oracle((line, elapsed) in lines_and_elapsed()) {
        let tsc = line.base_tsc().wrapping_add(elapsed);
        prop_assert_eq!(BigInt::from(line.system_time_ns(tsc)), guest_oracle(&line, elapsed));
        prop_assert_eq!(line.checked_system_time_ns(tsc), Some(line.system_time_ns(tsc)));
        let exact = oracle(&line, elapsed).floor().to_integer();
        prop_assert_eq!(BigInt::from(line.exact_system_time_ns(tsc)), exact);
    }

    #[test]
    fn error_stays_within_its_bound((line, elapsed) in lines_and_elapsed()) {
        let tsc = line.base_tsc().wrapping_add(elapsed);
        let error = line.rounding_error_ns(tsc);
        let bound = line.published_error_bound_ns(elapsed);
        prop_assert!(error.unsigned_abs() <= u128::from(bound), "{} > {}", error, bound);
        // The bound is tight: the drift alone, rounded, and one for the right shift.
        let drift = (oracle(&line, elapsed) - BigRational::from(guest_oracle(&line, elapsed)))
            .floor()
            .to_integer();
        let drift = drift.magnitude().clone();
        prop_assert!(drift + 3u32 >= num_bigint::BigUint::from(bound));
        // And one-sided: a fast line is never behind by more than its roundings.
        let behind = 1 + i128::from(line.shift() < 0);
        if line.rate_error().numerator() >= 0 {
            prop_assert!(error >= -behind);
        } else {
            prop_assert!(error <= 0);
        }
    }

    #[test]
    fn monotonic((line, elapsed) in lines_and_elapsed(), step in 0u64..10_000) {
        let Some(later) = elapsed.checked_add(step) else { return Ok(()) };
        if later > line.max_elapsed_ticks() { return Ok(()) }
        let at = |elapsed| line.base_tsc().wrapping_add(elapsed);
        prop_assert!(line.system_time_ns(at(later)) >= line.system_time_ns(at(elapsed)));
        prop_assert!(line.exact_system_time_ns(at(later)) >= line.exact_system_time_ns(at(elapsed)));
    }

    #[test]
    fn timer_inverse((line, elapsed) in lines_and_elapsed()) {
        let tsc = line.base_tsc().wrapping_add(elapsed);
        let now = line.system_time_ns(tsc);
        let due = line.elapsed_ticks(line.guest_tsc_at(now).unwrap());
        prop_assert!(due <= elapsed);
        let at = |elapsed| line.system_time_ns(line.base_tsc().wrapping_add(elapsed));
        prop_assert!(at(due) >= now);
        prop_assert!(due == 0 || at(due - 1) < now);
        // A deadline between two readings is due at the later one.
        if let Some(next) = now.checked_add(1).filter(|next| *next <= at(line.max_elapsed_ticks())) {
            let due = line.elapsed_ticks(line.guest_tsc_at(next).unwrap());
            prop_assert!(at(due) >= next && at(due - 1) < next);
        }
    }

    #[test]
    fn the_last_tick_is_the_last((line, _) in lines_and_elapsed()) {
        let last = line.max_elapsed_ticks();
        let end = BigInt::from(1) << 64;
        prop_assert!(guest_oracle(&line, last) < end);
        if let Some(over) = last.checked_add(1) {
            let shifted = u128::from(over) << line.shift().max(0);
            prop_assert!(guest_oracle(&line, over) >= end || shifted >> 64 != 0);
        }
    }

    #[test]
    fn nothing_panics_whatever_is_published(
        frequency in frequencies(), base_tsc: u64, base_ns: u64, tsc: u64, mul: u32, shift: i8,
    ) {
        if let Ok(line) = SystemTimeLine::with_published(frequency, base_tsc, base_ns, mul, shift) {
            let _ = line.guest_tsc_at(tsc);
            let _ = line.rounding_error_ns(tsc);
            let elapsed = line.elapsed_ticks(tsc);
            if elapsed <= line.max_elapsed_ticks() {
                let bound = u128::from(line.published_error_bound_ns(elapsed));
                prop_assert!(line.rounding_error_ns(tsc).unsigned_abs() <= bound);
            }
        }
    }
}
