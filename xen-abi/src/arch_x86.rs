//! The pages that guest and hypervisor share (`xen.h`, `arch-x86/xen.h`, `xen-x86_64.h` and
//! `xen-x86_32.h`): `shared_info`, `vcpu_info`, the clock of each vCPU and the wallclock.
//!
//! Clock protocol: `version` (or `wc_version`) is odd while the fields behind it are written; a
//! reader takes them when it read the same even number before and after. System time in ns is
//! `system_time + (((tsc - tsc_timestamp) << tsc_shift) × tsc_to_system_mul >> 32)`, a negative shift
//! going right. Wallclock plus system time is UTC.

numbers! {
    u8, Both {
        /// All vCPUs' clocks agree: readable from any of them.
        XEN_PVCLOCK_TSC_STABLE_BIT = 1 => "XEN_PVCLOCK_TSC_STABLE_BIT",
        /// Set by the host that stopped the guest, cleared by the guest.
        XEN_PVCLOCK_GUEST_STOPPED = 2 => "XEN_PVCLOCK_GUEST_STOPPED",
    }
    usize, Both {
        XEN_LEGACY_MAX_VCPUS = 32 => "XEN_LEGACY_MAX_VCPUS",
    }
    u16, Both {
        XEN_HVM_DEBUGCONS_IOPORT = 0xe9 => "XEN_HVM_DEBUGCONS_IOPORT",
    }
    usize, Only64 {
        /// Byte offset of the clock in `vcpu_info`.
        VCPU_INFO_TIME_OFFSET = 32 => "__builtin_offsetof(struct vcpu_info, time)",
        SHARED_INFO_WC_VERSION_OFFSET = 0xc00 => "__builtin_offsetof(struct shared_info, wc_version)",
        SHARED_INFO_WC_SEC_HI_OFFSET = 0xc0c => "__builtin_offsetof(struct shared_info, wc_sec_hi)",
    }
    usize, Only32 {
        SHARED_INFO32_WC_VERSION_OFFSET = 0x900 => "__builtin_offsetof(struct shared_info, wc_version)",
        SHARED_INFO32_WC_SEC_HI_OFFSET = 0x924 => "__builtin_offsetof(struct shared_info, arch.wc_sec_hi)",
    }
}

/// Bytes of a Xen page.
pub const XEN_PAGE_SIZE: usize = 4096;
/// Bits of an address within a Xen page.
pub const XEN_PAGE_SHIFT: u32 = 12;

structs! {
    /// One vCPU's clock; the same bytes for both widths.
    VcpuTimeInfo, "struct vcpu_time_info", Both, 32 {
        /// Odd during an update.
        version: u32 = 0,
        pad0: u32 = 4,
        /// Guest TSC at `system_time`.
        tsc_timestamp: u64 = 8,
        /// Nanoseconds.
        system_time: u64 = 16,
        /// Nanoseconds per shifted tick, as a fraction of 2^32.
        tsc_to_system_mul: u32 = 24,
        tsc_shift: i8 = 28,
        /// `XEN_PVCLOCK_*`.
        flags: u8 = 29,
        pad1: [u8; 2] = 30,
    }
    /// Architectural part of [`VcpuInfo`].
    ArchVcpuInfo, "struct arch_vcpu_info", Only64, 16 {
        cr2: u64 = 0,
        pad: u64 = 8,
    }
    /// Architectural part of [`VcpuInfo32`].
    ArchVcpuInfo32, "struct arch_vcpu_info", Only32, 24 {
        cr2: u32 = 0,
        pad: [u32; 5] = 4,
    }
    /// Event state and clock of one vCPU.
    VcpuInfo, "struct vcpu_info", Only64, 64 {
        evtchn_upcall_pending: u8 = 0,
        /// PV guests only; HVM guests leave it 0.
        evtchn_upcall_mask: u8 = 1,
        _pad: [u8; 6] = 2,
        /// One bit for each word of `evtchn_pending` that may hold an event.
        evtchn_pending_sel: u64 = 8,
        arch: ArchVcpuInfo = 16,
        time: VcpuTimeInfo = 32,
    }
    /// [`VcpuInfo`] of a 32-bit guest.
    VcpuInfo32, "struct vcpu_info", Only32, 64 {
        evtchn_upcall_pending: u8 = 0,
        evtchn_upcall_mask: u8 = 1,
        _pad: [u8; 2] = 2,
        evtchn_pending_sel: u32 = 4,
        arch: ArchVcpuInfo32 = 8,
        time: VcpuTimeInfo = 32,
    }
    /// Architectural part of [`SharedInfo`].
    ArchSharedInfo, "struct arch_shared_info", Only64, 48 {
        max_pfn: u64 = 0,
        pfn_to_mfn_frame_list_list: u64 = 8,
        nmi_reason: u64 = 16,
        p2m_cr3: u64 = 24,
        p2m_vaddr: u64 = 32,
        p2m_generation: u64 = 40,
    }
    /// Architectural part of [`SharedInfo32`].
    ArchSharedInfo32, "struct arch_shared_info", Only32, 28 {
        max_pfn: u32 = 0,
        pfn_to_mfn_frame_list_list: u32 = 4,
        nmi_reason: u32 = 8,
        p2m_cr3: u32 = 12,
        p2m_vaddr: u32 = 16,
        p2m_generation: u32 = 20,
        /// High 32 bits of the wallclock's seconds, far from the low ones.
        wc_sec_hi: u32 = 24,
    }
    /// The page that a guest maps with `XENMAPSPACE_SHARED_INFO`.
    SharedInfo, "struct shared_info", Only64, 3136 {
        vcpu_info: [VcpuInfo; 32] = 0,
        evtchn_pending: [u64; 64] = 0x800,
        evtchn_mask: [u64; 64] = 0xa00,
        /// Odd during an update of the wallclock.
        wc_version: u32 = 0xc00,
        /// Low 32 bits of the UTC seconds at system time 0.
        wc_sec: u32 = 0xc04,
        wc_nsec: u32 = 0xc08,
        wc_sec_hi: u32 = 0xc0c,
        arch: ArchSharedInfo = 0xc10,
    }
    /// [`SharedInfo`] of a 32-bit guest.
    SharedInfo32, "struct shared_info", Only32, 2344 {
        vcpu_info: [VcpuInfo32; 32] = 0,
        evtchn_pending: [u32; 32] = 0x800,
        evtchn_mask: [u32; 32] = 0x880,
        wc_version: u32 = 0x900,
        wc_sec: u32 = 0x904,
        wc_nsec: u32 = 0x908,
        /// Ends with `wc_sec_hi`.
        arch: ArchSharedInfo32 = 0x90c,
    }
}

module!("arch_x86", "arch-x86/xen.h");
