//! Operations on the platform of an HVM guest (`hvm/hvm_op.h`).

numbers! {
    u32, Both {
        HVMOP_SET_PARAM = 0 => "HVMOP_set_param",
        HVMOP_GET_PARAM = 1 => "HVMOP_get_param",
        HVMOP_FLUSH_TLBS = 5 => "HVMOP_flush_tlbs",
        HVMOP_PAGETABLE_DYING = 9 => "HVMOP_pagetable_dying",
        HVMOP_GET_TIME = 10 => "HVMOP_get_time",
        HVMOP_XENTRACE = 11 => "HVMOP_xentrace",
        HVMOP_SET_MEM_ACCESS = 12 => "HVMOP_set_mem_access",
        HVMOP_GET_MEM_ACCESS = 13 => "HVMOP_get_mem_access",
        HVMOP_GET_MEM_TYPE = 15 => "HVMOP_get_mem_type",
        HVMOP_SET_EVTCHN_UPCALL_VECTOR = 23 => "HVMOP_set_evtchn_upcall_vector",
        HVMOP_GUEST_REQUEST_VM_EVENT = 24 => "HVMOP_guest_request_vm_event",
        HVMOP_ALTP2M = 25 => "HVMOP_altp2m",

        HVMOP_ALTP2M_INTERFACE_VERSION = 1 => "HVMOP_ALTP2M_INTERFACE_VERSION",
        HVMOP_ALTP2M_GET_DOMAIN_STATE = 1 => "HVMOP_altp2m_get_domain_state",
        HVMOP_ALTP2M_SET_DOMAIN_STATE = 2 => "HVMOP_altp2m_set_domain_state",
        HVMOP_ALTP2M_VCPU_ENABLE_NOTIFY = 3 => "HVMOP_altp2m_vcpu_enable_notify",
        HVMOP_ALTP2M_CREATE_P2M = 4 => "HVMOP_altp2m_create_p2m",
        HVMOP_ALTP2M_DESTROY_P2M = 5 => "HVMOP_altp2m_destroy_p2m",
        HVMOP_ALTP2M_SWITCH_P2M = 6 => "HVMOP_altp2m_switch_p2m",
        HVMOP_ALTP2M_SET_MEM_ACCESS = 7 => "HVMOP_altp2m_set_mem_access",
        HVMOP_ALTP2M_CHANGE_GFN = 8 => "HVMOP_altp2m_change_gfn",
        HVMOP_ALTP2M_SET_MEM_ACCESS_MULTI = 9 => "HVMOP_altp2m_set_mem_access_multi",
        HVMOP_ALTP2M_SET_SUPPRESS_VE = 10 => "HVMOP_altp2m_set_suppress_ve",
        HVMOP_ALTP2M_GET_SUPPRESS_VE = 11 => "HVMOP_altp2m_get_suppress_ve",
        HVMOP_ALTP2M_GET_MEM_ACCESS = 12 => "HVMOP_altp2m_get_mem_access",
        HVMOP_ALTP2M_VCPU_DISABLE_NOTIFY = 13 => "HVMOP_altp2m_vcpu_disable_notify",
        HVMOP_ALTP2M_GET_P2M_IDX = 14 => "HVMOP_altp2m_get_p2m_idx",
        HVMOP_ALTP2M_SET_SUPPRESS_VE_MULTI = 15 => "HVMOP_altp2m_set_suppress_ve_multi",
        HVMOP_ALTP2M_SET_VISIBILITY = 16 => "HVMOP_altp2m_set_visibility",
    }
    u16, Both {
        HVMMEM_RAM_RW = 0 => "HVMMEM_ram_rw",
        HVMMEM_RAM_RO = 1 => "HVMMEM_ram_ro",
        HVMMEM_MMIO_DM = 2 => "HVMMEM_mmio_dm",
        HVMMEM_UNUSED = 3 => "HVMMEM_unused",
        HVMMEM_IOREQ_SERVER = 4 => "HVMMEM_ioreq_server",
    }
    // The device model's operations before Xen 4.9; a guest that calls them gets ENOSYS.
    u32, Unlisted {
        HVMOP_SET_PCI_INTX_LEVEL = 2 => "HVMOP_set_pci_intx_level",
        HVMOP_SET_ISA_IRQ_LEVEL = 3 => "HVMOP_set_isa_irq_level",
        HVMOP_SET_PCI_LINK_ROUTE = 4 => "HVMOP_set_pci_link_route",
        HVMOP_SET_MEM_TYPE = 8 => "HVMOP_set_mem_type",
    }
}

structs! {
    /// `HVMOP_SET_PARAM` and `HVMOP_GET_PARAM`.
    HvmParam, "struct xen_hvm_param", Both, 16 {
        domid: u16 = 0,
        pad: u16 = 2,
        /// `HVM_PARAM_*`.
        index: u32 = 4,
        value: u64 = 8,
    }
    /// `HVMOP_PAGETABLE_DYING`.
    HvmPagetableDying, "struct xen_hvm_pagetable_dying", Both, 16 {
        domid: u16 = 0,
        pad: [u16; 3] = 2,
        gpa: u64 = 8,
    }
    /// `HVMOP_GET_TIME`: system time in nanoseconds, out.
    HvmGetTime, "struct xen_hvm_get_time", Both, 8 {
        now: u64 = 0,
    }
    /// `HVMOP_XENTRACE`.
    HvmXentrace, "struct xen_hvm_xentrace", Both, 32 {
        event: u16 = 0,
        /// How many bytes of `extra` are in use.
        extra_bytes: u16 = 2,
        extra: [u8; 28] = 4,
    }
    /// `HVMOP_GET_MEM_TYPE`: `mem_type` out.
    HvmGetMemType, "struct xen_hvm_get_mem_type", Both, 16 {
        domid: u16 = 0,
        /// `HVMMEM_*`.
        mem_type: u16 = 2,
        pad: [u16; 2] = 4,
        pfn: u64 = 8,
    }
    /// `HVMOP_SET_EVTCHN_UPCALL_VECTOR`.
    HvmEvtchnUpcallVector, "struct xen_hvm_evtchn_upcall_vector", Both, 8 {
        vcpu: u32 = 0,
        /// From 0x10 up; 0 takes the vector away.
        vector: u8 = 4,
        _pad: [u8; 3] = 5,
    }
}

module!("hvm_op", "hvm/hvm_op.h");
