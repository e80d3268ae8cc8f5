//! Watches the VMClock page for disruptions, on any kernel, and tells of each at once: what
//! the page said last before, and first after it.

use std::io;
use std::time::{Duration, Instant};

use guest_clock::vmclock::Reading;

use super::device::Device;
use super::{DEVICE, TRIES};
use crate::system::Console;
use crate::term::Term;

const PAUSE: Duration = Duration::from_millis(10);

/// What was seen of the page.
#[derive(Debug, Default)]
pub struct Seen {
    readings: u64,
    refused: u64,
    disruptions: u64,
    generations: u64,
}

/// Ends `term` when the page has told of `count` disruptions. The page is its driver's, or
/// else at the guest physical address `page`.
pub fn watch(
    console: &mut Console,
    page: Option<i64>,
    count: u64,
    term: &Term,
) -> io::Result<Seen> {
    let device = match (Device::open(DEVICE), page) {
        (Err(_), Some(page)) => Device::map("/dev/mem", page)?,
        (device, _) => device?,
    };
    let mut seen = Seen::default();
    let mut last: Option<Reading> = None;
    let start = Instant::now();
    while !term.is_over(start) {
        match device.read(TRIES) {
            Ok(now) => seen.look(console, last.replace(now), &now),
            Err(_) => seen.refused += 1,
        }
        if seen.disruptions >= count {
            // The other watches see a little of what comes after.
            std::thread::sleep(PAUSE * 10);
            term.end();
        }
        std::thread::sleep(PAUSE);
    }
    Ok(seen)
}

impl Seen {
    /// The page says `now`, and said `last` before.
    fn look(&mut self, console: &mut Console, last: Option<Reading>, now: &Reading) {
        self.readings += 1;
        if last.is_some_and(|last| last.line.disruption_marker == now.line.disruption_marker) {
            return;
        }
        if let Some(last) = &last {
            self.disruptions += 1;
            self.generations += u64::from(last.line.generation != now.line.generation);
            print(console, last);
        }
        print(console, now);
        console.line(format_args!("page-noticed number={}", self.disruptions));
    }

    /// What came of it all.
    pub fn report(&self, console: &mut Console) {
        console.line(format_args!(
            "page-total readings={} refused={} disruptions={} generations={}",
            self.readings, self.refused, self.disruptions, self.generations
        ));
    }
}

fn print(console: &mut Console, reading: &Reading) {
    let line = &reading.line;
    console.line(format_args!(
        "page marker={} generation={} counter={} tai_ns={} bound_ns={}",
        line.disruption_marker,
        line.generation.unwrap_or(0),
        reading.counter,
        reading.time.nanos(),
        reading.time.max_error_ns.unwrap_or(u64::MAX),
    ));
}
