/* A 32-bit PVH guest that makes every hypercall in its 32-bit form, written
 * against Xen's C headers alone.
 *
 * Command line: paging=none|legacy|pae, calls=page|direct, cpus=2, long. */
#include "c32.h"

#include <xen/arch-x86/hvm/start_info.h>

void boot_main(const struct hvm_start_info *info);

void boot_main(const struct hvm_start_info *info) {
    if (info->magic == XEN_HVM_START_MAGIC_VALUE && info->cmdline_paddr) {
        const char *from = (const char *)(uint32_t)info->cmdline_paddr;
        for (unsigned i = 0; i + 1 < sizeof cmdline && from[i]; i++) {
            cmdline[i] = from[i];
        }
    }
    cpu_init();
    print("KVMXEN guest32 ");
    print(cmdline);
    print("\n");
    hypercalls_init();
    test_latching();
    test_version();
    test_hvm_op();
    test_memory();
    test_grants();
    test_refused();
    test_multicall();
    test_events();
    test_vcpu();
    test_timers();
    test_sched();
    test_clock();
    if (failures() == 0) {
        /* Last: it decides what the end means. */
        struct sched_shutdown code = {.reason = SHUTDOWN_poweroff};
        equal("shutdown_code", CALL(__HYPERVISOR_sched_op, SCHEDOP_shutdown_code, code), 0);
    }
    finish();
}
