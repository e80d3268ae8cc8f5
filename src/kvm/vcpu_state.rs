//! A vCPU as KVM has it, outside of the guest, and back.
//!
//! KVM's structures are its ABI and go as their bytes. The order in which they
//! are set matters: CPUID before what depends on features, the local APIC's base
//! (system registers) before the APIC, the APIC before the TSC deadline, which
//! comes last, after the TSC itself. Source: Linux `arch/x86/kvm/x86.c`.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno::Error;

use crate::xen::Bytes;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// What `KVM_GET_MSRS` takes at a time: `KVM_MAX_MSR_ENTRIES` is 256.
const MSRS_AT_ONCE: usize = 200;
/// `kvm_xsave` as it always was; more only for features that a process asks for.
const XSAVE_SIZE: i32 = 4096;

/// Registers and local APIC of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuRegisters {
    /// Entries of `kvm_cpuid2`.
    pub cpuid: Vec<Bytes>,
    /// `kvm_regs`.
    pub regs: Bytes,
    /// `kvm_sregs`.
    pub sregs: Bytes,
    /// `kvm_xsave`: FPU, SSE, AVX and further.
    pub xsave: Bytes,
    /// `kvm_xcrs`.
    pub xcrs: Bytes,
    /// `kvm_debugregs`.
    pub debugregs: Bytes,
    /// `kvm_vcpu_events`.
    pub events: Bytes,
    /// `kvm_lapic_state`.
    pub lapic: Bytes,
    /// `KVM_MP_STATE_*`.
    pub mp_state: u32,
    /// MSRs that are not 0, by number: neither the TSC nor its deadline, nor
    /// those of other hypervisors.
    pub msrs: Vec<(u32, u64)>,
    /// `IA32_TSC_DEADLINE`, a guest TSC, 0 for none.
    pub tsc_deadline: u64,
}

/// Why a vCPU could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// A call to KVM failed.
    #[error("vCPU {vcpu}: {call} failed: {error}")]
    Call {
        /// The vCPU.
        vcpu: u32,
        /// The call.
        call: &'static str,
        /// What KVM said.
        error: Error,
    },
    /// KVM refused an MSR.
    #[error("vCPU {vcpu}: this host's KVM does not take {value:#x} for MSR {index:#x}")]
    Msr {
        /// The vCPU.
        vcpu: u32,
        /// Its number.
        index: u32,
        /// The value.
        value: u64,
    },
    /// The guest was given a CPU feature that this host has not got.
    #[error(
        "vCPU {vcpu}: the guest was given CPU features that this host lacks: CPUID leaf \
         {leaf:#x}/{subleaf} {register} bits {bits:#x}; restore it on a host like the one it ran on"
    )]
    Features {
        /// The vCPU.
        vcpu: u32,
        /// CPUID leaf.
        leaf: u32,
        /// Its subleaf.
        subleaf: u32,
        /// Which register.
        register: &'static str,
        /// What is missing.
        bits: u32,
    },
    /// What was saved is longer than KVM's structure.
    #[error("vCPU {vcpu}: the saved {what} is none of KVM's")]
    Shape {
        /// The vCPU.
        vcpu: u32,
        /// Which.
        what: &'static str,
    },
    /// The extended state is larger than what is saved.
    #[error("this host's CPU state has {size} bytes, more than the {XSAVE_SIZE} that are saved")]
    Xsave {
        /// Its size.
        size: i32,
    },
}

/// The MSRs to save on this host: `KVM_GET_MSR_INDEX_LIST` without those that
/// stand for time or for other hypervisors.
///
/// # Errors
/// KVM's own.
pub fn saved_msrs(kvm: &Kvm) -> Result<Vec<u32>, Error> {
    let list = kvm.get_msr_index_list()?;
    Ok(list.as_slice().iter().copied().filter(|index| is_saved(*index)).collect())
}

