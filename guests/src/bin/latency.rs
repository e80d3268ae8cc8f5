//! How fast events come: from `EVTCHNOP_send` on one CPU to the upcall handler
//! on another, there and back, and from a timer's deadline to its handler; each
//! with the awaiting CPU spinning, and with it in HLT.
//!
//! Parameters: `n=N` round trips (default 1000, most 4000), `timers=N` (default
//! 200, most 4000), `via=vector` for the VM-wide callback vector where CPUID
//! offers one for each vCPU. Needs 2 CPUs. Runs under QEMU's Xen mode too.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the sample buffers and the clock page")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guests::cpu::{
    cpuid, disable_interrupts, enable_interrupts, guest_tsc, load_fence, outb, wait_for_interrupt,
};
use guests::events::{
    UPCALL_VECTOR, arrived_tsc, bind_ipi, bind_virq, clear, count, send, set_callback_vector,
    set_upcall_vector,
};
use guests::rt::Exit;
use guests::shared::{map_shared_info, register_vcpu_info, time_info, vcpu_id, vcpu_op};
use guests::smp::{cpus, run_on_all, start};
use guests::start_info::Machine;
use guests::{checks, entry, hypercall, pvclock, report};
use xen_abi::cpuid::{XEN_CPUID_LEAF_HVM, XEN_HVM_CPUID_UPCALL_VECTOR};
use xen_abi::vcpu::{
    VCPUOP_SET_SINGLESHOT_TIMER, VCPUOP_STOP_PERIODIC_TIMER, VcpuSetSingleshotTimer,
};
use xen_abi::xen::VIRQ_TIMER;

entry!(main);

const MOST: usize = 4000;
const WARM_UP: usize = 50;
/// An event that takes longer is lost.
const PATIENCE_CYCLES: u64 = 20_000_000_000;
/// The data ports of the two 8259s, where there are any.
const LEGACY_PIC_MASKS: [u16; 2] = [0x21, 0xa1];
const MICROSECOND_NS: u64 = 1_000;

struct Samples(UnsafeCell<[u64; MOST]>);
// SAFETY: only the boot CPU uses them.
unsafe impl Sync for Samples {}
static THERE: Samples = Samples(UnsafeCell::new([0; MOST]));
static ROUND: Samples = Samples(UnsafeCell::new([0; MOST]));

/// The port that events to each CPU come by, 0 until bound.
static PORTS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
/// Whether a CPU that waits halts.
static HALT: AtomicBool = AtomicBool::new(false);
/// Events that CPU 1 has taken. Its own only.
static TAKEN: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicBool = AtomicBool::new(false);
/// Whether upcalls come by a vector of each vCPU's own.
static OWN_VECTOR: AtomicBool = AtomicBool::new(false);
static TRIPS: AtomicU32 = AtomicU32::new(0);
static TIMERS: AtomicU32 = AtomicU32::new(0);

fn main(machine: &Machine) -> Exit {
    // A PC's firmware leaves its timer ticking by vectors of exceptions.
    for port in LEGACY_PIC_MASKS {
        outb(port, 0xff);
    }
    let number = |name, default| {
        let number = machine.number(name, default).clamp(10, MOST as u64);
        u32::try_from(number).unwrap_or(10)
    };
    TRIPS.store(number("n", 1000), Ordering::Relaxed);
    TIMERS.store(number("timers", 200), Ordering::Relaxed);
    checks::equal("map shared_info", map_shared_info(), 0);
    if start(machine) < 2 {
        report!("error latency needs 2 CPUs"; cpus = cpus());
        return Exit::Crash;
    }
    let base = hypercall::base_leaf().unwrap_or(0);
    let [features, ..] = cpuid(base + XEN_CPUID_LEAF_HVM, 0);
    let own = features & XEN_HVM_CPUID_UPCALL_VECTOR != 0 && machine.text("via") != Some("vector");
    OWN_VECTOR.store(own, Ordering::Relaxed);
    if !own {
        checks::equal("callback vector", set_callback_vector(UPCALL_VECTOR), 0);
    }
    run_on_all(prepare);
    for halt in [false, true] {
        HALT.store(halt, Ordering::Relaxed);
        DONE.store(false, Ordering::Relaxed);
        run_on_all(trips);
        DONE.store(false, Ordering::Relaxed);
        run_on_all(timers);
    }
    checks::finish("latency")
}

/// Each CPU's `vcpu_info`, upcall and port.
fn prepare(cpu: usize) {
    let vcpu = vcpu_id(cpu);
    checks::equal("register_vcpu_info", register_vcpu_info(cpu), 0);
    if OWN_VECTOR.load(Ordering::Relaxed) {
        checks::equal("upcall vector", set_upcall_vector(vcpu, UPCALL_VECTOR), 0);
    }
    match (PORTS.get(cpu), bind_ipi(vcpu)) {
        (Some(slot), Ok(port)) => {
            clear(port);
            slot.store(port, Ordering::Release);
        }
        (Some(_), Err(error)) => checks::equal("bind an IPI", error, 0),
        (None, _) => {}
    }
}

fn port(cpu: usize) -> u32 {
    PORTS.get(cpu).map_or(0, |slot| slot.load(Ordering::Acquire))
}

/// Waits for the event after the `seen`th of `port`; false if none comes.
fn await_event(port: u32, seen: u32) -> bool {
    let since = guest_tsc();
    while count(port) == seen {
        if guest_tsc().wrapping_sub(since) > PATIENCE_CYCLES {
            return false;
        }
        if HALT.load(Ordering::Relaxed) {
            halt_unless(port, seen);
        } else {
            core::hint::spin_loop();
        }
    }
    true
}

