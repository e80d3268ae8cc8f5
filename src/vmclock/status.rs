//! How far a guest may trust its page.

use xen_abi::vmclock as abi;

use crate::clock::tai::HostSync;

/// VMClock's `clock_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ClockStatus {
    /// The host does not know whether its clock is right.
    Unknown,
    /// There is no reading yet.
    #[default]
    Initializing,
    /// The host is synchronised, and the line within its bound of it.
    Synchronized,
    /// The line runs on without fresh readings, still within its bound.
    FreeRunning,
    /// The bound can not be met. `ptp_vmclock` then refuses to read the time.
    Unreliable,
}

impl ClockStatus {
    /// The number on the page.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Unknown => abi::VMCLOCK_STATUS_UNKNOWN,
            Self::Initializing => abi::VMCLOCK_STATUS_INITIALIZING,
            Self::Synchronized => abi::VMCLOCK_STATUS_SYNCHRONIZED,
            Self::FreeRunning => abi::VMCLOCK_STATUS_FREERUNNING,
            Self::Unreliable => abi::VMCLOCK_STATUS_UNRELIABLE,
        }
    }
}

impl core::fmt::Display for ClockStatus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Initializing => "initializing",
            Self::Synchronized => "synchronized",
            Self::FreeRunning => "freerunning",
            Self::Unreliable => "unreliable",
        })
    }
}

/// The status of a line whose bound against the host's clock is `own_bound_ns`
/// now and may be `limit_ns` at most. `fresh`: the last attempt at a reading
/// gave one.
///
/// In the order of what weighs more: a broken bound, a host that does not know
/// (unsynchronised, or TAI − UTC never set), a line without fresh readings.
#[must_use]
pub fn clock_status(sync: &HostSync, own_bound_ns: u64, limit_ns: u64, fresh: bool) -> ClockStatus {
    if own_bound_ns > limit_ns {
        ClockStatus::Unreliable
    } else if !sync.synchronized || !sync.tai_offset.is_known() {
        ClockStatus::Unknown
    } else if fresh {
        ClockStatus::Synchronized
    } else {
        ClockStatus::FreeRunning
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tai::TaiOffset;

    #[test]
    fn the_graver_reason_decides() {
        let good = HostSync {
            synchronized: true,
            tai_offset: TaiOffset::Known(37),
            ..HostSync::default()
        };
        let unsynchronised = HostSync { synchronized: false, ..good };
        let no_offset = HostSync { tai_offset: TaiOffset::Unknown, ..good };
        for (sync, bound, fresh, expected) in [
            (good, 10, true, ClockStatus::Synchronized),
            (good, 10, false, ClockStatus::FreeRunning),
            (good, 11, true, ClockStatus::Unreliable),
            (unsynchronised, 10, true, ClockStatus::Unknown),
            (unsynchronised, 11, false, ClockStatus::Unreliable),
            (no_offset, 10, true, ClockStatus::Unknown),
        ] {
            assert_eq!(clock_status(&sync, bound, 10, fresh), expected, "{sync:?} {bound}");
        }
        assert_eq!(ClockStatus::Unreliable.number(), 4);
        assert_eq!(ClockStatus::default().number(), 1);
    }
}
