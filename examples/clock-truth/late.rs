//! When this machine kept its most urgent threads from running: what no clock can be
//! blamed for, on a machine that is itself emulated by threads of a busy one.
//!
//! On each CPU a thread of a higher priority than the clock service's naps for 1 ms over
//! and over. Whatever it wakes later than that is an interval in which nothing on that
//! CPU ran; up to 1 ms of such an interval is not seen. Nothing here is shared with what
//! is judged. A window is excused by what one CPU was late within it, that of the most:
//! not by the sum over CPUs, since a thread waits for one at a time.

#![expect(unsafe_code, reason = "sched_setscheduler and sched_setaffinity take raw pointers")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_xen::host::host_tsc;

use crate::windows::Window;

/// The CPU, from when its thread should have run, until it did, by the host's TSC.
type Interval = (usize, u64, u64);

static LATE: Mutex<Vec<Interval>> = Mutex::new(Vec::new());
const NAP: Duration = Duration::from_millis(1);
/// Less than this is what a timer and a switch of threads take.
const COUNTS: Duration = Duration::from_micros(300);

/// What was late so far; forgets it.
pub fn take() -> Late {
    Late(std::mem::take(&mut *LATE.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Intervals in which a CPU did not run its most urgent thread.
pub struct Late(Vec<Interval>);

impl Late {
    /// The longest, ticks.
    pub fn longest(&self) -> u64 {
        self.0.iter().map(|(_, from, to)| to.saturating_sub(*from)).max().unwrap_or_default()
    }

    /// How many ticks of a window one CPU was late, the one that was most.
    pub fn within(&self, window: Window) -> u64 {
        let mut of_cpu = BTreeMap::<usize, u64>::new();
        for (cpu, due, woke) in &self.0 {
            let common = (*woke).min(window.to).saturating_sub((*due).max(window.from));
            *of_cpu.entry(*cpu).or_default() += common;
        }
        of_cpu.into_values().max().unwrap_or_default()
    }
}

/// Watches each CPU.
pub fn watch() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for cpu in 0..cpus {
        std::thread::spawn(move || {
            be_on(cpu);
            be_urgent(2);
            loop {
                let (began, due) = (host_tsc(), Instant::now() + NAP);
                std::thread::sleep(NAP);
                let (late, woke) = (Instant::now().saturating_duration_since(due), host_tsc());
                if late > COUNTS {
                    // Of the ticks since, the share that was late.
                    let ns = (late + NAP).as_nanos().max(1);
                    let share = u128::from(woke.saturating_sub(began)) * late.as_nanos() / ns;
                    let due = woke.saturating_sub(u64::try_from(share).unwrap_or(u64::MAX));
                    LATE.lock().unwrap_or_else(PoisonError::into_inner).push((cpu, due, woke));
                }
            }
        });
    }
}

fn be_on(cpu: usize) {
    // SAFETY: a set of CPUs is plain bits, for which all bytes zero are a value.
    let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: `set` is a valid set; the call checks that `cpu` is within it.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: 0 is the calling thread; the set lives across the call.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        println!("truth no thread on CPU {cpu}: {}", std::io::Error::last_os_error());
    }
}

/// The calling thread runs before ordinary ones; 1 is the clock service's own priority.
pub fn be_urgent(priority: i32) {
    let priority = libc::sched_param { sched_priority: priority };
    // SAFETY: 0 is the calling thread; the structure lives across the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } != 0 {
        println!("truth no urgent thread: {}", std::io::Error::last_os_error());
    }
}
