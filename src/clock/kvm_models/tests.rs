//! The models against worked numbers, and against big rationals.

use super::*;
use crate::clock::SystemTimeLine;
use crate::clock::scaling::{FRAC_BITS_AMD, FRAC_BITS_INTEL};
use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::prelude::*;

const DAY: u32 = 86_400;

#[test]
fn time_scales_as_kvm_computes_them() {
    let table: &[(u64, u32, i8)] = &[
        (1_000_000_000, 1 << 31, 1),
        (2_000_000_000, 1 << 31, 0),
        (2_499_999_000, 3_435_975_211, -1),
        (2_500_000_000, 3_435_973_836, -1),
        (3_000_000_000, 2_863_311_530, -1),
        (4_000_000_000, 1 << 31, -1), // nearest gives the bit back: 1 << 30 and 0
        (8_000_000_000, 1 << 31, -2),
        (100_000_000, 2_684_354_560, 4),
        (1_000, 4_096_000_000, 20),
    ];
    for &(base_hz, mul, shift) in table {
        assert_eq!(kvm_get_time_scale(NANOS_PER_SEC, base_hz), (mul, shift), "{base_hz} Hz");
    }
    assert_eq!(kvm_get_time_scale(NANOS_PER_SEC, 0), (0, 0));
    assert_eq!(kvm_get_time_scale(0, 1), (0, 0));
    let _ = kvm_get_time_scale(u64::MAX, u64::MAX);
    let _ = kvm_get_time_scale(u64::MAX, 1);
    let _ = kvm_get_time_scale(1, u64::MAX);
}

#[test]
fn four_hundred_ppb() {
    for frac_bits in [FRAC_BITS_INTEL, FRAC_BITS_AMD] {
        let clocks = KvmClocks::new(3_000_000, 2_500_000, frac_bits).unwrap();
        assert_eq!(clocks.effective_guest_khz(), 2_499_999, "{frac_bits} bits");
    }
    let clocks = KvmClocks::new(3_000_000, 2_500_000, FRAC_BITS_INTEL).unwrap();
    let day = clocks.host_ticks_in(DAY);
    // 86400 s / 2499999 is 34 560 014 ns; the 0.19 that KVM cuts off its mul
    // (3435975211.19) takes 4 780 ns of that back.
    assert_eq!(clocks.b_error_ns(0, day), 34_555_233);
    assert_eq!(clocks.jump_at_update_ns(0, day), -34_555_233);
    assert_eq!((clocks.a_error_ns(day), clocks.c_error_ns(day)), (0, -20_117));
    // In ppb of a day, rounded.
    let ppb = (clocks.b_error_ns(0, day) * 1_000_000_000 + 43_200_000_000_000) / 86_400_000_000_000;
    assert_eq!(ppb, 400);
}

#[test]
fn unscaled_guests_drift_by_the_host_clocksource() {
    let raw = linux_clocksource_rate(3_000_000).unwrap();
    assert_eq!(raw, ClocksourceRate { mult: 5_592_405, shift: 24 });
    let clocks = KvmClocks::new(3_000_000, 3_000_000, FRAC_BITS_INTEL).unwrap();
    let day = clocks.host_ticks_in(DAY);
    assert_eq!((clocks.a_error_ns(day), clocks.jump_at_update_ns(0, day)), (0, 20_117));
    let clocks = clocks.with_raw(raw);
    // A is 1/3 of 5592405.33 slow, 59.6 ppb; B and C 2/3 of 2863311530.67, 0.23 ppb.
    assert_eq!(clocks.a_error_ns(day), -5_149_842);
    assert_eq!(clocks.b_error_ns(0, day), -20_117);
    assert_eq!(clocks.c_error_ns(day), -20_117);
    assert_eq!(clocks.jump_at_update_ns(0, day), -5_129_725);
}

#[test]
fn our_line_beside_theirs() {
    let clocks = KvmClocks::new(3_000_000, 2_500_000, FRAC_BITS_INTEL).unwrap();
    let day = clocks.host_ticks_in(DAY);
    let guest = clocks.scaling.guest_frequency(clocks.host).unwrap();
    let line = SystemTimeLine::new(guest, 0, 0).unwrap();
    let ours = line.rounding_error_ns(clocks.scaling.guest_tsc(day));
    assert_eq!(ours, 5_029);
    assert!(ours * 6_000 < clocks.b_error_ns(0, day));
}

