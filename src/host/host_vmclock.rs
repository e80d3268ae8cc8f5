//! The VMClock of a host that is itself a guest: its line is composed with ours.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xen_abi::vmclock::{self as abi, VmclockAbi};
use zerocopy::FromBytes as _;

use super::host_tsc;
use super::pair::{PairError, PairSource, SourceKind};
use crate::clock::tai::{
    CounterPeriod, HostLeap, HostReading, HostSync, KnownRate, Steering, Tai, TaiLine, TaiOffset,
};

/// Where Linux puts the first one.
pub const VMCLOCK_DEVICE: &str = "/dev/vmclock0";

/// Reads `/dev/vmclock0`. The driver sees to the sequence count of a `read`.
pub struct HostVmClock {
    file: File,
    path: PathBuf,
}

impl HostVmClock {
    /// Opens the device and reads it once.
    ///
    /// # Errors
    /// [`PairError::Io`], [`PairError::Unusable`].
    pub fn open(path: &Path) -> Result<Self, PairError> {
        let file = File::open(path).map_err(|e| PairError::io(path.display().to_string(), e))?;
        let mut device = Self { file, path: path.to_owned() };
        device.read()?;
        Ok(device)
    }

    fn page(&self) -> Result<VmclockAbi, PairError> {
        let mut bytes = [0u8; size_of::<VmclockAbi>()];
        // Linux's device can not seek.
        self.file
            .read_exact_at(&mut bytes, 0)
            .map_err(|error| PairError::io(self.path.display().to_string(), error))?;
        VmclockAbi::read_from_bytes(&bytes).map_err(|_| self.unusable("it is too short"))
    }

    fn unusable(&self, why: &str) -> PairError {
        PairError::Unusable { device: self.path.display().to_string(), why: why.to_owned() }
    }
}

impl PairSource for HostVmClock {
    fn kind(&self) -> SourceKind {
        SourceKind::VmClock
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        let page = self.page()?;
        reading_of(&page, host_tsc()).map_err(|why| self.unusable(why))
    }
}

/// What the kernel states before anybody corrected its clock, ns.
const NEVER_CORRECTED_NS: u64 = 16_000_000_000;

/// The reading that a page gives at `tsc`, or what is wrong with the page.
fn reading_of(page: &VmclockAbi, tsc: u64) -> Result<HostReading, &'static str> {
    if page.magic != abi::VMCLOCK_MAGIC || page.version != abi::VMCLOCK_VERSION {
        return Err("its magic is not that of VMClock 1");
    }
    if page.seq_count & 1 == 1 {
        return Err("it is being written");
    }
    if page.counter_id != abi::VMCLOCK_COUNTER_X86_TSC {
        return Err("it has no line for the TSC");
    }
    if page.clock_status == abi::VMCLOCK_STATUS_UNRELIABLE {
        return Err("its host calls it unreliable");
    }
    let flag = |mask: u64| page.flags & mask != 0;
    // The page states UTC − TAI.
    let offset =
        page.tai_offset_sec.checked_neg().filter(|_| flag(abi::VMCLOCK_FLAG_TAI_OFFSET_VALID));
    let tai_offset = offset.map_or(TaiOffset::Unknown, TaiOffset::Known);
    let to_tai = match page.time_type {
        abi::VMCLOCK_TIME_TAI => 0,
        abi::VMCLOCK_TIME_UTC => i64::from(tai_offset.seconds()),
        _ => return Err("its time is neither TAI nor UTC"),
    };
    let sec = i64::try_from(page.time_sec).map_err(|_| "its time is beyond 2^63 s")?;
    let period = CounterPeriod::new(page.counter_period_frac_sec, page.counter_period_shift)
        .map_err(|_| "its period is not that of a TSC")?;
    // The period came without its scale changed where its top bit was set.
    let rate = |units: u64, valid| match valid {
        true => attos(units, page.counter_period_frac_sec),
        false => 1_000_000_000_000_000, // 1000 ppm: a clock of which nothing is known
    };
    let max_rate = rate(
        page.counter_period_maxerror_rate_frac_sec,
        flag(abi::VMCLOCK_FLAG_PERIOD_MAXERROR_VALID),
    );
    let est_rate = rate(
        page.counter_period_esterror_rate_frac_sec,
        flag(abi::VMCLOCK_FLAG_PERIOD_ESTERROR_VALID),
    );
    let time = Tai::new(sec, page.time_frac_sec).saturating_add_sec(to_tai);
    let line = TaiLine::new(page.counter_value, time, period, Default::default());
    let age_ns = line.age_ns(tsc);
    let grown = |base: u64, valid, rate: u64| {
        let base = if valid { base } else { NEVER_CORRECTED_NS };
        let growth = age_ns.saturating_mul(rate.into()) / 1_000_000_000_000_000_000;
        base.saturating_add(u64::try_from(growth).unwrap_or(u64::MAX)).saturating_add(1)
    };
    let time_max = flag(abi::VMCLOCK_FLAG_TIME_MAXERROR_VALID);
    let time_est = flag(abi::VMCLOCK_FLAG_TIME_ESTERROR_VALID);
    Ok(HostReading {
        host_tsc: tsc,
        tai: line.at(tsc),
        error_ns: 1,
        steering: Steering::NOMINAL,
        rate: Some(KnownRate { period, error_attos: est_rate.min(max_rate) }),
        sync: HostSync {
            synchronized: page.clock_status == abi::VMCLOCK_STATUS_SYNCHRONIZED,
            maxerror_ns: grown(page.time_maxerror_nanosec, time_max, max_rate),
            esterror_ns: grown(page.time_esterror_nanosec, time_est, est_rate),
            leap: match page.leap_indicator {
                abi::VMCLOCK_LEAP_PRE_POS => HostLeap::Insert,
                abi::VMCLOCK_LEAP_PRE_NEG => HostLeap::Delete,
                abi::VMCLOCK_LEAP_POS => HostLeap::InProgress,
                abi::VMCLOCK_LEAP_POST_POS | abi::VMCLOCK_LEAP_POST_NEG => HostLeap::Over,
                _ => HostLeap::None,
            },
            tai_offset,
        },
    })
}

