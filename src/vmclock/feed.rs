//! From readings of the host to the updates of one guest's page.

use super::{ClockStatus, Notice, Update, clock_status};
use crate::clock::scaling::TscScaling;
use crate::clock::tai::{
    EstimatorConfig, HostReading, HostSync, LeapIndicator, LeapTracker, Observation, Tai,
    TaiEstimator, TaiLine,
};

/// Keeps one guest's line: readings in, page updates out. No thread, no clock.
///
/// ```
/// use kvm_xen::clock::{TscFrequency, scaling::TscScaling, tai::EstimatorConfig};
/// use kvm_xen::host::{PairSource as _, simulated::{SimulatedHost, SimulatedSource}};
/// use kvm_xen::vmclock::{ClockStatus, TaiFeed};
///
/// let frequency = TscFrequency::from_khz(2_500_000)?;
/// let host = SimulatedHost::new(frequency, 1_800_000_000, &[]);
/// let mut source = SimulatedSource { host, step: 25_000_000, error_ns: 2 };
/// let mut feed =
///     TaiFeed::new(EstimatorConfig::linux(frequency), TscScaling::unscaled(0), 1_000_000);
/// let reading = source.read()?;
/// let fed = feed.observe(&reading);
/// assert_eq!(fed.update.status, ClockStatus::Synchronized);
/// // 10 µs of growth at 1 500 ppm of steering and 1 000 of an unknown rate: 4 ms.
/// let ticks = feed.ticks_to_refresh(10_000).unwrap();
/// assert_eq!(ticks / 2_500_000, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TaiFeed {
    estimator: TaiEstimator,
    leaps: LeapTracker,
    scaling: TscScaling,
    limit_ns: u64,
    sync: HostSync,
    notice: Notice,
}

/// What a reading made of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// What the reading changed. Where it is a disruption, call
    /// [`VmClock::disrupt`](super::VmClock::disrupt) before publishing.
    pub observation: Observation,
    /// What to publish.
    pub update: Update,
}

impl TaiFeed {
    /// For a guest whose TSC is `scaling` of the host's. The page is called
    /// unreliable while the bound against the host's clock exceeds `limit_ns`.
    #[must_use]
    pub const fn new(config: EstimatorConfig, scaling: TscScaling, limit_ns: u64) -> Self {
        Self {
            estimator: TaiEstimator::new(config),
            leaps: LeapTracker::new(),
            scaling,
            limit_ns,
            sync: HostSync {
                synchronized: false,
                maxerror_ns: 0,
                esterror_ns: 0,
                leap: crate::clock::tai::HostLeap::None,
                tai_offset: crate::clock::tai::TaiOffset::Unknown,
            },
            notice: Notice::None,
        }
    }

    /// Announces maintenance from the next update on.
    pub const fn set_notice(&mut self, notice: Notice) {
        self.notice = notice;
    }

    /// The host's line; `None` before the first reading.
    #[must_use]
    pub fn host_line(&self) -> Option<TaiLine> {
        self.estimator.line()
    }

    /// The guest's line; `None` before the first reading, or where the guest's
    /// frequency is beyond 1 MHz to 100 GHz.
    #[must_use]
    pub fn guest_line(&self) -> Option<TaiLine> {
        self.estimator.line()?.through(&self.scaling).ok()
    }

    /// The host's state as it last was.
    #[must_use]
    pub const fn sync(&self) -> HostSync {
        self.sync
    }

    /// Forgets the line: the host's clocksource was lost, the guest moved.
    pub fn reset(&mut self) {
        self.estimator.reset();
    }

    /// How the guest's TSC follows from the host's.
    #[must_use]
    pub const fn scaling(&self) -> TscScaling {
        self.scaling
    }

    /// The guest's TSC is another function of the host's from the next update on.
    pub const fn rescale(&mut self, scaling: TscScaling) {
        self.scaling = scaling;
    }

    /// Takes a reading.
    pub fn observe(&mut self, reading: &HostReading) -> Fed {
        let observation = self.estimator.observe(reading);
        self.sync = reading.sync;
        self.leaps.observe(reading.tai, &reading.sync);
        Fed { observation, update: self.update(reading.host_tsc, true) }
    }

    /// No reading could be had: the line runs on from the last one.
    #[must_use]
    pub fn missed(&self, host_tsc: u64) -> Update {
        self.update(host_tsc, false)
    }

