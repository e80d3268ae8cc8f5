//! Reads every clock that Xen gives a guest, on all CPUs at once, and holds each
//! reading against the exact line.
//!
//! Parameters: `seconds=N` (default 1) or `ms=N`; `strict=1` makes a rewritten
//! or differing clock page a failure, which it always is for time going
//! backwards or a refused registration.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::cpu::{cpuid, guest_tsc};
use guests::pvclock::{Line, Reading};
use guests::report::{Hex, Seconds, Version};
use guests::rt::Exit;
use guests::shared::{self, Wallclock};
use guests::smp::{self, MAX_CPUS};
use guests::start_info::Machine;
use guests::{entry, hypercall, pvclock, report};
use xen_abi::arch_x86::VcpuTimeInfo;
use xen_abi::cpuid::{
    XEN_CPUID_LEAF_HVM, XEN_CPUID_LEAF_TIME, XEN_CPUID_LEAF_VERSION, XEN_CPUID_TIME_SUBLEAF_HOST,
    XEN_CPUID_TIME_SUBLEAF_MODE, XEN_CPUID_TIME_SUBLEAF_SCALE,
};

entry!(main);

/// Every how many reads the slow checks run: secondary area, exact rational.
const SLOW_CHECK_MASK: u64 = 1023;

#[derive(Default)]
struct Tally {
    reads: AtomicU64,
    retries: AtomicU64,
    backward: AtomicU64,
    cross_backward: AtomicU64,
    /// Updates of the clock pages seen after the first reading.
    rewrites: AtomicU64,
    max_error_ns: AtomicU64,
    max_rational_error_ns: AtomicU64,
    area_mismatches: AtomicU64,
    registered: AtomicBool,
}

static TALLIES: [Tally; MAX_CPUS] = [const {
    Tally {
        reads: AtomicU64::new(0),
        retries: AtomicU64::new(0),
        backward: AtomicU64::new(0),
        cross_backward: AtomicU64::new(0),
        rewrites: AtomicU64::new(0),
        max_error_ns: AtomicU64::new(0),
        max_rational_error_ns: AtomicU64::new(0),
        area_mismatches: AtomicU64::new(0),
        registered: AtomicBool::new(false),
    }
}; MAX_CPUS];

static DURATION_TSC: AtomicU64 = AtomicU64::new(0);
static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
/// The greatest system time that any CPU has read.
static LATEST_NS: AtomicU64 = AtomicU64::new(0);

fn main(machine: &Machine) -> Exit {
    let base = hypercall::base_leaf().unwrap_or(0);
    let [version, ..] = cpuid(base + XEN_CPUID_LEAF_VERSION, 0);
    let time = |subleaf| cpuid(base + XEN_CPUID_LEAF_TIME, subleaf);
    let [flags, mode, khz, incarnation] = time(XEN_CPUID_TIME_SUBLEAF_MODE);
    let [offset_low, offset_high, cpuid_mul, cpuid_shift] = time(XEN_CPUID_TIME_SUBLEAF_SCALE);
    let [host_khz, ..] = time(XEN_CPUID_TIME_SUBLEAF_HOST);
    let [hvm_flags, vcpu, domain, _] = cpuid(base + XEN_CPUID_LEAF_HVM, 0);
    report!("cpuid";
        base = Hex(base.into()), xen = Version(version >> 16, version & 0xffff),
        tsc_flags = Hex(flags.into()), tsc_mode = mode, tsc_khz = khz, incarnation = incarnation,
        tsc_offset = Hex(u64::from(offset_high) << 32 | u64::from(offset_low)),
        mul = cpuid_mul, shift = cpuid_shift.cast_signed(), host_khz = host_khz,
        hvm_flags = Hex(hvm_flags.into()), vcpu = vcpu, domain = domain);
    let mapped = shared::map_shared_info();
    if mapped != 0 || khz == 0 {
        report!("error"; shared_info = mapped, tsc_khz = khz);
        return Exit::Crash;
    }
    let cpus = smp::start(machine);
    let expected = machine.apic_ids().len().clamp(1, MAX_CPUS);
    let duration_ms = machine.number("ms", machine.number("seconds", 1).saturating_mul(1000));
    TSC_KHZ.store(u64::from(khz), Ordering::Relaxed);
    DURATION_TSC.store(duration_ms.saturating_mul(u64::from(khz)), Ordering::Relaxed);

    smp::run_on_all(register);
    // From here on nothing may move the clock: the host counts updates from now.
    report!("start"; cpus = cpus, duration_ms = duration_ms);
    let before = shared::wallclock();
    smp::run_on_all(spin);
    let after = shared::wallclock();

    let last = read(shared::time_info(0));
    conclude(
        cpus,
        expected,
        last,
        [before, after],
        u64::from(khz),
        machine.number("strict", 0) != 0,
    )
}

/// Registers both clock pages of this CPU and notes whether Xen took them.
fn register(cpu: usize) {
    let info = shared::register_vcpu_info(cpu);
    let area = shared::register_time_area(cpu);
    if info == 0 && area == 0 {
        TALLIES[cpu].registered.store(true, Ordering::Release);
    } else {
        report!("error"; cpu = cpu, register_vcpu_info = info, register_time_area = area);
    }
}

#[expect(unsafe_code, reason = "clock pages")]
fn read(page: *const VcpuTimeInfo) -> Reading {
    // SAFETY: `shared` hands out addresses inside static pages only.
    unsafe { pvclock::read(page) }
}

