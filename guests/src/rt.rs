//! From the entry code to the guest's `main`, and the ways out.

#![expect(unsafe_code, reason = "the symbols that the compiler and the guests link to")]

use core::arch::asm;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use xen_abi::hypercall::HYPERVISOR_SCHED_OP;
use xen_abi::sched::{
    SCHEDOP_SHUTDOWN, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SchedShutdown,
};

use crate::start_info::Machine;
use crate::{cpu, hypercall, interrupts, lapic, println, report};

/// How a guest ends: the reasons of `SCHEDOP_shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    PowerOff,
    /// The guest wants to start again.
    Reboot,
    /// A check failed.
    Crash,
}

impl Exit {
    /// Power-off if all checks passed, else crash.
    #[must_use]
    pub const fn passed(ok: bool) -> Self {
        if ok { Self::PowerOff } else { Self::Crash }
    }
}

// SAFETY: `entry!` defines it with this signature, and a guest does not link without.
unsafe extern "Rust" {
    // Defined by `entry!` in each guest.
    safe fn guest_main(machine: &Machine) -> Exit;
}

/// Names the guest's `fn(&Machine) -> Exit`, which runs on the boot CPU with
/// interrupts off, Xen found and no other CPU started.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        #[expect(unsafe_code, reason = "the runtime links to this name")]
        extern "Rust" fn guest_main(machine: &$crate::start_info::Machine) -> $crate::rt::Exit {
            $main(machine)
        }
    };
}

pub(crate) extern "C" fn bsp_main(start_info: u64) -> ! {
    interrupts::init();
    interrupts::load(0);
    lapic::enable();
    let machine = Machine::read(start_info);
    if hypercall::init().is_none() {
        report!("error no Xen signature in CPUID"; cmdline = machine.cmdline());
        shutdown(Exit::Crash);
    }
    shutdown(guest_main(&machine))
}

/// Ends the guest. Without Xen, tries QEMU's ACPI power-off port and halts.
pub fn shutdown(exit: Exit) -> ! {
    let reason = match exit {
        Exit::PowerOff => SHUTDOWN_POWEROFF,
        Exit::Reboot => SHUTDOWN_REBOOT,
        Exit::Crash => SHUTDOWN_CRASH,
    };
    if hypercall::base_leaf().is_some() {
        let mut shutdown = SchedShutdown { reason };
        let answer = hypercall::call(HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, &mut shutdown);
        report!("error SCHEDOP_shutdown"; answer = answer);
    }
    for port in [0x604, 0xb004] {
        cpu::outw(port, 0x2000);
    }
    cpu::halt_forever()
}

/// Raises an exception that no handler can take: the CPU shuts down.
pub fn triple_fault() -> ! {
    let empty = [0_u16; 5];
    // SAFETY: nothing runs after this.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    if PANICKED.swap(true, Ordering::AcqRel) {
        cpu::halt_forever();
    }
    println!("KVMXEN panic {info}");
    shutdown(Exit::Crash)
}

// The compiler calls these four; there is no libc to bring them. `rep` string
// instructions, so that they cannot compile into calls of themselves.

/// Copies `count` bytes between regions that do not overlap.
///
/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: passed on to the caller.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies `count` bytes, also between regions that overlap.
///
/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: a forward copy overwrites only what it has read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: passed on to the caller; backwards from the last byte.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// Fills `count` bytes.
///
/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: passed on to the caller.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("eax") value,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares `count` bytes.
///
/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for i in 0..count {
        // SAFETY: `i` is below the length that the caller vouches for.
        let x = unsafe { a.wrapping_add(i).read_volatile() };
        // SAFETY: as above.
        let y = unsafe { b.wrapping_add(i).read_volatile() };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// Whether `count` bytes differ.
///
/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: passed on to the caller.
    unsafe { memcmp(a, b, count) }
}