/// `units / frac` in 10^-18, rounded up; saturates.
fn attos(units: u64, frac: u64) -> u64 {
    let scaled = u128::from(units) * 1_000_000_000_000_000_000; // below 2^124
    match u128::from(frac) {
        0 => u64::MAX,
        frac => u64::try_from(scaled.div_ceil(frac)).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> VmclockAbi {
        VmclockAbi {
            magic: abi::VMCLOCK_MAGIC,
            version: 1,
            counter_id: abi::VMCLOCK_COUNTER_X86_TSC,
            time_type: abi::VMCLOCK_TIME_TAI,
            flags: abi::VMCLOCK_FLAG_TAI_OFFSET_VALID
                | abi::VMCLOCK_FLAG_TIME_MAXERROR_VALID
                | abi::VMCLOCK_FLAG_PERIOD_MAXERROR_VALID,
            clock_status: abi::VMCLOCK_STATUS_SYNCHRONIZED,
            tai_offset_sec: -37,
            counter_value: 1_000,
            counter_period_frac_sec: 1 << 33, // 2^-31 s: 2.1 GHz
            counter_period_maxerror_rate_frac_sec: 1 << 13, // 2^-20: 0.95 ppm
            time_sec: 1_800_000_037,
            time_maxerror_nanosec: 500,
            ..VmclockAbi::default()
        }
    }

    #[test]
    fn a_tai_page_and_a_utc_page_say_the_same() {
        let tai = reading_of(&page(), 1_000 + (1 << 31)).unwrap();
        assert_eq!(tai.tai, Tai::new(1_800_000_038, 0));
        assert_eq!(tai.sync.tai_offset, TaiOffset::Known(37));
        assert_eq!(tai.sync.maxerror_ns, 500 + 953 + 1);
        assert!(tai.sync.synchronized);
        let utc = VmclockAbi { time_type: 0, time_sec: 1_800_000_000, ..page() };
        assert_eq!(reading_of(&utc, 1_000 + (1 << 31)).unwrap(), tai);
    }

    #[test]
    fn what_is_not_valid_is_not_believed() {
        let bare = VmclockAbi { flags: 0, ..page() };
        let reading = reading_of(&bare, 1_000).unwrap();
        assert_eq!(reading.sync.tai_offset, TaiOffset::Unknown);
        assert!(reading.sync.maxerror_ns >= NEVER_CORRECTED_NS);
    }

    #[test]
    fn pages_that_are_none() {
        let broken: [fn(&mut VmclockAbi); 8] = [
            |page| page.magic = 0,
            |page| page.version = 2,
            |page| page.seq_count = 1,
            |page| page.counter_id = abi::VMCLOCK_COUNTER_INVALID,
            |page| page.clock_status = abi::VMCLOCK_STATUS_UNRELIABLE,
            |page| page.time_type = abi::VMCLOCK_TIME_MONOTONIC,
            |page| page.counter_period_frac_sec = 0,
            |page| page.time_sec = u64::MAX,
        ];
        for (n, spoil) in broken.into_iter().enumerate() {
            let mut page = page();
            spoil(&mut page);
            assert!(reading_of(&page, 0).is_err(), "{n}");
        }
        // Hostile numbers do no harm.
        let mut page = page();
        page.tai_offset_sec = i16::MIN;
        page.counter_value = u64::MAX;
        page.time_sec = u64::MAX >> 1;
        page.time_maxerror_nanosec = u64::MAX;
        page.counter_period_maxerror_rate_frac_sec = u64::MAX;
        assert_eq!(reading_of(&page, 0).unwrap().sync.maxerror_ns, u64::MAX);
    }

    #[test]
    fn a_device_that_is_none_is_named() {
        let error = HostVmClock::open(Path::new("/dev/zero")).err().unwrap();
        assert_eq!(
            error.to_string(),
            "/dev/zero is no usable clock: its magic is not that of VMClock 1"
        );
        assert!(HostVmClock::open(Path::new("/nonexistent")).is_err());
    }
}
