//! The line against big rationals, and at the ends of its range.

use super::*;
use crate::clock::TscFrequency;
use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::prelude::*;

fn period(khz: u64) -> CounterPeriod {
    CounterPeriod::of_frequency(TscFrequency::from_khz(khz).unwrap())
}

fn line(base: u64, khz: u64, errors: TaiErrors) -> TaiLine {
    TaiLine::new(base, Tai::new(1_800_000_000, 0), period(khz), errors)
}

fn seconds(tai: Tai) -> BigRational {
    BigRational::new(tai.units().into(), BigInt::from(1) << 64)
}

fn exact_period(period: CounterPeriod) -> BigRational {
    BigRational::new(period.frac().into(), BigInt::from(1) << (64 + u32::from(period.shift())))
}

fn ns(value: u64) -> BigRational {
    BigRational::new(value.into(), 1_000_000_000.into())
}

#[test]
fn a_guest_reads_what_the_driver_computes() {
    let line = line(1_000, 2_500_000, TaiErrors::default());
    assert_eq!(line.guest_reads(1_000), (1_800_000_000, 0));
    // Rounded down by less than 2^-63 of the rate: 10^9 ticks are 0.4 s less one unit.
    let (sec, frac) = line.guest_reads(1_000 + 2_500_000_000);
    assert_eq!((sec, u64::MAX - frac < 2), (1_800_000_000, true));
    // Before the base a guest sees the wrap, we do not.
    assert_eq!(line.guest_reads(999).0, 1_800_000_000 + 7_378_697_629);
    assert_eq!(line.at(999).sec(), 1_799_999_999);
    assert_eq!(line.at(1_000 + (1 << 40)).sec(), 1_800_000_439);
}

#[test]
fn ends_of_the_range_hold() {
    let fastest = CounterPeriod::new(1 << 63, 18).unwrap();
    for time in [Tai::new(i64::MAX, u64::MAX), Tai::new(i64::MIN, 0), Tai::new(0, u64::MAX)] {
        let errors = TaiErrors { pair_ns: u64::MAX, rate_attos: u64::MAX, ..TaiErrors::default() };
        let line = TaiLine::new(0, time, fastest, errors);
        for counter in [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1] {
            let _ = (line.at(counter), line.guest_reads(counter));
            assert_eq!(line.bound_ns(counter), u64::MAX);
            assert!(!line.needs_refresh(counter, u64::MAX));
        }
        assert_eq!(line.ticks_within(0), None);
    }
}

#[test]
fn errors_are_kept_apart() {
    let errors = TaiErrors {
        pair_ns: 20,
        rate_attos: 1_500_000_000_000_000, // 1 500 ppm
        host_ns: 3_000_000,
        host_rate_attos: 500_000_000_000_000,
        ..TaiErrors::default()
    };
    let line = line(0, 3_000_000, errors);
    assert_eq!((line.own_bound_ns(0), line.bound_ns(0)), (21, 3_000_021)); // 1 ns of age, rounded up
    let ms = 3_000_000;
    assert_eq!(line.own_bound_ns(ms), 20 + 1_501); // 1 ns more of age is 1 ns more
    assert_eq!(line.bound_ns(ms), 3_000_000 + 20 + 2_001);
    assert!(line.needs_refresh(ms, 1_520));
    assert!(!line.needs_refresh(ms, 1_521));
    let within = line.ticks_within(1_520).unwrap();
    assert!(!line.needs_refresh(within, 1_520), "{within}");
    assert!((ms - 20..ms).contains(&within), "{within}");
    assert_eq!(line.ticks_within(19), None);
    let still = line.with_errors(TaiErrors { rate_attos: 0, ..errors });
    assert_eq!(still.ticks_within(20), Some(u64::MAX >> 1));
}

