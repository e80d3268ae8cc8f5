//! Reading the kernel's clocks beside the TSC.

#![expect(unsafe_code, reason = "clock_gettime, RDTSC and a bare system call")]

use std::arch::x86_64::{_mm_lfence, _rdtsc};

/// How many readings compete to be the narrowest.
const TRIES: usize = 200;
const COST_SAMPLES: usize = 1001;

/// A clock's reading between two readings of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// TSC before.
    pub before_tsc: u64,
    /// What the clock said, in nanoseconds.
    pub clock_ns: u64,
    /// TSC after.
    pub after_tsc: u64,
}

impl Sample {
    const fn width(&self) -> u64 {
        self.after_tsc.wrapping_sub(self.before_tsc)
    }
}

/// What a reading of CLOCK_MONOTONIC costs, in TSC cycles (medians).
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Through the C library.
    pub library_cycles: u64,
    /// Through the system call.
    pub syscall_cycles: u64,
}

impl Cost {
    /// Whether the library reads the clock without entering the kernel: it does
    /// through the vDSO if the clocksource allows it, and then it takes less
    /// than half of the time.
    pub const fn is_vdso(&self) -> bool {
        self.library_cycles.saturating_mul(2) < self.syscall_cycles
    }
}

/// The TSC, neither before what precedes it nor after what follows.
pub fn tsc() -> u64 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_lfence() };
    // SAFETY: Linux does not forbid RDTSC unless asked by prctl.
    let tsc = unsafe { _rdtsc() };
    // SAFETY: as the first.
    unsafe { _mm_lfence() };
    tsc
}

/// A clock in nanoseconds, by the C library (through the vDSO where it can).
pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the structure that it borrows.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    nanoseconds(time)
}

fn clock_ns_by_syscall(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `clock_ns`.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) };
    nanoseconds(time)
}

fn nanoseconds(time: libc::timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// The reading with the least time between its two TSCs out of many.
pub fn narrowest(clock: libc::clockid_t) -> Sample {
    let sample = || {
        let before_tsc = tsc();
        let clock_ns = clock_ns(clock);
        Sample { before_tsc, clock_ns, after_tsc: tsc() }
    };
    let mut best = sample();
    for _ in 1..TRIES {
        let next = sample();
        if next.width() < best.width() {
            best = next;
        }
    }
    best
}

/// Measures both ways to read CLOCK_MONOTONIC.
pub fn cost() -> Cost {
    Cost {
        library_cycles: median_cycles(|| clock_ns(libc::CLOCK_MONOTONIC)),
        syscall_cycles: median_cycles(|| clock_ns_by_syscall(libc::CLOCK_MONOTONIC)),
    }
}

fn median_cycles(read: impl Fn() -> u64) -> u64 {
    let mut cycles: Vec<u64> = (0..COST_SAMPLES)
        .map(|_| {
            let before = tsc();
            std::hint::black_box(read());
            tsc().wrapping_sub(before)
        })
        .collect();
    cycles.sort_unstable();
    cycles[COST_SAMPLES / 2]
}
