//! What may be changed in this machine's kernel before its clocks are read.

#![expect(unsafe_code, reason = "adjtimex takes a raw pointer")]

use std::io;

const CURRENT: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// The kernel's clocksource.
pub fn clocksource() -> String {
    std::fs::read_to_string(CURRENT).map_or_else(|error| error.to_string(), |s| s.trim().into())
}

/// Makes the kernel keep time by another clocksource.
pub fn set_clocksource(name: &str) -> io::Result<()> {
    std::fs::write(CURRENT, name)?;
    // A name that it has not got is not refused.
    match clocksource() {
        now if now == name => Ok(()),
        now => Err(io::Error::other(format!("the clocksource is {now}, not {name}"))),
    }
}

/// Tells the kernel TAI - UTC.
pub fn set_tai_offset(seconds: i64) -> io::Result<()> {
    // SAFETY: a timex is plain numbers.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_TAI;
    timex.constant = seconds;
    // SAFETY: reads and writes the structure that it borrows.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
