//! `xen-abi` agrees with the crate `xen-sys`, which bindgen made from Xen 4.14's `xen.h`,
//! `event_channel.h`, `sched.h` and `elfnote.h` for 64-bit guests.

use std::mem::offset_of;

use xen_abi::layout::{MODULES, Width};

macro_rules! numbers {
    ($($name:ident,)*) => {
        &[$((stringify!($name), xen_sys::$name as i128),)*]
    };
}

/// Size, and the offset of each field.
macro_rules! layouts {
    ($($name:ident { $($($field:ident).+,)* })*) => {
        &[$((
            concat!("struct ", stringify!($name)),
            size_of::<xen_sys::$name>(),
            &[$((concat_path!($($field).+), offset_of!(xen_sys::$name, $($field).+)),)*],
        ),)*]
    };
}

macro_rules! concat_path {
    ($first:ident $(. $field:ident)*) => {
        concat!(stringify!($first) $(, ".", stringify!($field))*)
    };
}

const NUMBERS: &[(&str, i128)] = numbers![
    BIND_PIRQ__WILL_SHARE,
    CONSOLEIO_read,
    CONSOLEIO_write,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_LINK_BITS,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EVTCHN_FIFO_PRIORITY_MAX,
    EVTCHN_FIFO_PRIORITY_MIN,
    MAX_GUEST_CMDLINE,
    NR_VIRQS,
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    SHUTDOWN_MAX,
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
    SIF_INITDOMAIN,
    SIF_MOD_START_PFN,
    SIF_MULTIBOOT_MOD,
    SIF_PM_MASK,
    SIF_PRIVILEGED,
    SIF_VIRT_P2M_4TOOLS,
    VIRQ_ARCH_0,
    VIRQ_ARCH_1,
    VIRQ_ARCH_2,
    VIRQ_ARCH_3,
    VIRQ_ARCH_4,
    VIRQ_ARCH_5,
    VIRQ_ARCH_6,
    VIRQ_ARCH_7,
    VIRQ_ARGO,
    VIRQ_CONSOLE,
    VIRQ_CON_RING,
    VIRQ_DEBUG,
    VIRQ_DEBUGGER,
    VIRQ_DOM_EXC,
    VIRQ_ENOMEM,
    VIRQ_MEM_EVENT,
    VIRQ_PCPU_STATE,
    VIRQ_TBUF,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
    XEN_CPUID_NO_SUBLEAF,
    XEN_ELFNOTE_BSD_SYMTAB,
    XEN_ELFNOTE_CRASH_INFO,
    XEN_ELFNOTE_CRASH_REGS,
    XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION,
    XEN_ELFNOTE_DUMPCORE_HEADER,
    XEN_ELFNOTE_DUMPCORE_NONE,
    XEN_ELFNOTE_DUMPCORE_XEN_VERSION,
    XEN_ELFNOTE_ENTRY,
    XEN_ELFNOTE_FEATURES,
    XEN_ELFNOTE_GUEST_OS,
    XEN_ELFNOTE_GUEST_VERSION,
    XEN_ELFNOTE_HV_START_LOW,
    XEN_ELFNOTE_HYPERCALL_PAGE,
    XEN_ELFNOTE_INFO,
    XEN_ELFNOTE_INIT_P2M,
    XEN_ELFNOTE_L1_MFN_VALID,
    XEN_ELFNOTE_LOADER,
    XEN_ELFNOTE_MAX,
    XEN_ELFNOTE_MOD_START_PFN,
    XEN_ELFNOTE_PADDR_OFFSET,
    XEN_ELFNOTE_PAE_MODE,
    XEN_ELFNOTE_PHYS32_ENTRY,
    XEN_ELFNOTE_SUPPORTED_FEATURES,
    XEN_ELFNOTE_SUSPEND_CANCEL,
    XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION,
    XEN_HVM_DEBUGCONS_IOPORT,
    XEN_LEGACY_MAX_VCPUS,
    XEN_PVCLOCK_GUEST_STOPPED,
    XEN_PVCLOCK_TSC_STABLE_BIT,
    __HYPERVISOR_arch_0,
    __HYPERVISOR_arch_1,
    __HYPERVISOR_arch_2,
    __HYPERVISOR_arch_3,
    __HYPERVISOR_arch_4,
    __HYPERVISOR_arch_5,
    __HYPERVISOR_arch_6,
    __HYPERVISOR_arch_7,
    __HYPERVISOR_argo_op,
    __HYPERVISOR_callback_op,
    __HYPERVISOR_console_io,
    __HYPERVISOR_dm_op,
    __HYPERVISOR_domctl,
    __HYPERVISOR_event_channel_op,
    __HYPERVISOR_event_channel_op_compat,
    __HYPERVISOR_fpu_taskswitch,
    __HYPERVISOR_get_debugreg,
    __HYPERVISOR_grant_table_op,
    __HYPERVISOR_hvm_op,
    __HYPERVISOR_hypfs_op,
    __HYPERVISOR_iret,
    __HYPERVISOR_kexec_op,
    __HYPERVISOR_memory_op,
    __HYPERVISOR_mmu_update,
    __HYPERVISOR_mmuext_op,
    __HYPERVISOR_multicall,
    __HYPERVISOR_nmi_op,
    __HYPERVISOR_physdev_op,
    __HYPERVISOR_physdev_op_compat,
    __HYPERVISOR_platform_op,
    __HYPERVISOR_sched_op,
    __HYPERVISOR_sched_op_compat,
    __HYPERVISOR_set_callbacks,
    __HYPERVISOR_set_debugreg,
    __HYPERVISOR_set_gdt,
    __HYPERVISOR_set_segment_base,
    __HYPERVISOR_set_timer_op,
    __HYPERVISOR_set_trap_table,
    __HYPERVISOR_stack_switch,
    __HYPERVISOR_sysctl,
    __HYPERVISOR_tmem_op,
    __HYPERVISOR_update_descriptor,
    __HYPERVISOR_update_va_mapping,
    __HYPERVISOR_update_va_mapping_otherdomain,
    __HYPERVISOR_vcpu_op,
    __HYPERVISOR_vm_assist,
    __HYPERVISOR_xen_version,
    __HYPERVISOR_xenoprof_op,
    __HYPERVISOR_xenpmu_op,
    __HYPERVISOR_xsm_op,
];

