//! Makes CPUs interrupt each other: two threads on two CPUs wake one another by
//! turns, each asleep while the other runs.

use std::io::{self, PipeReader, PipeWriter};
use std::io::{Read, Write};
use std::thread;
use std::time::Instant;

use crate::system;

const TURNS: usize = 50;

/// Wakes each CPU from CPU 0, and CPU 0 from each. Returns the median of a whole
/// turn, there and back, in nanoseconds, for each CPU but the first.
pub fn ping_all() -> Vec<(usize, io::Result<u64>)> {
    (1..system::online_cpus()).map(|cpu| (cpu, ping(cpu))).collect()
}

fn ping(cpu: usize) -> io::Result<u64> {
    let (there_in, there_out) = io::pipe()?;
    let (back_in, back_out) = io::pipe()?;
    let other = thread::spawn(move || {
        system::pin_to(cpu);
        echo(there_in, back_out)
    });
    // A thread of its own, so that the caller stays where it may run.
    let this = thread::spawn(move || {
        system::pin_to(0);
        turns(there_out, back_in)
    });
    let gone = || io::Error::other("a thread panicked");
    let median_ns = this.join().map_err(|_| gone())??;
    other.join().map_err(|_| gone())??;
    Ok(median_ns)
}

fn turns(mut to: PipeWriter, mut from: PipeReader) -> io::Result<u64> {
    let mut taken_ns = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        let start = Instant::now();
        to.write_all(&[0])?;
        from.read_exact(&mut [0])?;
        taken_ns.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    taken_ns.sort_unstable();
    Ok(taken_ns.get(TURNS / 2).copied().unwrap_or(0))
}

/// Until the other end is closed.
fn echo(mut from: PipeReader, mut to: PipeWriter) -> io::Result<()> {
    let mut byte = [0];
    while from.read(&mut byte)? != 0 {
        to.write_all(&byte)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_turn_takes_time() {
        assert!(super::ping(0).unwrap() > 0);
    }
}