/// HLT, unless an event came after the `seen`th. Interrupts are off while it
/// looks and on only in HLT: none slips between the two.
fn halt_unless(port: u32, seen: u32) {
    disable_interrupts();
    if count(port) == seen {
        wait_for_interrupt();
    }
    enable_interrupts();
}

/// Takes CPU 1's next event. They are counted from the first on: one may have
/// come before this CPU got here.
fn take_event() -> bool {
    let taken = TAKEN.load(Ordering::Relaxed);
    TAKEN.store(taken.wrapping_add(1), Ordering::Relaxed);
    await_event(port(1), taken)
}

/// Answers each event; the one that comes after `DONE` was set is the last.
fn answer(to: u32) {
    while take_event() && !DONE.load(Ordering::Acquire) {
        checks::equal("answer", send(to), 0);
    }
}

fn end_answers() {
    DONE.store(true, Ordering::Release);
    checks::equal("the last send", send(port(1)), 0);
}

fn trips(cpu: usize) {
    let (here, there) = (port(0), port(1));
    enable_interrupts();
    match cpu {
        0 => {
            let wanted = TRIPS.load(Ordering::Relaxed) as usize;
            // SAFETY: the boot CPU's alone, and nobody else has a reference now.
            let one_way = unsafe { &mut (&mut *THERE.0.get())[..wanted] };
            // SAFETY: as above.
            let round = unsafe { &mut (&mut *ROUND.0.get())[..wanted] };
            let mut lost = 0;
            for trip in 0..WARM_UP + wanted {
                let seen = count(here);
                let sent = guest_tsc();
                load_fence();
                checks::equal("send", send(there), 0);
                lost += u32::from(!await_event(here, seen));
                if let Some(sample) = trip.checked_sub(WARM_UP) {
                    one_way[sample] = arrived_tsc(there).wrapping_sub(sent);
                    round[sample] = arrived_tsc(here).wrapping_sub(sent);
                }
            }
            end_answers();
            checks::equal("lost events", lost, 0);
            let (one_way, round) = (Spread::of(one_way), Spread::of(round));
            report!("ipi";
                wait = wait_name(), median_cycles = one_way.median, p99_cycles = one_way.p99,
                min_cycles = one_way.min, round_median = round.median, round_p99 = round.p99,
                round_min = round.min, n = wanted, via = via_name());
        }
        1 => answer(here),
        _ => {}
    }
    disable_interrupts();
}

fn timers(cpu: usize) {
    enable_interrupts();
    match cpu {
        0 => {
            measure_timers();
            end_answers();
        }
        // Out of the way, as an idle CPU of a guest is.
        1 => {
            let taken = TAKEN.load(Ordering::Relaxed);
            TAKEN.store(taken.wrapping_add(1), Ordering::Relaxed);
            while count(port(1)) == taken {
                halt_unless(port(1), taken);
            }
        }
        _ => {}
    }
    disable_interrupts();
}

fn measure_timers() {
    static PORT: AtomicU32 = AtomicU32::new(0);
    let vcpu = vcpu_id(0);
    if PORT.load(Ordering::Relaxed) == 0 {
        match bind_virq(VIRQ_TIMER, vcpu) {
            Ok(port) => {
                clear(port);
                PORT.store(port, Ordering::Relaxed);
            }
            Err(error) => checks::equal("bind VIRQ_TIMER", error, 0),
        }
        // Not every hypervisor has one to stop.
        vcpu_op(VCPUOP_STOP_PERIODIC_TIMER, 0, &mut 0_u64);
    }
    let port = PORT.load(Ordering::Relaxed);
    let wanted = TIMERS.load(Ordering::Relaxed) as usize;
    // SAFETY: the boot CPU's alone, and nobody else has a reference now.
    let lateness = unsafe { &mut (&mut *THERE.0.get())[..wanted] };
    let (mut early, mut lost) = (0, 0);
    for (i, sample) in lateness.iter_mut().enumerate() {
        let seen = count(port);
        let deadline = clock().system_time_ns() + (1000 + i as u64 % 10 * 100) * MICROSECOND_NS;
        let mut timer = VcpuSetSingleshotTimer { timeout_abs_ns: deadline, flags: 0, _pad: [0; 4] };
        checks::equal("set a timer", vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut timer), 0);
        lost += u32::from(!await_event(port, seen));
        let arrived = clock().line.at(arrived_tsc(port));
        early += u32::from(arrived < deadline);
        *sample = arrived.saturating_sub(deadline);
    }
    checks::equal("lost timers", lost, 0);
    let late = Spread::of(lateness);
    report!("lateness";
        wait = wait_name(), median_ns = late.median, p99_ns = late.p99, min_ns = late.min,
        early = early, n = wanted, via = via_name());
}

fn clock() -> pvclock::Reading {
    // SAFETY: `shared` hands out addresses inside static pages only.
    unsafe { pvclock::read(time_info(0)) }
}

fn wait_name() -> &'static str {
    if HALT.load(Ordering::Relaxed) { "halt" } else { "spin" }
}

fn via_name() -> &'static str {
    if OWN_VECTOR.load(Ordering::Relaxed) { "vcpu-vector" } else { "vm-vector" }
}

struct Spread {
    median: u64,
    p99: u64,
    min: u64,
}

impl Spread {
    fn of(samples: &mut [u64]) -> Self {
        samples.sort_unstable();
        let at = |index: usize| samples.get(index).copied().unwrap_or(0);
        Self { median: at(samples.len() / 2), p99: at(samples.len() * 99 / 100), min: at(0) }
    }
}
