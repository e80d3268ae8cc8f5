//! Five of the kernel's clocks beside each other, every 20 ms: a step back of
//! any of them, and moments at which one went on by more than a second, which a
//! machine that was stopped meanwhile makes.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::clocks::{clock_ns, tsc};
use crate::term::Term;

/// The clocks, and what they are called in a report.
pub const CLOCKS: [(&str, libc::clockid_t); 5] = [
    ("realtime", libc::CLOCK_REALTIME),
    ("monotonic", libc::CLOCK_MONOTONIC),
    ("boottime", libc::CLOCK_BOOTTIME),
    ("raw", libc::CLOCK_MONOTONIC_RAW),
    ("tai", libc::CLOCK_TAI),
];

const PAUSE: Duration = Duration::from_millis(20);
const JUMP_NS: i64 = 1_000_000_000;

/// How far each clock went between two looks, in ns; the TSC in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    clocks_ns: [i64; 5],
    tsc: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Jumps {
    /// Looks at all five.
    pub looks: u64,
    /// Steps back, of each clock.
    pub backward: [u64; 5],
    /// The longest step of each, in ns.
    pub longest_ns: [i64; 5],
    /// Those of more than a second, of any clock.
    pub jumps: Vec<Step>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((name, _), step_ns) in CLOCKS.iter().zip(self.clocks_ns) {
            write!(f, "{name}_ns={step_ns} ")?;
        }
        write!(f, "tsc={}", self.tsc)
    }
}

/// Looks at the clocks for as long as `term` says.
pub fn watch(term: &Term) -> Jumps {
    let look = || (CLOCKS.map(|(_, clock)| signed(clock_ns(clock))), tsc());
    let mut seen = Jumps::default();
    let (mut before, mut before_tsc) = look();
    let start = Instant::now();
    while !term.is_over(start) {
        thread::sleep(PAUSE);
        let (now, now_tsc) = look();
        let mut step = Step { tsc: now_tsc.wrapping_sub(before_tsc), ..Step::default() };
        for index in 0..CLOCKS.len() {
            let step_ns = now[index] - before[index];
            step.clocks_ns[index] = step_ns;
            seen.backward[index] += u64::from(step_ns < 0);
            seen.longest_ns[index] = seen.longest_ns[index].max(step_ns);
        }
        if step.clocks_ns.iter().any(|step_ns| *step_ns > JUMP_NS) {
            seen.jumps.push(step);
        }
        seen.looks += 1;
        (before, before_tsc) = (now, now_tsc);
    }
    seen
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