fn spin(cpu: usize) {
    let tally = &TALLIES[cpu];
    if !tally.registered.load(Ordering::Acquire) {
        return;
    }
    let page = shared::time_info(cpu);
    let first = read(page);
    let first_area = read(shared::time_area(cpu));
    let khz = TSC_KHZ.load(Ordering::Relaxed);
    let duration = DURATION_TSC.load(Ordering::Relaxed);
    let (mut reads, mut retries, mut backward, mut cross, mut mismatches) = (0, 0, 0, 0, 0);
    let (mut max_error, mut max_rational) = (0, 0);
    let mut previous = 0;
    let last = loop {
        // Loaded before the TSC is read (`pvclock::read` fences in between), so
        // whatever another CPU has seen by then must not be ahead of us.
        let latest = LATEST_NS.load(Ordering::Acquire);
        let reading = read(page);
        let now = reading.system_time_ns();
        cross += u64::from(now < latest);
        backward += u64::from(now < previous);
        previous = now;
        LATEST_NS.fetch_max(now, Ordering::AcqRel);

        retries += u64::from(reading.retries);
        max_error = now.abs_diff(first.line.at(reading.guest_tsc)).max(max_error);
        if reads & SLOW_CHECK_MASK == 0 {
            let exact = rational_ns(&first.line, reading.guest_tsc, khz);
            max_rational = now.abs_diff(exact).max(max_rational);
            mismatches += u64::from(read(shared::time_area(cpu)).line != reading.line);
        }
        reads += 1;
        if reading.guest_tsc.wrapping_sub(first.guest_tsc) >= duration {
            break reading;
        }
    };
    let area = read(shared::time_area(cpu));
    let rewrites = updates(first.version, last.version) + updates(first_area.version, area.version);
    tally.reads.store(reads, Ordering::Relaxed);
    tally.retries.store(retries, Ordering::Relaxed);
    tally.backward.store(backward, Ordering::Relaxed);
    tally.cross_backward.store(cross, Ordering::Relaxed);
    tally.rewrites.store(rewrites, Ordering::Relaxed);
    tally.max_error_ns.store(max_error, Ordering::Relaxed);
    tally.max_rational_error_ns.store(max_rational, Ordering::Relaxed);
    tally.area_mismatches.store(mismatches, Ordering::Relaxed);
}

/// Updates between two versions: each counts two.
fn updates(first: u32, last: u32) -> u64 {
    u64::from(last.wrapping_sub(first) / 2)
}

/// System time by the frequency that CPUID states, with no mul and shift: kHz
/// ticks are one millisecond.
fn rational_ns(line: &Line, guest_tsc: u64, khz: u64) -> u64 {
    let ticks = guest_tsc.wrapping_sub(line.tsc_timestamp);
    let ns = u128::from(ticks) * 1_000_000 / u128::from(khz);
    line.system_time_ns.wrapping_add(u64::try_from(ns).unwrap_or(u64::MAX))
}

fn conclude(
    cpus: usize,
    expected: usize,
    last: Reading,
    [before, after]: [Wallclock; 2],
    khz: u64,
    strict: bool,
) -> Exit {
    let sum = |field: fn(&Tally) -> &AtomicU64| -> u64 {
        TALLIES[..cpus].iter().map(|tally| field(tally).load(Ordering::Relaxed)).sum()
    };
    let max = |field: fn(&Tally) -> &AtomicU64| -> u64 {
        TALLIES[..cpus].iter().map(|t| field(t).load(Ordering::Relaxed)).max().unwrap_or(0)
    };
    for (cpu, tally) in TALLIES[..cpus].iter().enumerate() {
        let line = read(shared::time_info(cpu)).line;
        let count = |field: fn(&Tally) -> &AtomicU64| field(tally).load(Ordering::Relaxed);
        report!("clock-cpu";
            cpu = cpu, reads = count(|t| &t.reads), retries = count(|t| &t.retries),
            backward = count(|t| &t.backward), cross_backward = count(|t| &t.cross_backward),
            rewrites = count(|t| &t.rewrites), max_error_ns = count(|t| &t.max_error_ns),
            tsc_timestamp = line.tsc_timestamp, system_time_ns = line.system_time_ns,
            flags = Hex(line.flags.into()));
    }
    let registered = TALLIES[..cpus].iter().all(|t| t.registered.load(Ordering::Relaxed));
    let identical = (0..cpus).all(|cpu| read(shared::time_info(cpu)).line == last.line);
    let backward = sum(|t| &t.backward);
    let cross_backward = sum(|t| &t.cross_backward);
    let rewrites = sum(|t| &t.rewrites);
    let mismatches = sum(|t| &t.area_mismatches);
    let max_error_ns = max(|t| &t.max_error_ns);
    report!("clock";
        cpus = cpus, reads = sum(|t| &t.reads), retries = sum(|t| &t.retries),
        backward = backward, cross_backward = cross_backward, rewrites = rewrites,
        max_error_ns = max_error_ns, max_rational_error_ns = max(|t| &t.max_rational_error_ns),
        identical = identical, area_mismatches = mismatches, tsc_khz = khz,
        mul = last.line.mul, shift = last.line.shift, flags = Hex(last.line.flags.into()),
        wallclock = Seconds(after.seconds, after.nanoseconds),
        wallclock_rewrites = updates(before.version, after.version),
        system_time_ns = last.system_time_ns(), guest_tsc = last.guest_tsc);
    let sound = registered && cpus == expected && backward == 0 && cross_backward == 0;
    let exact = rewrites == 0 && mismatches == 0 && identical && max_error_ns == 0;
    let verdict = match (sound, exact) {
        (true, true) => "exact",
        (true, false) => "sound",
        (false, _) => "failed",
    };
    // After the last reading, so that the host can see how late the lines come.
    report!("end"; verdict = verdict, cpus_expected = expected, guest_tsc = guest_tsc());
    Exit::passed(sound && (exact || !strict))
}
