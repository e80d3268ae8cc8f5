//! A KVM VM for a Xen guest, made in the order that leaves its clock alone.
//!
//! KVM takes a new masterclock snapshot, and stops every vCPU for it, whenever
//! a TSC generation begins, SHARED_INFO is set (up to Linux 7.2) or the clock is
//! set. So: the frequency stays the host's; vCPU 0 is made first, and takes
//! the one snapshot there is (`prime.rs`); then the others, which share its TSC
//! generation; then only a check that they do. Nothing is set afterwards.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, kvm_enable_cap,
    kvm_userspace_memory_region, kvm_xen_hvm_config,
};
use kvm_ioctls::{
    Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd,
};
use vm_memory::{
    Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};
use vmm_sys_util::errno::Error;

use super::clock::{GuestTsc, OffsetError};
use super::{Capabilities, HypercallMode, KvmClock, ioctls, prime};
use crate::clock::scaling::{TscScaling, TscStart};
use crate::clock::{FrequencyError, LineError, SystemTimeLine, TscFrequency};
use crate::host::host_tsc;
use crate::pages::GuestRam;

/// The hypercall page MSR that CPUID leaf 2 names.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;
/// Three pages for Intel's real mode, below the APICs.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// What a [`XenVm`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct XenVmConfig {
    /// Number of vCPUs; their local APIC ids are 0 to `vcpus` - 1.
    pub vcpus: u32,
    /// How hypercalls arrive.
    pub hypercalls: HypercallMode,
}

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum XenVmError {
    /// A call to KVM failed.
    #[error("{call} failed: {error}")]
    Call {
        /// Which call, with its argument.
        call: String,
        /// What KVM said.
        error: Error,
    },
    /// The guest's TSC is unknown.
    #[error(transparent)]
    Offset(#[from] OffsetError),
    /// The vCPUs' TSCs differ.
    #[error(
        "vCPU {vcpu} has a TSC offset of {offset:#x}, vCPU 0 one of {first:#x}: no one clock fits both"
    )]
    Unequal {
        /// The vCPU.
        vcpu: u32,
        /// Its offset in ticks.
        offset: u64,
        /// That of vCPU 0.
        first: u64,
    },
    /// KVM did not put the TSC where a restored guest needs it.
    #[error(
        "this KVM leaves the guest's TSC at an offset of {found:#x} where {wanted:#x} was set: a \
         software KVM cannot move it, and no saved guest can go on here"
    )]
    NotMoved {
        /// The offset that was set, in ticks.
        wanted: u64,
        /// The one that the vCPU has.
        found: u64,
    },
    /// The TSC's frequency is none.
    #[error(transparent)]
    Frequency(#[from] FrequencyError),
    /// The TSC's frequency makes no line.
    #[error(transparent)]
    Line(#[from] LineError),
}

/// The TSC of a restored guest.
#[derive(Clone, Copy, Debug)]
pub struct RestoredTsc {
    /// The guest's frequency in kHz, where it is to be scaled to; `None` takes
    /// the host's.
    pub khz: Option<u32>,
    /// What the hardware makes of the host's TSC; its offset is not looked at.
    pub scaling: TscScaling,
    /// Where it goes on.
    pub start: TscStart,
    /// The line, as it was published.
    pub line: SystemTimeLine,
}

impl RestoredTsc {
    /// The offset that brings the TSC there, if it is set now.
    fn offset(&self) -> u64 {
        let (host_tsc, guest_tsc) = match self.start {
            TscStart::At { host_tsc, guest_tsc } => (host_tsc, guest_tsc),
            TscStart::WhenSet { guest_tsc } => (host_tsc(), guest_tsc),
        };
        guest_tsc.wrapping_sub(self.scaling.with_offset(0).guest_tsc(host_tsc))
    }
}

fn call(name: impl Into<String>) -> impl FnOnce(Error) -> XenVmError {
    move |error| XenVmError::Call { call: name.into(), error }
}

/// A VM with all its vCPUs, not yet running, and the clock of its guest.
///
/// KVM knows guest memory by host address: hold `memory`, or a
/// [`Domain`](crate::xen::Domain) over it, for as long as `vm` or a vCPU lives.
pub struct XenVm {
    /// The guest's memory, by reference count.
    pub memory: GuestRam,
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its vCPUs in order.
    pub vcpus: Vec<VcpuFd>,
    /// The guest's clock.
    pub clock: Arc<KvmClock>,
    /// The TSC's frequency in kHz, the host's and the guest's.
    pub tsc_khz: u32,
}

impl XenVm {
    /// Makes the VM over `memory`, whose regions become slots 0 and up.
    ///
    /// # Errors
    /// Where KVM refuses a step, or the vCPUs' TSCs are not one clock.
    pub fn new(
        kvm: &Kvm,
        caps: &Capabilities,
        memory: &GuestRam,
        config: XenVmConfig,
    ) -> Result<Self, XenVmError> {
        Self::make(kvm, caps, memory, config, None)
    }

    /// Makes the VM for a guest that was saved, its TSC where it goes on. The
    /// offset is set on vCPU 0 before it takes the one masterclock snapshot; the
    /// others get it with their TSC generation.
    ///
    /// # Errors
    /// As [`XenVm::new`], and [`XenVmError::NotMoved`].
    pub fn restored(
        kvm: &Kvm,
        caps: &Capabilities,
        memory: &GuestRam,
        config: XenVmConfig,
        tsc: &RestoredTsc,
    ) -> Result<Self, XenVmError> {
        Self::make(kvm, caps, memory, config, Some(tsc))
    }

    fn make(
        kvm: &Kvm,
        caps: &Capabilities,
        memory: &GuestRam,
        config: XenVmConfig,
        restored: Option<&RestoredTsc>,
    ) -> Result<Self, XenVmError> {
        let vm = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(call("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        if config.hypercalls == HypercallMode::KvmXen {
            intercept_hypercalls(&vm)?;
        }
        exit_on_hypercall_msr(&vm)?;
        for (slot, region) in (0u32..).zip(memory.iter()) {
            add_memory(&vm, slot, region)?;
        }
        if let Some(khz) = restored.and_then(|tsc| tsc.khz) {
            ioctls::vm_set_tsc_khz(&vm, khz).map_err(call(format!("KVM_SET_TSC_KHZ {khz}")))?;
        }
        let (vcpus, set) = create_vcpus(&vm, caps, config, restored)?;
        let scaling = restored.map_or(TscScaling::unscaled(0), |tsc| tsc.scaling);
        let guest_tsc = common_tsc(&vcpus, scaling)?;
        if let Some(wanted) = set.filter(|wanted| *wanted != guest_tsc.offset()) {
            return Err(XenVmError::NotMoved { wanted, found: guest_tsc.offset() });
        }
        let tsc_khz = vcpus
            .first()
            .map_or_else(|| Err(Error::new(libc::EINVAL)), VcpuFd::get_tsc_khz)
            .map_err(call("KVM_GET_TSC_KHZ"))?;
        let line = match restored {
            Some(tsc) => tsc.line,
            // System time starts at 0 now, and is that function of the TSC for ever.
            None => {
                let frequency = TscFrequency::from_khz(u64::from(tsc_khz))?;
                SystemTimeLine::new_keeping_linux_khz(frequency, guest_tsc.now(), 0)?
            }
        };
        let clock = Arc::new(KvmClock::new(guest_tsc, line));
        Ok(Self { memory: memory.clone(), vm: Arc::new(vm), vcpus, clock, tsc_khz })
    }
}

fn create_vcpus(
    vm: &VmFd,
    caps: &Capabilities,
    config: XenVmConfig,
    restored: Option<&RestoredTsc>,
) -> Result<(Vec<VcpuFd>, Option<u64>), XenVmError> {
    let mut vcpus = Vec::new();
    let mut set = None;
    for id in 0..config.vcpus {
        let mut vcpu =
            vm.create_vcpu(u64::from(id)).map_err(call(format!("KVM_CREATE_VCPU {id}")))?;
        if let (0, Some(tsc)) = (id, restored) {
            let offset = tsc.offset();
            ioctls::vcpu_set_tsc_offset(&vcpu, offset)
                .map_err(call("setting the TSC offset of vCPU 0"))?;
            set = Some(offset);
        }
        // A software KVM has no masterclock, and may not stop before the guest;
        // none is known that has Xen support or synthetic interrupts.
        if id == 0 && (caps.xen != 0 || caps.synic) {
            prime::serve_requests(&mut vcpu).map_err(call("the first KVM_RUN"))?;
        }
        vcpus.push(vcpu);
    }
    Ok((vcpus, set))
}

fn intercept_hypercalls(vm: &VmFd) -> Result<(), XenVmError> {
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
        msr: HYPERCALL_MSR,
        ..Default::default()
    };
    ioctls::xen_hvm_config(vm, &config).map_err(call("KVM_XEN_HVM_CONFIG"))
}

/// Makes writes of the hypercall page MSR exit to us. A KVM without Xen does not
/// know it; one with Xen would write the page itself and keep to itself in which
/// mode the guest was, which decides the layout of `shared_info`.
fn exit_on_hypercall_msr(vm: &VmFd) -> Result<(), XenVmError> {
    let reasons = MsrExitReason::Filter | MsrExitReason::Unknown | MsrExitReason::Inval;
    let cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(reasons.bits()), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(call("KVM_ENABLE_CAP KVM_CAP_X86_USER_SPACE_MSR"))?;
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: HYPERCALL_MSR,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
        .map_err(call("KVM_X86_SET_MSR_FILTER"))
}

/// Gives the VM one region of memory.
///
/// # Errors
/// KVM's refusal: overlapping slots, too many, or no host memory.
#[expect(unsafe_code, reason = "KVM is given the address of host memory")]
pub fn add_memory<B: vm_memory::bitmap::Bitmap>(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegionMmap<B>,
) -> Result<(), XenVmError> {
    let host = region
        .get_host_address(MemoryRegionAddress(0))
        .map_err(|_| call("memory slot")(Error::new(libc::EFAULT)))?;
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: host as u64,
    };
    // SAFETY: the range is that of a live mmap region. It stays one while the VM
    // can run: `XenVm` holds its memory, and whoever takes the VM out of it is
    // told to hold it on (in this crate `Domain` does, by its handle).
    unsafe { vm.set_user_memory_region(slot) }.map_err(call(format!(
        "KVM_SET_USER_MEMORY_REGION {:#x}+{:#x}",
        slot.guest_phys_addr, slot.memory_size
    )))
}

