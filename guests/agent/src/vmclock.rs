//! VMClock as its users read it: /dev/vmclock0 mapped, by AWS's crate
//! `clock-bound-vmclock` and by `guest-clock`, and the PTP clock over it.
//!
//! `vmclock` lines: one reading by both, and whether they agree. `ptp` lines: the
//! PTP clock between two readings of the TSC, against the page. `vmclock-poll`:
//! what woke a poller.

mod device;
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
/// How often the page and the PTP clock are read in all.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Tally {
    readings: u64,
    refused: u64,
    agree: u64,
    ptp: u64,
    ptp_outside: u64,
    wakes: u64,
    news: u64,
    disruptions: u64,
}

/// Reads and waits for `time`, and says what came of it.
pub fn report(console: &mut Console, time: Duration) {
    let mut device = match Device::open(DEVICE) {
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
                if first {
                    print(console, &reading, agrees);
                }
                if last.is_some_and(|last| last.disruption_marker != reading.line.disruption_marker)
                {
                    tally.disruptions += 1;
                }
                last = Some(reading.line);
                if let Ok(ptp) = &ptp {
                    tally.ptp += 1;
                    tally.ptp_outside += u64::from(ptp_outside(console, ptp, &device, first));
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
        if device.poll(PAUSE) {
            tally.wakes += 1;
            let now = device.read(TRIES).ok().map(|reading| reading.line);
            let told = |line: &Line| {
                (
                    line.disruption_marker,
                    line.generation,
                    line.status,
                    line.tai_offset_sec,
                    line.leap_indicator,
                )
            };
            tally.news += u64::from(now.as_ref().map(told) != last.as_ref().map(told));
        }
    }
    let Tally { readings, refused, agree, wakes, news, disruptions, .. } = tally;
    console.line(format_args!(
        "vmclock-total readings={readings} refused={refused} agree={agree} disruptions={disruptions}"
    ));
    console.line(format_args!("ptp-total readings={} outside={}", tally.ptp, tally.ptp_outside));
    console.line(format_args!("vmclock-poll wakes={wakes} news={news}"));
}

fn print(console: &mut Console, reading: &Reading, agrees: Option<bool>) {
    let line = &reading.line;
    console.line(format_args!(
        "vmclock type={:?} status={} counter={} tai_ns={} bound_ns={} est_ns={} utc_offset={} \
         marker={} agree={}",
        line.time_type,
        line.status,
        reading.counter,
        reading.time.nanos(),
        reading.time.max_error_ns.unwrap_or(u64::MAX),
        reading.time.est_error_ns.unwrap_or(u64::MAX),
        line.tai_offset_sec.unwrap_or(0),
        line.disruption_marker,
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

/// Whether the PTP clock lies outside of what the page gives for the TSCs around
/// it, by more than the ns that either rounds.
fn ptp_outside(console: &mut Console, ptp: &ptp::Clock, device: &Device, show: bool) -> bool {
    let before = device.read(TRIES);
    let before_tsc = tsc();
    let read = ptp.read();
    let after_tsc = tsc();
    let after = device.read(TRIES);
    let (Ok(before), Ok(after)) = (before, after) else { return false };
    let utc_ns = match read {
        Ok(ns) => i128::from(ns),
        Err(error) => {
            console.line(format_args!("ptp error: {error}"));
            return true;
        }
    };
    // A page that was renewed may have stepped: the PTP clock was read by either.
    if before.line.disruption_marker != after.line.disruption_marker {
        return false;
    }
    let at = |line: &Line, tsc| {
        let offset = i128::from(line.tai_offset_sec.unwrap_or(0));
        let tai = line.at(tsc).map_or(0, |time| time.nanos());
        i128::try_from(tai).unwrap_or(0) + offset * 1_000_000_000
    };
    let moved = at(&before.line, after_tsc).abs_diff(at(&after.line, after_tsc));
    let slack = i128::try_from(moved).unwrap_or(0) + 1;
    let (low, high) = (at(&before.line, before_tsc), at(&before.line, after_tsc));
    if show {
        let precise = ptp.is_precise();
        console.line(format_args!(
            "ptp utc_ns={utc_ns} after_page_ns={} window_ns={} precise={}",
            utc_ns - low,
            high - low,
            u8::from(precise),
        ));
    }
    let outside = utc_ns < low - slack || utc_ns > high + slack;
    if outside {
        console.line(format_args!("ptp outside utc_ns={utc_ns} low={low} high={high}"));
    }
    outside
}
