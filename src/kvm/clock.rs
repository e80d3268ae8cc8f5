//! The domain's clock over KVM: host TSC to guest TSC, and the fixed line.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::ioctls;
use crate::clock::scaling::TscScaling;
use crate::clock::tai::{TaiLine, TaiOffset, wallclock};
use crate::clock::{SystemTimeLine, WallclockEpoch, wallclock_epoch};
use crate::host::{host_tsc, read_realtime};
use crate::xen::Clock;

const MSR_IA32_TSC: u32 = 0x10;

/// Guest TSC = host TSC + offset, modulo 2^64, for a guest with its host's
/// frequency; a guest that came from a host of another may be scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTsc {
    scaling: TscScaling,
}

/// Why the guest's TSC can not be known.
#[derive(Debug, thiserror::Error)]
pub enum OffsetError {
    /// The TSC could not be read.
    #[error("cannot read vCPU {vcpu}'s TSC: {error}")]
    Read {
        /// The vCPU.
        vcpu: u32,
        /// What KVM said.
        error: vmm_sys_util::errno::Error,
    },
    /// KVM's attribute and the counter contradict each other.
    #[error(
        "vCPU {vcpu}'s TSC runs {measured:#x} from the host's, but KVM states an offset of {stated:#x}"
    )]
    Contradiction {
        /// The vCPU.
        vcpu: u32,
        /// Measured difference in ticks, modulo 2^64.
        measured: u64,
        /// What KVM_VCPU_TSC_OFFSET says.
        stated: u64,
    },
}

impl GuestTsc {
    /// A guest whose TSC is the host's plus `offset`, modulo 2^64.
    pub fn with_offset(offset: u64) -> Self {
        Self { scaling: TscScaling::unscaled(offset) }
    }

    /// The offset in ticks, modulo 2^64.
    pub fn offset(&self) -> u64 {
        self.scaling.offset()
    }

    /// What the hardware makes of the host's TSC.
    pub fn scaling(&self) -> TscScaling {
        self.scaling
    }

    /// Finds a vCPU's offset. KVM states it exactly; a software KVM may state
    /// an offset that it does not apply, so the counter itself is asked too.
    ///
    /// # Errors
    /// Where the counter can not be read, or fits neither answer.
    pub fn of_vcpu(vcpu: &VcpuFd, id: u32) -> Result<Self, OffsetError> {
        Self::of_scaled_vcpu(vcpu, id, TscScaling::unscaled(0))
    }

    /// The same of a vCPU whose frequency was set so that `scaling`'s multiplier
    /// is in force; its offset is not looked at.
    ///
    /// # Errors
    /// As [`GuestTsc::of_vcpu`].
    pub fn of_scaled_vcpu(
        vcpu: &VcpuFd,
        id: u32,
        scaling: TscScaling,
    ) -> Result<Self, OffsetError> {
        let read = |error| OffsetError::Read { vcpu: id, error };
        let stated = ioctls::vcpu_tsc_offset(vcpu).ok();
        let entry = kvm_msr_entry { index: MSR_IA32_TSC, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry])
            .map_err(|_| read(vmm_sys_util::errno::Error::new(libc::ENOMEM)))?;
        let at = |offset| Self { scaling: scaling.with_offset(offset) };
        let before = at(0).now();
        let count = vcpu.get_msrs(&mut msrs).map_err(read)?;
        if count != 1 {
            return Err(read(vmm_sys_util::errno::Error::new(libc::ENOENT)));
        }
        let guest = msrs.as_slice().first().map_or(0, |entry| entry.data);
        let measured = guest.wrapping_sub(before);
        // An ioctl takes microseconds, or a scheduling delay; 2^32 ticks are
        // more than a second of either, and less than any two offsets differ.
        let fits = |offset: u64| measured.wrapping_sub(offset) < 1 << 32;
        match stated {
            Some(offset) if fits(offset) => Ok(at(offset)),
            _ if fits(0) => Ok(at(0)),
            stated => {
                Err(OffsetError::Contradiction { vcpu: id, measured, stated: stated.unwrap_or(0) })
            }
        }
    }

    /// The guest's TSC at a host TSC. Wraps as the hardware's addition does.
    pub fn from_host(&self, host_tsc: u64) -> u64 {
        self.scaling.guest_tsc(host_tsc)
    }

    /// The guest's TSC now.
    pub fn now(&self) -> u64 {
        self.from_host(host_tsc())
    }
}

/// The clock of one domain. The line is set once and never changes.
#[derive(Debug)]
pub struct KvmClock {
    /// Changes only where the host's TSC was reset in its sleep: KVM then lets the
    /// guest's run on from where it stood, by another offset.
    tsc_offset: AtomicU64,
    /// What the hardware makes of the host's TSC; its offset is the one above.
    scaling: TscScaling,
    /// The offset is to be read again, by the thread of a vCPU.
    offset_lost: AtomicBool,
    line: SystemTimeLine,
    guarded_line: OnceLock<SystemTimeLine>,
    utc: Mutex<Option<UtcLine>>,
}

