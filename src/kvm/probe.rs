//! What this host's KVM offers, and which modes work on it.

use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvm_bindings::{
    KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL, KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVM_XEN_HVM_CONFIG_SHARED_INFO,
};
use kvm_ioctls::Kvm;

/// Where KVM is found.
pub const KVM_DEVICE: &str = "/dev/kvm";

const KVM_CAP_NR_VCPUS: u64 = 9;
const KVM_CAP_MAX_VCPUS: u64 = 66;
const KVM_CAP_XEN_HVM: u64 = 38;
const KVM_CAP_TSC_CONTROL: u64 = 60;
const KVM_CAP_SYNC_REGS: u64 = 74;
const KVM_CAP_HYPERV_SYNIC2: u64 = 148;
const KVM_CAP_X86_USER_SPACE_MSR: u64 = 188;
const KVM_CAP_X86_MSR_FILTER: u64 = 189;
const KVM_CAP_VM_TSC_CONTROL: u64 = 214;

/// Why /dev/kvm can not be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no such device.
    #[error(
        "no {}: load the kvm-intel or kvm-amd module, or enable virtualisation in the firmware",
        .0.display()
    )]
    Missing(PathBuf),
    /// It is not ours to open.
    #[error("no permission to open {}: join the group `kvm` or run as root", .0.display())]
    Permission(PathBuf),
    /// Anything else.
    #[error("cannot open {}: {error}", .device.display())]
    Open {
        /// The device.
        device: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not KVM, or one older than anything in use.
    #[error(
        "{} is no KVM: it speaks API version {version}, not 12; name KVM's device, {KVM_DEVICE}",
        .device.display()
    )]
    Version {
        /// The device.
        device: PathBuf,
        /// KVM_GET_API_VERSION, or -1.
        version: i32,
    },
    /// The mode that was asked for does not work here.
    #[error("{mode} does not work on this host: {reason}")]
    Unsupported {
        /// What was asked for, as on the command line.
        mode: String,
        /// What is missing, and what to do.
        reason: String,
    },
}

/// How a guest's hypercalls reach us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypercallMode {
    /// KVM intercepts VMCALL and VMMCALL and exits with KVM_EXIT_XEN.
    KvmXen,
    /// The hypercall page does port I/O, and so do the kernel's own VMCALL and
    /// VMMCALL once rewritten; needs no CONFIG_KVM_XEN.
    PortIo,
}

impl fmt::Display for HypercallMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KvmXen => "kvm-xen",
            Self::PortIo => "port-io",
        })
    }
}

/// Who writes the guest's clock pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockMode {
    /// Owned, unless the guest asks for the VM-wide callback vector on a KVM
    /// where only its own Xen support can inject that; from then on guarded.
    Auto,
    /// We do, always. A guest that asks for the VM-wide vector on such a KVM is
    /// ended.
    Owned,
    /// KVM does, from the start, and we watch it.
    Guarded,
}

impl fmt::Display for ClockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Owned => "owned",
            Self::Guarded => "guarded",
        })
    }
}

/// What a KVM may lack, and guests then have otherwise or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmFeature {
    /// Xen support: `KVM_CAP_XEN_HVM`.
    Xen,
    /// Hyper-V's synthetic interrupts: `KVM_CAP_HYPERV_SYNIC2`.
    Synic,
}

/// How the VM-wide callback vector reaches a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackDelivery {
    /// As an interrupt that needs no end; the clock pages stay ours.
    Owned,
    /// KVM injects it, and takes the clock pages for that.
    Guarded,
}

/// The capabilities that decide anything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `KVM_CAP_XEN_HVM`: bits `KVM_XEN_HVM_CONFIG_*`, 0 without CONFIG_KVM_XEN.
    pub xen: u32,
    /// Whether the hardware scales the guest's TSC.
    pub tsc_scaling: bool,
    /// Whether the TSC frequency can be set for the whole VM.
    pub vm_tsc_khz: bool,
    /// Whether MSR accesses can exit to user space.
    pub user_space_msr: bool,
    /// Whether a vector can be had that the guest need not end
    /// (`KVM_CAP_HYPERV_SYNIC2`): the VM-wide callback of owned mode.
    pub synic: bool,
    /// Registers that KVM can leave in `kvm_run`: bits `KVM_SYNC_X86_*`.
    pub sync_regs: u32,
    /// vCPUs that KVM recommends as the most.
    pub recommended_vcpus: u32,
    /// vCPUs that KVM accepts at the most.
    pub max_vcpus: u32,
}

