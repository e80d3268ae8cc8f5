//! VMClock as its users read it: /dev/vmclock0 mapped, by AWS's crate
//! `clock-bound-vmclock` and by `guest-clock`, and the PTP clock over it.
//!
//! `vmclock` lines: one reading by both, and whether they agree. `ptp` lines: the
//! PTP clock between two readings of the TSC, against the page. `vmclock-poll`:
//! what woke a poller.

mod device;
pub mod disruptions;
mod ptp;

use std::time::{Duration, Instant};

use clock_bound_vmclock::shm::VMClockShmBody;
use clock_bound_vmclock::shm_reader::VMClockShmReader;
use guest_clock::vmclock::{Line, Reading};

use crate::clocks::tsc;
use crate::system::{self, Console};
use device::Device;

const DEVICE: &str = "/dev/vmclock0";
const TRIES: u32 = 1000;
/// How long a poller waits. A page is renewed more often, which wakes nobody.
const PATIENCE: Duration = Duration::from_millis(300);
/// Less than this before the end of its patience, a poller was woken.
const SOON: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Tally {
    readings: u64,
    refused: u64,
    agree: u64,
    ptp: u64,
    ptp_outside: u64,
    ptp_failed: u64,
    wakes: u64,
    news: u64,
    disruptions: u64,
}

/// Reads and waits for `time`, and says what came of it.
pub fn report(console: &mut Console, time: Duration) {
    let device = match Device::open(DEVICE) {
        Ok(device) => device,
        Err(error) => {
            console.line(format_args!("missing check=vmclock reason: {DEVICE}: {error}"));
            return;
        }
    };
    let mut crates = match VMClockShmReader::new(DEVICE) {
        Ok(reader) => reader,
        Err(error) => {
            console.line(format_args!("error clock-bound-vmclock: {error:?}"));
            return;
        }
    };
    let ptp = ptp::Clock::open();
    if let Err(error) = &ptp {
        console.line(format_args!("missing check=ptp reason: {}: {error}", ptp::DEVICE));
    } else {
        let name = system::read("/sys/class/ptp/ptp0/clock_name");
        console.line(format_args!("ptp name={}", name.replace(' ', "-")));
    }
    let mut tally = Tally::default();
    let mut first = true;
    let mut last: Option<Line> = None;
    let end = Instant::now() + time;
    while Instant::now() < end {
        // Synchronises the poller with the page: what is new after this wakes it.
        device.catch_up();
        match device.read(TRIES) {
            Ok(reading) => {
                tally.readings += 1;
                let agrees = agrees(&mut crates, &reading);
                tally.agree += u64::from(agrees != Some(false));
                let copy = |line: Line| (line.disruption_marker, line.generation);
                if first || last.is_some_and(|last| copy(last) != copy(reading.line)) {
                    print(console, &reading, agrees);
                }
                if last.is_some_and(|last| last.disruption_marker != reading.line.disruption_marker)
                {
                    tally.disruptions += 1;
                }
                last = Some(reading.line);
                if let Ok(ptp) = &ptp {
                    match read_ptp(console, ptp, &device, tally.ptp == 0) {
                        Ptp::Inside => tally.ptp += 1,
                        Ptp::Outside => tally.ptp_outside += 1,
                        Ptp::Unknown => {}
                        Ptp::Failed(error) => {
                            if tally.ptp_failed == 0 {
                                console.line(format_args!("error ptp: {error}"));
                            }
                            tally.ptp_failed += 1;
                        }
                    }
                }
                first = false;
            }
            Err(refusal) => {
                if tally.refused == 0 {
                    console.line(format_args!("vmclock refused: {refusal}"));
                }
                tally.refused += 1;
            }
        }
        let told = |line: Line| {
            let Line { disruption_marker, generation, status, .. } = line;
            (disruption_marker, generation, status, line.tai_offset_sec, line.leap_indicator)
        };
        let began = Instant::now();
        if device.poll(PATIENCE) && began.elapsed() < PATIENCE - SOON {
            tally.wakes += 1;
            let now = device.read(TRIES).ok().map(|reading| reading.line);
            tally.news += u64::from(now.map(told) != last.map(told));
        }
    }
    let Tally { readings, refused, agree, wakes, news, disruptions, .. } = tally;
    console.line(format_args!(
        "vmclock-total readings={readings} refused={refused} agree={agree} disruptions={disruptions}"
    ));
    console.line(format_args!(
        "ptp-total inside={} outside={} failed={}",
        tally.ptp, tally.ptp_outside, tally.ptp_failed
    ));
    console.line(format_args!("vmclock-poll wakes={wakes} news={news}"));
}

