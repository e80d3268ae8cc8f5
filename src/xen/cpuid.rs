//! Xen's CPUID leaves (`arch-x86/cpuid.h`), as Xen 4.17 gives them to an HVM
//! guest.

use xen_abi::cpuid::{
    XEN_CPUID_FIRST_LEAF, XEN_CPUID_LEAF_HVM, XEN_CPUID_LEAF_HYPERCALL, XEN_CPUID_LEAF_PV,
    XEN_CPUID_LEAF_SIGNATURE, XEN_CPUID_LEAF_TIME, XEN_CPUID_LEAF_VERSION,
    XEN_CPUID_MAX_NUM_LEAVES, XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX,
    XEN_CPUID_SIGNATURE_EDX, XEN_CPUID_TIME_RDTSCP, XEN_CPUID_TIME_SUBLEAF_HOST,
    XEN_CPUID_TIME_SUBLEAF_MODE, XEN_CPUID_TIME_SUBLEAF_SCALE, XEN_CPUID_TIME_TSC_RELIABLE,
    XEN_CPUID_TSC_MODE_DEFAULT, XEN_HVM_CPUID_DOMID_PRESENT, XEN_HVM_CPUID_IOMMU_MAPPINGS,
    XEN_HVM_CPUID_UPCALL_VECTOR, XEN_HVM_CPUID_VCPU_ID_PRESENT,
};
use xen_abi::handover::{
    HANDOVER_HYPERCALL, HANDOVER_VERSION, HANDOVER_VIRQ, XEN_CPUID_EXT_LEAF_HANDOVER,
    XEN_CPUID_EXT_OFFSET, XEN_CPUID_EXT_SIGNATURE_EBX, XEN_CPUID_EXT_SIGNATURE_ECX,
    XEN_CPUID_EXT_SIGNATURE_EDX,
};

use super::{DomainConfig, version};
use crate::clock::SystemTimeLine;

/// The MSR that places the hypercall page, of a domain without Hyper-V leaves.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;
/// The same of a domain whose Xen leaves lie above Hyper-V's.
pub const HYPERCALL_MSR_SHIFTED: u32 = 0x4000_0200;

/// One leaf or subleaf of a CPUID table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// Leaf, in EAX.
    pub function: u32,
    /// Subleaf, in ECX; of no meaning unless `significant_index`.
    pub index: u32,
    /// Result.
    pub eax: u32,
    /// Result.
    pub ebx: u32,
    /// Result.
    pub ecx: u32,
    /// Result.
    pub edx: u32,
    /// Whether the answer depends on ECX.
    pub significant_index: bool,
}

/// The leaves of `vcpu`, for its table.
///
/// `base` is 0x4000_0000, or a multiple of 0x100 above it where another
/// interface has the first place. `tsc_offset` is guest TSC less scaled host
/// TSC, modulo 2^64. The leaves of time describe `line`, which is the published
/// one; kernels up to 7.2 overwrite leaf 3's subleaf 1 ECX and EDX and subleaf 2
/// EAX with KVM's own idea of them.
#[must_use]
pub fn leaves(
    config: &DomainConfig,
    line: &SystemTimeLine,
    vcpu: u32,
    base: u32,
    tsc_offset: u64,
) -> Vec<CpuidEntry> {
    let leaf = |offset: u32| CpuidEntry { function: base + offset, ..CpuidEntry::default() };
    let time =
        |index: u32| CpuidEntry { index, significant_index: true, ..leaf(XEN_CPUID_LEAF_TIME) };
    let hypercall_msr =
        if base == XEN_CPUID_FIRST_LEAF { HYPERCALL_MSR } else { HYPERCALL_MSR_SHIFTED };
    let (offset_low, offset_high) = halves(tsc_offset);
    vec![
        CpuidEntry {
            eax: base + XEN_CPUID_MAX_NUM_LEAVES,
            ebx: XEN_CPUID_SIGNATURE_EBX,
            ecx: XEN_CPUID_SIGNATURE_ECX,
            edx: XEN_CPUID_SIGNATURE_EDX,
            ..leaf(XEN_CPUID_LEAF_SIGNATURE)
        },
        CpuidEntry { eax: version::number(config), ..leaf(XEN_CPUID_LEAF_VERSION) },
        // One hypercall page; the features are for PV guests.
        CpuidEntry { eax: 1, ebx: hypercall_msr, ..leaf(XEN_CPUID_LEAF_HYPERCALL) },
        CpuidEntry {
            eax: XEN_CPUID_TIME_TSC_RELIABLE | XEN_CPUID_TIME_RDTSCP,
            // In this mode Linux prefers the xen clocksource to its own tsc.
            ebx: XEN_CPUID_TSC_MODE_DEFAULT,
            ecx: u32::try_from(line.frequency().khz_floor()).unwrap_or(u32::MAX),
            edx: config.incarnation,
            ..time(XEN_CPUID_TIME_SUBLEAF_MODE)
        },
        CpuidEntry {
            eax: offset_low,
            ebx: offset_high,
            ecx: line.mul(),
            edx: i32::from(line.shift()).cast_unsigned(),
            ..time(XEN_CPUID_TIME_SUBLEAF_SCALE)
        },
        CpuidEntry { eax: config.host_tsc_khz, ..time(XEN_CPUID_TIME_SUBLEAF_HOST) },
        CpuidEntry {
            eax: hvm_features(config),
            ebx: vcpu,
            ecx: config.domain_id.into(),
            significant_index: true,
            ..leaf(XEN_CPUID_LEAF_HVM)
        },
        // Empty for HVM guests, but counted.
        CpuidEntry { significant_index: true, ..leaf(XEN_CPUID_LEAF_PV) },
        // Ours, beside Xen's: who does not look for them takes them for another
        // hypervisor's that it does not know.
        CpuidEntry {
            eax: base + XEN_CPUID_EXT_OFFSET + XEN_CPUID_EXT_LEAF_HANDOVER,
            ebx: XEN_CPUID_EXT_SIGNATURE_EBX,
            ecx: XEN_CPUID_EXT_SIGNATURE_ECX,
            edx: XEN_CPUID_EXT_SIGNATURE_EDX,
            ..leaf(XEN_CPUID_EXT_OFFSET)
        },
        CpuidEntry {
            eax: HANDOVER_VERSION,
            ebx: low(HANDOVER_HYPERCALL),
            ecx: HANDOVER_VIRQ,
            ..leaf(XEN_CPUID_EXT_OFFSET + XEN_CPUID_EXT_LEAF_HANDOVER)
        },
    ]
}

/// What leaf 4 offers. Not the 15-bit destination ids, which no KVM interrupt
/// path takes as Xen means them; not the virtualized APIC, which would be a
/// guess about the host.
fn hvm_features(config: &DomainConfig) -> u32 {
    let mut features =
        XEN_HVM_CPUID_IOMMU_MAPPINGS | XEN_HVM_CPUID_VCPU_ID_PRESENT | XEN_HVM_CPUID_DOMID_PRESENT;
    if config.upcall_vector {
        features |= XEN_HVM_CPUID_UPCALL_VECTOR;
    }
    features
}

const fn low(number: u64) -> u32 {
    halves(number).0
}

#[expect(clippy::cast_possible_truncation, reason = "split into its halves")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

#[cfg(test)]
mod tests;
