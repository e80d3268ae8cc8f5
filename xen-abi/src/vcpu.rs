//! Operations on one virtual CPU, its runstate and its timers (`vcpu.h`).
//!
//! Times are nanoseconds of Xen system time.

numbers! {
    u32, Both {
        VCPUOP_INITIALISE = 0 => "VCPUOP_initialise",
        VCPUOP_UP = 1 => "VCPUOP_up",
        VCPUOP_DOWN = 2 => "VCPUOP_down",
        VCPUOP_IS_UP = 3 => "VCPUOP_is_up",
        VCPUOP_GET_RUNSTATE_INFO = 4 => "VCPUOP_get_runstate_info",
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA = 5 => "VCPUOP_register_runstate_memory_area",
        VCPUOP_SET_PERIODIC_TIMER = 6 => "VCPUOP_set_periodic_timer",
        VCPUOP_STOP_PERIODIC_TIMER = 7 => "VCPUOP_stop_periodic_timer",
        VCPUOP_SET_SINGLESHOT_TIMER = 8 => "VCPUOP_set_singleshot_timer",
        VCPUOP_STOP_SINGLESHOT_TIMER = 9 => "VCPUOP_stop_singleshot_timer",
        VCPUOP_REGISTER_VCPU_INFO = 10 => "VCPUOP_register_vcpu_info",
        VCPUOP_SEND_NMI = 11 => "VCPUOP_send_nmi",
        VCPUOP_GET_PHYSID = 12 => "VCPUOP_get_physid",
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA = 13 => "VCPUOP_register_vcpu_time_memory_area",

        RUNSTATE_RUNNING = 0 => "RUNSTATE_running",
        RUNSTATE_RUNNABLE = 1 => "RUNSTATE_runnable",
        RUNSTATE_BLOCKED = 2 => "RUNSTATE_blocked",
        RUNSTATE_OFFLINE = 3 => "RUNSTATE_offline",

        /// Fail with ETIME when the timeout has already passed.
        VCPU_SSHOTTMR_FUTURE = 1 => "VCPU_SSHOTTMR_future",
    }
    u32, Unlisted {
        /// Since Xen 4.18; the area is a guest-physical address.
        VCPUOP_REGISTER_RUNSTATE_PHYS_AREA = 14 => "VCPUOP_register_runstate_phys_area",
        /// Since Xen 4.18; the area is a guest-physical address.
        VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA = 15 => "VCPUOP_register_vcpu_time_phys_area",
    }
    u64, Both {
        /// In `state_entry_time`: the record is being written (VM assist `runstate_update_flag`).
        XEN_RUNSTATE_UPDATE = 1 << 63 => "XEN_RUNSTATE_UPDATE",
    }
}

structs! {
    /// How long a vCPU has been in each state.
    VcpuRunstateInfo, "struct vcpu_runstate_info", Only64, 48 {
        state: u32 = 0,
        _pad: [u8; 4] = 4,
        /// System time of the last change of state; bit 63 is `XEN_RUNSTATE_UPDATE`.
        state_entry_time: u64 = 8,
        /// Nanoseconds spent in each state, by its number.
        time: [u64; 4] = 16,
    }
    /// [`VcpuRunstateInfo`] of a 32-bit guest.
    #[repr(packed(4))]
    VcpuRunstateInfo32, "struct vcpu_runstate_info", Only32, 44 {
        state: u32 = 0,
        state_entry_time: u64 = 4,
        time: [u64; 4] = 12,
    }
    /// `VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA` and, with a physical address, `…_PHYS_AREA`.
    VcpuRegisterRunstateMemoryArea, "struct vcpu_register_runstate_memory_area", Both, 8 {
        /// Guest-virtual address. A 32-bit guest that fills the union's handle sets the low 32 bits
        /// only.
        addr: u64 = 0 "addr.p",
    }
    /// `VCPUOP_SET_PERIODIC_TIMER`.
    VcpuSetPeriodicTimer, "struct vcpu_set_periodic_timer", Both, 8 {
        period_ns: u64 = 0,
    }
    /// `VCPUOP_SET_SINGLESHOT_TIMER`.
    VcpuSetSingleshotTimer, "struct vcpu_set_singleshot_timer", Only64, 16 {
        /// Absolute system time.
        timeout_abs_ns: u64 = 0,
        /// `VCPU_SSHOTTMR_*`.
        flags: u32 = 8,
        _pad: [u8; 4] = 12,
    }
    /// [`VcpuSetSingleshotTimer`] of a 32-bit guest.
    #[repr(packed(4))]
    VcpuSetSingleshotTimer32, "struct vcpu_set_singleshot_timer", Only32, 12 {
        timeout_abs_ns: u64 = 0,
        flags: u32 = 8,
    }
    /// `VCPUOP_REGISTER_VCPU_INFO`.
    VcpuRegisterVcpuInfo, "struct vcpu_register_vcpu_info", Both, 16 {
        /// Guest frame number.
        mfn: u64 = 0,
        /// In bytes within the frame.
        offset: u32 = 8,
        rsvd: u32 = 12,
    }
    /// `VCPUOP_GET_PHYSID`.
    VcpuGetPhysid, "struct vcpu_get_physid", Both, 8 {
        /// APIC id in the low, ACPI id in the high 32 bits.
        phys_id: u64 = 0,
    }
    /// `VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA` and, with a physical address, `…_PHYS_AREA`.
    VcpuRegisterTimeMemoryArea, "struct vcpu_register_time_memory_area", Both, 8 {
        /// Guest-virtual address. A 32-bit guest that fills the union's handle sets the low 32 bits
        /// only.
        addr: u64 = 0 "addr.p",
    }
}

module!("vcpu", "vcpu.h");