/// What the wallclock follows, once somebody keeps a line to TAI.
#[derive(Clone, Copy, Debug)]
pub struct UtcLine {
    /// The guest's line to TAI.
    pub tai: TaiLine,
    /// TAI − UTC.
    pub offset: TaiOffset,
    /// How far ahead of now the epoch is to be exact, in guest TSC ticks.
    pub lead_ticks: u64,
}

impl KvmClock {
    /// A clock on this line.
    pub fn new(guest_tsc: GuestTsc, line: SystemTimeLine) -> Self {
        Self {
            scaling: guest_tsc.scaling(),
            tsc_offset: guest_tsc.offset().into(),
            offset_lost: false.into(),
            line,
            guarded_line: OnceLock::new(),
            utc: Mutex::new(None),
        }
    }

    /// The wallclock follows this line from now on; `None`: the host's UTC as it
    /// is at each publication.
    pub fn follow(&self, utc: Option<UtcLine>) {
        *self.utc() = utc;
    }

    fn utc(&self) -> MutexGuard<'_, Option<UtcLine>> {
        self.utc.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the guest's TSC follows from the host's.
    pub fn tsc(&self) -> GuestTsc {
        // Relaxed: one number, that stands for itself.
        let offset = self.tsc_offset.load(Ordering::Relaxed);
        GuestTsc { scaling: self.scaling.with_offset(offset) }
    }

    /// The host's TSC was reset: the next vCPU that enters reads its offset again.
    /// Kick one.
    pub fn lose_offset(&self) {
        self.offset_lost.store(true, Ordering::Release);
    }

    /// Whether nobody has read the offset again yet.
    pub fn is_offset_lost(&self) -> bool {
        // Acquire: partner of the Release in `found_offset`.
        self.offset_lost.load(Ordering::Acquire)
    }

    /// How the guest's TSC follows from the host's from now on.
    pub fn found_offset(&self, tsc: GuestTsc) {
        self.tsc_offset.store(tsc.offset(), Ordering::Relaxed);
        self.offset_lost.store(false, Ordering::Release);
    }

    /// Takes over the line that KVM published, when KVM comes to own the pages.
    /// Only the first call counts, and is answered with `true`: that line is the
    /// guest's from then on, and is returned.
    pub fn adopt(&self, line: SystemTimeLine) -> (SystemTimeLine, bool) {
        let adopted = self.guarded_line.set(line).is_ok();
        (self.line(), adopted)
    }
}

impl Clock for KvmClock {
    fn guest_tsc(&self) -> u64 {
        self.tsc().now()
    }

    fn line(&self) -> SystemTimeLine {
        self.guarded_line.get().copied().unwrap_or(self.line)
    }

    fn wallclock_epoch(&self) -> WallclockEpoch {
        let utc = *self.utc();
        if let Some(UtcLine { tai, offset, lead_ticks }) = utc {
            let exact_at = self.guest_tsc().wrapping_add(lead_ticks);
            if let Ok(epoch) = wallclock::epoch_at(&tai, offset, &self.line(), exact_at) {
                return epoch;
            }
        }
        let pair = read_realtime();
        let system_time_ns = self.line().system_time_ns(self.tsc().from_host(pair.host_tsc));
        wallclock_epoch(pair.utc_ns, system_time_ns).unwrap_or_else(|error| {
            // A host whose clock stands before 1970 has no epoch to give.
            tracing::warn!(%error, "the guest's wallclock starts in 1970");
            WallclockEpoch { sec: 0, nsec: 0 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_was_lost_is_another_then() {
        let frequency = crate::clock::TscFrequency::from_khz(2_000_000).unwrap();
        let line = SystemTimeLine::new(frequency, 0, 0).unwrap();
        let clock = KvmClock::new(GuestTsc::with_offset(5), line);
        assert!(!clock.is_offset_lost());
        clock.lose_offset();
        assert!(clock.is_offset_lost());
        assert_eq!(clock.tsc().offset(), 5);
        clock.found_offset(GuestTsc::with_offset(9));
        assert_eq!((clock.is_offset_lost(), clock.tsc().offset()), (false, 9));
    }

    #[test]
    fn offsets_wrap() {
        let tsc = GuestTsc::with_offset(0u64.wrapping_sub(1_000));
        assert_eq!(tsc.from_host(1_000), 0);
        assert_eq!(tsc.from_host(1_001), 1);
        assert_eq!(tsc.from_host(999), u64::MAX);
    }
}