/// The one offset of all vCPUs. KVM gives vCPUs that are created together the
/// same; only where it did not are the others set to the first one's.
fn common_tsc(vcpus: &[VcpuFd], scaling: TscScaling) -> Result<GuestTsc, XenVmError> {
    let mut common: Option<GuestTsc> = None;
    for (id, vcpu) in (0u32..).zip(vcpus) {
        let mut tsc = GuestTsc::of_scaled_vcpu(vcpu, id, scaling)?;
        let first = *common.get_or_insert(tsc);
        if tsc != first {
            ioctls::vcpu_set_tsc_offset(vcpu, first.offset())
                .map_err(call(format!("setting the TSC offset of vCPU {id}")))?;
            tsc = GuestTsc::of_scaled_vcpu(vcpu, id, scaling)?;
        }
        if tsc != first {
            let (offset, first) = (tsc.offset(), first.offset());
            return Err(XenVmError::Unequal { vcpu: id, offset, first });
        }
    }
    Ok(common.unwrap_or(GuestTsc::with_offset(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::scaling::FRAC_BITS_AMD;

    fn tsc(scaling: TscScaling, start: TscStart) -> RestoredTsc {
        let frequency = TscFrequency::from_khz(1_000_000).unwrap();
        let line = SystemTimeLine::new(frequency, 0, 0).unwrap();
        RestoredTsc { khz: None, scaling, start, line }
    }

    #[test]
    fn the_offset_leads_through_the_point() {
        let half = TscScaling::new(1 << 31, FRAC_BITS_AMD, 99).unwrap();
        for scaling in [TscScaling::unscaled(7), half] {
            for (host_tsc, guest_tsc) in [(1000, 5000), (5000, 1000), (u64::MAX, 0), (0, u64::MAX)]
            {
                let offset = tsc(scaling, TscStart::At { host_tsc, guest_tsc }).offset();
                assert_eq!(scaling.with_offset(offset).guest_tsc(host_tsc), guest_tsc);
            }
        }
    }

    #[test]
    fn a_frozen_tsc_goes_on_when_it_is_set() {
        let start = TscStart::WhenSet { guest_tsc: 1 << 40 };
        let before = host_tsc();
        let offset = tsc(TscScaling::unscaled(0), start).offset();
        let guest = GuestTsc::with_offset(offset);
        assert!(guest.from_host(before) <= 1 << 40 && guest.now() >= 1 << 40);
    }
}