fn is_saved(index: u32) -> bool {
    !matches!(
        index,
        // KVM's old clock pages; Hyper-V's, of which the callback vector sets
        // its own again; KVM's own. Setting a clock page moves KVM's clock.
        MSR_IA32_TSC | MSR_IA32_TSC_DEADLINE | 0x11 | 0x12
            | 0x4000_0000..=0x4000_01ff | 0x4b56_4d00..=0x4b56_4dff
    )
}

/// Checks that the extended CPU state has the size that is saved.
///
/// # Errors
/// [`VcpuStateError::Xsave`].
pub fn check_xsave(vm: &VmFd) -> Result<(), VcpuStateError> {
    let size = vm.check_extension_int(Cap::Xsave2);
    if size > XSAVE_SIZE { Err(VcpuStateError::Xsave { size }) } else { Ok(()) }
}

fn call(vcpu: u32, call: &'static str) -> impl FnOnce(Error) -> VcpuStateError {
    move |error| VcpuStateError::Call { vcpu, call, error }
}

impl VcpuRegisters {
    /// Of a vCPU that stands outside of `KVM_RUN`, its last exit completed: by
    /// any thread.
    ///
    /// # Errors
    /// [`VcpuStateError::Call`].
    pub fn read(fd: &VcpuFd, vcpu: u32, indices: &[u32]) -> Result<Self, VcpuStateError> {
        let of = |what| call(vcpu, what);
        // First: it takes a pending INIT or SIPI, which changes the rest.
        let mp_state = fd.get_mp_state().map_err(of("KVM_GET_MP_STATE"))?.mp_state;
        let mut lapic = fd.get_lapic().map_err(of("KVM_GET_LAPIC"))?;
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(of("KVM_GET_CPUID2"))?;
        Ok(Self {
            mp_state,
            lapic: lapic_bytes(&mut lapic),
            cpuid: cpuid.as_slice().iter().map(Bytes::of).collect(),
            regs: Bytes::of(&fd.get_regs().map_err(of("KVM_GET_REGS"))?),
            sregs: Bytes::of(&fd.get_sregs().map_err(of("KVM_GET_SREGS"))?),
            xsave: Bytes::of(&fd.get_xsave().map_err(of("KVM_GET_XSAVE"))?),
            xcrs: Bytes::of(&fd.get_xcrs().map_err(of("KVM_GET_XCRS"))?),
            debugregs: Bytes::of(&fd.get_debug_regs().map_err(of("KVM_GET_DEBUGREGS"))?),
            events: Bytes::of(&fd.get_vcpu_events().map_err(of("KVM_GET_VCPU_EVENTS"))?),
            msrs: read_msrs(fd, vcpu, indices)?,
            tsc_deadline: read_msrs(fd, vcpu, &[MSR_IA32_TSC_DEADLINE])?
                .first()
                .map_or(0, |(_, value)| *value),
        })
    }

    /// CPUID as the guest was given it, but for the leaves of `xen`, which say
    /// what has changed, and checked against what this host can give.
    ///
    /// # Errors
    /// [`VcpuStateError::Features`], [`VcpuStateError::Shape`].
    pub fn set_cpuid(&self, fd: &VcpuFd, vcpu: u32, host: &CpuId) -> Result<(), VcpuStateError> {
        const XEN: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;
        let shape = VcpuStateError::Shape { vcpu, what: "CPUID" };
        let saved: Option<Vec<kvm_cpuid_entry2>> = self.cpuid.iter().map(Bytes::get).collect();
        let mut entries = saved.ok_or(shape)?;
        entries.retain(|entry| !XEN.contains(&entry.function));
        check_features(vcpu, &entries, host.as_slice())?;
        let xen = host.as_slice().iter().filter(|entry| XEN.contains(&entry.function));
        entries.extend(xen.copied());
        let shape = |_| VcpuStateError::Shape { vcpu, what: "CPUID" };
        let cpuid = CpuId::from_entries(&entries).map_err(shape)?;
        fd.set_cpuid2(&cpuid).map_err(call(vcpu, "KVM_SET_CPUID2"))
    }

