//! A PTP device of the host, over another source's pairs.
//!
//! A PTP device pairs its own time with the kernel's UTC, not with the TSC:
//! what it gives is how far the kernel's clock is from it, and a pair of another
//! source moves by as much. It is asked before and after that pair, so that a step of
//! either clock in between is seen.

#![expect(unsafe_code, reason = "PTP ioctls take raw pointers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use super::pair::{PairError, PairSource, SourceKind, TRIES};
use crate::clock::tai::{HostReading, Steering, TaiOffset};

/// What a PTP device counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PtpTimescale {
    /// TAI, as a network card that PTP disciplines.
    Tai,
    /// UTC, as `ptp_kvm` and `ptp_vmclock`.
    Utc,
}

/// A PTP device, and the source that pairs the kernel's clock with the TSC.
pub struct PtpPairs<S> {
    file: File,
    path: PathBuf,
    timescale: PtpTimescale,
    method: Method,
    base: S,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// The hardware latches both clocks at once.
    Precise,
    /// The device's time between two readings of the kernel's.
    Extended,
}

/// Device time less the kernel's UTC, ns, and how far that may be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset {
    ns: i128,
    error_ns: u64,
}

const SAMPLES: u32 = 10;

impl<S: PairSource> PtpPairs<S> {
    /// Opens the device and reads it once: precise cross-timestamps where the
    /// hardware has them, else bracketed ones. Whether it counts TAI or UTC shows by
    /// what it is near to.
    ///
    /// # Errors
    /// [`PairError::Io`] when it can not be opened, [`PairError::Unusable`]
    /// when it is no PTP device, or near neither; what `base` says.
    pub fn open(path: &Path, base: S) -> Result<Self, PairError> {
        let unusable = |why| PairError::Unusable { device: path.display().to_string(), why };
        let file = File::open(path).map_err(|e| PairError::io(path.display().to_string(), e))?;
        let mut device = Self {
            file,
            path: path.to_owned(),
            timescale: PtpTimescale::Utc,
            method: Method::Precise,
            base,
        };
        let offset = device.offset().or_else(|_| {
            device.method = Method::Extended;
            device.offset()
        });
        let offset = offset.map_err(|error| {
            unusable(format!(
                "it answers no PTP request ({error}); name a PTP device such as /dev/ptp0"
            ))
        })?;
        let known = device.base.read()?.sync.tai_offset;
        device.timescale = timescale_of(offset.ns, known).map_err(unusable)?;
        tracing::info!(
            device = %path.display(),
            timescale = ?device.timescale,
            method = ?device.method,
            error_ns = offset.error_ns,
            "a PTP device gives the time"
        );
        Ok(device)
    }

    fn offset(&self) -> io::Result<Offset> {
        match self.method {
            Method::Precise => self.precise(),
            Method::Extended => self.extended(),
        }
    }

    fn named_offset(&self) -> Result<Offset, PairError> {
        self.offset().map_err(|error| PairError::io(self.path.display().to_string(), error))
    }

    fn precise(&self) -> io::Result<Offset> {
        // SAFETY: plain numbers, for which all bytes zero are a value.
        let mut sample: libc::ptp_sys_offset_precise = unsafe { core::mem::zeroed() };
        // SAFETY: the request writes one such structure, which lives across it.
        let ret = unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::PTP_SYS_OFFSET_PRECISE, &raw mut sample)
        };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Offset { ns: ns(sample.device) - ns(sample.sys_realtime), error_ns: 2 })
    }

    fn extended(&self) -> io::Result<Offset> {
        // SAFETY: plain numbers, for which all bytes zero are a value.
        let mut samples: libc::ptp_sys_offset_extended = unsafe { core::mem::zeroed() };
        samples.n_samples = SAMPLES;
        // SAFETY: the request reads and writes one such structure, which lives
        // across it, and n_samples is below its length.
        let ret = unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::PTP_SYS_OFFSET_EXTENDED, &raw mut samples)
        };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
        let taken = samples.ts.iter().take(usize::try_from(SAMPLES).unwrap_or(0));
        let triples = taken.map(|[before, device, after]| [ns(*before), ns(*device), ns(*after)]);
        narrowest(triples).ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

