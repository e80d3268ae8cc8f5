//! The truth about a guest's page, from outside: the page read as a guest reads
//! it, beside the host's own clock at the same TSC.

use core::cell::Cell;
use std::time::Instant;

use guest_clock::Refusal;
use guest_clock::vmclock::{self, TimeType};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestAddressSpace};

use crate::clock::tai::{HostReading, Tai};
use crate::host::{OffsetWatch, PairError, PairSource, StepWatch};
use crate::pages::{GuestRamHandle, PageError, with_vmclock_words};

/// One comparison of a guest's page with the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSample {
    /// The host's TSC.
    pub host_tsc: u64,
    /// The guest's TSC then.
    pub guest_tsc: u64,
    /// What the guest reads by its page, as TAI, ns.
    pub guest_tai_ns: i64,
    /// The host's CLOCK_TAI, ns.
    pub host_tai_ns: i64,
    /// `guest_tai_ns - host_tai_ns`.
    pub offset_ns: i64,
    /// How far `host_tai_ns` may be off, ns.
    pub reading_error_ns: u64,
    /// The bound that the page states at this TSC, ns: the host's own error is in it.
    pub bound_ns: u64,
    /// The part of it against the host's clock alone, ns.
    pub own_bound_ns: u64,
    /// Time since the page's counter value, ns.
    pub page_age_ns: u64,
    /// Ticks since the page's counter value.
    pub page_age_ticks: u64,
    /// The page's disruption marker.
    pub disruption_marker: u64,
    /// The page's `clock_status`.
    pub status: u8,
    /// The offset is within the bound and the reading's error.
    pub within: bool,
    /// The offset is within the bound against the host's clock alone.
    pub within_own: bool,
    /// The host's clock was stepped, and the page does not know it yet: the
    /// sample is outside of the bound against the host's clock, and counts apart.
    pub in_step_window: bool,
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The guest has no VMClock.
    #[error("this machine has no VMClock page; start it with --vmclock on")]
    NoPage,
    /// The page gives no time, as a guest finds too.
    #[error("the VMClock page gives no time: {0}")]
    Refused(Refusal),
    /// The page states no error.
    #[error("the VMClock page states no bound of its error")]
    NoBound,
    /// Guest memory.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The host's clock.
    #[error(transparent)]
    Host(#[from] PairError),
    /// The page was renewed during every try.
    #[error("the VMClock page was renewed during each of {0} readings; try again")]
    Renewed(u32),
}

/// What was seen of all samples so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleCounts {
    /// Samples.
    pub samples: u64,
    /// Those within the published bound, beside those in step windows.
    pub within: u64,
    /// Those between a step of the host's clock and the page that knows it.
    pub in_step_windows: u64,
    /// Those outside of the bound for no reason: 0, or the bound is a lie.
    pub broken: u64,
    /// Within the published bound, but not within that against the host's clock.
    pub beyond_own_bound: u64,
    /// The longest window, from the first sample in it to the first after it, ns.
    pub longest_window_ns: u64,
}

pub(super) struct PageAt {
    pub memory: GuestRamHandle,
    pub gpa: GuestAddress,
}

/// Takes samples; one at a time.
pub(super) struct Sampler {
    pub source: Box<dyn PairSource>,
    pub watch: StepWatch,
    pub counts: SampleCounts,
    /// The first sample of a step window that is still open.
    window: Option<Instant>,
    was_set: bool,
    /// Sees a step before the kernel has told anybody of it.
    offsets: OffsetWatch,
}

/// What a guest reads, and the host's reading at that counter value.
struct Both {
    reading: vmclock::Reading,
    host: HostReading,
}

const TRIES: u32 = 100;

impl Sampler {
    pub(super) fn new(source: Box<dyn PairSource>, watch: StepWatch) -> Self {
        Self {
            source,
            watch,
            counts: SampleCounts::default(),
            window: None,
            was_set: false,
            offsets: OffsetWatch::new(),
        }
    }

    /// One sample. `guest_tsc` is the guest's TSC at a host TSC, `own_bound` the
    /// bound against the host alone of the line that starts at its first argument
    /// for a counter of its second, where that is still the published one.
    pub(super) fn sample(
        &mut self,
        page: &PageAt,
        guest_tsc: impl Fn(u64) -> u64,
        own_bound: impl Fn(u64, u64) -> Option<u64>,
    ) -> Result<ClockSample, SampleError> {
        for _ in 0..TRIES {
            self.was_set |= self.watch.was_set().unwrap_or(false);
            let both = self.read_both(page, &guest_tsc)?;
            self.was_set |= self.offsets.moved();
            let counter = both.reading.counter;
            let Some(own_bound_ns) = own_bound(both.reading.line.start, counter) else { continue };
            let mut sample = compare(&both, own_bound_ns)?;
            self.classify(&mut sample);
            return Ok(sample);
        }
        Err(SampleError::Renewed(TRIES))
    }

