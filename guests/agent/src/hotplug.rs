//! Takes CPUs out and puts them back.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// How one CPU took it.
#[derive(Debug)]
pub struct Replug {
    /// The CPU.
    pub cpu: usize,
    /// How long it took to go.
    pub down: Duration,
    /// How long it took to come.
    pub up: Duration,
}

fn switch(cpu: usize) -> String {
    format!("/sys/devices/system/cpu/cpu{cpu}/online")
}

/// Whether this kernel can take a CPU out.
pub fn is_available(cpu: usize) -> bool {
    fs::exists(switch(cpu)).unwrap_or(false)
}

/// Takes one CPU out and puts it back.
///
/// # Errors
/// What the kernel said, or that it says yes and does no.
pub fn replug(cpu: usize) -> io::Result<Replug> {
    let start = Instant::now();
    set(cpu, "0")?;
    let down = start.elapsed();
    let start = Instant::now();
    set(cpu, "1")?;
    Ok(Replug { cpu, down, up: start.elapsed() })
}

fn set(cpu: usize, online: &str) -> io::Result<()> {
    fs::write(switch(cpu), online)?;
    let now = fs::read_to_string(switch(cpu))?;
    if now.trim() == online {
        return Ok(());
    }
    Err(io::Error::other(format!("wrote {online}, reads {}", now.trim())))
}
