//! One thread on each CPU reads CLOCK_MONOTONIC without pause and looks for
//! time going backwards, while another samples CLOCK_MONOTONIC_RAW against the
//! TSC.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::clocks::{Sample, clock_ns, narrowest};
use crate::system;
use crate::term::Term;

/// Samples of CLOCK_MONOTONIC_RAW, spread over the watch.
const SAMPLES: u32 = 16;

/// What one CPU saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Readings.
    pub reads: u64,
    /// Readings before the CPU's own previous one.
    pub backward: u64,
    /// Readings before one that another CPU had finished earlier.
    pub cross_backward: u64,
    /// The greatest of these steps, in nanoseconds.
    pub worst_ns: u64,
}

/// What all CPUs saw.
#[derive(Debug)]
pub struct Watch {
    /// By CPU.
    pub tallies: Vec<(usize, Tally)>,
    /// CLOCK_MONOTONIC_RAW against the TSC.
    pub samples: Vec<Sample>,
}

impl Watch {
    /// All CPUs together.
    pub fn total(&self) -> Tally {
        self.tallies.iter().fold(Tally::default(), |sum, (_, tally)| Tally {
            reads: sum.reads + tally.reads,
            backward: sum.backward + tally.backward,
            cross_backward: sum.cross_backward + tally.cross_backward,
            worst_ns: sum.worst_ns.max(tally.worst_ns),
        })
    }
}

/// Watches the clocks on every CPU that is online.
pub fn watch(term: &Term) -> Watch {
    let latest_ns = AtomicU64::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..system::online_cpus())
            .map(|cpu| {
                let latest_ns = &latest_ns;
                scope.spawn(move || {
                    system::pin_to(cpu);
                    (cpu, spin(term, latest_ns))
                })
            })
            .collect();
        let pause = term.limit / SAMPLES;
        let samples = (0..SAMPLES)
            .map(|_| {
                term.sleep(pause);
                narrowest(libc::CLOCK_MONOTONIC_RAW)
            })
            .collect();
        // A thread that panicked ended the process: `panic = "abort"`.
        let tallies = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        Watch { tallies, samples }
    })
}

fn spin(term: &Term, latest_ns: &AtomicU64) -> Tally {
    let mut tally = Tally::default();
    let mut previous = 0;
    let start = Instant::now();
    loop {
        for _ in 0..1000 {
            // What any CPU had read by now must not lie ahead of what this one
            // reads next. SeqCst keeps the load before the vDSO's own fences.
            let latest = latest_ns.load(Ordering::SeqCst);
            let now = clock_ns(libc::CLOCK_MONOTONIC);
            tally.reads += 1;
            tally.backward += u64::from(now < previous);
            tally.cross_backward += u64::from(now < latest);
            tally.worst_ns = latest.max(previous).saturating_sub(now).max(tally.worst_ns);
            previous = now;
            latest_ns.fetch_max(now, Ordering::SeqCst);
        }
        if term.is_over(start) {
            return tally;
        }
    }
}