/// C type, size, and C designator and offset of each field.
type Layout = (&'static str, usize, &'static [(&'static str, usize)]);

const LAYOUTS: &[Layout] = layouts! {
    vcpu_time_info {
        version, pad0, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift,
    }
    arch_vcpu_info { cr2, pad, }
    vcpu_info { evtchn_upcall_pending, evtchn_upcall_mask, evtchn_pending_sel, arch, time, }
    arch_shared_info {
        max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation,
    }
    shared_info {
        vcpu_info, evtchn_pending, evtchn_mask, wc_version, wc_sec, wc_nsec, wc_sec_hi, arch,
    }
    start_info {
        magic, nr_pages, shared_info, flags, store_mfn, store_evtchn, console.domU.mfn,
        console.domU.evtchn, pt_base, nr_pt_frames, mfn_list, mod_start, mod_len, cmd_line,
        first_p2m_pfn, nr_p2m_frames,
    }
    multicall_entry { op, result, args, }
    xen_cpuid_leaf { leaf, subleaf, a, b, c, d, }
    xen_msr_entry { idx, flags, val, }
    evtchn_alloc_unbound { dom, remote_dom, port, }
    evtchn_bind_interdomain { remote_dom, remote_port, local_port, }
    evtchn_bind_virq { virq, vcpu, port, }
    evtchn_bind_pirq { pirq, flags, port, }
    evtchn_bind_ipi { vcpu, port, }
    evtchn_close { port, }
    evtchn_send { port, }
    evtchn_status { dom, port, status, vcpu, u.virq, u.interdomain.port, }
    evtchn_bind_vcpu { port, vcpu, }
    evtchn_unmask { port, }
    evtchn_reset { dom, }
    evtchn_init_control { control_gfn, offset, vcpu, link_bits, }
    evtchn_expand_array { array_gfn, }
    evtchn_set_priority { port, priority, }
    evtchn_op { cmd, u, }
    evtchn_fifo_control_block { ready, _rsvd, head, }
    sched_shutdown { reason, }
    sched_poll { ports, nr_ports, timeout, }
    sched_remote_shutdown { domain_id, reason, }
    sched_watchdog { id, timeout, }
    sched_pin_override { pcpu, }
};

#[test]
fn numbers_agree_with_xen_sys() {
    for &(name, value) in NUMBERS {
        let ours = MODULES
            .iter()
            .flat_map(|module| module.numbers)
            .find(|number| number.c_expr == name && number.width != Width::Only32)
            .unwrap_or_else(|| panic!("xen-abi lacks {name}"));
        assert_eq!(ours.value, value, "{name}");
    }
}

#[test]
fn layouts_agree_with_xen_sys() {
    for &(c_type, size, fields) in LAYOUTS {
        let ours = MODULES
            .iter()
            .flat_map(|module| module.structs)
            .find(|layout| layout.c_type == c_type && layout.width != Width::Only32)
            .unwrap_or_else(|| panic!("xen-abi lacks {c_type}"));
        assert_eq!(ours.size, size, "{c_type}");
        for &(path, offset) in fields {
            let field = ours.fields.iter().find(|field| field.c_path == path);
            assert_eq!(field.map(|field| field.offset), Some(offset), "{c_type}.{path}");
        }
    }
}
