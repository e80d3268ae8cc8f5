//! Sleeps to absolute deadlines on every CPU: none may end early, and how late
//! they end is told.

#![expect(unsafe_code, reason = "clock_nanosleep to an absolute deadline")]

use std::thread;
use std::time::Duration;

use crate::clocks::clock_ns;
use crate::system;

/// From what a timer interrupt just manages to what an idle CPU sleeps through.
const LENGTHS_US: [u64; 6] = [50, 500, 1_000, 4_000, 15_000, 40_000];
const ROUNDS: usize = 4;

/// What one CPU's sleeps were like.
#[derive(Clone, Debug, Default)]
pub struct Sleeps {
    /// Sleeps that ended before their deadline.
    pub early: u64,
    /// By how much at the most, in nanoseconds.
    pub worst_early_ns: u64,
    /// How late each of the others ended, in nanoseconds, sorted.
    pub late_ns: Vec<u64>,
}

impl Sleeps {
    fn note(&mut self, deadline_ns: u64, woken_ns: u64) {
        match woken_ns.checked_sub(deadline_ns) {
            Some(late_ns) => self.late_ns.push(late_ns),
            None => {
                self.early += 1;
                self.worst_early_ns = self.worst_early_ns.max(deadline_ns - woken_ns);
            }
        }
    }

    /// All sleeps.
    pub fn count(&self) -> usize {
        self.late_ns.len() + usize::try_from(self.early).unwrap_or(usize::MAX)
    }

    /// The lateness in the middle, 0 for no sleeps.
    pub fn median_ns(&self) -> u64 {
        self.late_ns.get(self.late_ns.len() / 2).copied().unwrap_or(0)
    }

    /// The greatest lateness, 0 for no sleeps.
    pub fn max_ns(&self) -> u64 {
        self.late_ns.last().copied().unwrap_or(0)
    }
}

/// Sleeps on all CPUs at once.
pub fn measure() -> Vec<(usize, Sleeps)> {
    let threads: Vec<_> = (0..system::online_cpus())
        .map(|cpu| {
            thread::spawn(move || {
                system::pin_to(cpu);
                (cpu, on_this_cpu())
            })
        })
        .collect();
    threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
}

fn on_this_cpu() -> Sleeps {
    // Linux puts this much leave onto a thread's deadlines; 50 us by default.
    // SAFETY: takes numbers alone.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let mut sleeps = Sleeps::default();
    for length_us in LENGTHS_US.into_iter().cycle().take(LENGTHS_US.len() * ROUNDS) {
        let deadline_ns = clock_ns(libc::CLOCK_MONOTONIC) + length_us * 1_000;
        sleep_until(deadline_ns);
        sleeps.note(deadline_ns, clock_ns(libc::CLOCK_MONOTONIC));
    }
    sleeps.late_ns.sort_unstable();
    sleeps
}

fn sleep_until(deadline_ns: u64) {
    let deadline = Duration::from_nanos(deadline_ns);
    let deadline = libc::timespec {
        tv_sec: libc::time_t::try_from(deadline.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: deadline.subsec_nanos().into(),
    };
    loop {
        // SAFETY: reads the structure that it borrows; with an absolute deadline
        // nothing is written to the last argument.
        let status = unsafe {
            libc::clock_nanosleep(
                libc::CLOCK_MONOTONIC,
                libc::TIMER_ABSTIME,
                &raw const deadline,
                std::ptr::null_mut(),
            )
        };
        if status != libc::EINTR {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_and_late_are_told_apart() {
        let mut sleeps = Sleeps::default();
        for (deadline, woken) in [(100, 100), (100, 103), (100, 90), (100, 109)] {
            sleeps.note(deadline, woken);
        }
        assert_eq!((sleeps.count(), sleeps.early, sleeps.worst_early_ns), (4, 1, 10));
        assert_eq!((sleeps.median_ns(), sleeps.max_ns()), (3, 9));
        assert_eq!((Sleeps::default().median_ns(), Sleeps::default().max_ns()), (0, 0));
    }
}
