/* Interrupt descriptors, paging in three kinds, the local APIC, a second CPU. */
#include "c32.h"

#define CR0_PG (1u << 31)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define PRESENT_WRITABLE 3u
#define UNCACHED 0x18u
#define LARGE 0x80u
/* Where the window lies where there is paging; no RAM of this guest is there. */
#define WINDOW 0x40000000u
/* Linear addresses from here on show RAM from 0 on once more. */
#define ALIAS 0x80000000u
#define ALIAS_SIZE 0x04000000u
#define APIC_MSR 0x1bu
#define TRAMPOLINE 0x8000u

uint8_t stacks[2][16384] __attribute__((aligned(4096)));
extern const uint8_t stubs[], ap_trampoline[], ap_trampoline_end[];

enum paging paging;
uint8_t *window, *hole;
static uint8_t window_frames[2][PAGE] __attribute__((aligned(4096)));
static uint32_t directory[1024] __attribute__((aligned(4096)));
static uint32_t table[1024] __attribute__((aligned(4096)));
/* One table of pointers for each CPU. QEMU marks them as accessed when it walks
 * them under nested paging; there the bit is reserved, and KVM, which looks at
 * them whenever it is asked to load them anew, answers with #GP. */
static uint64_t pointers[2][4] __attribute__((aligned(32)));
static uint64_t directories[4][512] __attribute__((aligned(4096)));
static uint64_t long_table[512] __attribute__((aligned(4096)));
static uint64_t idt[256];
static uint32_t gp_resume;
static int x2apic;
static volatile int second_runs;
static void (*volatile job)(int);
static volatile unsigned job_number, jobs_done;

uint64_t rdtsc(void) {
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(subleaf));
}