    /// Gives a new vCPU these registers. Its CPUID and TSC are set, and the
    /// guest's memory is there.
    ///
    /// # Errors
    /// What KVM refuses, or [`VcpuStateError::Shape`].
    pub fn write(&self, fd: &VcpuFd, vcpu: u32) -> Result<(), VcpuStateError> {
        let of = |what| call(vcpu, what);
        let shape = |what| move || VcpuStateError::Shape { vcpu, what };
        let sregs: kvm_sregs = self.sregs.get().ok_or_else(shape("kvm_sregs"))?;
        let xcrs: kvm_xcrs = self.xcrs.get().ok_or_else(shape("kvm_xcrs"))?;
        let xsave: kvm_xsave = self.xsave.get().ok_or_else(shape("kvm_xsave"))?;
        let regs: kvm_regs = self.regs.get().ok_or_else(shape("kvm_regs"))?;
        let debugregs: kvm_debugregs = self.debugregs.get().ok_or_else(shape("kvm_debugregs"))?;
        let lapic: kvm_lapic_state = self.lapic.get().ok_or_else(shape("kvm_lapic_state"))?;
        let events: kvm_vcpu_events = self.events.get().ok_or_else(shape("kvm_vcpu_events"))?;
        fd.set_sregs(&sregs).map_err(of("KVM_SET_SREGS"))?;
        fd.set_xcrs(&xcrs).map_err(of("KVM_SET_XCRS"))?;
        write_xsave(fd, &xsave).map_err(of("KVM_SET_XSAVE"))?;
        fd.set_regs(&regs).map_err(of("KVM_SET_REGS"))?;
        fd.set_debug_regs(&debugregs).map_err(of("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&lapic).map_err(of("KVM_SET_LAPIC"))?;
        write_msrs(fd, vcpu, &self.msrs)?;
        let mp_state = kvm_mp_state { mp_state: self.mp_state };
        fd.set_mp_state(mp_state).map_err(of("KVM_SET_MP_STATE"))?;
        fd.set_vcpu_events(&events).map_err(of("KVM_SET_VCPU_EVENTS"))?;
        if self.tsc_deadline != 0 {
            write_msrs(fd, vcpu, &[(MSR_IA32_TSC_DEADLINE, self.tsc_deadline)])?;
        }
        Ok(())
    }
}

fn lapic_bytes(lapic: &mut kvm_lapic_state) -> Bytes {
    Bytes::of(lapic)
}

#[expect(unsafe_code, reason = "KVM_SET_XSAVE reads as much as the CPU's state needs")]
fn write_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), Error> {
    // SAFETY: KVM reads the 4096 bytes of the structure, and more only where the
    // guest's state is larger, which `check_xsave` refused before.
    unsafe { fd.set_xsave(xsave) }
}

/// The values that are not 0. KVM answers up to the first that it does not have.
fn read_msrs(fd: &VcpuFd, vcpu: u32, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuStateError> {
    let mut values = Vec::new();
    let mut left = indices;
    while !left.is_empty() {
        let entries: Vec<_> = left
            .iter()
            .take(MSRS_AT_ONCE)
            .map(|&index| kvm_msr_entry { index, ..Default::default() })
            .collect();
        let mut msrs = Msrs::from_entries(&entries)
            .map_err(|_| VcpuStateError::Shape { vcpu, what: "list of MSRs" })?;
        let got = fd.get_msrs(&mut msrs).map_err(call(vcpu, "KVM_GET_MSRS"))?;
        let known = msrs.as_slice().get(..got).unwrap_or_default();
        values.extend(known.iter().filter(|msr| msr.data != 0).map(|msr| (msr.index, msr.data)));
        // The one that it stopped at is left out.
        let done = if got < entries.len() { got + 1 } else { got };
        left = left.get(done..).unwrap_or_default();
    }
    Ok(values)
}

fn write_msrs(fd: &VcpuFd, vcpu: u32, values: &[(u32, u64)]) -> Result<(), VcpuStateError> {
    for values in values.chunks(MSRS_AT_ONCE) {
        let entries: Vec<_> = values
            .iter()
            .map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries)
            .map_err(|_| VcpuStateError::Shape { vcpu, what: "list of MSRs" })?;
        let done = fd.set_msrs(&msrs).map_err(call(vcpu, "KVM_SET_MSRS"))?;
        if let Some(&(index, value)) = values.get(done) {
            return Err(VcpuStateError::Msr { vcpu, index, value });
        }
    }
    Ok(())
}

/// Leaves whose bits are features, with the registers that count.
const FEATURES: [(u32, [bool; 4]); 4] = [
    (1, [false, false, true, true]),
    (7, [false, true, true, true]),
    (0x8000_0001, [false, false, true, true]),
    (0x8000_0008, [false, true, false, false]),
];
/// What follows other state of the guest: OSXSAVE and APIC in leaf 1, OSPKE in
/// leaf 7.
const FOLLOWING: [(u32, [u32; 4]); 2] = [(1, [0, 0, 1 << 27, 1 << 9]), (7, [0, 0, 1 << 4, 0])];

fn check_features(
    vcpu: u32,
    saved: &[kvm_cpuid_entry2],
    host: &[kvm_cpuid_entry2],
) -> Result<(), VcpuStateError> {
    const NAMES: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];
    let registers = |entry: &kvm_cpuid_entry2| [entry.eax, entry.ebx, entry.ecx, entry.edx];
    for entry in saved {
        let Some((_, counts)) = FEATURES.iter().find(|(leaf, _)| *leaf == entry.function) else {
            continue;
        };
        let here = host
            .iter()
            .find(|here| (here.function, here.index) == (entry.function, entry.index))
            .map_or([0; 4], registers);
        let following = FOLLOWING.iter().find(|(leaf, _)| *leaf == entry.function);
        let ignored = following.map_or([0; 4], |(_, bits)| *bits);
        for index in 0..4 {
            let bits = registers(entry)[index] & !here[index] & !ignored[index];
            if counts[index] && bits != 0 {
                return Err(VcpuStateError::Features {
                    vcpu,
                    leaf: entry.function,
                    subleaf: entry.index,
                    register: NAMES[index],
                    bits,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_of_time_and_of_other_hypervisors_stay_behind() {
        for index in [0x10, 0x11, 0x12, 0x6e0, 0x4000_0000, 0x4000_0080, 0x4b56_4d01] {
            assert!(!is_saved(index), "{index:#x}");
        }
        for index in [0x1b, 0x3b, 0x174, 0x277, 0x2ff, 0xc000_0080, 0xc000_0103] {
            assert!(is_saved(index), "{index:#x}");
        }
    }

    #[test]
    fn features_that_are_missing_are_named() {
        let leaf =
            |function, index, ecx| kvm_cpuid_entry2 { function, index, ecx, ..Default::default() };
        let saved = [leaf(0, 0, 0xffff), leaf(1, 0, 1 << 27 | 6), leaf(7, 0, 8 | 1 << 4)];
        assert!(check_features(0, &saved, &[leaf(1, 0, 7), leaf(7, 0, 12)]).is_ok());
        let error = check_features(3, &saved, &[leaf(1, 0, 4), leaf(7, 0, 8)]).unwrap_err();
        assert!(error.to_string().contains("leaf 0x1/0 ECX bits 0x2"), "{error}");
        let error = check_features(3, &saved, &[leaf(1, 0, 6)]).unwrap_err();
        assert!(error.to_string().contains("leaf 0x7/0 ECX bits 0x8"), "{error}");
    }
}
