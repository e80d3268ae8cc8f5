//! How long a vCPU's thread ran, waited for a CPU, and slept.
//!
//! The guest's HLT happens inside KVM_RUN, and the host's scheduler takes the
//! CPU away without a word, so neither can be timed from here. The host counts
//! both for each thread: its CPU time, exact, by a clock, and the time in which
//! it wanted to run and did not, in `/proc/thread-self/schedstat`. What is left
//! of the elapsed time it slept.

#![expect(unsafe_code, reason = "the clock of a thread's CPU time")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::xen::Spent;

/// An interval shorter than this is left for the next one: the price of the
/// question is a system call.
const SHORTEST_NS: u64 = 1_000_000;
/// Time off the CPU below this, about the cost of a switch there and back, is
/// not looked into.
const SMALL_NS: u64 = 20_000;

/// The account of one thread, on that thread.
#[derive(Debug)]
pub struct RunMeter {
    schedstat: Option<File>,
    at_ns: u64,
    on_cpu_ns: u64,
    delayed_ns: u64,
}

impl RunMeter {
    /// For the calling thread, from now on. A host that does not count delays
    /// (no `CONFIG_SCHED_INFO`) has no stolen time to tell.
    pub fn of_this_thread(now_ns: u64) -> Self {
        let schedstat = File::open("/proc/thread-self/schedstat")
            .inspect_err(|error| tracing::debug!(%error, "no stolen time from this host"))
            .ok();
        let mut meter = Self { schedstat, at_ns: now_ns, on_cpu_ns: 0, delayed_ns: 0 };
        meter.on_cpu_ns = thread_cpu_ns();
        meter.delayed_ns = meter.read_delay_ns().unwrap_or(0);
        meter
    }

    /// Time since the last answer; `None` where that is too short to ask, but
    /// always an answer with `now_or_never`. `now_ns` is of any clock that goes
    /// at about the rate of the host's.
    pub fn since_last(&mut self, now_ns: u64, now_or_never: bool) -> Option<Spent> {
        let elapsed_ns = now_ns.saturating_sub(self.at_ns);
        if elapsed_ns < SHORTEST_NS && !now_or_never {
            return None;
        }
        let on_cpu_ns = thread_cpu_ns();
        let off_cpu_ns = elapsed_ns.saturating_sub(on_cpu_ns.saturating_sub(self.on_cpu_ns));
        let delayed_ns = match off_cpu_ns < SMALL_NS {
            true => self.delayed_ns,
            false => self.read_delay_ns().unwrap_or(self.delayed_ns),
        };
        let runnable_ns = delayed_ns.saturating_sub(self.delayed_ns).min(off_cpu_ns);
        (self.at_ns, self.on_cpu_ns, self.delayed_ns) = (now_ns, on_cpu_ns, delayed_ns);
        Some(Spent { runnable_ns, blocked_ns: off_cpu_ns - runnable_ns })
    }

    /// The second number: nanoseconds on a run queue, waiting.
    fn read_delay_ns(&self) -> Option<u64> {
        let mut text = [0u8; 80];
        let length = self.schedstat.as_ref()?.read_at(&mut text, 0).ok()?;
        parse_delay(text.get(..length)?)
    }
}

fn parse_delay(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// CPU time of the calling thread.
fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, ours; the clock of the calling thread exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_second_number_is_the_delay() {
        assert_eq!(parse_delay(b"84127405 11502 57\n"), Some(11502));
        for bad in [&b""[..], b"1", b"1 x 2", b"1 -5 2", b"\xff 1"] {
            assert_eq!(parse_delay(bad), None);
        }
    }

    #[test]
    fn a_short_interval_is_left_for_the_next() {
        let mut meter = RunMeter::of_this_thread(1000);
        assert_eq!(meter.since_last(1000 + SHORTEST_NS - 1, false), None);
        assert!(meter.since_last(1000 + SHORTEST_NS - 1, true).is_some());
    }

    #[test]
    fn sleep_is_blocked_and_work_is_neither() {
        let start = Instant::now();
        let now_ns = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut meter = RunMeter::of_this_thread(now_ns());
        std::thread::sleep(Duration::from_millis(50));
        let slept = meter.since_last(now_ns(), false).unwrap();
        assert!(slept.blocked_ns >= 49_000_000, "{slept:?}");
        let (began, on_cpu_ns) = (now_ns(), thread_cpu_ns());
        while thread_cpu_ns() < on_cpu_ns + 20_000_000 {
            std::hint::spin_loop();
        }
        let ended = now_ns();
        let spun = meter.since_last(ended, false).unwrap();
        // Whatever this thread did not run it was delayed, and never slept.
        let off_cpu_ns = spun.runnable_ns + spun.blocked_ns;
        assert!(off_cpu_ns <= (ended - began).saturating_sub(19_000_000), "{spun:?}");
        assert!(spun.blocked_ns < 5_000_000 + off_cpu_ns / 4, "{spun:?}");
    }
}
