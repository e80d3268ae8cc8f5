//! What a guest that goes on is told of how far each of its clocks moved. Pure:
//! readings in, the record of `docs/handover.md` out.

use xen_abi::handover::{HANDOVER_FLAG_COUNTED, HANDOVER_FLAG_TAI, HANDOVER_NO_BOUND};

use super::{HostNow, RestoredTime, StoppedClock, TimeError, TimePolicy};
use crate::clock::tai::Tai;
use crate::pages::HandoverRecord;

const NS_PER_S: u64 = 1_000_000_000;
/// Leap seconds come at the end of a month: at most one in so many ns, and one.
const LEAST_MONTH_NS: u128 = 28 * 86_400 * 1_000_000_000;

impl StoppedClock {
    /// The record at `now`, the guest TSC of whose pair is `tsc_after`, of a guest
    /// whose time went on as `time` says. The number of moves is left 0.
    ///
    /// Errors are rounded up. Where neither host knows TAI − UTC, TAI's part is
    /// UTC's, and its error a second greater for each leap second that there may
    /// have been.
    ///
    /// # Errors
    /// As [`StoppedClock::line`].
    pub fn handover(
        &self,
        now: &HostNow,
        tsc_after: u64,
        time: &RestoredTime,
    ) -> Result<HandoverRecord, TimeError> {
        let (line, frequency) = (self.line()?, self.frequency()?);
        let system_time_after_ns = line.system_time_ns(tsc_after);
        let before_ns = line.system_time_ns(self.guest_tsc);
        let counted = time.policy == TimePolicy::Advance;
        let error_ns = if counted { time.error_ns } else { HANDOVER_NO_BOUND };
        let tsc_error = if counted {
            let ticks = u128::from(error_ns) * frequency.num();
            let ticks = ticks.div_ceil(u128::from(frequency.den()) * u128::from(NS_PER_S));
            u64::try_from(ticks).unwrap_or(HANDOVER_NO_BOUND)
        } else {
            HANDOVER_NO_BOUND
        };
        let tai = self.tai_since_stop(now, frequency);
        let (tai_delta_ns, tai_error_ns) = tai.unwrap_or((0, HANDOVER_NO_BOUND));
        let flags = [(counted, HANDOVER_FLAG_COUNTED), (tai.is_some(), HANDOVER_FLAG_TAI)];
        Ok(HandoverRecord {
            flags: flags.iter().filter(|(is, _)| *is).fold(0, |all, (_, flag)| all | flag),
            move_count: 0,
            tsc_after,
            // Modulo 2^64, as the counter counts.
            tsc_delta: tsc_after.wrapping_sub(self.guest_tsc).cast_signed(),
            tsc_error,
            system_time_after_ns,
            system_time_delta_ns: system_time_after_ns.wrapping_sub(before_ns).cast_signed(),
            system_time_error_ns: error_ns,
            tai_delta_ns,
            tai_error_ns,
        })
    }

