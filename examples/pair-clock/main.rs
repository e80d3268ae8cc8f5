//! Sets the clock of one machine by another's, and says how far apart their TSCs are:
//! for tests with two nested hosts. Needs root to set.
//!
//! ```console
//! 1# pair-clock serve 10.9.8.1:123        answers for ever
//! 2# pair-clock set 10.9.8.1:123 500      steps CLOCK_TAI; the other one's maximum error, us
//! 2# pair-clock watch 10.9.8.1:123        ours less theirs, ticks, four times a second
//! 1# pair-clock log                       our own TSC beside CLOCK_TAI, twice a second
//! ```
//!
//! A question and its answer are datagrams, so an answer is from between two readings of
//! our own counters. Two emulated CPUs of one machine count its TSC, each with an offset.
//! That of a CPU grows now and then: where its threads see TSCs of the machine that differ,
//! the emulator makes up for it. So the difference is looked at all the time.

#![expect(unsafe_code, reason = "adjtimex and clock_gettime take raw pointers")]

use std::io;
use std::net::UdpSocket;
use std::process::ExitCode;
use std::time::Duration;

use kvm_xen::host::host_tsc;

const USAGE: &str = "pair-clock serve ADDRESS | set ADDRESS US | watch ADDRESS | log";
/// Questions to set the clock by.
const QUESTIONS: u32 = 400;
/// Questions for one look at the TSCs, and the time between two.
const LOOK: (u32, Duration) = (20, Duration::from_millis(200));
/// TAI - UTC, s.
const TAI_OFFSET: i64 = 37;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pair-clock {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn act(words: &[&str]) -> io::Result<()> {
    match words {
        ["serve", at] => serve(at),
        ["set", server, us] => {
            let us = us.parse().map_err(|_| io::Error::other("no number of microseconds"))?;
            set(server, us)
        }
        ["watch", server] => watch(server),
        ["log"] => log(),
        _ => Err(io::Error::other(format!("usage: {USAGE}"))),
    }
}

/// CLOCK_TAI, ns.
fn tai_ns() -> i64 {
    // SAFETY: a timespec is plain numbers.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: writes the structure that it borrows; the clock exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_TAI, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn serve(at: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(at)?;
    let mut question = [0; 4];
    loop {
        let (_, from) = socket.recv_from(&mut question)?;
        let mut answer = question.to_vec();
        answer.extend_from_slice(&tai_ns().to_le_bytes());
        answer.extend_from_slice(&host_tsc().to_le_bytes());
        // One that is lost is asked for again.
        drop(socket.send_to(&answer, from));
    }
}

/// The TSC before and after CLOCK_TAI, the narrowest of some.
fn log() -> io::Result<()> {
    loop {
        let once = || {
            let before = host_tsc();
            let tai_ns = tai_ns();
            (before, tai_ns, host_tsc().wrapping_sub(before))
        };
        let narrowest = (0..LOOK.0).map(|_| once()).min_by_key(|(_, _, width)| *width);
        if let Some((before, tai_ns, width)) = narrowest {
            println!("pair-clock log: host_tsc={before} width={width} tai_ns={tai_ns}");
        }
        std::thread::sleep(LOOK.1 * 2);
    }
}

/// What was read of both machines: ours before, theirs, ours after.
struct Reading {
    tai_ns: (i64, i64, i64),
    tsc: (u64, u64, u64),
}

fn ask(server: &str, questions: u32) -> io::Result<Vec<Reading>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let (mut all, mut lost) = (Vec::new(), 0);
    for number in 0..questions {
        let mut answer = [0; 20];
        let before = (tai_ns(), host_tsc());
        let mut heard = socket.send(&number.to_le_bytes()).and_then(|_| socket.recv(&mut answer));
        // An answer that came too late belongs to an earlier question.
        while heard.is_ok() && answer[..4] != number.to_le_bytes() {
            heard = socket.recv(&mut answer);
        }
        let after = (host_tsc(), tai_ns());
        let [_, _, _, _, t0, t1, t2, t3, t4, t5, t6, t7, c0, c1, c2, c3, c4, c5, c6, c7] = answer;
        if heard.is_err() {
            lost += 1;
            if lost > questions / 2 {
                return Err(io::Error::other("nobody answers"));
            }
            continue;
        }
        all.push(Reading {
            tai_ns: (before.0, i64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]), after.1),
            tsc: (before.1, u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]), after.0),
        });
    }
    Ok(all)
}

/// Twice, the second time to see that it is right.
fn set(server: &str, us: i64) -> io::Result<()> {
    for _ in 0..2 {
        let readings = ask(server, QUESTIONS)?;
        let best = readings.iter().min_by_key(|reading| reading.tai_ns.2 - reading.tai_ns.0);
        let Some(Reading { tai_ns: (before, theirs, after), .. }) = best else {
            return Err(io::Error::other("nobody answered"));
        };
        let (half, step) = ((after - before) / 2, theirs - (before + (after - before) / 2));
        let maxerror_us = us + half / 1000 + 1;
        adjust(|timex| {
            timex.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
            timex.time.tv_sec = step.div_euclid(1_000_000_000);
            timex.time.tv_usec = step.rem_euclid(1_000_000_000);
        })?;
        adjust(|timex| (timex.modes, timex.constant) = (libc::ADJ_TAI, TAI_OFFSET))?;
        adjust(|timex| {
            timex.modes = libc::ADJ_STATUS | libc::ADJ_MAXERROR | libc::ADJ_ESTERROR;
            timex.status = libc::STA_NANO;
            (timex.maxerror, timex.esterror) = (maxerror_us, maxerror_us / 2);
        })?;
        println!("pair-clock set: stepped_ns={step} half_trip_ns={half} maxerror_us={maxerror_us}");
    }
    Ok(())
}

fn watch(server: &str) -> io::Result<()> {
    loop {
        // Each answer leaves the difference a range; it was in the narrowest.
        let readings = ask(server, LOOK.0)?;
        let narrowest = readings.iter().min_by_key(|reading| reading.tsc.2 - reading.tsc.0);
        if let Some(Reading { tsc: (before, theirs, after), tai_ns }) = narrowest {
            let difference = |ours: &u64| i128::from(*ours) - i128::from(*theirs);
            println!(
                "pair-clock watch: utc_ns={} least_ticks={} most_ticks={}",
                tai_ns.0 - TAI_OFFSET * 1_000_000_000,
                difference(before),
                difference(after)
            );
        }
        std::thread::sleep(LOOK.1);
    }
}

fn adjust(change: impl FnOnce(&mut libc::timex)) -> io::Result<()> {
    // SAFETY: a timex is plain numbers.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    change(&mut timex);
    // SAFETY: reads and writes the structure that it borrows.
    if unsafe { libc::adjtimex(&raw mut timex) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