impl Capabilities {
    /// Opens `device`, usually [`KVM_DEVICE`], and reads what it offers.
    ///
    /// # Errors
    /// Where it can not be opened or is no KVM of API version 12.
    pub fn probe(device: &Path) -> Result<(Kvm, Self), ProbeError> {
        let path = CString::new(device.as_os_str().as_bytes()).unwrap_or_default();
        let device = device.to_owned();
        let kvm = Kvm::new_with_path(path).map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => ProbeError::Missing(device.clone()),
            libc::EACCES | libc::EPERM => ProbeError::Permission(device.clone()),
            errno => ProbeError::Open {
                device: device.clone(),
                error: std::io::Error::from_raw_os_error(errno),
            },
        })?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(ProbeError::Version { device, version });
        }
        let number = |cap: u64| u32::try_from(kvm.check_extension_raw(cap)).unwrap_or(0);
        let recommended_vcpus = number(KVM_CAP_NR_VCPUS).max(1);
        let caps = Self {
            xen: number(KVM_CAP_XEN_HVM),
            tsc_scaling: number(KVM_CAP_TSC_CONTROL) != 0,
            vm_tsc_khz: number(KVM_CAP_VM_TSC_CONTROL) != 0,
            user_space_msr: number(KVM_CAP_X86_USER_SPACE_MSR) != 0
                && number(KVM_CAP_X86_MSR_FILTER) != 0,
            synic: number(KVM_CAP_HYPERV_SYNIC2) != 0,
            sync_regs: number(KVM_CAP_SYNC_REGS),
            recommended_vcpus,
            max_vcpus: number(KVM_CAP_MAX_VCPUS).max(recommended_vcpus),
        };
        Ok((kvm, caps))
    }

    /// The same KVM as if it lacked `feature`.
    #[must_use]
    pub fn without(self, feature: KvmFeature) -> Self {
        match feature {
            KvmFeature::Xen => Self { xen: 0, ..self },
            KvmFeature::Synic => Self { synic: false, ..self },
        }
    }

    /// Whether hypercalls can arrive in this mode; the reason if not.
    ///
    /// # Errors
    /// [`ProbeError::Unsupported`] with what is missing.
    pub fn check_hypercalls(&self, mode: HypercallMode) -> Result<(), ProbeError> {
        let reason = match mode {
            HypercallMode::KvmXen if self.xen & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL == 0 => {
                "this KVM has no Xen support (KVM_CAP_XEN_HVM is 0): use a kernel with \
                 CONFIG_KVM_XEN=y, or --hypercalls port-io"
            }
            HypercallMode::PortIo if !self.user_space_msr => {
                "this KVM can not hand MSR writes to user space: use Linux 5.10 or later"
            }
            _ => return Ok(()),
        };
        Err(ProbeError::Unsupported {
            mode: format!("--hypercalls {mode}"),
            reason: reason.to_owned(),
        })
    }

    /// The first hypercall mode that works: interception, else port I/O.
    ///
    /// # Errors
    /// As [`Capabilities::check_hypercalls`], where neither does.
    pub fn pick_hypercalls(&self) -> Result<HypercallMode, ProbeError> {
        let first = self.check_hypercalls(HypercallMode::KvmXen);
        match first {
            Ok(()) => Ok(HypercallMode::KvmXen),
            Err(_) => self.check_hypercalls(HypercallMode::PortIo).map(|()| HypercallMode::PortIo),
        }
    }

    /// How the VM-wide callback vector is delivered in this mode; the reason if
    /// it can not be.
    ///
    /// # Errors
    /// [`ProbeError::Unsupported`] with what is missing.
    pub fn callback_delivery(&self, mode: ClockMode) -> Result<CallbackDelivery, ProbeError> {
        let guarded = self.check_guarded();
        let reason = match (mode, guarded) {
            (ClockMode::Guarded, guarded) => return guarded.map(|()| CallbackDelivery::Guarded),
            _ if self.synic => return Ok(CallbackDelivery::Owned),
            (ClockMode::Auto, Ok(())) => return Ok(CallbackDelivery::Guarded),
            (ClockMode::Owned, Ok(())) => "use --clock auto, or a kernel with CONFIG_KVM_HYPERV=y",
            (_, Err(_)) => {
                "use a kernel with CONFIG_KVM_HYPERV=y, or a guest that sets an upcall vector for \
                 each vCPU, as Linux 6.1 and later do"
            }
        };
        Err(ProbeError::Unsupported {
            mode: format!("--clock {mode} with the VM-wide callback vector"),
            reason: format!(
                "this KVM has no synthetic interrupts (KVM_CAP_HYPERV_SYNIC2 is 0): {reason}"
            ),
        })
    }

    /// Whether KVM can own the clock pages and inject the VM-wide vector.
    ///
    /// # Errors
    /// [`ProbeError::Unsupported`] with the missing capability bits.
    pub fn check_guarded(&self) -> Result<(), ProbeError> {
        let needs = KVM_XEN_HVM_CONFIG_SHARED_INFO
            | KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
            | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;
        let missing = needs & !self.xen;
        if missing == 0 {
            return Ok(());
        }
        Err(ProbeError::Unsupported {
            mode: "--clock guarded".to_owned(),
            reason: format!(
                "KVM_CAP_XEN_HVM is {:#x} and lacks {missing:#x}: use Linux 5.18 or later with \
                 CONFIG_KVM_XEN=y, or --clock owned",
                self.xen
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(xen: u32, user_space_msr: bool) -> Capabilities {
        Capabilities {
            xen,
            tsc_scaling: false,
            vm_tsc_khz: true,
            user_space_msr,
            synic: false,
            sync_regs: 0,
            recommended_vcpus: 2,
            max_vcpus: 1024,
        }
    }

    #[test]
    fn interception_is_preferred() {
        assert_eq!(caps(0x1ff, true).pick_hypercalls().unwrap(), HypercallMode::KvmXen);
        assert_eq!(caps(0, true).pick_hypercalls().unwrap(), HypercallMode::PortIo);
    }

    #[test]
    fn refusals_name_what_is_missing() {
        let neither = caps(0, false).pick_hypercalls().unwrap_err().to_string();
        assert!(neither.contains("--hypercalls port-io"), "{neither}");
        let guarded = caps(0x3, true).check_guarded().unwrap_err().to_string();
        assert!(guarded.contains("0x3") && guarded.contains("0x34"), "{guarded}");
        caps(0x1ff, true).check_guarded().unwrap();
    }

    #[test]
    fn the_callback_vector() {
        use CallbackDelivery::{Guarded, Owned};
        use ClockMode as Mode;
        for (xen, synic, mode, wanted) in [
            (0x1ff, true, Mode::Auto, Ok(Owned)),
            (0x1ff, true, Mode::Owned, Ok(Owned)),
            (0x1ff, true, Mode::Guarded, Ok(Guarded)),
            (0x1ff, false, Mode::Auto, Ok(Guarded)),
            (0x1ff, false, Mode::Owned, Err("use --clock auto")),
            (0, true, Mode::Auto, Ok(Owned)),
            (0, true, Mode::Guarded, Err("--clock guarded")),
            (0, false, Mode::Auto, Err("Linux 6.1 and later")),
            (0, false, Mode::Owned, Err("Linux 6.1 and later")),
        ] {
            let caps = Capabilities { synic, ..caps(xen, true) };
            match (caps.callback_delivery(mode), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{xen:#x} {synic} {mode}"),
                (Err(error), Err(text)) => {
                    assert!(error.to_string().contains(text), "{mode}: {error}");
                }
                (found, _) => panic!("{xen:#x} {synic} {mode}: {found:?}"),
            }
        }
        assert_eq!(caps(0x1ff, true).without(KvmFeature::Xen), caps(0, true));
    }
}
