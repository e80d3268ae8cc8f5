//! What else a guest takes from `xen.h`: VIRQs, domain ids, VM assists, console I/O, multicalls and
//! the start info of PV guests. Hypercall numbers are in [`crate::hypercall`], the shared pages in
//! [`crate::arch_x86`].

numbers! {
    u32, Both {
        VIRQ_TIMER = 0 => "VIRQ_TIMER",
        VIRQ_DEBUG = 1 => "VIRQ_DEBUG",
        VIRQ_CONSOLE = 2 => "VIRQ_CONSOLE",
        VIRQ_DOM_EXC = 3 => "VIRQ_DOM_EXC",
        VIRQ_TBUF = 4 => "VIRQ_TBUF",
        VIRQ_DEBUGGER = 6 => "VIRQ_DEBUGGER",
        VIRQ_XENOPROF = 7 => "VIRQ_XENOPROF",
        VIRQ_CON_RING = 8 => "VIRQ_CON_RING",
        VIRQ_PCPU_STATE = 9 => "VIRQ_PCPU_STATE",
        VIRQ_MEM_EVENT = 10 => "VIRQ_MEM_EVENT",
        VIRQ_ARGO = 11 => "VIRQ_ARGO",
        VIRQ_ENOMEM = 12 => "VIRQ_ENOMEM",
        VIRQ_XENPMU = 13 => "VIRQ_XENPMU",
        VIRQ_ARCH_0 = 16 => "VIRQ_ARCH_0",
        VIRQ_ARCH_1 = 17 => "VIRQ_ARCH_1",
        VIRQ_ARCH_2 = 18 => "VIRQ_ARCH_2",
        VIRQ_ARCH_3 = 19 => "VIRQ_ARCH_3",
        VIRQ_ARCH_4 = 20 => "VIRQ_ARCH_4",
        VIRQ_ARCH_5 = 21 => "VIRQ_ARCH_5",
        VIRQ_ARCH_6 = 22 => "VIRQ_ARCH_6",
        VIRQ_ARCH_7 = 23 => "VIRQ_ARCH_7",
        NR_VIRQS = 24 => "NR_VIRQS",

        CONSOLEIO_WRITE = 0 => "CONSOLEIO_write",
        CONSOLEIO_READ = 1 => "CONSOLEIO_read",

        VMASST_CMD_ENABLE = 0 => "VMASST_CMD_enable",
        VMASST_CMD_DISABLE = 1 => "VMASST_CMD_disable",
        VMASST_TYPE_4GB_SEGMENTS = 0 => "VMASST_TYPE_4gb_segments",
        VMASST_TYPE_4GB_SEGMENTS_NOTIFY = 1 => "VMASST_TYPE_4gb_segments_notify",
        VMASST_TYPE_WRITABLE_PAGETABLES = 2 => "VMASST_TYPE_writable_pagetables",
        VMASST_TYPE_PAE_EXTENDED_CR3 = 3 => "VMASST_TYPE_pae_extended_cr3",
        VMASST_TYPE_ARCHITECTURAL_IOPL = 4 => "VMASST_TYPE_architectural_iopl",
        /// Bit 63 of `state_entry_time` marks a runstate update.
        VMASST_TYPE_RUNSTATE_UPDATE_FLAG = 5 => "VMASST_TYPE_runstate_update_flag",
        VMASST_TYPE_M2P_STRICT = 32 => "VMASST_TYPE_m2p_strict",

        SIF_PRIVILEGED = 1 << 0 => "SIF_PRIVILEGED",
        SIF_INITDOMAIN = 1 << 1 => "SIF_INITDOMAIN",
        SIF_MULTIBOOT_MOD = 1 << 2 => "SIF_MULTIBOOT_MOD",
        SIF_MOD_START_PFN = 1 << 3 => "SIF_MOD_START_PFN",
        SIF_VIRT_P2M_4TOOLS = 1 << 4 => "SIF_VIRT_P2M_4TOOLS",
        SIF_PM_MASK = 0xff << 8 => "SIF_PM_MASK",
    }
    u16, Both {
        DOMID_FIRST_RESERVED = 0x7ff0 => "DOMID_FIRST_RESERVED",
        DOMID_SELF = 0x7ff0 => "DOMID_SELF",
        DOMID_IO = 0x7ff1 => "DOMID_IO",
        DOMID_XEN = 0x7ff2 => "DOMID_XEN",
        DOMID_COW = 0x7ff3 => "DOMID_COW",
        DOMID_INVALID = 0x7ff4 => "DOMID_INVALID",
        DOMID_IDLE = 0x7fff => "DOMID_IDLE",
        DOMID_MASK = 0x7fff => "DOMID_MASK",
    }
    usize, Both {
        MAX_GUEST_CMDLINE = 1024 => "MAX_GUEST_CMDLINE",
    }
}

structs! {
    /// One call of `HYPERVISOR_MULTICALL`.
    MulticallEntry, "struct multicall_entry", Only64, 64 {
        op: u64 = 0,
        result: u64 = 8,
        args: [u64; 6] = 16,
    }
    /// [`MulticallEntry`] of a 32-bit guest.
    MulticallEntry32, "struct multicall_entry", Only32, 32 {
        op: u32 = 0,
        result: u32 = 4,
        args: [u32; 6] = 8,
    }
    /// What a 64-bit PV guest finds at its entry; the console fields are those of a domU.
    StartInfo, "struct start_info", Only64, 1168 {
        magic: [u8; 32] = 0,
        nr_pages: u64 = 32,
        shared_info: u64 = 40,
        /// `SIF_*`.
        flags: u32 = 48,
        _pad: [u8; 4] = 52,
        store_mfn: u64 = 56,
        store_evtchn: u32 = 64,
        _pad1: [u8; 4] = 68,
        console_mfn: u64 = 72 "console.domU.mfn",
        console_evtchn: u32 = 80 "console.domU.evtchn",
        _pad2: [u8; 4] = 84,
        pt_base: u64 = 88,
        nr_pt_frames: u64 = 96,
        mfn_list: u64 = 104,
        mod_start: u64 = 112,
        mod_len: u64 = 120,
        cmd_line: [u8; MAX_GUEST_CMDLINE] = 128,
        first_p2m_pfn: u64 = 1152,
        nr_p2m_frames: u64 = 1160,
    }
    /// [`StartInfo`] of a 32-bit guest.
    StartInfo32, "struct start_info", Only32, 1112 {
        magic: [u8; 32] = 0,
        nr_pages: u32 = 32,
        shared_info: u32 = 36,
        flags: u32 = 40,
        store_mfn: u32 = 44,
        store_evtchn: u32 = 48,
        console_mfn: u32 = 52 "console.domU.mfn",
        console_evtchn: u32 = 56 "console.domU.evtchn",
        pt_base: u32 = 60,
        nr_pt_frames: u32 = 64,
        mfn_list: u32 = 68,
        mod_start: u32 = 72,
        mod_len: u32 = 76,
        cmd_line: [u8; MAX_GUEST_CMDLINE] = 80,
        first_p2m_pfn: u32 = 1104,
        nr_p2m_frames: u32 = 1108,
    }
}

module!("xen", "xen.h");
