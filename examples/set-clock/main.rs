//! Sets and disturbs the clock of the machine that it runs on, as NTP daemons and
//! operators do: for tests in a nested host. Needs root.
//!
//! ```console
//! # set-clock tai 37           the kernel's TAI - UTC, s
//! # set-clock sync 500         synchronised, with a maximum error in us
//! # set-clock unsync           STA_UNSYNC
//! # set-clock freq -500        frequency, ppm
//! # set-clock slew 3000        adjtime: gains so many us, at 500 ppm
//! # set-clock step -1000000000 steps by so many ns
//! # set-clock to-midnight 4000 steps to so many ms before the next UTC midnight
//! # set-clock leap insert      orders a leap second (insert, delete, none)
//! # set-clock show
//! ```
//!
//! Of a step it also prints this machine's TSC before and after the call.

#![expect(unsafe_code, reason = "adjtimex takes a raw pointer")]

use std::io;
use std::process::ExitCode;

use kvm_xen::host::host_tsc;

const USAGE: &str = "set-clock tai S | sync US | unsync | freq PPM | slew US | step NS | \
                     to-midnight MS | leap insert|delete|none | show";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("set-clock {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn act(words: &[&str]) -> io::Result<()> {
    let usage = || io::Error::other(format!("usage: {USAGE}"));
    let number = |text: &str| text.parse::<i64>().map_err(|_| usage());
    let mut timex = timex();
    match words {
        ["tai", seconds] => {
            timex.modes = libc::ADJ_TAI;
            timex.constant = number(seconds)?;
        }
        ["sync", maxerror_us] => {
            timex.modes = libc::ADJ_STATUS | libc::ADJ_MAXERROR | libc::ADJ_ESTERROR;
            timex.status = read()?.status & !libc::STA_UNSYNC;
            timex.maxerror = number(maxerror_us)?;
            timex.esterror = timex.maxerror / 2;
        }
        ["unsync"] => {
            timex.modes = libc::ADJ_STATUS;
            timex.status = read()?.status | libc::STA_UNSYNC;
        }
        ["freq", ppm] => {
            timex.modes = libc::ADJ_FREQUENCY;
            timex.freq = number(ppm)? * 65_536;
        }
        ["slew", us] => {
            timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
            timex.offset = number(us)?;
        }
        ["step", ns] => step(&mut timex, number(ns)?.into()),
        ["to-midnight", ms] => {
            let now = read()?;
            let fraction = if now.status & libc::STA_NANO != 0 {
                now.time.tv_usec
            } else {
                now.time.tv_usec * 1_000
            };
            let now_ns = i128::from(now.time.tv_sec) * 1_000_000_000 + i128::from(fraction);
            let day = 86_400_000_000_000;
            let midnight = (now_ns.div_euclid(day) + 1) * day;
            step(&mut timex, midnight - i128::from(number(ms)?) * 1_000_000 - now_ns);
        }
        ["leap", kind] => {
            let bits = match *kind {
                "insert" => libc::STA_INS,
                "delete" => libc::STA_DEL,
                "none" => 0,
                _ => return Err(usage()),
            };
            timex.modes = libc::ADJ_STATUS;
            timex.status = read()?.status & !(libc::STA_INS | libc::STA_DEL) | bits;
        }
        ["show"] => {}
        _ => return Err(usage()),
    }
    let before = host_tsc();
    let state = adjtimex(&mut timex)?;
    let after = host_tsc();
    let stepped = match timex.modes & libc::ADJ_SETOFFSET {
        0 => String::new(),
        _ => format!(" before_tsc={before} after_tsc={after}"),
    };
    println!(
        "set-clock {}: state={state} status={:#x} freq={} maxerror={} tai={} time={}{stepped}",
        words.join(" "),
        timex.status,
        timex.freq,
        timex.maxerror,
        timex.tai,
        timex.time.tv_sec,
    );
    Ok(())
}

fn step(timex: &mut libc::timex, ns: i128) {
    timex.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    // Any clock's distance from another in 64 bits of seconds.
    timex.time.tv_sec = i64::try_from(ns.div_euclid(1_000_000_000)).unwrap_or(0);
    timex.time.tv_usec = i64::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0);
}

fn read() -> io::Result<libc::timex> {
    let mut timex = timex();
    adjtimex(&mut timex)?;
    Ok(timex)
}

fn timex() -> libc::timex {
    // SAFETY: a timex is plain numbers.
    unsafe { std::mem::zeroed() }
}

fn adjtimex(timex: &mut libc::timex) -> io::Result<i32> {
    // SAFETY: reads and writes the structure that it borrows.
    let state = unsafe { libc::adjtimex(timex) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(state) }
}
