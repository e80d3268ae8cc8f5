//! Xen's CPUID leaves (`arch-x86/cpuid.h`).
//!
//! The base is 0x4000_0000, or a multiple of 0x100 above it where another interface holds the
//! first place. The header counts leaves from 1; here `XEN_CPUID_LEAF_*` is the offset from the base.

numbers! {
    u32, Both {
        XEN_CPUID_FIRST_LEAF = 0x4000_0000 => "XEN_CPUID_FIRST_LEAF",
        /// "XenV".
        XEN_CPUID_SIGNATURE_EBX = 0x566e_6558 => "XEN_CPUID_SIGNATURE_EBX",
        /// "MMXe".
        XEN_CPUID_SIGNATURE_ECX = 0x6558_4d4d => "XEN_CPUID_SIGNATURE_ECX",
        /// "nVMM".
        XEN_CPUID_SIGNATURE_EDX = 0x4d4d_566e => "XEN_CPUID_SIGNATURE_EDX",
        /// Leaf base + 2, ECX.
        XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 => "XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD",
        /// Leaf base + 4, EAX.
        XEN_HVM_CPUID_APIC_ACCESS_VIRT = 1 << 0 => "XEN_HVM_CPUID_APIC_ACCESS_VIRT",
        XEN_HVM_CPUID_X2APIC_VIRT = 1 << 1 => "XEN_HVM_CPUID_X2APIC_VIRT",
        XEN_HVM_CPUID_IOMMU_MAPPINGS = 1 << 2 => "XEN_HVM_CPUID_IOMMU_MAPPINGS",
        /// EBX holds the vCPU id.
        XEN_HVM_CPUID_VCPU_ID_PRESENT = 1 << 3 => "XEN_HVM_CPUID_VCPU_ID_PRESENT",
        /// ECX holds the domain id.
        XEN_HVM_CPUID_DOMID_PRESENT = 1 << 4 => "XEN_HVM_CPUID_DOMID_PRESENT",
        /// 15-bit destination ids in MSIs and IO-APIC entries.
        XEN_HVM_CPUID_EXT_DEST_ID = 1 << 5 => "XEN_HVM_CPUID_EXT_DEST_ID",
        /// `HVMOP_SET_EVTCHN_UPCALL_VECTOR` works together with PIRQs.
        XEN_HVM_CPUID_UPCALL_VECTOR = 1 << 6 => "XEN_HVM_CPUID_UPCALL_VECTOR",
        XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK = 0xff => "XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK",
        /// The largest offset from the base.
        XEN_CPUID_MAX_NUM_LEAVES = 5 => "XEN_CPUID_MAX_NUM_LEAVES",
        XEN_CPUID_NO_SUBLEAF = 0xffff_ffff => "XEN_CPUID_NO_SUBLEAF",
    }
    // Given in the header's comments only.
    u32, Unlisted {
        /// EAX: the largest leaf; EBX, ECX, EDX: the signature.
        XEN_CPUID_LEAF_SIGNATURE = 0 => "leaf 1",
        /// EAX: `major << 16 | minor`.
        XEN_CPUID_LEAF_VERSION = 1 => "leaf 2",
        /// EAX: hypercall pages; EBX: the MSR that places them; ECX, EDX: features.
        XEN_CPUID_LEAF_HYPERCALL = 2 => "leaf 3",
        /// Three sub-leaves about the TSC.
        XEN_CPUID_LEAF_TIME = 3 => "leaf 4",
        /// EAX: `XEN_HVM_CPUID_*`; EBX: vCPU id; ECX: domain id.
        XEN_CPUID_LEAF_HVM = 4 => "leaf 5",
        /// PV guests only.
        XEN_CPUID_LEAF_PV = 5 => "leaf 6",

        /// Time sub-leaf: EAX flags, EBX mode, ECX guest kHz, EDX incarnation.
        XEN_CPUID_TIME_SUBLEAF_MODE = 0 => "leaf 4, sub-leaf 0",
        /// Time sub-leaf: EAX, EBX offset low and high; ECX multiplier; EDX shift.
        XEN_CPUID_TIME_SUBLEAF_SCALE = 1 => "leaf 4, sub-leaf 1",
        /// Time sub-leaf: EAX host kHz.
        XEN_CPUID_TIME_SUBLEAF_HOST = 2 => "leaf 4, sub-leaf 2",
        /// Time sub-leaf 0, EAX: RDTSC is emulated.
        XEN_CPUID_TIME_TSC_EMULATED = 1 << 0 => "leaf 4, sub-leaf 0, EAX bit 0",
        /// Time sub-leaf 0, EAX: the host's TSC is reliable.
        XEN_CPUID_TIME_TSC_RELIABLE = 1 << 1 => "leaf 4, sub-leaf 0, EAX bit 1",
        /// Time sub-leaf 0, EAX: RDTSCP is there.
        XEN_CPUID_TIME_RDTSCP = 1 << 2 => "leaf 4, sub-leaf 0, EAX bit 2",
        /// Time sub-leaf 0, EBX: emulate if necessary.
        XEN_CPUID_TSC_MODE_DEFAULT = 0 => "leaf 4, sub-leaf 0, EBX 0",
        /// Time sub-leaf 0, EBX: always emulate.
        XEN_CPUID_TSC_MODE_ALWAYS_EMULATE = 1 => "leaf 4, sub-leaf 0, EBX 1",
        /// Time sub-leaf 0, EBX: never emulate. Linux 6.12 and later then prefer the TSC.
        XEN_CPUID_TSC_MODE_NEVER_EMULATE = 2 => "leaf 4, sub-leaf 0, EBX 2",
        /// Time sub-leaf 0, EBX: never emulate, and TSC_AUX works.
        XEN_CPUID_TSC_MODE_PVRDTSCP = 3 => "leaf 4, sub-leaf 0, EBX 3",
    }
}

structs! {
    /// One row of a CPUID table.
    CpuidLeaf, "struct xen_cpuid_leaf", Both, 24 {
        leaf: u32 = 0,
        /// `XEN_CPUID_NO_SUBLEAF` where the leaf has none.
        subleaf: u32 = 4,
        a: u32 = 8,
        b: u32 = 12,
        c: u32 = 16,
        d: u32 = 20,
    }
    /// One model-specific register.
    MsrEntry, "struct xen_msr_entry", Both, 16 {
        idx: u32 = 0,
        flags: u32 = 4,
        val: u64 = 8,
    }
}

module!("cpuid", "arch-x86/cpuid.h");
