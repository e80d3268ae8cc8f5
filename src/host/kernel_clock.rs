//! What the kernel says of its clock: `adjtimex`, read only.

#![expect(unsafe_code, reason = "adjtimex takes a raw pointer")]

use std::io;

use crate::clock::tai::{HostLeap, HostSync, Steering, TaiOffset};

/// The kernel's clock at the moment of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelClock {
    /// UTC in ns since 1970, without leap seconds.
    pub utc_ns: i128,
    /// Rate against the clocksource.
    pub steering: Steering,
    /// A pending offset: the rate is not only what `steering` says.
    pub slewing: bool,
    /// Synchronisation, errors, leap second, TAI offset.
    pub sync: HostSync,
}

/// Reads the kernel's clock. Needs no privilege.
///
/// # Errors
/// What `adjtimex` says: a sandbox may forbid it.
pub fn read_kernel_clock() -> io::Result<KernelClock> {
    // SAFETY: a timex is plain numbers, for which all bytes zero are a value;
    // `modes` 0 asks to change nothing.
    let mut timex: libc::timex = unsafe { core::mem::zeroed() };
    // SAFETY: the call writes into `timex`, which lives across it.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(decode(&timex, state))
}

/// The fields of a `timex` and the call's return value, in our units.
fn decode(timex: &libc::timex, state: i32) -> KernelClock {
    let nanoseconds = timex.status & libc::STA_NANO != 0;
    let fraction = i128::from(timex.time.tv_usec) * if nanoseconds { 1 } else { 1_000 };
    let leap = match state {
        libc::TIME_INS => HostLeap::Insert,
        libc::TIME_DEL => HostLeap::Delete,
        libc::TIME_OOP => HostLeap::InProgress,
        libc::TIME_WAIT => HostLeap::Over,
        // TIME_ERROR hides the state: the order is still in the status.
        libc::TIME_ERROR if timex.status & libc::STA_INS != 0 => HostLeap::Insert,
        libc::TIME_ERROR if timex.status & libc::STA_DEL != 0 => HostLeap::Delete,
        _ => HostLeap::None,
    };
    // Microseconds whatever STA_NANO says.
    let ns = |us: libc::c_long| u64::try_from(us).unwrap_or(0).saturating_mul(1_000);
    KernelClock {
        utc_ns: i128::from(timex.time.tv_sec) * 1_000_000_000 + fraction,
        steering: Steering::from_timex(timex.freq, timex.tick),
        slewing: timex.offset != 0,
        sync: HostSync {
            synchronized: timex.status & (libc::STA_UNSYNC | libc::STA_CLOCKERR) == 0,
            maxerror_ns: ns(timex.maxerror),
            esterror_ns: ns(timex.esterror),
            leap,
            tai_offset: TaiOffset::from_timex(timex.tai),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timex() -> libc::timex {
        // SAFETY: plain numbers.
        unsafe { core::mem::zeroed() }
    }

    #[test]
    fn this_host_answers() {
        let clock = read_kernel_clock().unwrap();
        assert!(clock.utc_ns > 1_700_000_000_000_000_000);
        assert!(clock.steering.distance_attos() <= 100_500_000_000_000_000);
    }

    #[test]
    fn units_and_flags() {
        let mut raw = timex();
        raw.tick = 10_000;
        raw.time = libc::timeval { tv_sec: 3, tv_usec: 5 };
        raw.maxerror = 16_000_000;
        raw.status = libc::STA_UNSYNC;
        let clock = decode(&raw, libc::TIME_ERROR);
        assert_eq!((clock.utc_ns, clock.sync.maxerror_ns), (3_000_005_000, 16_000_000_000));
        assert!(!clock.sync.synchronized && !clock.slewing);
        raw.status = libc::STA_NANO | libc::STA_PLL;
        raw.offset = -7;
        raw.tai = 37;
        let clock = decode(&raw, libc::TIME_OK);
        assert_eq!(clock.utc_ns, 3_000_000_005);
        assert!(clock.sync.synchronized && clock.slewing);
        assert_eq!(clock.sync.tai_offset, TaiOffset::Known(37));
        raw.maxerror = -1;
        assert_eq!(decode(&raw, libc::TIME_OK).sync.maxerror_ns, 0);
    }

    #[test]
    fn leap_seconds() {
        let mut raw = timex();
        for (state, leap) in [
            (libc::TIME_OK, HostLeap::None),
            (libc::TIME_INS, HostLeap::Insert),
            (libc::TIME_DEL, HostLeap::Delete),
            (libc::TIME_OOP, HostLeap::InProgress),
            (libc::TIME_WAIT, HostLeap::Over),
            (libc::TIME_ERROR, HostLeap::None),
        ] {
            assert_eq!(decode(&raw, state).sync.leap, leap, "{state}");
        }
        raw.status = libc::STA_UNSYNC | libc::STA_INS;
        assert_eq!(decode(&raw, libc::TIME_ERROR).sync.leap, HostLeap::Insert);
    }
}
