/* Width latching, xen_version, hvm_op, and what Xen refuses to such a guest. */
#include "c32.h"

#include <xen/arch-x86/hvm/start_info.h>

static uint32_t word(uint32_t offset) {
    return *(volatile uint32_t *)((uint8_t *)shared + offset);
}

static long set_param(uint16_t domid, uint32_t index, uint64_t value) {
    struct xen_hvm_param param = {.domid = domid, .index = index, .value = value};
    return CALL(__HYPERVISOR_hvm_op, HVMOP_set_param, param);
}

static long get_param(uint16_t domid, uint32_t index, uint64_t *value) {
    struct xen_hvm_param param = {.domid = domid, .index = index, .value = ~0ull};
    long answer = CALL(__HYPERVISOR_hvm_op, HVMOP_get_param, param);
    *value = param.value;
    return answer;
}

/* Xen takes the width of the shared structures from the caller's mode at two
 * moments: when it writes the hypercall page's MSR, and when it sets
 * HVM_PARAM_CALLBACK_IRQ. Mapping shared_info is none of them. */
void test_latching(void) {
    equal("map shared_info", map_shared_info(), 0);
    if (by_page) {
        holds("latched by the page: wallclock at 0x900", word(0x900) != 0, word(0x900));
        equal("latched by the page: nothing at 0xc00", word(0xc00), 0);
    } else {
        equal("not latched yet: nothing at 0x900", word(0x900), 0);
        holds("not latched yet: wallclock at 0xc00", word(0xc00) != 0, word(0xc00));
    }
    equal("set CALLBACK_IRQ", set_param(DOMID_SELF, HVM_PARAM_CALLBACK_IRQ, 0), 0);
    holds("latched: wallclock at 0x900", word(0x900) != 0, word(0x900));
    equal("an even version", word(0x900) & 1, 0);
    holds("seconds of this century", word(0x904) > 1700000000u, word(0x904));
    holds("nanoseconds", word(0x908) < 1000000000u, word(0x908));
    equal("seconds, high half", word(0x924), 0);
    topic_end("latching");
}

static long version(uint32_t op, void *argument) {
    return call3(__HYPERVISOR_xen_version, op, argument, 0);
}

void test_version(void) {
    static struct xen_compile_info compile;
    static xen_extraversion_t extra;
    static xen_capabilities_info_t capabilities;
    static xen_changeset_info_t changeset;
    static xen_commandline_t line;
    static uint8_t id[64];
    struct xen_platform_parameters platform[2] = {{.virt_start = 5}, {.virt_start = 7}};
    struct xen_feature_info features = {.submap_idx = 0};
    equal("XENVER_version", version(XENVER_version, 0), 4 << 16 | 17);
    equal("extraversion", CALL(__HYPERVISOR_xen_version, XENVER_extraversion, extra), 0);
    holds("it begins with a dot", extra[0] == '.' && extra[15] == 0, extra[0]);
    equal("compile_info", CALL(__HYPERVISOR_xen_version, XENVER_compile_info, compile), 0);
    holds("a compiler", compile.compiler[0] && compile.compile_date[0], 0);
    equal("capabilities",
          CALL(__HYPERVISOR_xen_version, XENVER_capabilities, capabilities), 0);
    holds("hvm-3.0-x86_32p is one", memcmp(capabilities + 15, "hvm-3.0-x86_32p ", 16) == 0, 0);
    equal("changeset", CALL(__HYPERVISOR_xen_version, XENVER_changeset, changeset), 0);
    equal("platform_parameters",
          call3(__HYPERVISOR_xen_version, XENVER_platform_parameters, platform, 0), 0);
    equal("virt_start", platform[0].virt_start, 0);
    equal("is of 32 bits", platform[1].virt_start, 7);
    equal("get_features", CALL(__HYPERVISOR_xen_version, XENVER_get_features, features), 0);
    const uint32_t wanted = 1 << XENFEAT_auto_translated_physmap |
        1 << XENFEAT_hvm_callback_vector | 1 << XENFEAT_hvm_safe_pvclock;
    equal("features", features.submap & wanted, wanted);
    features.submap_idx = 1;
    equal("get_features, submap 1",
          CALL(__HYPERVISOR_xen_version, XENVER_get_features, features), -EINVAL);
    equal("pagesize", version(XENVER_pagesize, 0), 4096);
    equal("pagesize with an argument", version(XENVER_pagesize, id), -EINVAL);
    equal("guest_handle", version(XENVER_guest_handle, id), 0);
    equal("16 bytes of it", id[16], 0);
    equal("a version 4 UUID", id[6] >> 4, 4);
    equal("commandline", version(XENVER_commandline, line), 0);
    equal("denied", memcmp(line, "<denied>", 9), 0);
    equal("build_id", version(XENVER_build_id, id), -EPERM);
    equal("unknown", version(11, id), -ENOSYS);
    equal("unknown, negative", version(~0u, id), -ENOSYS);
    for (uint32_t op = XENVER_extraversion; op <= XENVER_commandline; op++) {
        long want = op == XENVER_pagesize ? -EINVAL : -EFAULT;
        equal("an address where nothing is", version(op, hole), want);
    }
    topic_end("xen_version");
}