/// A device is disciplined if it is so near to one of the host's clocks, ns.
const NEAR_NS: u128 = 5_000_000_000;

/// What a device counts that is `ahead_ns` of the host's UTC.
fn timescale_of(ahead_ns: i128, tai_offset: TaiOffset) -> Result<PtpTimescale, String> {
    let of_tai_ns = ahead_ns - i128::from(tai_offset.seconds()) * 1_000_000_000;
    if ahead_ns.unsigned_abs() <= NEAR_NS {
        return Ok(PtpTimescale::Utc);
    }
    if tai_offset.is_known() && of_tai_ns.unsigned_abs() <= NEAR_NS {
        return Ok(PtpTimescale::Tai);
    }
    let sec = ahead_ns / 1_000_000_000;
    Err(match tai_offset.is_known() {
        true => format!(
            "it is {sec} s from this host's UTC and {} s from its TAI; let ptp4l or phc2sys set it",
            of_tai_ns / 1_000_000_000
        ),
        false => format!(
            "it is {sec} s from this host's UTC, and the host does not know TAI - UTC; tell its \
             kernel, or install leap-seconds.list (Debian: tzdata)"
        ),
    })
}

/// What a steered clock may gain on the device around one reading, ns: more is a step.
const STEERED_NS: u64 = 20_000;

/// The offset at some moment between two looks at it; `None` where one of the clocks was
/// set in between.
fn meanwhile(before: Offset, after: Offset) -> Option<Offset> {
    let apart = u64::try_from(before.ns.abs_diff(after.ns)).ok()?;
    let error_ns = before.error_ns.max(after.error_ns);
    if apart > error_ns.saturating_mul(2).saturating_add(STEERED_NS) {
        return None;
    }
    let ns = before.ns + (after.ns - before.ns) / 2;
    Some(Offset { ns, error_ns: error_ns.saturating_add(apart.div_ceil(2)) })
}

/// The offset of the narrowest bracket that is one.
fn narrowest(triples: impl Iterator<Item = [i128; 3]>) -> Option<Offset> {
    triples
        .filter_map(|[before, device, after]| {
            let width = u64::try_from(after.checked_sub(before)?).ok()?;
            let ns = device - (before + i128::from(width / 2));
            Some(Offset { ns, error_ns: width.div_ceil(2) + 1 })
        })
        .min_by_key(|offset| offset.error_ns)
}

fn ns(time: libc::ptp_clock_time) -> i128 {
    i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec)
}

/// The base's reading, moved to the device's time.
fn moved(mut reading: HostReading, offset: Offset, timescale: PtpTimescale) -> Option<HostReading> {
    // UTC + offset is the device's time; TAI − UTC is in the reading's.
    let leaps_ns = i128::from(reading.sync.tai_offset.seconds()) * 1_000_000_000;
    let by_ns = match timescale {
        PtpTimescale::Utc => offset.ns,
        PtpTimescale::Tai => offset.ns - leaps_ns,
    };
    let by = crate::clock::tai::Tai::from_ns(by_ns)?.units();
    reading.tai = reading.tai.checked_add(by)?;
    reading.error_ns = reading.error_ns.saturating_add(offset.error_ns);
    // The device is not steered with the kernel's clock.
    reading.steering = Steering::NOMINAL;
    reading.rate = None;
    Some(reading)
}

impl<S: PairSource> PairSource for PtpPairs<S> {
    fn kind(&self) -> SourceKind {
        SourceKind::Ptp
    }

