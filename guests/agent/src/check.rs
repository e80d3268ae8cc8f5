//! The further reports of `agent.check=1`, in the order that leaves the riskiest
//! for last: what comes before a hang has been told.

use std::thread;
use std::time::Duration;

use crate::interrupts::Counts;
use crate::system::{self, Console};
use crate::term::Term;
use crate::{hotplug, ipis, sleeps, watch};

/// How long the guest does nothing, to see whether interrupts storm.
const IDLE: Duration = Duration::from_millis(500);
/// How long the clocks are watched again after CPUs were taken out and put back.
const AGAIN: Duration = Duration::from_millis(500);

/// Reports all of it. CPUs are taken out only by the first process of a guest.
pub fn report(console: &mut Console, first_process: bool) {
    let before = Counts::read();
    report_sleeps(console);
    report_ipis(console);
    match (before, Counts::read()) {
        (Ok(before), Ok(after)) => {
            console.line(format_args!("interrupts {}", after.since(&before)));
            report_idle(console);
        }
        (Err(error), _) | (_, Err(error)) => {
            missing(console, "interrupts", format_args!("/proc/interrupts: {error}"));
        }
    }
    if first_process {
        report_hotplug(console);
    }
}

/// A check for which this kernel has nothing.
fn missing(console: &mut Console, check: &str, reason: std::fmt::Arguments<'_>) {
    console.line(format_args!("missing check={check} reason: {reason}"));
}

fn report_sleeps(console: &mut Console) {
    for (cpu, seen) in sleeps::measure() {
        console.line(format_args!(
            "sleeps cpu={cpu} count={} early={} worst_early_ns={} median_late_ns={} max_late_ns={}",
            seen.count(),
            seen.early,
            seen.worst_early_ns,
            seen.median_ns(),
            seen.max_ns(),
        ));
    }
}

fn report_ipis(console: &mut Console) {
    for (cpu, result) in ipis::ping_all() {
        match result {
            Ok(median_ns) => console.line(format_args!("ping cpu={cpu} median_ns={median_ns}")),
            Err(error) => missing(console, "ping", format_args!("{error}")),
        }
    }
}

fn report_idle(console: &mut Console) {
    let Ok(before) = Counts::read() else { return };
    thread::sleep(IDLE);
    let Ok(after) = Counts::read() else { return };
    if let Some(upcalls) = after.since(&before).total("hyp") {
        console.line(format_args!("idle ms={} upcalls={upcalls}", IDLE.as_millis()));
    }
}

fn report_hotplug(console: &mut Console) {
    let cpus = system::online_cpus();
    for cpu in 1..cpus {
        if !hotplug::is_available(cpu) {
            missing(console, "hotplug", format_args!("cpu{cpu} has no file `online` in sysfs"));
            return;
        }
        // Said first: a kernel that hangs here says no more.
        console.line(format_args!("replug cpu={cpu}"));
        match hotplug::replug(cpu) {
            Ok(done) => console.line(format_args!(
                "replugged cpu={} down_ms={} up_ms={}",
                done.cpu,
                done.down.as_millis(),
                done.up.as_millis(),
            )),
            Err(error) => console.line(format_args!("error cpu {cpu}: {error}")),
        }
    }
    if cpus > 1 {
        let seen = watch::watch(&Term::new(AGAIN));
        let total = seen.total();
        console.line(format_args!(
            "spin-again cpus={} reads={} backward={} cross_backward={} worst_ns={}",
            seen.tallies.len(),
            total.reads,
            total.backward,
            total.cross_backward,
            total.worst_ns,
        ));
    }
}