    /// True when a new reading is due: the bound against the host's clock grew
    /// beyond `bound_ns`, or there is no line.
    #[must_use]
    pub fn needs_refresh(&self, host_tsc: u64, bound_ns: u64) -> bool {
        self.estimator.line().is_none_or(|line| line.needs_refresh(host_tsc, bound_ns))
    }

    /// Host ticks from the last reading until the bound has grown by
    /// `growth_ns` beyond what it was there. `None` before the first.
    #[must_use]
    pub fn ticks_to_refresh(&self, growth_ns: u64) -> Option<u64> {
        let line = self.estimator.line()?;
        line.ticks_within(line.errors().pair_ns.saturating_add(growth_ns))
    }

    fn update(&self, host_tsc: u64, fresh: bool) -> Update {
        let line = self.guest_line();
        let own = self.estimator.line().map(|line| line.own_bound_ns(host_tsc));
        let status = match (line, own) {
            (Some(_), Some(own)) => clock_status(&self.sync, own, self.limit_ns, fresh),
            _ if fresh => ClockStatus::Unreliable,
            _ => ClockStatus::Initializing,
        };
        Update {
            line,
            status,
            tai_offset: self.sync.tai_offset,
            leap: self.leap_at(self.estimator.line().map(|line| line.at(host_tsc))),
            notice: self.notice,
        }
    }

    fn leap_at(&self, now: Option<Tai>) -> LeapIndicator {
        now.map_or(LeapIndicator::None, |now| self.leaps.indicator(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TscFrequency;
    use crate::clock::tai::{Steering, TaiOffset};

    const KHZ: u64 = 2_000_000;

    fn reading(host_tsc: u64) -> HostReading {
        HostReading {
            host_tsc,
            tai: Tai::new(1_800_000_000, 0).saturating_add(i128::from(host_tsc) << 33),
            error_ns: 5,
            steering: Steering::NOMINAL,
            rate: None,
            sync: HostSync {
                synchronized: true,
                tai_offset: TaiOffset::Known(37),
                ..HostSync::default()
            },
        }
    }

    fn feed() -> TaiFeed {
        // 2^-31 s is a tick of the readings.
        let frequency = TscFrequency::from_hz(1 << 31).unwrap();
        TaiFeed::new(EstimatorConfig::linux(frequency), TscScaling::unscaled(1_000), 100_000)
    }

    #[test]
    fn from_nothing_to_synchronised_to_unreliable() {
        let mut feed = feed();
        assert_eq!(feed.missed(0).status, ClockStatus::Initializing);
        assert!(feed.needs_refresh(0, u64::MAX));
        let fed = feed.observe(&reading(0));
        assert_eq!(
            (fed.observation, fed.update.status),
            (Observation::Started, ClockStatus::Synchronized)
        );
        assert_eq!(fed.update.line.unwrap().base(), 1_000);
        assert_eq!(feed.missed(KHZ).status, ClockStatus::FreeRunning);
        // 2 500 ppm of 100 ms are 250 µs.
        assert_eq!(feed.missed(KHZ * 100).status, ClockStatus::Unreliable);
        assert_eq!(feed.observe(&reading(KHZ * 100)).update.status, ClockStatus::Synchronized);
        let mut lost = reading(KHZ * 101);
        lost.sync.synchronized = false;
        assert_eq!(feed.observe(&lost).update.status, ClockStatus::Unknown);
    }

    #[test]
    fn the_guests_line_is_the_hosts() {
        let mut feed = feed();
        let update = feed.observe(&reading(500)).update;
        let (guest, host) = (update.line.unwrap(), feed.host_line().unwrap());
        assert_eq!(guest.at(1_500 + KHZ), host.at(500 + KHZ));
    }

    #[test]
    fn refresh_follows_the_bound() {
        let mut feed = feed();
        feed.observe(&reading(0));
        let ticks = feed.ticks_to_refresh(10_000).unwrap();
        assert!(!feed.needs_refresh(ticks, 10_005));
        assert!(feed.needs_refresh(ticks + KHZ / 100, 10_005));
        // A better known rate needs it less often.
        for n in 1..100 {
            feed.observe(&reading(n * ticks));
        }
        assert!(feed.ticks_to_refresh(10_000).unwrap() > ticks + ticks / 2);
    }
}
