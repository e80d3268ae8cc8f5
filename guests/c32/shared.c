/* The pages shared with Xen: shared_info, vcpu_info, clock pages, and the events
 * that come by upcall. All in the 32-bit layout. */
#include "c32.h"

_Static_assert(offsetof(struct shared_info, evtchn_pending) == 0x800, "pending bits");
_Static_assert(offsetof(struct shared_info, evtchn_mask) == 0x880, "mask bits");
_Static_assert(offsetof(struct shared_info, wc_version) == 0x900, "wallclock");
_Static_assert(offsetof(struct shared_info, arch.wc_sec_hi) == 0x924, "wallclock, high part");
_Static_assert(sizeof(struct vcpu_info) == 64, "vcpu_info");

static uint8_t page[PAGE] __attribute__((aligned(4096)));
static uint8_t info_page[2][PAGE] __attribute__((aligned(4096)));
struct shared_info *shared = (struct shared_info *)page;
/* Where each CPU's vcpu_info is; shared_info's slots until it is registered. */
struct vcpu_info *infos[2] = {(struct vcpu_info *)page, (struct vcpu_info *)page + 1};
volatile uint32_t event_count[1024];

long map_shared_info(void) {
    struct xen_add_to_physmap map = {
        .domid = DOMID_SELF,
        .space = XENMAPSPACE_shared_info,
        .gpfn = (uint32_t)page >> 12,
    };
    return CALL(__HYPERVISOR_memory_op, XENMEM_add_to_physmap, map);
}

struct vcpu_info *own_info(int cpu) {
    /* Aligned to 4 and not to 8, which is what 32-bit guests may do. */
    return (struct vcpu_info *)(info_page[cpu] + 0x104);
}

int pending(uint32_t port) {
    volatile uint32_t *word = (volatile uint32_t *)&shared->evtchn_pending[port / 32];
    return *word >> (port % 32) & 1;
}

void upcall(void) {
    struct vcpu_info *info = infos[cpu_index()];
    __atomic_exchange_n(&info->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    unsigned long words = __atomic_exchange_n(&info->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    while (words) {
        unsigned word = (unsigned)__builtin_ctzl(words);
        words &= words - 1;
        unsigned long bits = shared->evtchn_pending[word] & ~shared->evtchn_mask[word];
        __atomic_fetch_and(&shared->evtchn_pending[word], ~bits, __ATOMIC_SEQ_CST);
        while (bits) {
            unsigned port = word * 32 + (unsigned)__builtin_ctzl(bits);
            bits &= bits - 1;
            event_count[port]++;
        }
    }
}

struct line read_line(volatile struct vcpu_time_info *clock) {
    struct line line;
    do {
        line.version = clock->version;
        __asm__ volatile("" : : : "memory");
        line.tsc = clock->tsc_timestamp;
        line.ns = clock->system_time;
        line.mul = clock->tsc_to_system_mul;
        line.shift = clock->tsc_shift;
        line.flags = clock->flags;
        __asm__ volatile("" : : : "memory");
    } while ((line.version & 1) || line.version != clock->version);
    return line;
}

/* The formula of public xen.h, in 32-bit multiplications: (ticks * mul) >> 32. */
uint64_t line_at(const struct line *line, uint64_t tsc) {
    uint64_t ticks = tsc - line->tsc;
    ticks = line->shift < 0 ? ticks >> -line->shift : ticks << line->shift;
    uint64_t low = (uint64_t)(uint32_t)ticks * line->mul;
    uint64_t high = (uint64_t)(uint32_t)(ticks >> 32) * line->mul;
    return line->ns + high + (low >> 32);
}

uint64_t now_ns(int cpu) {
    struct line line = read_line(&infos[cpu]->time);
    return line_at(&line, rdtsc());
}

int wait_until(volatile uint32_t *word, uint32_t value, uint32_t ms) {
    uint64_t end = now_ns(0) + ms * 1000000ull;
    while (*word < value && now_ns(0) < end) {
        __asm__ volatile("sti; pause; nop; cli" : : : "memory");
    }
    return *word >= value;
}
