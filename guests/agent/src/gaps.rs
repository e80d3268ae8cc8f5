//! Suspensions as a process sees them: how far each clock came between the last
//! look before and the first one after.

use std::time::Duration;

use crate::clocks::{clock_ns, tsc};
use crate::system::Console;
use crate::xenstore::Store;

/// CLOCK_BOOTTIME runs ahead of CLOCK_MONOTONIC by more than this at once: the
/// guest was suspended.
const GAP_NS: u64 = 200_000_000;
/// Where a guest that was restored reads for how long it did not run.
const GAP_NODE: &str = "data/kvm-xen/gap_ns";
/// Readings that compete for the narrowest.
const TRIES: usize = 8;

/// All clocks at one time.
#[derive(Clone, Copy, Debug)]
struct Look {
    tsc: u64,
    monotonic_ns: u64,
    boottime_ns: u64,
    realtime_ns: u64,
    raw_ns: u64,
    tai_ns: u64,
    width: u64,
}

fn look() -> Look {
    let once = || {
        let tsc_before = tsc();
        let monotonic_ns = clock_ns(libc::CLOCK_MONOTONIC);
        let boottime_ns = clock_ns(libc::CLOCK_BOOTTIME);
        let realtime_ns = clock_ns(libc::CLOCK_REALTIME);
        let raw_ns = clock_ns(libc::CLOCK_MONOTONIC_RAW);
        let tai_ns = clock_ns(libc::CLOCK_TAI);
        // Around all of them: a reading that was held up anywhere inside is the wider.
        let width = tsc().wrapping_sub(tsc_before);
        Look { tsc: tsc_before, monotonic_ns, boottime_ns, realtime_ns, raw_ns, tai_ns, width }
    };
    let first = once();
    (1..TRIES).map(|_| once()).fold(
        first,
        |best, next| {
            if next.width < best.width { next } else { best }
        },
    )
}

/// Reports `count` suspensions, or what it saw of them in `limit` of monotonic
/// time.
pub fn report(console: &mut Console, count: u32, limit: Duration) {
    let khz = std::arch::x86_64::__cpuid_count(0x4000_0003, 0).ecx;
    console.line(format_args!("gaps wanted={count} tsc_khz={khz}"));
    let start = look();
    let (mut before, mut seen) = (start, 0);
    while seen < count {
        std::thread::sleep(Duration::from_millis(1));
        let now = look();
        let monotonic_ns = now.monotonic_ns.saturating_sub(before.monotonic_ns);
        let boottime_ns = now.boottime_ns.saturating_sub(before.boottime_ns);
        if boottime_ns > monotonic_ns.saturating_add(GAP_NS) {
            seen += 1;
            let ticks = u128::from(now.tsc.wrapping_sub(before.tsc));
            let elapsed_ns = ticks * 1_000_000 / u128::from(khz.max(1));
            let realtime_ns = now.realtime_ns.saturating_sub(before.realtime_ns);
            console.line(format_args!(
                "gap number={seen} elapsed_ns={elapsed_ns} monotonic_ns={monotonic_ns} \
                 boottime_ns={boottime_ns} realtime_ns={realtime_ns}"
            ));
            let raw_ns = now.raw_ns.saturating_sub(before.raw_ns);
            let tai_ns = now.tai_ns.saturating_sub(before.tai_ns);
            let told = Store::open().and_then(|mut store| store.read(GAP_NODE));
            let told = told.unwrap_or_else(|_| "none".to_owned());
            console.line(format_args!(
                "told number={seen} gap_ns={told} raw_ns={raw_ns} tai_ns={tai_ns}"
            ));
        }
        before = now;
        let waited_ns = now.monotonic_ns.saturating_sub(start.monotonic_ns);
        if u128::from(waited_ns) > limit.as_nanos() {
            break;
        }
    }
    console.line(format_args!("gaps seen={seen}"));
}
