//! What a running machine tells of its clocks.

use serde::{Deserialize, Serialize};

/// The state of a guest's clocks at one moment. Counts are since the machine was
/// made. TAI is in nanoseconds since 1970-01-01 00:00:00 TAI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockMetrics {
    /// Where pairs of host TSC and TAI come from, as `SourceKind` prints it.
    pub source: String,
    /// VMClock's `clock_status`, as `ClockStatus` prints it.
    pub clock_status: String,
    /// The host's TSC at this moment.
    pub host_tsc: u64,
    /// The guest's TSC at this moment.
    pub guest_tsc: u64,
    /// The guest's system time, by the published line.
    pub system_time_ns: u64,
    /// TAI by the page that the guest reads.
    pub guest_tai_ns: i64,
    /// The host's CLOCK_TAI.
    pub host_tai_ns: i64,
    /// `guest_tai_ns - host_tai_ns`.
    pub offset_ns: i64,
    /// The half-width with which `host_tai_ns` was read.
    pub reading_error_ns: u64,
    /// The published bound at this moment, the host's own error included.
    pub bound_ns: u64,
    /// The part of it against the host's clock alone.
    pub own_bound_ns: u64,
    /// The host's distance from true time, as it states it (`maxerror`).
    pub host_maxerror_ns: u64,
    /// Age of the published page.
    pub page_age_ns: u64,
    /// Rate of the published line against the guest's nominal frequency, in
    /// parts per billion; positive where TAI gains.
    pub rate_ppb: i64,
    /// VMClock pages published.
    pub page_updates: u64,
    /// Readings of the host taken.
    pub readings: u64,
    /// Readings that failed.
    pub missed_readings: u64,
    /// Steps of the host's clock that were noticed.
    pub host_steps: u64,
    /// Disruptions told to the guest.
    pub disruptions: u64,
    /// The longest time from a step's notice to the new page.
    pub longest_step_to_page_ns: u64,
    /// Wallclock pages written.
    pub wallclock_updates: u64,
    /// Distance of the Xen wallclock from the host's UTC at the last reading;
    /// `None` while the guest has no such page.
    pub wallclock_error_ns: Option<i64>,
    /// vCPU clock pages written again after their first time.
    pub clock_page_rewrites: u64,
    /// Jumps of KVM's own clock that were seen (guarded).
    pub kvm_clock_jumps: u64,
    /// The largest of them.
    pub largest_kvm_clock_jump_ns: u64,
}
