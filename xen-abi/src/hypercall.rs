//! Hypercall numbers, `__HYPERVISOR_*` (`xen.h`): what a guest puts in RAX or EAX.

numbers! {
    u64, Both {
        HYPERVISOR_SET_TRAP_TABLE = 0 => "__HYPERVISOR_set_trap_table",
        HYPERVISOR_MMU_UPDATE = 1 => "__HYPERVISOR_mmu_update",
        HYPERVISOR_SET_GDT = 2 => "__HYPERVISOR_set_gdt",
        HYPERVISOR_STACK_SWITCH = 3 => "__HYPERVISOR_stack_switch",
        HYPERVISOR_SET_CALLBACKS = 4 => "__HYPERVISOR_set_callbacks",
        HYPERVISOR_FPU_TASKSWITCH = 5 => "__HYPERVISOR_fpu_taskswitch",
        HYPERVISOR_SCHED_OP_COMPAT = 6 => "__HYPERVISOR_sched_op_compat",
        HYPERVISOR_PLATFORM_OP = 7 => "__HYPERVISOR_platform_op",
        HYPERVISOR_SET_DEBUGREG = 8 => "__HYPERVISOR_set_debugreg",
        HYPERVISOR_GET_DEBUGREG = 9 => "__HYPERVISOR_get_debugreg",
        HYPERVISOR_UPDATE_DESCRIPTOR = 10 => "__HYPERVISOR_update_descriptor",
        HYPERVISOR_MEMORY_OP = 12 => "__HYPERVISOR_memory_op",
        HYPERVISOR_MULTICALL = 13 => "__HYPERVISOR_multicall",
        HYPERVISOR_UPDATE_VA_MAPPING = 14 => "__HYPERVISOR_update_va_mapping",
        HYPERVISOR_SET_TIMER_OP = 15 => "__HYPERVISOR_set_timer_op",
        HYPERVISOR_EVENT_CHANNEL_OP_COMPAT = 16 => "__HYPERVISOR_event_channel_op_compat",
        HYPERVISOR_XEN_VERSION = 17 => "__HYPERVISOR_xen_version",
        HYPERVISOR_CONSOLE_IO = 18 => "__HYPERVISOR_console_io",
        HYPERVISOR_PHYSDEV_OP_COMPAT = 19 => "__HYPERVISOR_physdev_op_compat",
        HYPERVISOR_GRANT_TABLE_OP = 20 => "__HYPERVISOR_grant_table_op",
        HYPERVISOR_VM_ASSIST = 21 => "__HYPERVISOR_vm_assist",
        HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN = 22 => "__HYPERVISOR_update_va_mapping_otherdomain",
        HYPERVISOR_IRET = 23 => "__HYPERVISOR_iret",
        HYPERVISOR_VCPU_OP = 24 => "__HYPERVISOR_vcpu_op",
        HYPERVISOR_SET_SEGMENT_BASE = 25 => "__HYPERVISOR_set_segment_base",
        HYPERVISOR_MMUEXT_OP = 26 => "__HYPERVISOR_mmuext_op",
        HYPERVISOR_XSM_OP = 27 => "__HYPERVISOR_xsm_op",
        HYPERVISOR_NMI_OP = 28 => "__HYPERVISOR_nmi_op",
        HYPERVISOR_SCHED_OP = 29 => "__HYPERVISOR_sched_op",
        HYPERVISOR_CALLBACK_OP = 30 => "__HYPERVISOR_callback_op",
        HYPERVISOR_XENOPROF_OP = 31 => "__HYPERVISOR_xenoprof_op",
        HYPERVISOR_EVENT_CHANNEL_OP = 32 => "__HYPERVISOR_event_channel_op",
        HYPERVISOR_PHYSDEV_OP = 33 => "__HYPERVISOR_physdev_op",
        HYPERVISOR_HVM_OP = 34 => "__HYPERVISOR_hvm_op",
        HYPERVISOR_SYSCTL = 35 => "__HYPERVISOR_sysctl",
        HYPERVISOR_DOMCTL = 36 => "__HYPERVISOR_domctl",
        HYPERVISOR_KEXEC_OP = 37 => "__HYPERVISOR_kexec_op",
        HYPERVISOR_TMEM_OP = 38 => "__HYPERVISOR_tmem_op",
        HYPERVISOR_ARGO_OP = 39 => "__HYPERVISOR_argo_op",
        HYPERVISOR_XENPMU_OP = 40 => "__HYPERVISOR_xenpmu_op",
        HYPERVISOR_DM_OP = 41 => "__HYPERVISOR_dm_op",
        HYPERVISOR_HYPFS_OP = 42 => "__HYPERVISOR_hypfs_op",
        /// On x86: `__HYPERVISOR_mca`.
        HYPERVISOR_ARCH_0 = 48 => "__HYPERVISOR_arch_0",
        HYPERVISOR_ARCH_1 = 49 => "__HYPERVISOR_arch_1",
        HYPERVISOR_ARCH_2 = 50 => "__HYPERVISOR_arch_2",
        HYPERVISOR_ARCH_3 = 51 => "__HYPERVISOR_arch_3",
        HYPERVISOR_ARCH_4 = 52 => "__HYPERVISOR_arch_4",
        HYPERVISOR_ARCH_5 = 53 => "__HYPERVISOR_arch_5",
        HYPERVISOR_ARCH_6 = 54 => "__HYPERVISOR_arch_6",
        HYPERVISOR_ARCH_7 = 55 => "__HYPERVISOR_arch_7",
    }
}

/// Bytes of one stub in the hypercall page: hypercall `n` is called at `32 × n`.
pub const HYPERCALL_STUB_SIZE: usize = 32;

const STRUCTS: &[crate::layout::StructLayout] = &[];
module!("hypercall", "xen.h");