#[test]
fn a_scheduled_change_is_continuous() {
    let errors = TaiErrors { pair_ns: 5, rate_attos: 1_000_000_000_000, ..TaiErrors::default() };
    let mut plan = ScheduledLine::new(line(1_000, 1_000_000, errors));
    let at = 1_000 + 1_000_000_000;
    assert_eq!(
        plan.schedule(999, period(2_000_000), 0),
        Err(TaiLineError::BeforeBase { at: 999, base: 1_000 })
    );
    plan.schedule(at, period(2_000_000), 7).unwrap();
    assert_eq!(plan.due(), Some(at));
    assert_eq!(plan.at(at - 1).period(), period(1_000_000));
    assert_eq!(plan.at(at).period(), period(2_000_000));
    assert!(!plan.advance(at - 1));
    let before = plan.at(at - 1).at(at);
    assert!(plan.advance(at + 5));
    assert!(!plan.advance(at + 5));
    let now = plan.at(at);
    assert_eq!(now.time(), before);
    assert_eq!(now.errors().pair_ns, 5 + 1_000); // the second's 1 ppm
    assert_eq!((now.errors().rate_attos, plan.due()), (7, None));
}

#[test]
fn a_line_goes_on_where_the_counter_wraps() {
    let line = line(u64::MAX - 9, 1_000_000, TaiErrors::default());
    assert_eq!(line.elapsed_ticks(0), 10);
    assert_eq!(line.at(0).distance_ns(line.time()), 10);
    assert_eq!(line.guest_reads(0).0, 1_800_000_000);
}

proptest! {
    #[test]
    fn against_rationals(base: u64, khz in 1_000u64..100_000_000, sec in 0i64..1 << 40,
                         frac: u64, elapsed in 0u64..1 << 62, before: bool) {
        let line = TaiLine::new(base, Tai::new(sec, frac), period(khz), TaiErrors::default());
        let ticks = if before { -BigInt::from(elapsed) } else { BigInt::from(elapsed) };
        let counter = if before { base.wrapping_sub(elapsed) } else { base.wrapping_add(elapsed) };
        let exact = seconds(line.time()) + exact_period(line.period()) * BigRational::from(ticks);
        let off = (seconds(line.at(counter)) - exact) * BigRational::from(BigInt::from(1) << 64);
        let one = BigRational::from(BigInt::from(1));
        prop_assert!(off <= one && -off < one);
        if !before {
            let (sec, frac) = line.guest_reads(counter);
            prop_assert_eq!(Tai::new(i64::try_from(sec).unwrap(), frac), line.at(counter));
        }
    }

    /// What a guest computes from its own counter is where the host's line is,
    /// within what `through` adds to the errors, over a day and any scaling.
    #[test]
    fn guests_through_scaling(base in 0u64..1 << 60, khz in 100_000u32..8_000_000,
                              guest in 100_000u32..8_000_000, intel: bool, offset: u64,
                              elapsed in 0u64..86_400 << 33) {
        let frac_bits = if intel { 48 } else { 32 };
        let scaling = TscScaling::for_khz(guest, khz, frac_bits, offset).unwrap();
        let host = line(base, khz.into(), TaiErrors::default());
        let guest = host.through(&scaling).unwrap();
        let now = base + elapsed;
        let counter = scaling.guest_tsc(now);
        let off = seconds(host.at(now)) - seconds(guest.at(counter));
        let bound = ns(guest.own_bound_ns(counter));
        prop_assert!(off <= bound && -&off <= bound, "{off} {bound}");
        // A tick is read when it is there or late, never early (but for rounding).
        prop_assert!(-off < ns(1));
    }

    #[test]
    fn refresh_is_due_when_the_bound_is_passed(pair in 0u64..10_000, ppm in 1u64..2_000,
                                               khz in 100_000u64..8_000_000, room in 10u64..1_000_000) {
        let errors = TaiErrors { pair_ns: pair, rate_attos: ppm * 1_000_000_000_000, ..TaiErrors::default() };
        let line = line(77, khz, errors);
        let ticks = line.ticks_within(pair + room).unwrap();
        prop_assert!(!line.needs_refresh(77 + ticks, pair + room));
        let tick_ns = 1_000_000 / khz + 1;
        let much_later = 77 + ticks + line.period().ticks_to_reach(u128::from(3 + tick_ns + 1_000_000 / ppm) << 35);
        prop_assert!(line.needs_refresh(much_later, pair + room));
    }
}