    fn read(&mut self) -> Result<HostReading, PairError> {
        let mut before = self.named_offset()?;
        for _ in 0..TRIES {
            let reading = self.base.read()?;
            let after = self.named_offset()?;
            if let Some(offset) = meanwhile(before, after) {
                let utc_ns = reading.tai.ns_floor().saturating_add(offset.ns);
                return moved(reading, offset, self.timescale).ok_or(PairError::NoTime { utc_ns });
            }
            before = after;
        }
        Err(PairError::Moving { tries: TRIES })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TscFrequency;
    use crate::clock::tai::{HostSync, Tai};
    use crate::host::Bracketed;

    #[test]
    fn the_narrowest_bracket_counts() {
        let triples = [[0, 1_000, 900], [1_000, 2_050, 1_100], [9, 9, 5]];
        let offset = narrowest(triples.into_iter()).unwrap();
        assert_eq!(offset, Offset { ns: 1_000, error_ns: 51 });
        assert_eq!(narrowest([[2, 0, 1]].into_iter()), None);
    }

    #[test]
    fn a_clock_that_is_set_around_a_reading_gives_none() {
        let at = |ns| Offset { ns, error_ns: 5 };
        assert_eq!(meanwhile(at(100), at(100)), Some(at(100)));
        // Steered: between the two.
        assert_eq!(meanwhile(at(100), at(41)), Some(Offset { ns: 71, error_ns: 35 }));
        assert_eq!(meanwhile(at(0), at(20_010)), Some(Offset { ns: 10_005, error_ns: 10_010 }));
        assert_eq!(meanwhile(at(0), at(20_011)), None);
        assert_eq!(meanwhile(at(0), at(-1_000_000_000)), None);
        assert_eq!(meanwhile(at(i128::MIN / 2), at(i128::MAX / 2)), None);
    }

    #[test]
    fn pairs_move_to_the_devices_time() {
        let reading = HostReading {
            host_tsc: 1,
            tai: Tai::new(1_800_000_037, 0),
            error_ns: 10,
            steering: Steering::from_timex(5, 10_000),
            rate: None,
            sync: HostSync { tai_offset: TaiOffset::Known(37), ..HostSync::default() },
        };
        let utc = moved(reading, Offset { ns: -1_000_000_000, error_ns: 5 }, PtpTimescale::Utc);
        let utc = utc.unwrap();
        assert_eq!((utc.tai, utc.error_ns), (Tai::new(1_800_000_036, 0), 15));
        let tai = moved(reading, Offset { ns: 37_000_000_000, error_ns: 5 }, PtpTimescale::Tai);
        assert_eq!(tai.unwrap().tai, reading.tai);
        let far = Offset { ns: i128::MAX / 2, error_ns: 0 };
        assert_eq!(moved(reading, far, PtpTimescale::Utc), None);
    }

    #[test]
    fn a_device_counts_what_it_is_near_to() {
        let (known, s) = (TaiOffset::Known(37), 1_000_000_000);
        assert_eq!(timescale_of(0, known), Ok(PtpTimescale::Utc));
        assert_eq!(timescale_of(-5 * s, known), Ok(PtpTimescale::Utc));
        assert_eq!(timescale_of(37 * s + 9, known), Ok(PtpTimescale::Tai));
        assert_eq!(timescale_of(3, TaiOffset::Unknown), Ok(PtpTimescale::Utc));
        // Undisciplined: since 1970, since the machine was switched on.
        let error = timescale_of(-1_800_000_000 * s, known).unwrap_err();
        assert!(error.starts_with("it is -1800000000 s from this host's UTC and -1800000037 s "));
        assert!(timescale_of(20 * s, known).is_err());
        assert!(timescale_of(37 * s, TaiOffset::Unknown).unwrap_err().contains("TAI - UTC"));
        assert!(timescale_of(i128::MIN / 4, known).is_err());
    }

    #[test]
    fn a_device_that_is_none_is_named() {
        let base = || Bracketed::new(TscFrequency::from_khz(1_000_000).unwrap(), 1);
        let open = |path: &str| PtpPairs::open(Path::new(path), base()).err().unwrap();
        let error = open("/dev/null").to_string();
        assert!(
            error.starts_with("/dev/null is no usable clock: it answers no PTP request"),
            "{error}"
        );
        assert!(open("/nonexistent").to_string().starts_with("cannot read /nonexistent: "));
    }
}
