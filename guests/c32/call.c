/* Hypercalls of a 32-bit guest: number in EAX, arguments in EBX, ECX, EDX, ESI,
 * EDI, the answer in EAX, everything else untouched. */
#include "c32.h"

#include <xen/arch-x86/cpuid.h>

uint32_t xen_leaf;
int by_page;
static uint8_t page[PAGE] __attribute__((aligned(4096)));
static int vmmcall;

/* How many calls came back with a register changed that is not EAX. */
static unsigned disturbed;

static uint32_t enter(uint32_t number, uint32_t regs[5]) {
    uint32_t answer = by_page ? (uint32_t)page + number * 32 : number;
    uint32_t *b = &regs[0], *c = &regs[1], *d = &regs[2], *s = &regs[3], *t = &regs[4];
#define ENTER(instruction)                                                            \
    __asm__ volatile(instruction : "+a"(answer), "+b"(*b), "+c"(*c), "+d"(*d), "+S"(*s), \
                     "+D"(*t) : : "memory", "cc")
    if (by_page) {
        ENTER("call *%%eax");
    } else if (vmmcall) {
        ENTER("vmmcall");
    } else {
        ENTER("vmcall");
    }
    return answer;
}

long call5(uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e) {
    uint32_t regs[5] = {a, b, c, d, e};
    const uint32_t before[5] = {a, b, c, d, e};
    uint32_t answer = enter(number, regs);
    if (memcmp(regs, before, sizeof regs) != 0 && disturbed++ == 0) {
        print("KVMXEN failed registers changed by hypercall ");
        print_number(number);
        print("\n");
        holds("registers", 0, number);
    }
    return (long)answer;
}

static void *place(void *argument, size_t size) {
    static unsigned turn;
    switch (turn++ % 3) {
    case 0:
        return argument;
    case 1:
        return alias(argument);
    default:
        /* Half here, half in a page whose frame is somewhere else. */
        return window + PAGE - (size / 2 & ~3u);
    }
}

static long at_place(uint32_t number, uint32_t a, uint32_t b, int third, void *argument,
                     size_t size, uint32_t last) {
    void *where = place(argument, size);
    if (where != argument) {
        memcpy(where, argument, size);
    }
    uint32_t pointer = (uint32_t)where;
    long answer = third ? call5(number, a, b, pointer, 0, 0) : call5(number, a, pointer, last, 0, 0);
    if (where != argument) {
        memcpy(argument, where, size);
    }
    return answer;
}

long call_with(uint32_t number, uint32_t op, void *argument, size_t size) {
    return at_place(number, op, 0, 0, argument, size, 0);
}

long vcpu_call(uint32_t op, uint32_t vcpu, void *argument, size_t size) {
    return at_place(__HYPERVISOR_vcpu_op, op, vcpu, 1, argument, size, 0);
}

long grant_call(uint32_t op, void *argument, size_t size, uint32_t count) {
    return at_place(__HYPERVISOR_grant_table_op, op, 0, 0, argument, size, count);
}

void hypercalls_init(void) {
    uint32_t out[4];
    for (uint32_t leaf = 0x40000000; leaf < 0x40010000; leaf += 0x100) {
        cpuid(leaf, 0, out);
        if (out[1] == XEN_CPUID_SIGNATURE_EBX && out[2] == XEN_CPUID_SIGNATURE_ECX &&
            out[3] == XEN_CPUID_SIGNATURE_EDX) {
            xen_leaf = leaf;
            break;
        }
    }
    if (!xen_leaf) {
        crash("no Xen signature in CPUID");
    }
    by_page = !has_word("calls=direct");
    cpuid(0, 0, out);
    vmmcall = out[1] == 0x68747541 || out[1] == 0x6f677948; /* Auth…, Hygo… */
    cpuid(xen_leaf + 2, 0, out);
    equal("hypercall pages", out[0], 1);
    if (by_page) {
        /* Two things that Xen answers with #GP; then the page itself. */
        equal("hypercall page, index 1", try_wrmsr(out[1], (uint32_t)page | 1), 0);
        equal("hypercall page, no RAM", try_wrmsr(out[1], 0xb0000000), 0);
        equal("hypercall page", try_wrmsr(out[1], (uint32_t)page), 1);
        equal("the stub begins with MOV EAX", page[17 * 32], 0xb8);
        equal("and loads its number", page[17 * 32 + 1], 17);
    }
}