void test_hvm_op(void) {
    uint64_t value;
    equal("get CALLBACK_IRQ", get_param(DOMID_SELF, HVM_PARAM_CALLBACK_IRQ, &value), 0);
    equal("its value", (int64_t)value, 0);
    equal("by number", get_param(OWN_DOMAIN, HVM_PARAM_CALLBACK_IRQ, &value), 0);
    equal("of domain 0", get_param(0, HVM_PARAM_CALLBACK_IRQ, &value), -EPERM);
    equal("of no domain", get_param(OTHER_DOMAIN, HVM_PARAM_CALLBACK_IRQ, &value), -ESRCH);
    equal("no such param", get_param(DOMID_SELF, HVM_NR_PARAMS, &value), -EINVAL);
    equal("no such param of domain 0", get_param(0, HVM_NR_PARAMS, &value), -EINVAL);
    equal("an abandoned one", get_param(DOMID_SELF, 4 /* PAE_ENABLED */, &value), -EINVAL);
    equal("the toolstack's", get_param(DOMID_SELF, HVM_PARAM_IOREQ_PFN, &value), -EPERM);
    equal("STORE_PFN", get_param(DOMID_SELF, HVM_PARAM_STORE_PFN, &value), 0);
    equal("CONSOLE_PFN", get_param(DOMID_SELF, HVM_PARAM_CONSOLE_PFN, &value), 0);
    holds("CONSOLE_PFN", value >> 20 == 0 && value != 0, (int64_t)value);
    equal("set STORE_PFN", set_param(DOMID_SELF, HVM_PARAM_STORE_PFN, 1), -EPERM);
    equal("set ACPI ports", set_param(DOMID_SELF, HVM_PARAM_ACPI_IOPORTS_LOCATION, 1), -ENODEV);
    equal("set VM_GENERATION_ID_ADDR",
          set_param(DOMID_SELF, HVM_PARAM_VM_GENERATION_ID_ADDR, 0x123456789abcull), 0);
    get_param(DOMID_SELF, HVM_PARAM_VM_GENERATION_ID_ADDR, &value);
    equal("all 64 bits of it", (int64_t)value, 0x123456789abcll);
    equal("set_param, a bad address", call3(__HYPERVISOR_hvm_op, HVMOP_set_param, hole, 0), -EFAULT);

    struct xen_hvm_evtchn_upcall_vector vector = {.vcpu = 0, .vector = 0x0f};
    equal("upcall vector 0xf", CALL(__HYPERVISOR_hvm_op, HVMOP_set_evtchn_upcall_vector, vector),
          -EINVAL);
    vector = (struct xen_hvm_evtchn_upcall_vector){.vcpu = 99, .vector = UPCALL_VECTOR};
    equal("upcall vector of no vCPU",
          CALL(__HYPERVISOR_hvm_op, HVMOP_set_evtchn_upcall_vector, vector), -ENOENT);
    for (int vcpu = 0; vcpu < cpus(); vcpu++) {
        vector.vcpu = (uint32_t)vcpu;
        equal("upcall vector", CALL(__HYPERVISOR_hvm_op, HVMOP_set_evtchn_upcall_vector, vector), 0);
    }

    struct xen_hvm_get_time now = {0};
    equal("get_time", CALL(__HYPERVISOR_hvm_op, HVMOP_get_time, now), 0);
    struct xen_hvm_get_mem_type type = {.domid = DOMID_SELF, .pfn = 0x200};
    equal("get_mem_type", CALL(__HYPERVISOR_hvm_op, HVMOP_get_mem_type, type), 0);
    equal("RAM", type.mem_type, HVMMEM_ram_rw);
    type.pfn = 0xb0000;
    equal("get_mem_type, a hole", CALL(__HYPERVISOR_hvm_op, HVMOP_get_mem_type, type), 0);
    equal("no RAM", type.mem_type, HVMMEM_mmio_dm);
    type.domid = OTHER_DOMAIN;
    equal("get_mem_type, no domain", CALL(__HYPERVISOR_hvm_op, HVMOP_get_mem_type, type), -ESRCH);
    equal("flush_tlbs with an argument",
          call3(__HYPERVISOR_hvm_op, HVMOP_flush_tlbs, &type, 0), -EINVAL);
    long flushed = call3(__HYPERVISOR_hvm_op, HVMOP_flush_tlbs, 0, 0);
    holds("flush_tlbs: done, or not offered", flushed == 0 || flushed == -ENOSYS, flushed);
    struct xen_hvm_pagetable_dying dying = {.domid = DOMID_SELF};
    equal("pagetable_dying", CALL(__HYPERVISOR_hvm_op, HVMOP_pagetable_dying, dying), -EINVAL);
    struct xen_hvm_xentrace trace = {.event = 0x123, .extra_bytes = 7};
    equal("xentrace", CALL(__HYPERVISOR_hvm_op, HVMOP_xentrace, trace), 0);
    trace.event = 0x1000;
    equal("xentrace, 13 bits", CALL(__HYPERVISOR_hvm_op, HVMOP_xentrace, trace), -EINVAL);
    equal("guest_request_vm_event",
          call3(__HYPERVISOR_hvm_op, HVMOP_guest_request_vm_event, 0, 0), 0);
    equal("guest_request_vm_event with an argument",
          call3(__HYPERVISOR_hvm_op, HVMOP_guest_request_vm_event, &trace, 0), -EINVAL);
    equal("altp2m", call3(__HYPERVISOR_hvm_op, HVMOP_altp2m, &trace, 0), -EOPNOTSUPP);
    static const uint32_t unknown[] = {2, 3, 4, 6, 7, 8, 12, 13, 14, 16, 17, 22, 26, 1000};
    for (unsigned i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        equal("an unknown hvm_op", call3(__HYPERVISOR_hvm_op, unknown[i], &trace, 0), -ENOSYS);
    }
    topic_end("hvm_op");
}