fn print(console: &mut Console, reading: &Reading, agrees: Option<bool>) {
    let line = &reading.line;
    console.line(format_args!(
        "vmclock type={:?} status={} counter={} tai_ns={} bound_ns={} est_ns={} utc_offset={} \
         marker={} generation={} agree={}",
        line.time_type,
        line.status,
        reading.counter,
        reading.time.nanos(),
        reading.time.max_error_ns.unwrap_or(u64::MAX),
        reading.time.est_error_ns.unwrap_or(u64::MAX),
        line.tai_offset_sec.unwrap_or(0),
        line.disruption_marker,
        line.generation.unwrap_or(0),
        agrees.map_or(2, u8::from),
    ));
}

/// Whether AWS's crate sees the same line and computes the same time from it;
/// `None` where the page was renewed in between.
fn agrees(reader: &mut VMClockShmReader, reading: &Reading) -> Option<bool> {
    let Ok(body) = reader.snapshot() else { return Some(false) };
    let line = &reading.line;
    if body.counter_value != line.start {
        return None;
    }
    let same = body.disruption_marker == line.disruption_marker
        && body.clock_status as u8 == line.status
        && line.tai_offset_sec.is_none_or(|offset| offset == body.tai_offset_sec)
        && body.leap_indicator == line.leap_indicator;
    Some(same && time_of(body, reading.counter) == reading.time.nanos())
}

/// As a user of the crate computes it: it hands out the page's fields alone.
fn time_of(body: &VMClockShmBody, counter: u64) -> u128 {
    let ticks = u128::from(counter.wrapping_sub(body.counter_value));
    let units = (ticks * u128::from(body.counter_period_frac_sec)) >> body.counter_period_shift;
    let units = units + u128::from(body.time_frac_sec);
    let sec = u128::from(body.time_sec) + (units >> 64);
    sec * 1_000_000_000 + (((units & u128::from(u64::MAX)) * 1_000_000_000) >> 64)
}

/// What the PTP clock said, beside the page.
enum Ptp {
    Inside,
    Outside,
    /// The page changed in between, so nothing can be said.
    Unknown,
    Failed(std::io::Error),
}

/// Whether the PTP clock lies within what the page gives for the TSCs around it,
/// and a ns that either rounds.
fn read_ptp(console: &mut Console, ptp: &ptp::Clock, device: &Device, show: bool) -> Ptp {
    let before = device.read(TRIES);
    let before_tsc = tsc();
    let read = ptp.read();
    let after_tsc = tsc();
    let after = device.read(TRIES);
    let ns = match read {
        Ok(ns) => i128::from(ns),
        Err(error) => return Ptp::Failed(error),
    };
    let (Ok(before), Ok(after)) = (before, after) else { return Ptp::Unknown };
    if before.sequence != after.sequence {
        return Ptp::Unknown;
    }
    let line = &before.line;
    let at = |tsc| i128::try_from(line.at(tsc).map_or(0, |time| time.nanos())).unwrap_or(i128::MAX);
    let (low, high) = (at(before_tsc), at(after_tsc));
    // The driver's first versions show UTC.
    let utc_ns = i128::from(line.tai_offset_sec.unwrap_or(0)) * 1_000_000_000;
    let is_utc = (ns - low).abs() > 10_000_000_000;
    let ns = if is_utc { ns - utc_ns } else { ns };
    let outside = ns < low - 1 || ns > high + 1;
    if show || outside {
        console.line(format_args!(
            "ptp scale={} tai_ns={ns} after_page_ns={} window_ns={} precise={} outside={}",
            if is_utc { "utc" } else { "tai" },
            ns - low,
            high - low,
            u8::from(ptp.is_precise()),
            u8::from(outside),
        ));
    }
    if outside { Ptp::Outside } else { Ptp::Inside }
}
