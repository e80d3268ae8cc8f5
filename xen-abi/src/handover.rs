//! The handover: a guest gathers its vCPUs before it is moved, and updates its time before any of
//! them can look at it. This project's own, in no header of Xen's; `docs/handover.md` is its
//! specification.
//!
//! A guest finds it by CPUID: at the base of Xen's leaves + [`XEN_CPUID_EXT_OFFSET`], the signature
//! "kvm-xen-ext" with the largest leaf in EAX; at the next leaf the version in EAX (0: no handover),
//! the hypercall's number in EBX, the VIRQ's in ECX. A guest that looks for it there calls nothing
//! that another hypervisor takes otherwise.

numbers! {
    u32, Unlisted {
        /// From the base of Xen's leaves to the base of these.
        XEN_CPUID_EXT_OFFSET = 0x100 => "XEN_CPUID_EXT_OFFSET",
        /// EBX.
        XEN_CPUID_EXT_SIGNATURE_EBX = u32::from_le_bytes(*b"kvm-") => "kvm-",
        /// ECX.
        XEN_CPUID_EXT_SIGNATURE_ECX = u32::from_le_bytes(*b"xen-") => "xen-",
        /// EDX.
        XEN_CPUID_EXT_SIGNATURE_EDX = u32::from_le_bytes(*b"ext\0") => "ext",
        /// The leaf of the handover, after the base: EAX version, EBX hypercall, ECX VIRQ.
        XEN_CPUID_EXT_LEAF_HANDOVER = 1 => "extension leaf 1",

        /// "KXHO" in memory order.
        HANDOVER_MAGIC = u32::from_le_bytes(*b"KXHO") => "KXHO",
        HANDOVER_VERSION = 1 => "version",
        /// The VIRQ by which a guest is asked: `VIRQ_ARCH_7`, global.
        HANDOVER_VIRQ = crate::xen::VIRQ_ARCH_7 => "VIRQ_ARCH_7",

        /// Registers the page: frame number, version.
        HANDOVER_REGISTER = 0 => "HANDOVER_register",
        /// Gives it up.
        HANDOVER_UNREGISTER = 1 => "HANDOVER_unregister",
        /// All vCPUs are gathered: the ticket. The caller then waits for `go`.
        HANDOVER_READY = 2 => "HANDOVER_ready",
        /// All vCPUs run again; or, before `HANDOVER_READY`, the guest declines: the ticket.
        HANDOVER_DONE = 3 => "HANDOVER_done",
    }
    u64, Unlisted {
        /// The hypercall: `__HYPERVISOR_arch_7`.
        HANDOVER_HYPERCALL = crate::hypercall::HYPERVISOR_ARCH_7 => "__HYPERVISOR_arch_7",

        /// The guest was moved. Without, it is where it was: all deltas and errors are 0.
        HANDOVER_FLAG_MOVED = 1 << 0 => "HANDOVER_FLAG_moved",
        /// All its vCPUs were gathered, as far as it said so.
        HANDOVER_FLAG_GATHERED = 1 << 1 => "HANDOVER_FLAG_gathered",
        /// TSC and system time counted the time in which the guest did not run. Without, they stood
        /// still over it, and their errors are `HANDOVER_NO_BOUND`.
        HANDOVER_FLAG_COUNTED = 1 << 2 => "HANDOVER_FLAG_counted",
        /// `tai_delta_ns` holds. Without, one of the hosts does not know TAI: 0 and
        /// `HANDOVER_NO_BOUND`.
        HANDOVER_FLAG_TAI = 1 << 3 => "HANDOVER_FLAG_tai",
        /// An error that is not bounded.
        HANDOVER_NO_BOUND = u64::MAX => "HANDOVER_NO_BOUND",
    }
}

structs! {
    /// The start of the page; the rest of it is reserved, and 0.
    ///
    /// A delta is what a clock shows at the moment of the record less what it showed after the
    /// guest's last instruction before; its error is how far that may be from the time that passed.
    HandoverPage, "struct handover_page", Unlisted, 0x68 {
        magic: u32 = 0x00,
        /// Bytes of this structure.
        size: u32 = 0x04,
        version: u32 = 0x08,
        /// The ticket of the request that waits for an answer, 0 for none.
        request: u32 = 0x0c,
        /// The ticket of the last request whose vCPUs may go on.
        go: u32 = 0x10,
        /// Odd while what follows is written.
        seq_count: u32 = 0x14,
        /// `HANDOVER_FLAG_*`.
        flags: u64 = 0x18,
        /// Moves and restores of this guest so far, with and without a handover.
        move_count: u64 = 0x20,
        /// Guest TSC at the moment of the record.
        tsc_after: u64 = 0x28,
        /// In ticks.
        tsc_delta: i64 = 0x30,
        /// In ticks.
        tsc_error: u64 = 0x38,
        /// System time at `tsc_after`.
        system_time_after_ns: u64 = 0x40,
        system_time_delta_ns: i64 = 0x48,
        system_time_error_ns: u64 = 0x50,
        /// Negative where the new host's clock is behind the old one's.
        tai_delta_ns: i64 = 0x58,
        tai_error_ns: u64 = 0x60,
    }
}

module!("handover", "");
