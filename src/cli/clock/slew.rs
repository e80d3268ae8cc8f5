//! The wallclock while NTP slews the host: not by a formula, but by the code
//! that serves guests, against a simulated host that knows the truth.

use crate::clock::scaling::TscScaling;
use crate::clock::tai::{EstimatorConfig, wallclock};
use crate::clock::{EpochError, LineError, SystemTimeLine, TscFrequency, WallclockEpoch};
use crate::host::simulated::{Event, SimulatedHost};
use crate::vmclock::TaiFeed;

/// A host whose clock runs fast by a constant frequency.
#[derive(Clone, Copy, Debug)]
pub struct Slew {
    /// The host TSC, kHz.
    pub host_khz: u32,
    /// Host TSC to guest TSC.
    pub scaling: TscScaling,
    /// How long, s.
    pub seconds: u64,
    /// Frequency, ppm; ±500 at most.
    pub ppm: i64,
    /// Time between two readings of the host, µs.
    pub look_us: u64,
    /// The page is written again when off by more than this, ns.
    pub bound_ns: u64,
}

/// What became of the guest's idea of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slewed {
    /// The largest error of our page, looked at just before each rewrite, ns.
    pub worst_ns: u128,
    /// That of a page that was written once, at the end, ns.
    pub write_once_ns: i128,
    /// Times our page was written, the first not counted.
    pub rewrites: u64,
}

/// Why it could not be run.
#[derive(Debug, thiserror::Error)]
pub enum SlewError {
    /// The guest's line.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The guest's frequency.
    #[error(transparent)]
    Frequency(#[from] crate::clock::FrequencyError),
    /// The epoch.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// There is no line from the guest's TSC to TAI.
    #[error("no line to TAI for a TSC of this frequency")]
    NoTaiLine,
}

const UTC: i64 = 1_800_000_000;
const READING_ERROR_NS: u64 = 2;
const LIMIT_NS: u64 = 1_000_000;

impl Slew {
    /// Runs it: 10⁶ readings take some tenths of a second.
    ///
    /// # Errors
    /// [`SlewError`] for frequencies that have no line.
    pub fn run(&self) -> Result<Slewed, SlewError> {
        let frequency = TscFrequency::from_khz(self.host_khz.into())?;
        let guest = self.scaling.guest_frequency(frequency)?;
        let system = SystemTimeLine::new_keeping_linux_khz(guest, 0, 0)?;
        let slew = Event::Frequency(self.ppm.clamp(-500, 500) << 16);
        let mut host = SimulatedHost::new(frequency, UTC, &[(0, slew)]);
        let mut feed = TaiFeed::new(EstimatorConfig::linux(frequency), self.scaling, LIMIT_NS);
        // A reading while nothing was slewed yet, and the page's first epoch.
        feed.observe(&host.reading(READING_ERROR_NS, 0));
        let tai = feed.guest_line().ok_or(SlewError::NoTaiLine)?;
        let offset = host.sync().tai_offset;
        let first =
            wallclock::epoch_at(&tai, offset, &system, self.scaling.guest_tsc(host.host_tsc()))?;
        let mut page = first;
        let mut slewed = Slewed { worst_ns: 0, write_once_ns: 0, rewrites: 0 };
        let look = (u64::from(self.host_khz) * self.look_us / 1_000).max(1);
        let looks = self.seconds.saturating_mul(1_000_000) / self.look_us.max(1);
        for _ in 0..looks {
            host.advance(look);
            let guest_tsc = self.scaling.guest_tsc(host.host_tsc());
            let error = |page: WallclockEpoch| {
                i128::try_from(page.utc_ns(system.system_time_ns(guest_tsc))).unwrap_or(i128::MAX)
                    - host.utc().ns_floor()
            };
            slewed.worst_ns = slewed.worst_ns.max(error(page).unsigned_abs());
            slewed.write_once_ns = error(first);
            feed.observe(&host.reading(READING_ERROR_NS, 0));
            let tai = feed.guest_line().ok_or(SlewError::NoTaiLine)?;
            if wallclock::needs_rewrite(page, &tai, offset, &system, guest_tsc, self.bound_ns) {
                page = wallclock::epoch_at(&tai, offset, &system, guest_tsc)?;
                slewed.rewrites += 1;
            }
        }
        Ok(slewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_five_hundred_ppm() {
        for ppm in [500, -500] {
            let slew = Slew {
                host_khz: 3_000_000,
                scaling: TscScaling::for_khz(2_500_000, 3_000_000, 48, 0).unwrap(),
                seconds: 60,
                ppm,
                look_us: 1_000,
                bound_ns: 400,
            };
            let slewed = slew.run().unwrap();
            assert!((1..=1_000).contains(&slewed.worst_ns), "{slewed:?}");
            // Slow by what the host is fast: 30 ms.
            let expected = i128::from(-30_000_000 * ppm.signum());
            assert!((slewed.write_once_ns - expected).abs() < 50_000, "{slewed:?}");
            assert!((30_000..=60_000).contains(&slewed.rewrites), "{slewed:?}");
            // Whoever looks once in 10 ms can not do so well.
            let lazy = Slew { look_us: 10_000, ..slew }.run().unwrap();
            assert!(lazy.worst_ns > 4_000, "{lazy:?}");
        }
    }
}
