/* memory_op and grant_table_op, whose compat structures differ most. */
#include "c32.h"

#define MEM(op, argument) CALL(__HYPERVISOR_memory_op, op, argument)
#define FRAME(object) ((uint32_t)(object) >> 12)

static uint8_t spare[4][PAGE] __attribute__((aligned(4096)));

struct e820 {
    uint64_t address, size;
    uint32_t type;
} __attribute__((packed));

static void amounts(void) {
    struct e820 map[16];
    struct xen_memory_map request = {.nr_entries = 16};
    set_xen_guest_handle(request.buffer, (void *)map);
    equal("memory_map", MEM(XENMEM_memory_map, request), 0);
    holds("entries", request.nr_entries >= 3 && request.nr_entries < 16, request.nr_entries);
    uint64_t ram = 0;
    for (unsigned i = 0; i < request.nr_entries && i < 16; i++) {
        ram += map[i].type == 1 ? map[i].size : 0;
    }
    domid_t self = DOMID_SELF, other = OTHER_DOMAIN;
    long most = MEM(XENMEM_maximum_reservation, self);
    equal("maximum_reservation is the RAM of the map", most, (int64_t)(ram >> 12));
    holds("current_reservation", MEM(XENMEM_current_reservation, self) <= most, most);
    holds("maximum_gpfn", MEM(XENMEM_maximum_gpfn, self) > 0x200, 0);
    holds("maximum_ram_page", call3(__HYPERVISOR_memory_op, XENMEM_maximum_ram_page, 0, 0) > 0, 0);
    equal("of another domain", MEM(XENMEM_current_reservation, other), -ESRCH);
    request.nr_entries = 1;
    equal("memory_map, one entry", MEM(XENMEM_memory_map, request), 0);
    equal("one entry", request.nr_entries, 1);
    set_xen_guest_handle(request.buffer, (void *)hole);
    equal("memory_map, bad buffer", MEM(XENMEM_memory_map, request), -EFAULT);
    equal("memory_map, bad address",
          call3(__HYPERVISOR_memory_op, XENMEM_memory_map, hole, 0), -EFAULT);
}

static void balloon(void) {
    xen_pfn_t frames[3] = {FRAME(spare[0]), FRAME(spare[1]), 0};
    struct xen_memory_reservation request = {.nr_extents = 2, .domid = DOMID_SELF};
    domid_t self = DOMID_SELF;
    long before = MEM(XENMEM_current_reservation, self);
    set_xen_guest_handle(request.extent_start, frames);
    equal("decrease_reservation", MEM(XENMEM_decrease_reservation, request), 2);
    equal("two pages fewer", MEM(XENMEM_current_reservation, self), before - 2);
    equal("once more: nothing is there", MEM(XENMEM_decrease_reservation, request), 0);
    equal("populate_physmap", MEM(XENMEM_populate_physmap, request), 2);
    equal("as before", MEM(XENMEM_current_reservation, self), before);
    *(volatile uint32_t *)spare[0] = 0x600d;
    equal("it is memory again", *(volatile uint32_t *)spare[0], 0x600d);
    long room = MEM(XENMEM_maximum_reservation, self) - before;
    equal("increase_reservation, up to the most", MEM(XENMEM_increase_reservation, request),
          room < 2 ? room : 2);
    request.domid = OTHER_DOMAIN;
    equal("decrease of another domain", MEM(XENMEM_decrease_reservation, request), 0);
    struct xen_remove_from_physmap remove = {.domid = DOMID_SELF, .gpfn = FRAME(spare[2])};
    equal("remove_from_physmap", MEM(XENMEM_remove_from_physmap, remove), 0);
    equal("remove_from_physmap, again", MEM(XENMEM_remove_from_physmap, remove), -ENOENT);
    frames[0] = FRAME(spare[2]);
    request.nr_extents = 1;
    request.domid = DOMID_SELF;
    equal("populate it", MEM(XENMEM_populate_physmap, request), 1);
    remove.domid = OTHER_DOMAIN;
    equal("remove_from_physmap of another", MEM(XENMEM_remove_from_physmap, remove), -ESRCH);
}

