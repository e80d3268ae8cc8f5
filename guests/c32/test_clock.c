/* The clock by a 32-bit guest's arithmetic, on both vCPUs at once, and a
 * multicall in the 32-bit layout. */
#include "c32.h"

_Static_assert(sizeof(struct multicall_entry) == 32, "multicall entries of 32-bit guests");

static uint64_t latest;
static struct line first[2];
static volatile uint32_t reads[2], backward[2], cross[2], rewrites[2], wrong[2];
static uint64_t duration;

static uint64_t load(uint64_t *at) {
    return __sync_val_compare_and_swap(at, 0, 0);
}

static void at_least(uint64_t *at, uint64_t value) {
    uint64_t old = load(at);
    while (old < value) {
        uint64_t seen = __sync_val_compare_and_swap(at, old, value);
        if (seen == old) {
            break;
        }
        old = seen;
    }
}

/* HVMOP_get_time is Xen's own reading of the same line, between two of ours. */
static void against_xen(int cpu) {
    struct xen_hvm_get_time time = {0};
    struct line line = read_line(&infos[cpu]->time);
    uint64_t before = line_at(&line, rdtsc());
    if (call3(__HYPERVISOR_hvm_op, HVMOP_get_time, &time, 0) != 0) {
        wrong[cpu]++;
        return;
    }
    uint64_t after = line_at(&line, rdtsc());
    if (time.now < before || time.now > after) {
        wrong[cpu]++;
    }
}

static void read_clock(int cpu) {
    first[cpu] = read_line(&infos[cpu]->time);
    uint64_t start = rdtsc(), previous = 0, tsc;
    do {
        uint64_t others = load(&latest);
        struct line line = read_line(&infos[cpu]->time);
        tsc = rdtsc();
        uint64_t now = line_at(&line, tsc);
        cross[cpu] += now < others;
        backward[cpu] += now < previous;
        rewrites[cpu] += line.version != first[cpu].version;
        wrong[cpu] += now != line_at(&first[cpu], tsc);
        previous = now;
        at_least(&latest, now);
        if (reads[cpu]++ % 256 == 0) {
            against_xen(cpu);
        }
    } while (tsc - start < duration);
}

static void register_own(int cpu) {
    if (infos[cpu] == own_info(cpu)) {
        return;
    }
    struct vcpu_register_vcpu_info info = {.mfn = (uint32_t)own_info(cpu) >> 12,
                                           .offset = (uint32_t)own_info(cpu) % PAGE};
    if (call3(__HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, cpu, &info) == 0) {
        infos[cpu] = own_info(cpu);
    }
}

void test_clock(void) {
    uint32_t leaf[4];
    cpuid(xen_leaf + 3, 0, leaf);
    uint32_t khz = leaf[2];
    duration = (uint64_t)khz * (has_word("long") ? 5000 : 500);
    int running = start_second_cpu() ? 2 : 1;
    equal("vCPUs", running, cpus());
    run_on_both(register_own);
    for (int cpu = 0; cpu < running; cpu++) {
        holds("registered", infos[cpu] == own_info(cpu), cpu);
    }
    run_on_both(read_clock);
    for (int cpu = 0; cpu < running; cpu++) {
        holds("reads", reads[cpu] > 10, reads[cpu]);
        equal("backward", backward[cpu], 0);
        equal("behind the other vCPU", cross[cpu], 0);
        equal("pages rewritten", rewrites[cpu], 0);
        equal("readings off the line, or not Xen's", wrong[cpu], 0);
    }
    if (running == 2) {
        holds("one line for both", first[0].tsc == first[1].tsc && first[0].ns == first[1].ns &&
              first[0].mul == first[1].mul && first[0].shift == first[1].shift, 0);
    }
    /* 1000 s of ticks by the kHz that CPUID states, against the page. */
    uint64_t at = line_at(&first[0], first[0].tsc + (uint64_t)khz * 1000000) - first[0].ns;
    int64_t off = (int64_t)(at - 1000000000000ull);
    holds("within 2 ppm of CPUID's frequency", off < 2000000 && off > -2000000, off);
    struct line line = read_line(&infos[0]->time);
    equal("TSC_STABLE", line.flags & 1, 1);
    print("KVMXEN guest32-clock cpus=");
    print_number(running);
    print(" reads=");
    print_number((int64_t)reads[0] + reads[1]);
    print(" mul=");
    print_number(line.mul);
    print(" shift=");
    print_number(line.shift);
    print(" tsc_khz=");
    print_number(khz);
    print("\n");
    topic_end("clock");
}

void test_multicall(void) {
    struct xen_feature_info features = {0};
    struct multicall_entry list[4] = {
        {.op = __HYPERVISOR_xen_version, .result = 99, .args = {XENVER_version}},
        {.op = __HYPERVISOR_xen_version, .result = 99,
         .args = {XENVER_get_features, (uint32_t)&features}},
        {.op = __HYPERVISOR_multicall, .result = 99, .args = {(uint32_t)list, 1}},
        {.op = 63, .result = 99},
    };
    /* In the window: entries on both of its pages. */
    struct multicall_entry *at = (struct multicall_entry *)(window + PAGE - 80);
    memcpy(at, list, sizeof list);
    equal("multicall", call3(__HYPERVISOR_multicall, at, 3, 0), 0);
    equal("first", (int32_t)at[0].result, 4 << 16 | 17);
    equal("second", (int32_t)at[1].result, 0);
    holds("its features", features.submap != 0, features.submap);
    equal("a list in a list", (int32_t)at[2].result, -EINVAL);
    equal("no fourth", (int32_t)at[3].result, 99);
    equal("none", call3(__HYPERVISOR_multicall, at, 0, 0), 0);
    equal("a bad address", call3(__HYPERVISOR_multicall, hole, 1, 0), -EFAULT);
    equal("an entry beyond the window",
          call3(__HYPERVISOR_multicall, hole - sizeof *at, 2, 0), -EFAULT);
    topic_end("multicall");
}