    fn read_both(
        &mut self,
        page: &PageAt,
        guest_tsc: &impl Fn(u64) -> u64,
    ) -> Result<Both, SampleError> {
        // The counter is read inside of the page's protocol, as a guest does it: here
        // that is a reading of the host's clock with its TSC.
        let host = Cell::new(None);
        let source = core::cell::RefCell::new(&mut self.source);
        let counter = || {
            let read = source.borrow_mut().read();
            let tsc = read.as_ref().map_or(0, |reading| guest_tsc(reading.host_tsc));
            host.set(Some(read));
            tsc
        };
        let memory = page.memory.memory();
        let read =
            with_vmclock_words(&memory, page.gpa, |words| vmclock::read(&words, &counter, TRIES))?;
        match (read, host.take()) {
            (_, Some(Err(error))) => Err(error.into()),
            (Ok(reading), Some(Ok(host))) => Ok(Both { reading, host }),
            (Err(refusal), _) => Err(SampleError::Refused(refusal)),
            (Ok(_), None) => Err(SampleError::Refused(Refusal::Busy { tries: TRIES })),
        }
    }

    fn window_lasts(&mut self) {
        if let Some(began) = self.window {
            let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.counts.longest_window_ns = self.counts.longest_window_ns.max(took);
        }
    }

    fn classify(&mut self, sample: &mut ClockSample) {
        self.counts.samples += 1;
        if sample.within_own {
            self.counts.within += 1;
            self.window_lasts();
            self.window = None;
            self.was_set = false;
            return;
        }
        let began = Instant::now();
        // The clock moves first, and then the kernel says so: by a moment, or by as
        // long as another CPU of the host takes to answer.
        if self.was_set || self.window.is_some() {
            sample.in_step_window = true;
            self.window.get_or_insert(began);
            self.counts.in_step_windows += 1;
            // One that never ends counts too.
            self.window_lasts();
        } else if sample.within {
            self.counts.within += 1;
            self.counts.beyond_own_bound += 1;
        } else {
            self.counts.broken += 1;
        }
    }
}

fn compare(both: &Both, own_bound_ns: u64) -> Result<ClockSample, SampleError> {
    let Both { reading, host } = both;
    let bound_ns = reading.time.max_error_ns.ok_or(SampleError::NoBound)?;
    let read = Tai::from_units(
        i128::from(reading.time.seconds.cast_signed()) << 64 | i128::from(reading.time.frac_sec),
    );
    let tai = match reading.line.time_type {
        TimeType::Tai => read,
        TimeType::Utc => read.saturating_add_sec(host.sync.tai_offset.seconds().into()),
    };
    let ns = |tai: Tai| i64::try_from(tai.ns_floor()).unwrap_or(i64::MAX);
    let (guest_tai_ns, host_tai_ns) = (ns(tai), ns(host.tai));
    // Half a ns of either rounding makes one.
    let distance_ns = tai.distance_ns(host.tai).saturating_sub(1);
    let allowed = |bound: u64| u128::from(bound.saturating_add(host.error_ns));
    let page_age_ticks = reading.counter.wrapping_sub(reading.line.start);
    Ok(ClockSample {
        host_tsc: host.host_tsc,
        guest_tsc: reading.counter,
        guest_tai_ns,
        host_tai_ns,
        offset_ns: guest_tai_ns.saturating_sub(host_tai_ns),
        reading_error_ns: host.error_ns,
        bound_ns,
        own_bound_ns,
        page_age_ns: age_ns(reading, page_age_ticks),
        page_age_ticks,
        disruption_marker: reading.line.disruption_marker,
        status: reading.line.status,
        within: distance_ns <= allowed(bound_ns),
        within_own: distance_ns <= allowed(own_bound_ns),
        in_step_window: false,
    })
}

/// Ticks at the page's own rate, ns.
fn age_ns(reading: &vmclock::Reading, ticks: u64) -> u64 {
    let period = u128::from(reading.line.period);
    let units = (u128::from(ticks) * period) >> reading.line.period_shift.min(127);
    // Below 2^64 s; a second's fraction has 64 bits.
    let sec = (units >> 64) * 1_000_000_000;
    let frac = ((units & u128::from(u64::MAX)) * 1_000_000_000) >> 64;
    u64::try_from(sec + frac).unwrap_or(u64::MAX)
}
