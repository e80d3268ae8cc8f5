//! Boundary tables of the VMClock arithmetic, and what a page is refused for.

use core::sync::atomic::AtomicU32;

use proptest::prelude::*;
use xen_abi::vmclock::{
    VMCLOCK_COUNTER_INVALID, VMCLOCK_STATUS_FREERUNNING, VMCLOCK_STATUS_SYNCHRONIZED,
    VMCLOCK_TIME_MONOTONIC,
};

use super::*;

const ALL_ERRORS: u64 = VMCLOCK_FLAG_TIME_MAXERROR_VALID
    | VMCLOCK_FLAG_PERIOD_MAXERROR_VALID
    | VMCLOCK_FLAG_TIME_ESTERROR_VALID
    | VMCLOCK_FLAG_PERIOD_ESTERROR_VALID;

/// 2 GHz (a tick is 2^63 × 2^-94 s, 0.4657 ns, at shift 30) from 100 s TAI.
pub(crate) fn page() -> VmclockAbi {
    VmclockAbi {
        magic: VMCLOCK_MAGIC,
        size: 4096,
        version: VMCLOCK_VERSION,
        counter_id: VMCLOCK_COUNTER_X86_TSC,
        time_type: VMCLOCK_TIME_TAI,
        seq_count: 2,
        disruption_marker: 7,
        flags: ALL_ERRORS | VMCLOCK_FLAG_TAI_OFFSET_VALID,
        clock_status: VMCLOCK_STATUS_SYNCHRONIZED,
        tai_offset_sec: -37,
        counter_period_shift: 30,
        counter_value: 1000,
        counter_period_frac_sec: 1 << 63,
        // A millionth of the period, rounded up.
        counter_period_maxerror_rate_frac_sec: (1 << 63) / 1_000_000 + 1,
        time_sec: 100,
        time_maxerror_nanosec: 500,
        time_esterror_nanosec: 50,
        ..VmclockAbi::default()
    }
}

pub(crate) fn words(page: VmclockAbi) -> [AtomicU32; WORDS] {
    let bytes: [[u8; 4]; WORDS] = transmute!(page);
    bytes.map(|word| AtomicU32::new(u32::from_le_bytes(word)))
}

fn at(page: VmclockAbi, counter: u64) -> Result<Time, Refusal> {
    read(&words(page), &|| counter, 1).map(|reading| reading.time)
}

#[test]
fn time_and_its_growing_error() {
    let start = Time { seconds: 100, frac_sec: 0, max_error_ns: Some(500), est_error_ns: Some(50) };
    assert_eq!(at(page(), 1000), Ok(start));
    // 2^31 ticks of 2^-31 s.
    let later = at(page(), 1000 + (1 << 31)).unwrap();
    assert_eq!((later.seconds, later.frac_sec), (101, 0));
    assert_eq!(later.nanos(), 101_000_000_000);
    // A second at one part in a million, rounded up.
    assert_eq!(later.max_error_ns, Some(500 + 1001));
    assert_eq!(later.est_error_ns, Some(50));
    assert_eq!(later.interval_ns(), Some((101_000_000_000 - 1501, 101_000_000_000 + 1501)));
}

#[test]
fn an_error_is_stated_only_where_the_host_states_both_parts() {
    for missing in [VMCLOCK_FLAG_TIME_MAXERROR_VALID, VMCLOCK_FLAG_PERIOD_MAXERROR_VALID] {
        let time = at(VmclockAbi { flags: ALL_ERRORS & !missing, ..page() }, 1000).unwrap();
        assert_eq!((time.max_error_ns, time.est_error_ns), (None, Some(50)));
        assert_eq!(time.interval_ns(), None);
    }
}