void test_refused(void) {
    static uint32_t head[64];
    /* Interface versions of Xen 4.17: sysctl and domctl 0x15, platform_op. */
    static const struct { uint32_t number, version; } control[] = {
        {__HYPERVISOR_sysctl, 0x15},
        {__HYPERVISOR_domctl, 0x15},
        {__HYPERVISOR_platform_op, 0x03000001},
    };
    for (unsigned i = 0; i < 3; i++) {
        head[0] = 1;
        head[1] = 0;
        equal("another interface version", call3(control[i].number, head, 0, 0), -EACCES);
        head[1] = control[i].version;
        equal("a control domain's call", call3(control[i].number, head, 0, 0), -EPERM);
        equal("a control domain's call, bad address", call3(control[i].number, hole, 0, 0), -EFAULT);
    }
    equal("arch_1", call3(__HYPERVISOR_arch_1, head, 0, 0), -EOPNOTSUPP);
    equal("mmuext_op", call5(__HYPERVISOR_mmuext_op, (uint32_t)head, 1, 0, DOMID_SELF, 0), -EINVAL);
    equal("dm_op on itself", call3(__HYPERVISOR_dm_op, DOMID_SELF, 0, head), -ESRCH);
    equal("dm_op, three buffers", call3(__HYPERVISOR_dm_op, DOMID_SELF, 3, head), -E2BIG);
    equal("a handover of another version", call3(__HYPERVISOR_arch_7, 0, 1, 0), -EOPNOTSUPP);
    equal("a handover on no memory", call3(__HYPERVISOR_arch_7, 0, 0xfffff, 1), -EFAULT);
    equal("no handover", call3(__HYPERVISOR_arch_7, 9, 0, 0), -ENOSYS);
    equal("hypfs_op", call3(__HYPERVISOR_hypfs_op, 0, 0, 0), -EPERM);
    equal("xenpmu_op", call3(__HYPERVISOR_xenpmu_op, 0, head, 0), -EOPNOTSUPP);
    for (uint32_t op = 0; op < 34; op++) {
        equal("physdev_op without pirqs", call3(__HYPERVISOR_physdev_op, op, head, 0), -ENOSYS);
    }
    static const uint8_t none[] = {0,  1,  2,  3,  4,  5,  8,  9,  10, 11, 14, 16, 19, 22, 25, 27,
                                   28, 30, 31, 37, 38, 39, 43, 44, 47, 48, 50, 51, 56, 63, 127};
    for (unsigned i = 0; i < sizeof none; i++) {
        equal("a hypercall that HVM guests do not have", call3(none[i], 0, head, 0), -ENOSYS);
    }
    if (!by_page) {
        equal("number 128", call3(128, 0, 0, 0), -ENOSYS);
        equal("number 0x7fffffff", call3(0x7fffffff, 0, 0, 0), -ENOSYS);
    }
    static const char text[] = "KVMXEN a line by console_io\n";
    equal("console_io write", call3(__HYPERVISOR_console_io, CONSOLEIO_write, sizeof text - 1, text),
          0);
    equal("console_io write, bad address",
          call3(__HYPERVISOR_console_io, CONSOLEIO_write, 4, hole), -EFAULT);
    equal("console_io read", call3(__HYPERVISOR_console_io, CONSOLEIO_read, 4, head), -EPERM);
    equal("console_io 2", call3(__HYPERVISOR_console_io, 2, 4, head), -EPERM);
    equal("vm_assist, not for HVM", call3(__HYPERVISOR_vm_assist, VMASST_CMD_enable, 4, 0), -EINVAL);
    equal("vm_assist 33", call3(__HYPERVISOR_vm_assist, VMASST_CMD_enable, 33, 0), -EINVAL);
    equal("vm_assist, no such command",
          call3(__HYPERVISOR_vm_assist, 2, VMASST_TYPE_runstate_update_flag, 0), -ENOSYS);
    topic_end("refused");
}
