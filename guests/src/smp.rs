//! All CPUs: their start by INIT and SIPI, and running one function on each.

#![expect(unsafe_code, reason = "boot stacks, copying the trampoline below 1 MiB")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use crate::boot::{ap_trampoline, ap_trampoline_end};
use crate::cpu::{guest_tsc, halt_forever, spin_cycles};
use crate::start_info::Machine;
use crate::{interrupts, lapic};

/// Most CPUs that a guest uses; further ones stay off.
pub const MAX_CPUS: usize = 128;
/// Bytes of each CPU's stack.
pub const STACK_BYTES: usize = 16384;

const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// Room for the slowest emulated CPU: 100 ms to seconds, by its frequency.
const START_CYCLES: u64 = 2_000_000_000;
const INIT_CYCLES: u64 = 100_000;

/// Stacks, one per CPU.
#[repr(C, align(4096))]
pub struct Stacks(UnsafeCell<[[u8; STACK_BYTES]; MAX_CPUS]>);
// SAFETY: each CPU uses its own element, and only as its stack.
unsafe impl Sync for Stacks {}

/// The boot CPU's stack is the first, at the start of this.
#[unsafe(link_section = ".bss.noinit")]
pub static BOOT_STACK: Stacks = Stacks(UnsafeCell::new([[0; STACK_BYTES]; MAX_CPUS]));
/// Where the CPU that is being started finds its stack (read by assembly).
pub static AP_STACK_TOP: AtomicU32 = AtomicU32::new(0);

static STARTING: AtomicUsize = AtomicUsize::new(0);
static STARTED: AtomicUsize = AtomicUsize::new(1);
static ENTRY: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static JOB: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static JOB_NUMBER: AtomicUsize = AtomicUsize::new(0);
static JOB_DONE: AtomicUsize = AtomicUsize::new(0);

/// CPUs that run.
#[must_use]
pub fn cpus() -> usize {
    STARTED.load(Ordering::Acquire)
}

/// Starts every CPU that the MADT names. Returns how many run, this one included.
pub fn start(machine: &Machine) -> usize {
    let Some(page) = install_trampoline(machine) else { return 1 };
    let own = lapic::id();
    for &apic_id in machine.apic_ids().iter().filter(|&&id| id != own) {
        let index = cpus();
        if index >= MAX_CPUS {
            break;
        }
        prepare(index);
        send_init_and_startup(apic_id, page);
        let since = guest_tsc();
        while cpus() == index && guest_tsc().wrapping_sub(since) < START_CYCLES {
            core::hint::spin_loop();
        }
        if cpus() == index {
            crate::report!("error cpu did not start"; apic_id = apic_id);
            // It might still come, on a stack that the next one would share.
            break;
        }
    }
    cpus()
}

/// Copies the real-mode code of the secondary CPUs to a page below 1 MiB and
/// returns its address; `None` where no such page is free.
pub fn install_trampoline(machine: &Machine) -> Option<u32> {
    let page = machine.trampoline_page()?;
    let code = &raw const ap_trampoline;
    let length = &raw const ap_trampoline_end as usize - code as usize;
    let target = core::ptr::without_provenance_mut::<u8>(page as usize);
    // SAFETY: `trampoline_page` found a page of RAM below 1 MiB that holds none
    // of the start info; the code is shorter than a page.
    unsafe { core::ptr::copy_nonoverlapping(code, target, length) };
    Some(page)
}

/// Starts a CPU at the trampoline in `page`.
pub fn send_init_and_startup(apic_id: u32, page: u32) {
    lapic::send(apic_id, INIT);
    spin_cycles(INIT_CYCLES);
    lapic::send(apic_id, STARTUP | page >> 12);
}

/// The next CPU that starts is number `index`, 1 to [`MAX_CPUS`] - 1. Returns
/// the end of its stack.
pub fn prepare(index: usize) -> u64 {
    STARTING.store(index, Ordering::Relaxed);
    let top = (&raw const BOOT_STACK as usize) + (index + 1) * STACK_BYTES;
    AP_STACK_TOP.store(u32::try_from(top).unwrap_or(0), Ordering::Release);
    top as u64
}

/// CPUs that start from now on run `entry` with their number, and halt when it
/// returns; [`start`] is then not to be used.
pub fn set_entry(entry: fn(usize)) {
    ENTRY.store(entry as *mut (), Ordering::Release);
}

/// Runs `job` with the CPU's number on every CPU at once; returns when all are
/// done. Called by the boot CPU only.
pub fn run_on_all(job: fn(usize)) {
    let others = cpus() - 1;
    JOB_DONE.store(0, Ordering::Relaxed);
    JOB.store(job as *mut (), Ordering::Relaxed);
    JOB_NUMBER.fetch_add(1, Ordering::Release);
    job(0);
    while JOB_DONE.load(Ordering::Acquire) < others {
        core::hint::spin_loop();
    }
}

pub(crate) extern "C" fn ap_main() -> ! {
    let index = STARTING.load(Ordering::Acquire);
    interrupts::load(index);
    lapic::enable();
    let entry = ENTRY.load(Ordering::Acquire);
    if !entry.is_null() {
        // SAFETY: only `set_entry` stores here, and it stores a `fn(usize)`.
        let entry = unsafe { core::mem::transmute::<*mut (), fn(usize)>(entry) };
        entry(index);
        halt_forever();
    }
    let mut seen = JOB_NUMBER.load(Ordering::Acquire);
    STARTED.fetch_add(1, Ordering::Release);
    loop {
        let number = JOB_NUMBER.load(Ordering::Acquire);
        if number == seen {
            core::hint::spin_loop();
            continue;
        }
        seen = number;
        // SAFETY: `run_on_all` stored a `fn(usize)` before it counted the job up.
        let job =
            unsafe { core::mem::transmute::<*mut (), fn(usize)>(JOB.load(Ordering::Relaxed)) };
        job(index);
        JOB_DONE.fetch_add(1, Ordering::Release);
    }
}
