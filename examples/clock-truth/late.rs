//! How late this machine lets its most urgent threads run: what no clock can be
//! blamed for, on a machine that is itself emulated by threads of a busy one.

#![expect(unsafe_code, reason = "sched_setscheduler and sched_setaffinity take raw pointers")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static LONGEST_NS: AtomicU64 = AtomicU64::new(0);
const NAP: Duration = Duration::from_millis(1);

/// The longest so far, ns; counts anew from here.
pub fn take_longest_ns() -> u64 {
    LONGEST_NS.swap(0, Ordering::Relaxed)
}

/// Watches each CPU from a thread of a higher priority than the clock service's.
pub fn watch() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for cpu in 0..cpus {
        std::thread::spawn(move || {
            be_urgent_on(cpu);
            loop {
                let began = Instant::now();
                std::thread::sleep(NAP);
                let late = began.elapsed().saturating_sub(NAP).as_nanos();
                LONGEST_NS.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
    }
}

fn be_urgent_on(cpu: usize) {
    // SAFETY: a set of CPUs is plain bits, for which all bytes zero are a value.
    let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: `set` is a valid set; the call checks that `cpu` is within it.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: 0 is the calling thread; the set lives across the call.
    let pinned = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    let priority = libc::sched_param { sched_priority: 2 };
    // SAFETY: as above, with the structure.
    let urgent = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    if pinned != 0 || urgent != 0 {
        println!("truth no urgent thread on CPU {cpu}: {}", std::io::Error::last_os_error());
    }
}