#[test]
fn clocksource_rates_of_linux() {
    // As `/proc/timer_list` and boot logs show them.
    let table =
        [(2_400_000, 6_990_507, 24), (1_000_000, 8_388_608, 23), (8_000_000, 1_048_576, 23)];
    for (khz, mult, shift) in table {
        assert_eq!(linux_clocksource_rate(khz), Some(ClocksourceRate { mult, shift }), "{khz}");
    }
    assert_eq!(linux_clocksource_rate(0), None);
    assert!(linux_clocksource_rate(1).is_some());
    assert!(linux_clocksource_rate(u32::MAX).is_some());
}

#[test]
fn errors_carry_the_frequency() {
    let error = KvmClocks::new(0, 2_500_000, 48).unwrap_err();
    assert!(error.to_string().contains("0/1 Hz"), "{error}");
    assert!(KvmClocks::new(3_000_000, 0, 48).is_err());
    let error = KvmClocks::new(8_000, 3_000_000, FRAC_BITS_AMD).unwrap_err();
    assert!(error.to_string().contains("3000000 kHz of 8000 kHz"), "{error}");
}

/// `ticks × 10^9 / hz` in big rationals.
fn nanos(ticks: u64, hz: &BigRational) -> BigRational {
    BigRational::from(BigInt::from(ticks) * 1_000_000_000) / hz
}

fn within(value: u128, exact: &BigRational, slack: &BigRational) -> bool {
    let distance = BigRational::from(BigInt::from(value)) - exact;
    &distance <= slack && -distance <= *slack
}

proptest! {
    /// Each definition is where its own frequency puts it: A at the host's, B
    /// at the truncated guest frequency run over the scaled guest TSC, C at
    /// the host's. What mul rounds down is below 2^-31 of the time, what the
    /// shifts drop below 2 ns, what the scaled TSC drops one guest tick.
    #[test]
    fn definitions_against_rationals(
        host_khz in 100_000u32..8_000_000, guest_khz in 100_000u32..8_000_000,
        intel: bool, master: u32, seconds in 0u32..1_000_000, extra: u32,
    ) {
        let frac_bits = if intel { FRAC_BITS_INTEL } else { FRAC_BITS_AMD };
        let clocks = KvmClocks::new(host_khz, guest_khz, frac_bits).unwrap();
        let ticks = clocks.host_ticks_in(seconds) + u64::from(extra);
        let hertz = |khz: u64| BigRational::from(BigInt::from(khz) * 1000);

        let exact = nanos(ticks, &hertz(host_khz.into()));
        let slack = &exact / BigRational::from(BigInt::from(1u64 << 31))
            + BigRational::from(BigInt::from(12));
        prop_assert_eq!(BigInt::from(clocks.a_elapsed_ns(ticks)), exact.floor().to_integer());
        prop_assert_eq!(clocks.a_error_ns(ticks), 0);
        prop_assert!(within(clocks.c_elapsed_ns(ticks), &exact, &slack));

        let scale = BigRational::new(
            clocks.scaling.ratio().into(),
            BigInt::from(1u64 << clocks.scaling.frac_bits()),
        );
        let b = &exact * scale * hertz(host_khz.into()) / hertz(clocks.effective_guest_khz());
        prop_assert!(within(clocks.b_elapsed_ns(master.into(), ticks), &b, &(slack * BigInt::from(2))));
        prop_assert_eq!(
            clocks.jump_at_update_ns(master.into(), ticks),
            -clocks.b_error_ns(master.into(), ticks)
        );
    }

    /// The truncation to kHz is one-sided: the guest's clock is never slow by it.
    #[test]
    fn the_effective_frequency_is_the_request_or_just_below(
        host_khz in 100_000u32..8_000_000, guest_khz in 100_000u32..8_000_000,
    ) {
        let effective = KvmClocks::new(host_khz, guest_khz, FRAC_BITS_INTEL)
            .unwrap()
            .effective_guest_khz();
        prop_assert!(effective == u64::from(guest_khz) || effective + 1 == u64::from(guest_khz));
    }
}