static void physmap(void) {
    struct xen_add_to_physmap map = {.domid = DOMID_SELF, .space = XENMAPSPACE_shared_info, .idx = 1,
                                     .gpfn = FRAME(spare[3])};
    equal("shared_info, index 1", MEM(XENMEM_add_to_physmap, map), -EINVAL);
    map.idx = 0;
    map.domid = OTHER_DOMAIN;
    equal("shared_info of another", MEM(XENMEM_add_to_physmap, map), -ESRCH);
    map.domid = DOMID_SELF;
    map.space = XENMAPSPACE_gmfn_foreign;
    equal("a foreign frame", MEM(XENMEM_add_to_physmap, map), -ENOSYS);
    map.space = XENMAPSPACE_dev_mmio;
    equal("device memory", MEM(XENMEM_add_to_physmap, map), -EACCES);
    map.space = 99;
    equal("no such space", MEM(XENMEM_add_to_physmap, map), -EINVAL);
    map.space = XENMAPSPACE_grant_table;
    map.idx = 100000;
    equal("grant frame 100000", MEM(XENMEM_add_to_physmap, map), -EINVAL);
    map.idx = 0;
    equal("grant frame 0", MEM(XENMEM_add_to_physmap, map), 0);
    struct grant_entry_v1 *console = (struct grant_entry_v1 *)spare[3] + GNTTAB_RESERVED_CONSOLE;
    equal("the console's grant", console->flags & GTF_type_mask, GTF_permit_access);

    xen_ulong_t idxs[2] = {1, 0};
    xen_pfn_t frames[2] = {FRAME(spare[2]), FRAME(spare[1])};
    int errors[2] = {5, 5};
    struct xen_add_to_physmap_batch batch = {.domid = DOMID_SELF, .space = XENMAPSPACE_shared_info,
                                             .size = 1};
    set_xen_guest_handle(batch.idxs, idxs);
    set_xen_guest_handle(batch.gpfns, frames);
    set_xen_guest_handle(batch.errs, errors);
    equal("batch", MEM(XENMEM_add_to_physmap_batch, batch), 0);
    equal("its first error", errors[0], -EINVAL);
    equal("no second one", errors[1], 5);
    batch.space = XENMAPSPACE_gmfn_range;
    equal("batch of ranges", MEM(XENMEM_add_to_physmap_batch, batch), -EOPNOTSUPP);
    batch.space = XENMAPSPACE_shared_info;
    set_xen_guest_handle(batch.errs, (int *)hole);
    equal("batch, bad errors", MEM(XENMEM_add_to_physmap_batch, batch), -EFAULT);
}

static void refused(void) {
    static uint32_t zero[32];
    static const struct { uint32_t op; long want; } cases[] = {
        {XENMEM_machphys_mfn_list, -ENOSYS},
        {XENMEM_machphys_compat_mfn_list, -ENOSYS},
        {XENMEM_machphys_mapping, -ENOSYS},
        {XENMEM_machine_memory_map, -ENOSYS},
        {8, -ENOSYS},
        {18 /* get_sharing_freed_pages */, 0},
        {19 /* get_sharing_shared_pages */, 0},
        {20 /* paging_op */, -ENOSYS},
        {21 /* access_op */, -EPERM},
        {22 /* sharing_op */, -ENOSYS},
        {24 /* claim_pages */, -EPERM},
        {27 /* reserved_device_memory_map */, 0},
        {XENMEM_acquire_resource, -EACCES},
        {29, -ENOSYS},
        {63, -ENOSYS},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        equal("memory_op refused", call3(__HYPERVISOR_memory_op, cases[i].op, zero, 0), cases[i].want);
    }
    struct xen_foreign_memory_map foreign = {.domid = DOMID_SELF};
    equal("set_memory_map", MEM(XENMEM_set_memory_map, foreign), -EPERM);
    struct xen_pod_target pod = {.domid = DOMID_SELF};
    equal("get_pod_target", MEM(XENMEM_get_pod_target, pod), -EPERM);
    equal("set_pod_target", MEM(XENMEM_set_pod_target, pod), -EPERM);
    struct xen_vnuma_topology_info vnuma = {.domid = DOMID_SELF};
    equal("get_vnumainfo", MEM(XENMEM_get_vnumainfo, vnuma), -EOPNOTSUPP);
    struct xen_memory_exchange exchange = {.in = {.nr_extents = 1, .domid = DOMID_SELF},
                                           .out = {.nr_extents = 1, .domid = DOMID_SELF},
                                           .nr_exchanged = 2};
    equal("exchange, more than all", MEM(XENMEM_exchange, exchange), -EINVAL);
    exchange.nr_exchanged = 1;
    equal("exchange, all done", MEM(XENMEM_exchange, exchange), 0);
    exchange.in.domid = OTHER_DOMAIN;
    equal("exchange between domains", MEM(XENMEM_exchange, exchange), -EINVAL);
    exchange.out.domid = OTHER_DOMAIN;
    equal("exchange of another domain", MEM(XENMEM_exchange, exchange), -ESRCH);
}

void test_memory(void) {
    amounts();
    balloon();
    physmap();
    refused();
    topic_end("memory_op");
}

static long copy(struct gnttab_copy *op) {
    long answer = grant_call(GNTTABOP_copy, op, sizeof *op, 1);
    equal("GNTTABOP_copy", answer, 0);
    return op->status;
}

