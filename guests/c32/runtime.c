/* The serial port, the command line, counting checks, and the ways out. */
#include "c32.h"

char cmdline[512];
static unsigned passed, failed, topic_passed, topic_failed;

static void outb(uint16_t port, uint8_t value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t inb(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

void print(const char *text) {
    for (; *text; text++) {
        for (int tries = 0; tries < 100000 && !(inb(0x3fd) & 0x20); tries++) {
        }
        outb(0x3f8, (uint8_t)*text);
    }
}

/* Divides by 10 with 32-bit divisions only: there is no library to do it. */
static uint32_t divide_by_10(uint64_t *number) {
    uint32_t high = (uint32_t)(*number >> 32), low = (uint32_t)*number;
    uint32_t remainder = high % 10;
    high /= 10;
    __asm__("divl %2" : "+a"(low), "+d"(remainder) : "r"(10u));
    *number = (uint64_t)high << 32 | low;
    return remainder;
}

void print_number(int64_t number) {
    char text[24], *at = text + sizeof text;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    *--at = 0;
    do {
        *--at = (char)('0' + divide_by_10(&rest));
    } while (rest);
    if (number < 0) {
        *--at = '-';
    }
    print(at);
}

void print_hex(uint64_t number) {
    char text[19], *at = text + sizeof text;
    *--at = 0;
    do {
        *--at = "0123456789abcdef"[number & 15];
        number >>= 4;
    } while (number);
    *--at = 'x';
    *--at = '0';
    print(at);
}

int has_word(const char *word) {
    size_t length = strlen(word);
    for (const char *at = cmdline; *at; at++) {
        if ((at == cmdline || at[-1] == ' ') && memcmp(at, word, length) == 0 &&
            (at[length] == 0 || at[length] == ' ')) {
            return 1;
        }
    }
    return 0;
}

int cpus(void) {
    return has_word("cpus=2") ? 2 : 1;
}

void *memcpy(void *to, const void *from, size_t count) {
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    return start;
}

void *memset(void *to, int value, size_t count) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t count) {
    const volatile uint8_t *x = a, *y = b;
    for (; count; count--, x++, y++) {
        if (*x != *y) {
            return *x - *y;
        }
    }
    return 0;
}

size_t strlen(const char *text) {
    size_t length = 0;
    while (((const volatile char *)text)[length]) {
        length++;
    }
    return length;
}

void equal(const char *name, int64_t got, int64_t want) {
    if (got == want) {
        passed++;
        return;
    }
    failed++;
    print("KVMXEN failed check=");
    print(name);
    print(" got=");
    print_number(got);
    print(" want=");
    print_number(want);
    print("\n");
}

void holds(const char *name, int condition, int64_t seen) {
    if (condition) {
        passed++;
        return;
    }
    failed++;
    print("KVMXEN failed check=");
    print(name);
    print(" seen=");
    print_number(seen);
    print("\n");
}

unsigned failures(void) {
    return failed;
}

void topic_end(const char *topic) {
    print("KVMXEN guest32 topic=");
    print(topic);
    print(" passed=");
    print_number(passed - topic_passed);
    print(" failed=");
    print_number(failed - topic_failed);
    print("\n");
    topic_passed = passed;
    topic_failed = failed;
}

static void shut_down(uint32_t reason) {
    struct sched_shutdown args = {.reason = reason};
    long answer = call3(__HYPERVISOR_sched_op, SCHEDOP_shutdown, &args, 0);
    print("KVMXEN error SCHEDOP_shutdown answered ");
    print_number(answer);
    print("\n");
}

void finish(void) {
    print("KVMXEN guest32-checks passed=");
    print_number(passed);
    print(" failed=");
    print_number(failed);
    print("\n");
    shut_down(failed || !passed ? SHUTDOWN_crash : SHUTDOWN_poweroff);
    for (;;) {
        __asm__ volatile("cli; hlt");
    }
}

void crash(const char *why) {
    print("KVMXEN error ");
    print(why);
    print("\n");
    if (xen_leaf) {
        shut_down(SHUTDOWN_crash);
    }
    /* Without hypercalls: an exception that nobody can take. */
    struct { uint16_t limit; uint32_t base; } __attribute__((packed)) none = {0, 0};
    __asm__ volatile("lidt %0; ud2" : : "m"(none));
    __builtin_unreachable();
}
