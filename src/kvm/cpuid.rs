//! The CPUID of a vCPU: what KVM supports, one core per vCPU, Xen's leaves in
//! place of KVM's own.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use vmm_sys_util::errno::Error;

use crate::xen::cpuid::CpuidEntry;

const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;
const KVM_CPUID_FLAG_SIGNIFICANT_INDEX: u32 = 1;
const ECX_VMX: u32 = 1 << 5;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const ECX_SVM: u32 = 1 << 2;

/// Builds vCPU `id`'s leaves of `count`, with `xen` as its hypervisor leaves.
///
/// KVM's and Hyper-V's own leaves are left out: a guest that found them would
/// use their clocks, and each of those disturbs the masterclock.
///
/// # Errors
/// Where KVM can not say what it supports, or the leaves are too many.
pub fn guest_cpuid(kvm: &Kvm, id: u32, count: u32, xen: &[CpuidEntry]) -> Result<CpuId, Error> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !HYPERVISOR_LEAVES.contains(&entry.function))
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .collect();
    let most = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    entries.iter_mut().for_each(|entry| adjust(entry, id, count));
    if most >= 0xb {
        entries.extend(topology(id, count));
    }
    entries.extend(xen.iter().map(|leaf| kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.significant_index { KVM_CPUID_FLAG_SIGNIFICANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        padding: [0; 3],
    }));
    CpuId::from_entries(&entries).map_err(|_| Error::new(libc::E2BIG))
}

/// Bits that hold numbers from 0 to `count` - 1.
fn width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | (count & 0xff) << 16 | (id & 0xff) << 24;
            entry.ecx &= !ECX_VMX;
            entry.ecx |= ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE;
            entry.edx = if count > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
        }
        // Deterministic caches: every cache private, `count` cores.
        0x4 if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | (count - 1).min(63) << 26;
        }
        // The guest's performance counters would be the host's.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => entry.ecx &= !ECX_SVM,
        0x8000_0008 => entry.ecx = (count - 1).min(255) | width(count) << 12,
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD's extended APIC id: one thread per core, all on node 0.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id & 0xff, 0, 0),
        _ => {}
    }
}

/// Leaf 0xb: one thread per core, `count` cores in one package.
fn topology(id: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFICANT_INDEX,
        eax,
        ebx,
        ecx: index | kind << 8,
        edx: id,
        padding: [0; 3],
    };
    [level(0, 0, 1, 1), level(1, width(count), count, 2), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_ids_and_counts() {
        let mut entry = kvm_cpuid_entry2 { function: 1, ebx: 0xffff_1234, ..Default::default() };
        adjust(&mut entry, 3, 4);
        assert_eq!(entry.ebx, 0x0304_1234);
        assert_eq!(entry.edx & EDX_HTT, EDX_HTT);
        let mut entry = kvm_cpuid_entry2 { function: 0x8000_0008, ..Default::default() };
        adjust(&mut entry, 0, 3);
        assert_eq!(entry.ecx, 2 | 2 << 12);
    }

    #[test]
    fn topology_levels_end() {
        let [thread, core, end] = topology(5, 6);
        assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, 5));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, 5));
        assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
    }

    #[test]
    fn one_cpu_needs_no_bits() {
        assert_eq!(width(1), 0);
        assert_eq!(width(2), 1);
        assert_eq!(width(3), 2);
    }
}