void test_grants(void) {
    struct gnttab_query_size size = {.dom = DOMID_SELF};
    equal("query_size", grant_call(GNTTABOP_query_size, &size, sizeof size, 1), 0);
    equal("its status", size.status, GNTST_okay);
    holds("frames", size.nr_frames >= 1 && size.max_nr_frames >= size.nr_frames, size.nr_frames);
    size.dom = OTHER_DOMAIN;
    grant_call(GNTTABOP_query_size, &size, sizeof size, 1);
    equal("query_size of another", size.status, GNTST_bad_domain);
    equal("query_size, two", grant_call(GNTTABOP_query_size, &size, sizeof size, 2), -EINVAL);

    xen_pfn_t frames[4] = {1, 1, 1, 1};
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 2};
    set_xen_guest_handle(setup.frame_list, frames);
    equal("setup_table", grant_call(GNTTABOP_setup_table, &setup, sizeof setup, 1), 0);
    equal("its status", setup.status, GNTST_okay);
    equal("frame 0 is where it was mapped", frames[0], FRAME(spare[3]));
    equal("frame 1 is nowhere", frames[1], 0xffffffffu);
    equal("two of them", frames[2], 1);
    setup.nr_frames = 100000;
    grant_call(GNTTABOP_setup_table, &setup, sizeof setup, 1);
    equal("setup_table, too many", setup.status, GNTST_general_error);
    equal("setup_table, none", grant_call(GNTTABOP_setup_table, &setup, sizeof setup, 0), 0);

    struct gnttab_get_version version = {.dom = DOMID_SELF};
    equal("get_version", grant_call(GNTTABOP_get_version, &version, sizeof version, 1), 0);
    equal("version 1", version.version, 1);
    struct gnttab_set_version set = {.version = 3};
    equal("set_version 3", grant_call(GNTTABOP_set_version, &set, sizeof set, 1), -EINVAL);
    set.version = 1;
    equal("set_version 1", grant_call(GNTTABOP_set_version, &set, sizeof set, 1), 0);

    uint8_t *from = spare[0], *to = spare[1];
    memset(to, 0, PAGE);
    for (unsigned i = 0; i < PAGE; i++) {
        from[i] = (uint8_t)(i * 7);
    }
    struct gnttab_copy op = {.source = {.domid = DOMID_SELF, .offset = 100},
                             .dest = {.domid = DOMID_SELF, .offset = 200}, .len = 300};
    op.source.u.gmfn = FRAME(from);
    op.dest.u.gmfn = FRAME(to);
    equal("a copy", copy(&op), GNTST_okay);
    equal("its bytes", memcmp(to + 200, from + 100, 300), 0);
    equal("and no more", to[199] | to[500], 0);
    op.len = 4000;
    equal("a copy beyond the page", copy(&op), GNTST_bad_copy_arg);
    op.len = 1;
    op.dest.u.gmfn = 0xb0000;
    equal("a copy to no page", copy(&op), GNTST_bad_page);
    op.dest.domid = OTHER_DOMAIN;
    equal("a copy to another's page", copy(&op), GNTST_permission_denied);
    op.dest.domid = DOMID_SELF;
    op.dest.u.gmfn = FRAME(to);
    op.flags = GNTCOPY_source_gref;
    op.source.domid = OTHER_DOMAIN;
    equal("a copy by grant of no domain", copy(&op), GNTST_bad_domain);

    struct gnttab_map_grant_ref map = {.flags = GNTMAP_host_map, .dom = OTHER_DOMAIN};
    equal("map_grant_ref", grant_call(GNTTABOP_map_grant_ref, &map, sizeof map, 1), 0);
    equal("its status", map.status, GNTST_bad_domain);
    struct gnttab_unmap_grant_ref unmap = {.handle = 77};
    equal("unmap_grant_ref", grant_call(GNTTABOP_unmap_grant_ref, &unmap, sizeof unmap, 1), 0);
    equal("its status", unmap.status, GNTST_bad_handle);
    struct gnttab_swap_grant_ref swap = {.ref_a = GNTTAB_RESERVED_CONSOLE, .ref_b = 9};
    struct grant_entry_v1 *entries = (struct grant_entry_v1 *)spare[3];
    struct grant_entry_v1 console = entries[GNTTAB_RESERVED_CONSOLE];
    equal("swap_grant_ref", grant_call(GNTTABOP_swap_grant_ref, &swap, sizeof swap, 1), 0);
    equal("its status", swap.status, GNTST_okay);
    equal("swapped", memcmp(&entries[9], &console, sizeof console), 0);
    swap.ref_b = 1u << 30;
    grant_call(GNTTABOP_swap_grant_ref, &swap, sizeof swap, 1);
    equal("swap with no entry", swap.status, GNTST_bad_gntref);
    static const uint32_t refused[] = {GNTTABOP_dump_table, GNTTABOP_transfer,
                                       GNTTABOP_unmap_and_replace, GNTTABOP_cache_flush, 13, 4095};
    for (unsigned i = 0; i < sizeof refused / sizeof *refused; i++) {
        equal("grant_table_op that HVM guests lack", grant_call(refused[i], &map, sizeof map, 1),
              -ENOSYS);
    }
    equal("a bad address", call3(__HYPERVISOR_grant_table_op, GNTTABOP_query_size, hole, 1), -EFAULT);
    equal("a negative count",
          call3(__HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, hole, 0x80000000u), -EINVAL);
    topic_end("grant_table_op");
}
