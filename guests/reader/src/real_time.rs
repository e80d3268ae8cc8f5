//! VMClock as most users want it: bridged where the page is busy, and each
//! disruption told once.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Refusal;
use crate::latch::Latch;
use crate::sequence::{Counter, Quiet, StoreWord, Word};
use crate::vmclock::{self, Line, MARKER, Reading, Time, WORDS};

/// What happened to the guest since it looked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disruption {
    /// The counter was disrupted, such as by a live migration: what was
    /// measured with it before no longer holds.
    Counter,
    /// The machine was copied or put back to an earlier state: identifiers and
    /// random numbers may exist twice.
    Cloned,
}

/// Where a time came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The page.
    Page,
    /// The last good line, because the page gave none: for instance while the
    /// host was updating it.
    Latched(Refusal),
}

/// The real time now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time and error.
    pub time: Time,
    /// The counter that it belongs to.
    pub counter: u64,
    /// The line that gave it.
    pub line: Line,
    /// Where it came from.
    pub source: Source,
    /// Told to one caller only, the first after it happened.
    pub disruption: Option<Disruption>,
}

/// A reader of one VMClock page, with a memory. All methods may be called from
/// any context, also from what interrupts them.
#[derive(Debug)]
pub struct RealTime<W> {
    latch: Latch<W, WORDS>,
    updating: AtomicBool,
    started: AtomicBool,
    marker: AtomicU64,
    generation: AtomicU64,
}

impl<W: StoreWord> RealTime<W> {
    /// A reader that knows nothing yet; `word` makes words of value 0.
    pub fn new(word: impl FnMut() -> W) -> Self {
        Self {
            latch: Latch::new(word),
            updating: AtomicBool::new(false),
            started: AtomicBool::new(false),
            marker: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// The real time now.
    ///
    /// While the page is busy, or holds for a counter yet to come, the last
    /// line that was read goes on: its error bound grows by its own rate. It
    /// is not used across a disruption.
    ///
    /// # Errors
    /// [`Refusal`] of the page, when no earlier line can stand in.
    pub fn now<P: Word>(
        &self,
        page: &[P; WORDS],
        counter: &impl Counter,
        tries: u32,
    ) -> Result<Now, Refusal> {
        let refusal = match vmclock::read_words(page, counter, tries) {
            Ok(quiet) => match vmclock::evaluate(quiet) {
                Ok(reading) => return Ok(self.fresh(&quiet, reading)),
                Err(refusal) => refusal,
            },
            Err(refusal) => refusal,
        };
        if !matches!(refusal, Refusal::Busy { .. } | Refusal::Before { .. }) {
            return Err(refusal);
        }
        let words = self.latch.read(tries)?;
        // The marker alone, whatever state the page is in: a torn one differs too.
        if (page[MARKER].load(), page[MARKER + 1].load()) != (words[MARKER], words[MARKER + 1]) {
            return Err(refusal);
        }
        let line = vmclock::decode(words).map_err(|_| refusal)?;
        let counter = counter.read();
        let time = line.at(counter).map_err(|_| refusal)?;
        Ok(Now { time, counter, line, source: Source::Latched(refusal), disruption: None })
    }

    fn fresh(&self, quiet: &Quiet<WORDS>, reading: Reading) -> Now {
        // Whoever interrupts the updater goes without an update. Acquire and
        // Release: one updater's writes come before the next one's.
        if !self.updating.swap(true, Ordering::Acquire) {
            if self.latch.read(1).as_ref() != Ok(&quiet.words) {
                self.latch.write(&quiet.words);
            }
            self.updating.store(false, Ordering::Release);
        }
        let Reading { time, counter, line, .. } = reading;
        Now { time, counter, line, source: Source::Page, disruption: self.disruption(&line) }
    }

    fn disruption(&self, line: &Line) -> Option<Disruption> {
        let generation = line.generation.unwrap_or(0);
        let marker = self.marker.swap(line.disruption_marker, Ordering::Relaxed);
        let before = self.generation.swap(generation, Ordering::Relaxed);
        if !self.started.swap(true, Ordering::Relaxed) {
            None
        } else if before != generation {
            Some(Disruption::Cloned)
        } else if marker != line.disruption_marker {
            Some(Disruption::Counter)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU32;

    use xen_abi::vmclock::{VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT, VmclockAbi};

    use super::*;
    use crate::vmclock::tests::{page, words};

    fn reader() -> RealTime<AtomicU32> {
        RealTime::new(|| AtomicU32::new(0))
    }

    fn now(reader: &RealTime<AtomicU32>, page: VmclockAbi, counter: u64) -> Result<Now, Refusal> {
        reader.now(&words(page), &|| counter, 2)
    }

    #[test]
    fn a_busy_page_is_bridged_by_the_last_line_with_its_growing_error() {
        let busy = VmclockAbi { seq_count: 3, time_sec: 999, ..page() };
        let reader = reader();
        assert_eq!(now(&reader, busy, 2000), Err(Refusal::Busy { tries: 2 }), "nothing known yet");
        let first = now(&reader, page(), 1000).unwrap();
        assert_eq!((first.source, first.time.max_error_ns), (Source::Page, Some(500)));
        let bridged = now(&reader, busy, 1000 + (1 << 31)).unwrap();
        assert_eq!(bridged.source, Source::Latched(Refusal::Busy { tries: 2 }));
        assert_eq!((bridged.time.seconds, bridged.time.max_error_ns), (101, Some(1501)));
    }

    #[test]
    fn a_line_for_the_future_leaves_the_last_one_in_force_until_then() {
        let reader = reader();
        now(&reader, page(), 1000).unwrap();
        let planned = VmclockAbi { counter_value: 5000, time_sec: 200, ..page() };
        let before = now(&reader, planned, 4999).unwrap();
        assert_eq!(before.time.seconds, 100);
        assert!(matches!(before.source, Source::Latched(Refusal::Before { start: 5000, .. })));
        assert_eq!(now(&reader, planned, 5000).unwrap().time.seconds, 200);
    }

    #[test]
    fn no_line_goes_on_across_a_disruption() {
        let reader = reader();
        now(&reader, page(), 1000).unwrap();
        for marker in [8, 7 | 1 << 32] {
            let moved = VmclockAbi { seq_count: 3, disruption_marker: marker, ..page() };
            assert_eq!(now(&reader, moved, 2000), Err(Refusal::Busy { tries: 2 }));
        }
    }

    #[test]
    fn each_disruption_is_told_once() {
        let reader = reader();
        let mut page = VmclockAbi { flags: VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT, ..page() };
        let told = |page| now(&reader, page, 1000).unwrap().disruption;
        assert_eq!(told(page), None);
        page.disruption_marker += 1;
        assert_eq!((told(page), told(page)), (Some(Disruption::Counter), None));
        page.disruption_marker += 1;
        page.vm_generation_counter += 1;
        assert_eq!((told(page), told(page)), (Some(Disruption::Cloned), None));
    }

    #[test]
    fn what_no_line_can_bridge_is_passed_on() {
        let reader = reader();
        now(&reader, page(), 1000).unwrap();
        let dead = VmclockAbi { clock_status: 4, ..page() };
        assert_eq!(now(&reader, dead, 1000), Err(Refusal::Status(4)));
    }
}
