//! What a machine consists of, and why one can not be made.

use std::path::PathBuf;
use std::sync::Arc;

use super::boot::BootError;
use super::clock_service::ClockServiceError;
use super::hypercall_sites::NotInMemory;
use super::loader::FileSource;
use super::memory::MemoryError;
use super::restore::HostTimeError;
use crate::host::TimeSource;
use crate::kvm::{
    ClockMode, HypercallMode, KVM_DEVICE, KvmFeature, ProbeError, VcpuStateError, XenVmError,
};
use crate::state::{StateError, TimeError};
use crate::xen::{DomainError, RestoreError};

/// What a machine boots.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// A file.
    File(PathBuf),
    /// A guest that is built in.
    Embedded(&'static [u8]),
}

/// Where the initial ramdisk comes from.
#[derive(Clone, Debug)]
pub enum Initrd {
    /// A file.
    File(PathBuf),
    /// One that is here already.
    Bytes(Arc<[u8]>),
}

impl Initrd {
    pub(super) fn source(&self) -> FileSource<'_> {
        match self {
            Self::File(path) => FileSource::Path(path),
            Self::Bytes(bytes) => FileSource::Bytes(bytes),
        }
    }
}

/// Which console the caller's terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// ttyS0.
    Serial,
    /// hvc0.
    Hvc,
    /// Neither: output is dropped.
    None,
}

/// A machine's parts and settings.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The kernel.
    pub kernel: Kernel,
    /// Its initial ramdisk.
    pub initrd: Option<Initrd>,
    /// Further modules with their command lines.
    pub modules: Vec<(PathBuf, String)>,
    /// The kernel's command line.
    pub cmdline: String,
    /// RAM in bytes.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Who writes the clock pages.
    pub clock: ClockMode,
    /// Whether the guest gets a VMClock and a VM generation device.
    pub vmclock: bool,
    /// Where the guest's VMClock and wallclock take the time from.
    pub time_source: TimeSource,
    /// Whether guests are offered upcall vectors of their vCPUs' own; `None` for
    /// all but those whose pages are KVM's from the start.
    pub upcall_vector: Option<bool>,
    /// Whether guests are offered FIFO event channels; `None` where KVM does not
    /// deliver events by itself, in the 2-level bitmaps.
    pub fifo_events: Option<bool>,
    /// How hypercalls arrive; `None` takes what works.
    pub hypercalls: Option<HypercallMode>,
    /// Does as if KVM lacked these.
    pub without: Vec<KvmFeature>,
    /// KVM's device.
    pub kvm_device: PathBuf,
    /// The Xen version shown, major and minor.
    pub xen_version: (u16, u16),
    /// The console that is printed and typed into.
    pub console: Console,
    /// Whether standard input is typed into that console.
    pub input: bool,
}

impl MachineConfig {
    /// A machine of 1 vCPU and 256 MiB that shows its serial console: what KVM offers is
    /// taken, as by `kvm-xen run` without options.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            initrd: None,
            modules: Vec::new(),
            cmdline: String::new(),
            memory: 256 << 20,
            cpus: 1,
            clock: ClockMode::Auto,
            vmclock: true,
            time_source: TimeSource::Auto,
            upcall_vector: None,
            fifo_events: None,
            hypercalls: None,
            without: Vec::new(),
            kvm_device: KVM_DEVICE.into(),
            xen_version: (4, 17),
            console: Console::Serial,
            input: false,
        }
    }
}

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM does not offer what is needed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, modules, command line or tables.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] XenVmError),
    /// The emulated hypervisor.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The guest's clocks.
    #[error(transparent)]
    Clock(#[from] ClockServiceError),
    /// The kernel's code.
    #[error(transparent)]
    Sites(#[from] NotInMemory),
    /// A kernel whose hypercalls port I/O can not serve.
    #[error(
        "kernel {kernel}: no VMCALL or VMMCALL was found in it and it has no hypercall page, so \
         --hypercalls port-io can not serve it: use a host with CONFIG_KVM_XEN=y, or the kernel's \
         vmlinux with its section table"
    )]
    NoHypercalls {
        /// Its file name.
        kernel: String,
    },
    /// The number of vCPUs.
    #[error("{cpus} vCPUs: a guest here has 1 to {most}; give --cpus a number in between")]
    Cpus {
        /// Asked for.
        cpus: u32,
        /// The most.
        most: u32,
    },
    /// A call for one vCPU failed.
    #[error("{what} for vCPU {vcpu} failed: {error}")]
    Vcpu {
        /// What was done.
        what: &'static str,
        /// The vCPU.
        vcpu: u32,
        /// What KVM said.
        error: vmm_sys_util::errno::Error,
    },
    /// The saved guest.
    #[error("cannot restore: {0}")]
    State(#[from] StateError),
    /// The saved hypervisor.
    #[error("cannot restore: {0}")]
    Restore(#[from] RestoreError),
    /// A saved vCPU.
    #[error("cannot restore: {0}")]
    SavedVcpu(#[from] VcpuStateError),
    /// Time.
    #[error("cannot restore: {0}")]
    Time(#[from] TimeError),
    /// This host's clock.
    #[error("cannot restore: {0}")]
    HostTime(#[from] HostTimeError),
    /// Something of the host.
    #[error("{what}: {error}")]
    Host {
        /// What was done.
        what: &'static str,
        /// What the host said.
        error: std::io::Error,
    },
}

pub(super) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |error| MachineError::Host { what, error }
}