static uint64_t rdmsr(uint32_t msr) {
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

static void wrmsr(uint32_t msr, uint64_t value) {
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
}

int try_wrmsr(uint32_t msr, uint64_t value) {
    int done;
    /* The handler of #GP goes on behind the instruction with EAX = 0. */
    __asm__ volatile("movl $2f, %1\n\tmovl %%ebx, %%eax\n\twrmsr\n\tmovl $1, %%eax\n2:"
                     : "=&a"(done), "=m"(gp_resume)
                     : "c"(msr), "b"((uint32_t)value), "d"((uint32_t)(value >> 32))
                     : "memory");
    gp_resume = 0;
    return done;
}

static volatile uint32_t *apic(uint32_t offset) {
    return (volatile uint32_t *)(0xfee00000u + offset);
}

static void apic_write(uint32_t offset, uint32_t value) {
    if (x2apic) {
        wrmsr(0x800 + offset / 16, value);
    } else {
        *apic(offset) = value;
    }
}

static void apic_enable(void) {
    uint32_t features[4];
    cpuid(1, 0, features);
    x2apic = (features[2] >> 21 & 1) != 0;
    uint64_t base = rdmsr(APIC_MSR) | 1 << 11;
    wrmsr(APIC_MSR, base);
    if (x2apic) {
        wrmsr(APIC_MSR, base | 1 << 10);
    }
    apic_write(0xf0, 0x1ff);
}

int cpu_index(void) {
    uint32_t id = x2apic ? (uint32_t)rdmsr(0x802) : *apic(0x20) >> 24;
    return id != 0;
}

static void apic_send(uint32_t target, uint32_t command) {
    if (x2apic) {
        wrmsr(0x830, (uint64_t)target << 32 | command);
        return;
    }
    *apic(0x310) = target << 24;
    *apic(0x300) = command;
    for (int tries = 0; tries < 1000000 && (*apic(0x300) & 1 << 12); tries++) {
    }
}

void interrupt(struct frame *frame) {
    if (frame->vector == UPCALL_VECTOR) {
        upcall();
        apic_write(0xb0, 0);
        return;
    }
    if (frame->vector == 13 && gp_resume) {
        frame->eip = gp_resume;
        frame->eax = 0;
        return;
    }
    if (frame->vector >= 32) {
        return; /* spurious */
    }
    print("KVMXEN error exception vector=");
    print_number(frame->vector);
    print(" code=");
    print_hex(frame->error);
    print(" eip=");
    print_hex(frame->eip);
    uint32_t cr2;
    __asm__("mov %%cr2, %0" : "=r"(cr2));
    print(" cr2=");
    print_hex(cr2);
    print("\n");
    crash("an exception");
}

static void load_tables(void) {
    struct { uint16_t limit; uint32_t base; } __attribute__((packed))
    pointer = {sizeof idt - 1, (uint32_t)idt};
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

/* All 4 GiB at their own addresses, the last quarter uncached, but for the
 * alias of RAM and the window. */
static uint64_t identity(uint32_t address) {
    uint32_t from = address >= ALIAS && address - ALIAS < ALIAS_SIZE ? ALIAS : 0;
    return (address - from) | LARGE | PRESENT_WRITABLE | (address >= 0xc0000000u ? UNCACHED : 0);
}

static void fill_tables(void) {
    uint32_t first = (uint32_t)window_frames[0], second = (uint32_t)window_frames[1];
    for (uint32_t i = 0; i < 1024; i++) {
        directory[i] = (uint32_t)identity(i << 22);
    }
    directory[WINDOW >> 22] = (uint32_t)table | PRESENT_WRITABLE;
    table[0] = second | PRESENT_WRITABLE;
    table[1] = first | PRESENT_WRITABLE;
    for (uint32_t i = 0; i < 4; i++) {
        pointers[0][i] = pointers[1][i] = (uint32_t)directories[i] | 1u;
        for (uint32_t j = 0; j < 512; j++) {
            directories[i][j] = identity(i << 30 | j << 21);
        }
    }
    directories[WINDOW >> 30][0] = (uint32_t)long_table | PRESENT_WRITABLE;
    long_table[0] = second | PRESENT_WRITABLE;
    long_table[1] = first | PRESENT_WRITABLE;
}

/* 0 where the CPU takes no such paging: a software KVM may know long mode only. */
static int switch_paging_on(int cpu) {
    if (paging == NO_PAGING) {
        return 1;
    }
    uint32_t root = paging == PAE ? (uint32_t)pointers[cpu] : (uint32_t)directory;
    uint32_t cr4, cr0;
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    cr4 |= paging == PAE ? CR4_PAE : CR4_PSE;
    __asm__ volatile("mov %0, %%cr4" : : "r"(cr4));
    __asm__ volatile("mov %0, %%cr3" : : "r"(root) : "memory");
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    /* Caches on, write protection, monitoring. The handler of #GP goes on with 0. */
    cr0 = (cr0 & ~0x6000000cu) | CR0_PG | 0x10003u;
    __asm__ volatile("movl $1f, %1\n\tmov %0, %%cr0\n\tjmp 1f\n1:"
                     : "+a"(cr0), "=m"(gp_resume) : : "memory");
    gp_resume = 0;
    return cr0 != 0;
}

void *alias(void *address) {
    return paging == NO_PAGING ? address : (uint8_t *)address + ALIAS;
}

void cpu_init(void) {
    paging = has_word("paging=pae") ? PAE : has_word("paging=legacy") ? LEGACY : NO_PAGING;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t stub = (uint32_t)stubs + i * 16;
        idt[i] = (uint64_t)(stub >> 16) << 48 | 0x8e00ull << 32 | 0x8u << 16 | (stub & 0xffff);
    }
    load_tables();
    fill_tables();
    if (!switch_paging_on(0)) {
        paging = NO_PAGING;
        crash("this CPU takes no paging of this kind");
    }
    window = paging == NO_PAGING ? window_frames[0] : (uint8_t *)WINDOW;
    /* Without paging: an address where no RAM is. */
    hole = paging == NO_PAGING ? (uint8_t *)0xb0000000u : window + 2 * PAGE;
    apic_enable();
}

void ap_main(void) {
    load_tables();
    switch_paging_on(1);
    apic_enable();
    unsigned seen = job_number;
    second_runs = 1;
    for (;;) {
        if (job_number == seen) {
            __asm__ volatile("sti; pause; nop; cli" : : : "memory");
            continue;
        }
        seen = job_number;
        job(1);
        jobs_done++;
    }
}

int start_second_cpu(void) {
    if (second_runs) {
        return 1;
    }
    memcpy((void *)TRAMPOLINE, ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    apic_send(1, 0x4500);
    for (uint64_t since = rdtsc(); rdtsc() - since < 1000000;) {
    }
    apic_send(1, 0x4600 | TRAMPOLINE >> 12);
    for (uint64_t since = rdtsc(); !second_runs && rdtsc() - since < 4000000000ull;) {
        __asm__ volatile("pause" : : : "memory");
    }
    return second_runs;
}

void run_on_both(void (*what)(int cpu)) {
    unsigned done = jobs_done;
    job = what;
    __sync_synchronize();
    job_number++;
    what(0);
    while (second_runs && jobs_done == done) {
        __asm__ volatile("pause" : : : "memory");
    }
}

void wait_for_interrupt(void) {
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}
