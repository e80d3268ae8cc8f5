//! Which source of time somebody asks for, by name.

use core::fmt;
use core::str::FromStr;
use std::path::PathBuf;

/// Where a machine takes the time from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TimeSource {
    /// The best that shows this host's own clock: [`Kvm`](Self::Kvm), else
    /// [`Clock`](Self::Clock).
    #[default]
    Auto,
    /// KVM_GET_CLOCK's pairs, or nothing.
    Kvm,
    /// CLOCK_TAI between two readings of the TSC.
    Clock,
    /// A PTP device of the host.
    Ptp(PathBuf),
    /// The VMClock of a host that is itself a guest.
    VmClock(PathBuf),
}

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: give auto, kvm, clock, ptp:DEVICE such as ptp:/dev/ptp0, or vmclock:DEVICE")]
pub struct NoTimeSource(pub String);

impl FromStr for TimeSource {
    type Err = NoTimeSource;

    fn from_str(text: &str) -> Result<Self, NoTimeSource> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "kvm" => Ok(Self::Kvm),
            None if text == "clock" => Ok(Self::Clock),
            Some(("ptp", path)) if !path.is_empty() => Ok(Self::Ptp(path.into())),
            Some(("vmclock", path)) if !path.is_empty() => Ok(Self::VmClock(path.into())),
            _ => Err(NoTimeSource(text.to_owned())),
        }
    }
}

impl fmt::Display for TimeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Kvm => f.write_str("kvm"),
            Self::Clock => f.write_str("clock"),
            Self::Ptp(path) => write!(f, "ptp:{}", path.display()),
            Self::VmClock(path) => write!(f, "vmclock:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["auto", "kvm", "clock", "ptp:/dev/ptp0", "vmclock:/dev/vmclock0", "ptp:a:b"] {
            assert_eq!(name.parse::<TimeSource>().unwrap().to_string(), name);
        }
        for wrong in ["", "ptp", "ptp:", "vmclock:", "KVM", "kvm:", "auto:x", ":", "tsc", " kvm"] {
            let error = wrong.parse::<TimeSource>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{wrong:?}: give auto, ")), "{error}");
        }
    }
}
