//! What the mirrored headers have and `xen-abi` leaves out, each with the reason.

const PV: &str = "PV guests only: page tables, segments and traps through the hypervisor";
const ALTP2M: &str = "a guest is refused altp2m: the operation numbers suffice";
const PRIVILEGED: &str = "needs a privilege that no guest here has: the operation number suffices";
const OLD: &str = "an older interface's second name for a number that is there";
const C_ONLY: &str = "a device of the C language: types, member names, texts";
const ARM: &str = "not for x86";
const TRACE: &str = "trace buffers are shared with the tools, not with a guest";

const CONSTANTS: &[(&str, &str)] = &[
    ("FIRST_RESERVED_GDT_BYTE", PV),
    ("FIRST_RESERVED_GDT_ENTRY", PV),
    ("FIRST_RESERVED_GDT_PAGE", PV),
    ("GNTTABOP_error_msgs", C_ONLY),
    ("HVM_PARAM_CALLBACK_TYPE_PPI", ARM),
    ("HVM_PARAM_CALLBACK_TYPE_PPI_FLAG_LOW_LEVEL", ARM),
    ("HVM_PARAM_CALLBACK_TYPE_PPI_FLAG_MASK", ARM),
    ("MAX_VMASST_TYPE", OLD),
    ("NR_EVENT_CHANNELS", OLD),
    ("PHYSDEVOP_APIC_READ", OLD),
    ("PHYSDEVOP_APIC_WRITE", OLD),
    ("PHYSDEVOP_ASSIGN_VECTOR", OLD),
    ("PHYSDEVOP_FREE_VECTOR", OLD),
    ("PHYSDEVOP_IRQ_NEEDS_UNMASK_NOTIFY", OLD),
    ("PHYSDEVOP_IRQ_SHARED", OLD),
    ("PHYSDEVOP_IRQ_STATUS_QUERY", OLD),
    ("PHYSDEVOP_SET_IOBITMAP", OLD),
    ("PHYSDEVOP_SET_IOPL", OLD),
    ("PRI_xen_pfn", C_ONLY),
    ("PRI_xen_ulong", C_ONLY),
    ("PRIu_xen_pfn", C_ONLY),
    ("XENFEAT_grant_map_identity", "bit 12, taken back: stands in a comment"),
    ("XENMEM_add_to_physmap_range", OLD),
    ("XEN_CPUID", C_ONLY),
    ("XEN_EMULATE_PREFIX", C_ONLY),
    ("XEN_FLEX_ARRAY_DIM", C_ONLY),
    ("XEN_HAVE_PV_GUEST_ENTRY", PV),
    ("XEN_HAVE_PV_UPCALL_MASK", PV),
    ("XEN_NMIREASON_parity_error", OLD),
    ("_XEN_NMIREASON_parity_error", OLD),
    ("XS_DEBUG", OLD),
    ("__HYPERVISOR_dom0_op", OLD),
    ("console_evtchn", OLD),
    ("console_mfn", OLD),
    ("grant_entry_v1", OLD),
    ("grant_entry_v1_t", OLD),
    ("int64_aligned_t", C_ONLY),
    ("uint64_aligned_t", C_ONLY),
    ("xen_add_to_physmap_range", OLD),
    ("xen_vga_console_info", OLD),
    ("xen_vga_console_info_t", OLD),
    ("xen_wc_sec_hi", OLD),
];

const PREFIXES: &[(&str, &str)] = &[
    ("HVM_IOREQSRV_", PRIVILEGED),
    ("MMUEXT_", PV),
    ("MMU_", PV),
    ("UVMF_", PV),
    ("VGCF_", PV),
    ("_VGCF_", PV),
    ("XENMEM_FORK_", PRIVILEGED),
    ("XENMEM_SHARING_OP_", PRIVILEGED),
    ("XENMEM_access_", PRIVILEGED),
    ("XENMEM_paging_op_", PRIVILEGED),
    ("XENMEM_sharing_op_", PRIVILEGED),
    ("XEN_VGATYPE_", PRIVILEGED),
    ("XEN_X86_", PRIVILEGED),
    ("_XEN_X86_", PRIVILEGED),
    ("XS_WRITE_", C_ONLY),
];

const STRUCTURES: &[(&str, &str)] = &[
    ("struct cpu_user_regs", PV),
    ("struct dom0_vga_console_info", PRIVILEGED),
    ("struct iret_context", PV),
    ("struct mem_sharing_op_debug", PRIVILEGED),
    ("struct mem_sharing_op_fork", PRIVILEGED),
    ("struct mem_sharing_op_nominate", PRIVILEGED),
    ("struct mem_sharing_op_range", PRIVILEGED),
    ("struct mem_sharing_op_share", PRIVILEGED),
    ("struct mmu_update", PV),
    ("struct mmuext_op", PV),
    ("struct t_buf", TRACE),
    ("struct t_info", TRACE),
    ("struct t_rec", TRACE),
    ("struct trap_info", PV),
    ("struct vcpu_guest_context", PV),
    ("struct xen_arch_domainconfig", PRIVILEGED),
    ("struct xen_callback", "covered by its type name, xen_callback_t"),
    ("struct xen_hvm_altp2m_change_gfn", ALTP2M),
    ("struct xen_hvm_altp2m_domain_state", ALTP2M),
    ("struct xen_hvm_altp2m_get_vcpu_p2m_idx", ALTP2M),
    ("struct xen_hvm_altp2m_mem_access", ALTP2M),
    ("struct xen_hvm_altp2m_op", ALTP2M),
    ("struct xen_hvm_altp2m_set_mem_access_multi", ALTP2M),
    ("struct xen_hvm_altp2m_set_visibility", ALTP2M),
    ("struct xen_hvm_altp2m_suppress_ve", ALTP2M),
    ("struct xen_hvm_altp2m_suppress_ve_multi", ALTP2M),
    ("struct xen_hvm_altp2m_vcpu_disable_notify", ALTP2M),
    ("struct xen_hvm_altp2m_vcpu_enable_notify", ALTP2M),
    ("struct xen_hvm_altp2m_view", ALTP2M),
    ("struct xen_mem_access_op", PRIVILEGED),
    ("struct xen_mem_paging_op", PRIVILEGED),
    ("struct xen_mem_sharing_op", PRIVILEGED),
    ("struct xen_multiboot_mod_list", PV),
    ("struct xenctl_bitmap", PRIVILEGED),
    ("struct xsd_errors", C_ONLY),
    ("union xen_add_to_physmap_batch_extra", "the field foreign_domid of AddToPhysmapBatch"),
];

/// Why a constant or enumerator is left out; `None` when it should be there.
pub fn constant(name: &str) -> Option<&'static str> {
    let exact = CONSTANTS.iter().find(|(known, _)| *known == name);
    exact
        .or_else(|| PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)))
        .map(|(_, why)| *why)
}

/// Why a structure is left out, by its C type; `None` when it should be there.
pub fn structure(c_type: &str) -> Option<&'static str> {
    STRUCTURES.iter().find(|(known, _)| *known == c_type).map(|(_, why)| *why)
}
