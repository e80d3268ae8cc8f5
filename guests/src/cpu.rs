//! The instructions that Rust has no word for.

#![expect(unsafe_code, reason = "port I/O, model-specific registers, interrupt control")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _mm_lfence, _rdtsc};

/// Writes one byte to an I/O port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: the guest owns its machine; a port write cannot break Rust's memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Writes two bytes to an I/O port.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as in `outb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

/// Reads one byte from an I/O port.
#[must_use]
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as in `outb`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// Reads a model-specific register; one that does not exist raises #GP, which
/// ends the guest.
#[must_use]
pub fn rdmsr(msr: u32) -> u64 {
    let low: u32;
    let high: u32;
    // SAFETY: reading a register does not touch memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The caller knows that the register does not move memory away from under
/// Rust code (EFER, segment bases in use, the hypercall page over live data).
pub unsafe fn wrmsr(msr: u32, value: u64) {
    let low = (value & 0xffff_ffff) as u32;
    let high = (value >> 32) as u32;
    // SAFETY: passed on to the caller.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack)) }
}

/// The registers that CPUID returns, in the order EAX, EBX, ECX, EDX.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The guest's TSC, read after every earlier load has completed.
#[must_use]
#[inline]
pub fn guest_tsc() -> u64 {
    load_fence();
    // SAFETY: RDTSC is always there in long mode and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Orders every earlier load, RDTSC included, before every later one.
#[inline]
pub fn load_fence() {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_lfence() }
}

/// Allows interrupts on this CPU.
pub fn enable_interrupts() {
    // SAFETY: the runtime loads the IDT, with handlers on a stack of their own,
    // before any guest code runs.
    unsafe { asm!("sti", options(nostack)) }
}

/// Forbids interrupts on this CPU.
pub fn disable_interrupts() {
    // SAFETY: masks interrupts only.
    unsafe { asm!("cli", options(nostack)) }
}

/// Allows interrupts, sleeps until one came, and forbids them again.
///
/// STI takes effect after the next instruction, so that an interrupt that is
/// already pending ends the HLT and none is lost between the two.
pub fn wait_for_interrupt() {
    // SAFETY: as in `enable_interrupts`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts off only an NMI or INIT goes past HLT.
        unsafe { asm!("cli", "hlt", options(nostack)) }
    }
}

/// Spins for a number of TSC cycles.
pub fn spin_cycles(cycles: u64) {
    let start = guest_tsc();
    while guest_tsc().wrapping_sub(start) < cycles {
        core::hint::spin_loop();
    }
}
