/* A 32-bit guest against Xen's own headers: what it is made of. */
#ifndef C32_H
#define C32_H

#include <stddef.h>
#include <stdint.h>
#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/features.h>
#include <xen/grant_table.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

#define XEN_ERRNO(name, value) name = value,
enum {
#include <xen/errno.h>
};

#define PAGE 4096u
#define UPCALL_VECTOR 0xf3
#define OWN_DOMAIN 1
#define OTHER_DOMAIN 77

/* ---- runtime.c: serial port, command line, checks, the end ---- */
extern char cmdline[512];
void print(const char *text);
void print_number(int64_t number);
void print_hex(uint64_t number);
/* The vCPUs of this guest, by its command line: cpus=2, or one. */
int cpus(void);
/* Whether the command line has this word. */
int has_word(const char *word);
void *memcpy(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
int memcmp(const void *a, const void *b, size_t count);
size_t strlen(const char *text);
/* Counts a check; a failed one prints both values. */
void equal(const char *name, int64_t got, int64_t want);
void holds(const char *name, int condition, int64_t seen);
unsigned failures(void);
/* Prints the sum of the checks since the last call. */
void topic_end(const char *topic);
void finish(void) __attribute__((noreturn));
void crash(const char *why) __attribute__((noreturn));

/* ---- cpu.c: descriptors, paging, APIC, interrupts, the second CPU ---- */
enum paging { NO_PAGING, LEGACY, PAE };
extern enum paging paging;
struct frame {
    uint32_t edi, esi, ebp, esp, ebx, edx, ecx, eax, vector, error, eip, cs, eflags;
};
void cpu_init(void);
int cpu_index(void);
/* Starts the second CPU; 0 where there is none. It then runs `job` when told. */
int start_second_cpu(void);
void run_on_both(void (*job)(int cpu));
/* Writes an MSR; 0 if that raised #GP. */
int try_wrmsr(uint32_t msr, uint64_t value);
uint64_t rdtsc(void);
void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
void wait_for_interrupt(void);
/* Two pages whose frames are in the opposite order where there is paging, and
 * behind them (`hole`) nothing. */
extern uint8_t *window;
extern uint8_t *hole;
/* The same memory at another linear address, where there is paging. */
void *alias(void *address);

/* ---- call.c: hypercalls ---- */
extern uint32_t xen_leaf;
void hypercalls_init(void);
/* The page of stubs is in use, not the instruction itself. */
extern int by_page;
long call5(uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e);
#define call3(number, a, b, c) \
    call5(number, (uint32_t)(a), (uint32_t)(b), (uint32_t)(c), 0, 0)
/* Puts the argument at one of three kinds of places in turn (as it is, at its
 * alias, across the pages of the window), makes the call `number(op, where)`,
 * and copies back what Xen wrote. */
long call_with(uint32_t number, uint32_t op, void *argument, size_t size);
long vcpu_call(uint32_t op, uint32_t vcpu, void *argument, size_t size);
long grant_call(uint32_t op, void *argument, size_t size, uint32_t count);
#define CALL(number, op, argument) call_with(number, op, &(argument), sizeof(argument))
#define VCPU(op, vcpu, argument) vcpu_call(op, vcpu, &(argument), sizeof(argument))

/* ---- shared.c: pages shared with Xen, events, clocks ---- */
extern struct shared_info *shared;
long map_shared_info(void);
struct vcpu_info *own_info(int cpu);
extern struct vcpu_info *infos[2];
extern volatile uint32_t event_count[1024];
void upcall(void);
int pending(uint32_t port);
/* System time by a clock page, at `tsc` or now (tsc 0). */
struct line { uint32_t version, mul; uint64_t tsc, ns; int8_t shift; uint8_t flags; };
struct line read_line(volatile struct vcpu_time_info *page);
uint64_t line_at(const struct line *line, uint64_t tsc);
uint64_t now_ns(int cpu);
/* Waits up to `ms` for `*word` to reach `value`. */
int wait_until(volatile uint32_t *word, uint32_t value, uint32_t ms);

/* ---- tests ---- */
void test_latching(void);
void test_version(void);
void test_hvm_op(void);
void test_memory(void);
void test_events(void);
void test_vcpu(void);
void test_timers(void);
void test_sched(void);
void test_grants(void);
void test_refused(void);
void test_multicall(void);
void test_clock(void);
#endif
