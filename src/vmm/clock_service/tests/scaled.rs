//! Guests whose TSC the hardware scales.

use super::*;

#[test]
fn a_scaled_guest_has_its_own_rate_and_keeps_it_over_a_sleep() {
    for (guest_khz, bits) in [(2_000_000, 48), (2_000_000, 32), (3_333_333, 48), (1_000_001, 32)] {
        let scaling = TscScaling::for_khz(guest_khz, 2_500_000, bits, OFFSET).unwrap();
        let host = Host::new(1_800_000_000, &[(SECOND, Event::Frequency(500 << 16))]);
        let source = Box::new(host.clone());
        let mut bench = Bench::scaled(host, source, None, scaling);
        *bench.guest.wallclock.lock().unwrap() = Some(WallclockEpoch { sec: 0, nsec: 0 });
        let holds = |bench: &Bench| {
            let (error, bound) = bench.error_and_bound_ns();
            assert!(error <= u128::from(bound), "{guest_khz} {bits}: {error} {bound}");
        };
        bench.run(3 * SECOND, holds);
        assert!(bench.guest.wallclock_error_ns().abs() <= 1_000);
        // The counter was reset in a sleep: another offset, the same ratio.
        bench.engine.refresh(&bench.guest, Cause::Slept);
        assert_eq!(bench.page().clock_status, VMCLOCK_STATUS_UNRELIABLE);
        *bench.guest.offset.lock().unwrap() = Some(OFFSET + 12_345_678);
        bench.engine.refresh(&bench.guest, Cause::Due);
        bench.run(SECOND, holds);
        let counts = bench.engine.counts();
        assert_eq!((counts.host_steps, counts.disruptions), (0, 2), "{guest_khz} {bits}");
    }
}
