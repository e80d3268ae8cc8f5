//! How long each CPU is away from its loop of clock reads, by what the host does
//! meanwhile: it alternates, and the guest's system time says which third it is.
//!
//! Parameters: `seconds=N` (default 3); `phase_ms=N` (default 50), a third: nothing, the
//! clock of CPU 0 is updated, the clocks of all CPUs are. `examples/update-delay` is the
//! host of it.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guests::cpu::cpuid;
use guests::pvclock::Reading;
use guests::rt::Exit;
use guests::start_info::Machine;
use guests::{entry, hypercall, pvclock, report, shared, smp};
use xen_abi::arch_x86::VcpuTimeInfo;
use xen_abi::cpuid::{XEN_CPUID_LEAF_TIME, XEN_CPUID_TIME_SUBLEAF_MODE};

entry!(main);

const PHASES: usize = 3;
const NAMES: [&str; PHASES] = ["none", "one", "all"];
/// Eight for each power of two from 16 on, one for each number below.
const BUCKETS: usize = 16 + 60 * 8;
/// At the edges of a phase the host may do either, as 1/16 of it.
const EDGE: u64 = 16;

/// No loop takes that long inside the guest, ns.
const BREAK_NS: u64 = 3_000;

/// How often a CPU was away for how long, in ticks.
type Histogram = [AtomicU32; BUCKETS];

static AWAY: [[Histogram; PHASES]; smp::MAX_CPUS] =
    [const { [const { [const { AtomicU32::new(0) }; BUCKETS] }; PHASES] }; smp::MAX_CPUS];
static DURATION_NS: AtomicU64 = AtomicU64::new(0);
static PHASE_NS: AtomicU64 = AtomicU64::new(1);

fn main(machine: &Machine) -> Exit {
    let base = hypercall::base_leaf().unwrap_or(0);
    let [_, _, khz, _] = cpuid(base + XEN_CPUID_LEAF_TIME, XEN_CPUID_TIME_SUBLEAF_MODE);
    if shared::map_shared_info() != 0 || khz == 0 {
        return Exit::Crash;
    }
    DURATION_NS.store(machine.number("seconds", 3) * 1_000_000_000, Ordering::Relaxed);
    PHASE_NS.store(machine.number("phase_ms", 50).max(1) * 1_000_000, Ordering::Relaxed);
    let cpus = smp::start(machine);
    smp::run_on_all(|cpu| {
        if shared::register_vcpu_info(cpu) != 0 {
            report!("error vcpu_info"; cpu = cpu);
        }
    });
    report!("start"; cpus = cpus);
    smp::run_on_all(spin);
    for (who, cpus) in [("first", 0..1), ("others", 1..cpus)] {
        for (phase, name) in NAMES.iter().enumerate().filter(|_| !cpus.is_empty()) {
            tell(who, name, cpus.clone(), phase, khz);
        }
    }
    report!("end"; cpus = cpus);
    Exit::PowerOff
}

#[expect(unsafe_code, reason = "clock pages")]
fn read(page: *const VcpuTimeInfo) -> Reading {
    // SAFETY: `shared` hands out addresses inside static pages only.
    unsafe { pvclock::read(page) }
}

fn spin(cpu: usize) {
    let page = shared::time_info(cpu);
    let phase_ns = PHASE_NS.load(Ordering::Relaxed);
    let mut previous = read(page);
    let end = previous.system_time_ns() + DURATION_NS.load(Ordering::Relaxed);
    loop {
        let now = read(page);
        let ns = now.system_time_ns();
        let (phase, within) = (ns / phase_ns, ns % phase_ns);
        if within > phase_ns / EDGE && within < phase_ns - phase_ns / EDGE {
            let away = now.guest_tsc.wrapping_sub(previous.guest_tsc);
            let phase = usize::try_from(phase % PHASES as u64).unwrap_or(0);
            let count = &AWAY[cpu][phase][bucket(away)];
            // This CPU alone counts here.
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        previous = now;
        if ns >= end {
            return;
        }
    }
}

fn bucket(ticks: u64) -> usize {
    let index = match ticks {
        0..16 => ticks,
        _ => {
            let power = u64::from(ticks.ilog2());
            16 + (power - 4) * 8 + ((ticks >> (power - 3)) & 7)
        }
    };
    usize::try_from(index).unwrap_or(0)
}

/// The most that a bucket holds, ticks.
fn most(bucket: usize) -> u64 {
    if bucket < 16 {
        return bucket as u64;
    }
    let (power, part) = ((bucket - 16) / 8 + 4, (bucket - 16) as u64 % 8);
    ((8 + part + 1) << (power - 3)) - 1
}

fn tell(who: &str, name: &str, cpus: core::ops::Range<usize>, phase: usize, khz: u32) {
    let count = |bucket: usize| -> u64 {
        let counts = AWAY[cpus.clone()].iter();
        counts.map(|cpu| u64::from(cpu[phase][bucket].load(Ordering::Relaxed))).sum()
    };
    let loops: u64 = (0..BUCKETS).map(count).sum();
    // Out of the guest, or descheduled.
    let long = bucket(BREAK_NS * u64::from(khz) / 1_000_000);
    let breaks: u64 = (long..BUCKETS).map(count).sum();
    // The time away that so many of a million loops do not exceed, ns.
    let within = |millionths: u64| {
        let wanted = (u128::from(loops) * u128::from(millionths)).div_ceil(1_000_000);
        let mut seen = 0;
        let found = (0..BUCKETS).find(|bucket| {
            seen += u128::from(count(*bucket));
            seen >= wanted
        });
        most(found.unwrap_or(0)) * 1_000_000 / u64::from(khz)
    };
    report!("away";
        who = who, updates = name, loops = loops, breaks = breaks, p50_ns = within(500_000),
        p999_ns = within(999_000), p99999_ns = within(999_990), max_ns = within(1_000_000));
}