    /// TAI since the last instruction, and its error, ns; `None` where only one
    /// of the hosts knows TAI, or the time is none that fits.
    fn tai_since_stop(
        &self,
        now: &HostNow,
        frequency: crate::clock::TscFrequency,
    ) -> Option<(i64, u64)> {
        if self.tai_known != now.tai_known {
            return None;
        }
        let since_pair_ns = Tai::from_units(now.tai.since(Tai::from_units(self.tai))).ns_floor();
        // The pair was taken a little after the stop.
        let to_pair_ns = frequency.nanos_floor(self.pair_guest_tsc.saturating_sub(self.guest_tsc));
        let delta_ns = since_pair_ns.checked_add(i128::try_from(to_pair_ns).ok()?)?;
        let leaps = match self.tai_known {
            true => 0,
            false => 1 + delta_ns.unsigned_abs() / LEAST_MONTH_NS,
        };
        let leap_ns = u64::try_from(leaps).unwrap_or(u64::MAX).saturating_mul(NS_PER_S);
        // The host's clock may be steered by 500 ppm, and the TSC off by as much;
        // and two roundings.
        let rate_ns = u64::try_from(to_pair_ns / 1000).unwrap_or(u64::MAX).saturating_add(2);
        let errors = [
            self.pair_error_ns,
            now.pair_error_ns,
            self.host_error_ns,
            now.host_error_ns,
            leap_ns,
            rate_ns,
        ];
        let error_ns = errors.into_iter().fold(0, u64::saturating_add);
        Some((i64::try_from(delta_ns).ok()?, error_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tai::Tai;

    /// Stopped at 10^12 ticks of 2 GHz, 500 s; the pair 1 ms later.
    fn stopped(tai_known: bool) -> StoppedClock {
        StoppedClock {
            frequency_num: 2_000_000_000,
            frequency_den: 1,
            base_tsc: 0,
            base_system_time_ns: 0,
            mul: 1 << 31,
            shift: 0,
            tsc_khz: 2_000_000,
            guest_tsc: 1_000_000_000_000,
            host_tsc: 5_000_002_000_000,
            pair_guest_tsc: 1_000_002_000_000,
            tai: Tai::new(1_800_000_000, 0).units(),
            tai_known,
            pair_error_ns: 10,
            host_error_ns: 1_000,
            boot_id: "here".to_owned(),
            suspended: false,
            incarnation: 1,
        }
    }

    /// 3 s of TAI after the pair.
    fn now(tai_known: bool, boot_id: &str) -> HostNow {
        HostNow {
            host_tsc: 5_006_002_000_000,
            tai: Tai::new(1_800_000_003, 0),
            tai_known,
            pair_error_ns: 20,
            host_error_ns: 2_000,
            boot_id: boot_id.to_owned(),
        }
    }

    fn record(policy: TimePolicy, known: [bool; 2], boot: &str, after: u64) -> HandoverRecord {
        let (clock, now) = (stopped(known[0]), now(known[1], boot));
        let time = clock.restart(policy, &now).unwrap();
        clock.handover(&now, after, &time).unwrap()
    }

    #[test]
    fn on_the_same_boot_tsc_and_system_time_are_exact() {
        let after = 1_006_002_000_000;
        let record = record(TimePolicy::Advance, [true, true], "here", after);
        let expected = HandoverRecord {
            flags: HANDOVER_FLAG_COUNTED | HANDOVER_FLAG_TAI,
            move_count: 0,
            tsc_after: after,
            tsc_delta: 6_002_000_000,
            tsc_error: 0,
            system_time_after_ns: 503_001_000_000,
            system_time_delta_ns: 3_001_000_000,
            system_time_error_ns: 0,
            tai_delta_ns: 3_001_000_000,
            // Pairs 30, hosts 3 000, 1 ms at 1 000 ppm, 2 roundings.
            tai_error_ns: 30 + 3_000 + 1_000 + 2,
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn elsewhere_the_error_is_that_of_the_restart_in_ticks_too() {
        let after = 1_006_002_000_000;
        let record = record(TimePolicy::Advance, [true, true], "there", after);
        assert_eq!(record.system_time_error_ns, 3_032, "pairs, hosts, two ticks and one ns");
        assert_eq!(record.tsc_error, 6_064);
        assert_eq!(record.flags, HANDOVER_FLAG_COUNTED | HANDOVER_FLAG_TAI);
    }

    #[test]
    fn a_clock_that_stood_still_has_no_bound() {
        let after = 1_000_000_400_000;
        let record = record(TimePolicy::Freeze, [true, true], "here", after);
        assert_eq!(record.flags, HANDOVER_FLAG_TAI);
        assert_eq!((record.tsc_delta, record.tsc_error), (400_000, HANDOVER_NO_BOUND));
        assert_eq!(record.system_time_delta_ns, 200_000);
        assert_eq!(record.system_time_error_ns, HANDOVER_NO_BOUND);
        assert_eq!(record.tai_delta_ns, 3_001_000_000);
    }

    #[test]
    fn hosts_that_do_not_know_tai() {
        for (known, told) in [([true, false], false), ([false, true], false), ([false; 2], true)] {
            let record = record(TimePolicy::Freeze, known, "there", 1_000_000_400_000);
            assert_eq!(record.flags & HANDOVER_FLAG_TAI != 0, told, "{known:?}");
            let (delta, error) = (record.tai_delta_ns, record.tai_error_ns);
            if told {
                assert_eq!((delta, error), (3_001_000_000, 4_032 + NS_PER_S));
            } else {
                assert_eq!((delta, error), (0, HANDOVER_NO_BOUND));
            }
        }
    }

    #[test]
    fn a_host_clock_that_is_behind_is_told_as_it_is() {
        let (clock, mut now) = (stopped(true), now(true, "there"));
        now.tai = Tai::new(1_799_999_000, 0);
        let time = clock.restart(TimePolicy::Freeze, &now).unwrap();
        let record = clock.handover(&now, 1_000_000_000_000, &time).unwrap();
        assert_eq!(record.tai_delta_ns, -1_000_000_000_000 + 1_000_000);
        assert_eq!(record.tsc_delta, 0);
    }
}
