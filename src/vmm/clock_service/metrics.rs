//! What the service tells of a guest's clocks.

use super::sample::{ClockSample, SampleError};
use super::{ClockService, Engine};
use crate::clock::tai::{Tai, TaiLine, wallclock};
use crate::vmm::clock_metrics::ClockMetrics;

impl ClockService {
    /// The clocks' state now. Where the page gives the guest no time, what
    /// belongs to it is 0.
    pub fn metrics(&self) -> ClockMetrics {
        let sample = self.sample_of_page_or_line();
        let engine = self.engine();
        let counts = engine.counts();
        let published = engine.published();
        let system = self.guest.system_line();
        let mut metrics = ClockMetrics {
            source: engine.source().to_string(),
            clock_status: published.update.status.to_string(),
            host_maxerror_ns: published.host_maxerror_ns,
            page_updates: counts.page_updates,
            readings: counts.readings,
            missed_readings: counts.missed_readings,
            host_steps: counts.host_steps,
            disruptions: counts.disruptions,
            longest_step_to_page_ns: counts.longest_step_to_page_ns,
            wallclock_updates: counts.wallclock_updates,
            clock_page_rewrites: self.guest.clock_page_rewrites(),
            rate_ppb: published.update.line.map_or(0, |line| self.rate_ppb(&line)),
            wallclock_error_ns: sample.as_ref().and_then(|sample| {
                self.wallclock_error_ns(&engine, sample.guest_tsc, sample.host_tai_ns)
            }),
            ..ClockMetrics::default()
        };
        drop(engine);
        if let Some(sample) = sample {
            metrics.host_tsc = sample.host_tsc;
            metrics.guest_tsc = sample.guest_tsc;
            metrics.system_time_ns = system.system_time_ns(sample.guest_tsc);
            metrics.guest_tai_ns = sample.guest_tai_ns;
            metrics.host_tai_ns = sample.host_tai_ns;
            metrics.offset_ns = sample.offset_ns;
            metrics.reading_error_ns = sample.reading_error_ns;
            metrics.bound_ns = sample.bound_ns;
            metrics.own_bound_ns = sample.own_bound_ns;
            metrics.page_age_ns = sample.page_age_ns;
        }
        if let Some(guarded) = &self.guarded {
            let (rewrites, jumps, largest_ns) = guarded();
            metrics.clock_page_rewrites = metrics.clock_page_rewrites.saturating_add(rewrites);
            metrics.kvm_clock_jumps = jumps;
            metrics.largest_kvm_clock_jump_ns = largest_ns;
        }
        metrics
    }

    /// A sample of the page; where it refuses, or there is none, of the line that
    /// would be on it.
    fn sample_of_page_or_line(&self) -> Option<ClockSample> {
        match self.sample() {
            Ok(sample) => return Some(sample),
            Err(SampleError::NoPage) => {}
            Err(error) => tracing::debug!(%error, "the guest reads no time"),
        }
        let host = self.sampler().source.read().ok()?;
        let line = self.engine().published().update.line?;
        let guest_tsc = self.guest.guest_tsc(host.host_tsc);
        let ns = |tai: Tai| i64::try_from(tai.ns_floor()).unwrap_or(i64::MAX);
        let tai = line.at(guest_tsc);
        let distance_ns = tai.distance_ns(host.tai).saturating_sub(1);
        let allowed = |bound: u64| u128::from(bound.saturating_add(host.error_ns));
        let (bound_ns, own_bound_ns) = (line.bound_ns(guest_tsc), line.own_bound_ns(guest_tsc));
        Some(ClockSample {
            host_tsc: host.host_tsc,
            guest_tsc,
            guest_tai_ns: ns(tai),
            host_tai_ns: ns(host.tai),
            offset_ns: ns(tai).saturating_sub(ns(host.tai)),
            reading_error_ns: host.error_ns,
            bound_ns,
            own_bound_ns,
            page_age_ns: u64::try_from(line.age_ns(guest_tsc)).unwrap_or(u64::MAX),
            page_age_ticks: line.elapsed_ticks(guest_tsc).unsigned_abs(),
            disruption_marker: 0,
            status: self.engine().published().update.status.number(),
            within: distance_ns <= allowed(bound_ns),
            within_own: distance_ns <= allowed(own_bound_ns),
            in_step_window: false,
        })
    }

    fn wallclock_error_ns(&self, engine: &Engine, guest_tsc: u64, host_tai_ns: i64) -> Option<i64> {
        let epoch = self.guest.wallclock()?;
        let reads = epoch.utc_ns(self.guest.system_line().system_time_ns(guest_tsc));
        let offset = engine.published().update.tai_offset;
        let utc = i128::from(host_tai_ns) - i128::from(offset.seconds()) * 1_000_000_000;
        i64::try_from(i128::try_from(reads).ok()? - utc).ok()
    }

    /// TAI's gain on the guest's nominal frequency, in parts per 10^9.
    fn rate_ppb(&self, line: &TaiLine) -> i64 {
        let ticks = wallclock::second_ticks(&self.guest.system_line());
        let second = Tai::from_units(i128::try_from(line.period().units_in(ticks)).unwrap_or(0));
        i64::try_from(second.ns_floor() - 1_000_000_000).unwrap_or(0)
    }
}