#[test]
fn what_a_page_is_refused_for() {
    let good = page();
    let table = [
        (VmclockAbi { magic: 1, ..good }, Refusal::Magic(1)),
        (VmclockAbi { version: 2, ..good }, Refusal::Version(2)),
        (VmclockAbi { size: 0x6f, ..good }, Refusal::Size(0x6f)),
        (VmclockAbi { counter_id: VMCLOCK_COUNTER_INVALID, ..good }, Refusal::NoCounter(0xff)),
        (VmclockAbi { time_type: VMCLOCK_TIME_MONOTONIC, ..good }, Refusal::TimeType(2)),
        (VmclockAbi { clock_status: VMCLOCK_STATUS_UNRELIABLE, ..good }, Refusal::Status(4)),
        (VmclockAbi { clock_status: VMCLOCK_STATUS_INITIALIZING, ..good }, Refusal::Status(1)),
        (VmclockAbi { seq_count: 3, ..good }, Refusal::Busy { tries: 1 }),
        (
            VmclockAbi { counter_value: 1001, ..good },
            Refusal::Before { start: 1001, counter: 1000 },
        ),
    ];
    for (page, refusal) in table {
        assert_eq!(at(page, 1000), Err(refusal), "{refusal}");
    }
    let status = VMCLOCK_STATUS_FREERUNNING;
    assert!(at(VmclockAbi { clock_status: status, ..good }, 1000).is_ok());
    assert!(at(VmclockAbi { time_type: VMCLOCK_TIME_UTC, size: 0x70, ..good }, 1000).is_ok());
}

#[test]
fn the_last_counter_before_the_overflow() {
    let table = [
        VmclockAbi { time_sec: u64::MAX, ..page() },
        VmclockAbi { time_sec: u64::MAX, time_frac_sec: u64::MAX, ..page() },
        VmclockAbi { time_sec: u64::MAX, counter_period_shift: 0, ..page() },
        VmclockAbi {
            time_sec: u64::MAX - 1,
            counter_period_frac_sec: u64::MAX,
            counter_period_shift: 3,
            ..page()
        },
    ];
    for page in table {
        let page = VmclockAbi { counter_value: 0, ..page };
        let max_delta = Line::try_from(page).unwrap().max_delta();
        assert!(at(page, max_delta - 1).is_ok(), "{page:?}");
        let beyond = Refusal::Beyond { start: 0, max_delta, counter: max_delta };
        assert_eq!(at(page, max_delta), Err(beyond), "{page:?}");
    }
}

proptest! {
    /// Whatever a hostile host writes: a time, or a refusal, and no panic.
    #[test]
    fn any_page_is_survived(
        (time_sec, time_frac_sec, period) in any::<(u64, u64, u64)>(),
        (shift, counter_value, counter) in any::<(u8, u64, u64)>(),
        (rate, error) in any::<(u64, u64)>(), flags in any::<u64>(),
    ) {
        let page = VmclockAbi {
            time_sec, time_frac_sec, counter_period_frac_sec: period, counter_value, flags,
            counter_period_shift: shift, counter_period_maxerror_rate_frac_sec: rate,
            time_maxerror_nanosec: error, ..page()
        };
        let line = Line::try_from(page).unwrap();
        match at(page, counter) {
            Ok(time) => {
                let product = u128::from(counter - counter_value) * u128::from(period);
                let elapsed = product.checked_shr(u32::from(shift)).unwrap_or(0);
                let start = u128::from(time_sec) << 64 | u128::from(time_frac_sec);
                let sum = start.checked_add(elapsed).unwrap();
                prop_assert_eq!(u128::from(time.seconds) << 64 | u128::from(time.frac_sec), sum);
                prop_assert!(time.max_error_ns.is_none_or(|bound| bound >= error));
            }
            Err(Refusal::Before { .. }) => prop_assert!(counter < counter_value),
            Err(refusal) => {
                let max_delta = line.max_delta();
                prop_assert_eq!(refusal, Refusal::Beyond { start: counter_value, max_delta, counter });
                prop_assert!(counter - counter_value >= max_delta);
            }
        }
    }

    /// The error in ns against the exact quotient, for errors that fit.
    #[test]
    fn the_error_is_rounded_up_by_at_most_two_ns(ticks in 0u64..1 << 40, rate in 0u64..1 << 40, shift in 0u8..40) {
        let term = ErrorTerm { at_start_ns: 0, per_tick: rate };
        let product = u128::from(ticks) * u128::from(rate);
        // In steps, as the whole product may have 110 bits.
        let exact = ((product * 1_000_000) >> 64) >> shift;
        let got = u128::from(term.after(ticks, shift));
        prop_assert!(got / 1000 >= exact.saturating_sub(1) && got / 1000 <= exact + 1);
    }
}
