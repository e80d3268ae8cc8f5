//! Judges a cell by what its guest and its machine told.

use std::time::Duration;

use super::matrix::{Cell, Clock};
use super::record::{Process, Record};
use crate::cli::evidence::Report;

/// The wallclock page says UTC at one moment; NTP may steer the host's clock by
/// 500 ppm from there on.
const WALLCLOCK_WITHIN_NS: u64 = 1_000_000;
const STEERING_PPM: u64 = 500;
/// How near KVM's clock is kept to the line, to either side.
const GUARDED_WITHIN_NS: u64 = 1_000;
/// An idle CPU's timer ticks 1000 times a second at the most.
const MOST_IDLE_UPCALLS_PER_CPU_SECOND: u64 = 5_000;
/// What the kernel says when it is broken, at the beginning of its messages.
const FAULTS: [&str; 13] = [
    "BUG:",
    "Call Trace",
    "INFO: rcu",
    "INFO: task",
    "Kernel panic",
    "NMI watchdog",
    "Oops",
    "WARNING:",
    "general protection fault",
    "rcu: INFO:",
    "unchecked MSR access",
    "watchdog: BUG",
    "watchdog: Watchdog detected",
];
/// Emergencies, alerts and critical conditions are faults whatever they say.
const FAULT_LEVEL: u64 = 2;

/// The bounds that a user may choose.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sleeps that end later are faults.
    pub late: Duration,
    /// How far the guest's CLOCK_REALTIME may be from the host's.
    pub realtime: Duration,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It does not.
    Fails,
    /// The kernel has nothing to judge.
    NotAvailable,
}

impl Outcome {
    /// As reports have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::NotAvailable => "not available",
        }
    }
}

/// One check of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// What it came to.
    pub outcome: Outcome,
    /// What was seen.
    pub got: String,
    /// What should have been.
    pub want: String,
}

/// All checks of a cell, in the order of a guest's life.
pub fn judge(cell: &Cell, record: &Record, limits: &Limits) -> Vec<Check> {
    let mut judge = Judge {
        cell,
        record,
        limits,
        reports: record.console.iter().filter_map(|line| Report::parse(line)).collect(),
        checks: Vec::new(),
    };
    if judge.boot() {
        judge.identity();
        judge.clocks();
        judge.sleeps();
        judge.interrupts();
        judge.hotplug();
        judge.log();
        judge.errors();
    }
    judge.end();
    judge.checks
}

/// Whether a cell that should have had its clock pages written by us saw KVM take
/// over, because its kernel knows no upcall vectors of the vCPUs' own.
pub fn fell_to_guarded(cell: &Cell, record: &Record) -> bool {
    cell.clock == Clock::Owned && record.end.as_ref().is_some_and(|end| end.guarded)
}

struct Judge<'a> {
    cell: &'a Cell,
    record: &'a Record,
    limits: &'a Limits,
    reports: Vec<Report>,
    checks: Vec<Check>,
}

impl<'a> Judge<'a> {
    fn check(&mut self, name: &'static str, holds: bool, got: impl Into<String>, want: &str) {
        let outcome = if holds { Outcome::Holds } else { Outcome::Fails };
        self.checks.push(Check { name, outcome, got: got.into(), want: want.to_owned() });
    }

    fn not_available(&mut self, name: &'static str, why: impl Into<String>) {
        let (outcome, want) = (Outcome::NotAvailable, String::new());
        self.checks.push(Check { name, outcome, got: why.into(), want });
    }

    fn find(&self, topic: &str) -> Option<&Report> {
        self.reports.iter().find(|report| report.topic == topic)
    }

    fn all(&self, topic: &'static str) -> impl Iterator<Item = &Report> {
        self.reports.iter().filter(move |report| report.topic == topic)
    }

    fn text(&self, topic: &str, key: &str) -> &str {
        self.find(topic).and_then(|report| report.text(key)).unwrap_or("not reported")
    }

    /// The rest of the guest's lines `KVMXEN topic …`.
    fn lines(&self, topic: &str) -> impl Iterator<Item = &'a str> {
        let prefix = format!("KVMXEN {topic} ");
        self.record
            .console
            .iter()
            .filter_map(move |line| line.find(&prefix).and_then(|at| line.get(at + prefix.len()..)))
    }

    /// Why the guest has nothing for a check, if it says so.
    fn missing(&self, check: &str) -> Option<&'a str> {
        let prefix = format!("check={check} reason: ");
        self.lines("missing").find_map(|line| line.strip_prefix(prefix.as_str()))
    }

    /// Whether the agent ran at all; all else is about what it saw.
    fn boot(&mut self) -> bool {
        let reached = self.lines("init").next().is_some();
        self.check("init", reached, if reached { "reached" } else { "not reached" }, "reached");
        if !reached {
            return false;
        }
        let last = self.reports.last().map_or("", |report| report.topic.as_str()).to_owned();
        let whole = self.find("end").is_some();
        let got = if whole { "whole".to_owned() } else { format!("ends with {last:?}") };
        self.check("report", whole, got, "whole");
        // Of what was not told nothing can be judged, and that is told above.
        whole
    }

    fn identity(&mut self) {
        let hypervisor = self.text("hypervisor", "type").to_owned();
        match hypervisor.as_str() {
            "none" => self.not_available("hypervisor", "no /sys/hypervisor/type"),
            kind => self.check("hypervisor", kind == "xen", kind, "xen"),
        }
        let source = self.text("clocksource", "current").to_owned();
        let want = self.cell.clocksource();
        match source.as_str() {
            "none" => self.not_available("clocksource", "no clocksource in sysfs"),
            source => self.check("clocksource", source == want, source, want),
        }
        let (cpus, want) = (self.text("kernel", "cpus").to_owned(), self.cell.cpus.to_string());
        self.check("vCPUs", cpus == want, cpus, &want);
        let abi = self.text("events", "abi").to_owned();
        if abi == "not reported" {
            self.not_available("event channels", "the kernel's log does not name its ABI");
        } else {
            let want = if self.cell.fifo { "fifo" } else { "2-level" };
            self.check("event channels", abi == want, abi, want);
        }
    }

    fn clocks(&mut self) {
        let vdso = self.find("vdso").map(|vdso| {
            let number = |key| vdso.number(key).unwrap_or(0);
            let cycles = (number("gettime_cycles"), number("syscall_cycles"));
            let got = format!("{} cycles, a system call {}", cycles.0, cycles.1);
            (vdso.number("used") == Some(1), got)
        });
        let (used, got) = vdso.unwrap_or_else(|| (false, "not reported".to_owned()));
        self.check("vDSO", used, got, "less than half of a system call");
        self.spin("monotonic", "spin");
        self.line();
        if let Some(end) = &self.record.end {
            let took_ns = u64::try_from(self.record.took.as_nanos()).unwrap_or(u64::MAX);
            let bound = WALLCLOCK_WITHIN_NS + took_ns / 1_000_000 * STEERING_PPM;
            match end.wallclock_error_ns {
                Some(error) => {
                    let want = format!("within {bound} ns");
                    let got = format!("{error} ns from the host");
                    self.check("wallclock page", error.unsigned_abs() <= bound, got, &want);
                }
                None => self.check("wallclock page", false, "not mapped", "mapped"),
            }
            let bound = u64::try_from(self.limits.realtime.as_nanos()).unwrap_or(u64::MAX);
            match end.realtime_error_ns {
                Some(error) => {
                    let want = format!("within {bound} ns");
                    let got = format!("{error} ns from the host");
                    self.check("CLOCK_REALTIME", error.unsigned_abs() <= bound, got, &want);
                }
                None => self.check("CLOCK_REALTIME", false, "not reported", "reported"),
            }
        }
    }

    fn spin(&mut self, name: &'static str, topic: &'static str) {
        let Some(seen) = self.find(topic) else {
            self.check(name, false, "not reported", "no step back");
            return;
        };
        let number = |key| seen.number(key).unwrap_or(u64::MAX);
        let (backward, cross) = (number("backward"), number("cross_backward"));
        let cpus = number("cpus");
        let holds = backward == 0
            && cross == 0
            && cpus == u64::from(self.cell.cpus)
            && seen.number("reads").is_some_and(|reads| reads > 0);
        let got = format!(
            "{backward} steps back on a CPU, {cross} across, the greatest {} ns, in {} reads on \
             {cpus} CPUs",
            number("worst_ns"),
            seen.text("reads").unwrap_or("no"),
        );
        self.check(name, holds, got, &format!("none on {} CPUs", self.cell.cpus));
    }

    /// The guest's CLOCK_MONOTONIC_RAW, and the pages behind it.
    fn line(&mut self) {
        let Some(end) = self.record.end.as_ref() else { return };
        let within = if end.guarded { 2 * GUARDED_WITHIN_NS } else { 0 };
        match end.agreement {
            // Linux's own tsc clocksource counts in whole kHz.
            _ if self.cell.tsc => {}
            Some(found) => {
                let got = format!(
                    "{} ns off in {} samples (each to {} ns or more)",
                    found.strayed_ns, found.samples, found.resolution_ns
                );
                let want = format!("within {within} ns");
                self.check("line", found.strayed_ns <= within, got, &want);
            }
            None => self.check("line", false, "no samples", "samples"),
        }
        if end.guarded {
            let got = format!("KVM's {} ns from the line", end.deviation_ns);
            let want = format!("within {GUARDED_WITHIN_NS} ns");
            self.check("clock pages", end.deviation_ns <= GUARDED_WITHIN_NS, got, &want);
        } else {
            let got = format!("{} rewritten", end.rewrites);
            self.check("clock pages", end.rewrites == 0, got, "none rewritten");
        }
    }

    fn sleeps(&mut self) {
        let seen = |key: &'static str| self.all("sleeps").filter_map(move |r| r.number(key));
        let cpus = self.all("sleeps").count();
        let (count, early) = (seen("count").sum::<u64>(), seen("early").sum::<u64>());
        let greatest = |key| seen(key).max().unwrap_or(0);
        let (worst_early, median, most) =
            (greatest("worst_early_ns"), greatest("median_late_ns"), greatest("max_late_ns"));
        let every_cpu = cpus == usize::try_from(self.cell.cpus).unwrap_or(usize::MAX);
        let got = format!("{early} of {count} on {cpus} CPUs, by up to {worst_early} ns");
        let want = format!("none early on {} CPUs", self.cell.cpus);
        self.check("sleeps not early", early == 0 && count > 0 && every_cpu, got, &want);
        let late = Duration::from_nanos(most);
        let got = format!("{} us in the median, {} us at the most", median / 1_000, most / 1_000);
        let want = format!("at most {} ms", self.limits.late.as_millis());
        self.check("sleeps not late", count > 0 && late <= self.limits.late, got, &want);
    }

    fn interrupts(&mut self) {
        const EACH: &str = "some on each CPU";
        if let Some(why) = self.missing("interrupts") {
            self.not_available("events", why);
            return;
        }
        let counts = |key: &str| -> Option<Vec<u64>> {
            let text = self.find("interrupts")?.text(key)?;
            text.split(',').map(|count| count.parse().ok()).collect()
        };
        let upcalls = counts("hyp");
        let counted = upcalls.is_some();
        let timer = counts("timer");
        let ipis = ["resched", "callfunc", "callfuncsingle"]
            .iter()
            .filter_map(|kind| counts(kind))
            .reduce(|sum, more| sum.iter().zip(more).map(|(a, b)| a + b).collect());
        let cpus = usize::try_from(self.cell.cpus).unwrap_or(usize::MAX);
        for (name, counts) in [("upcalls", upcalls), ("timer events", timer), ("IPIs", ipis)] {
            match counts {
                // Nobody to interrupt.
                _ if name == "IPIs" && cpus == 1 => {}
                Some(counts) => {
                    let holds = counts.len() == cpus && counts.iter().all(|count| *count > 0);
                    self.check(name, holds, format!("{counts:?}"), EACH);
                }
                None => self.not_available(name, "no such row in /proc/interrupts"),
            }
        }
        if !counted {
            return;
        }
        let idle = self.find("idle").map(|r| (r.number("ms"), r.number("upcalls")));
        let Some((Some(ms), Some(upcalls))) = idle else {
            self.check("idle", false, "not reported", "reported");
            return;
        };
        let most = MOST_IDLE_UPCALLS_PER_CPU_SECOND * u64::from(self.cell.cpus) * ms / 1_000;
        let got = format!("{upcalls} upcalls in {ms} ms");
        self.check("idle", upcalls <= most, got, &format!("{most} at the most"));
    }

    fn hotplug(&mut self) {
        if self.cell.cpus == 1 {
            return;
        }
        if let Some(why) = self.missing("hotplug") {
            self.not_available("hotplug", why);
            return;
        }
        let done = self.all("replugged").count();
        let want = usize::try_from(self.cell.cpus - 1).unwrap_or(usize::MAX);
        let got = format!("{done} of {want} CPUs out and in again");
        self.check("hotplug", done == want, got, "all");
        self.spin("monotonic after hotplug", "spin-again");
    }

    fn log(&mut self) {
        if let Some(why) = self.missing("log") {
            self.not_available("kernel log", why);
            return;
        }
        if self.find("warnings").is_none() {
            self.check("kernel log", false, "not reported", "no fault");
            return;
        }
        let faults: Vec<&str> =
            self.lines("warn:").filter(|line| is_fault(line, self.cell.clocksource())).collect();
        let got = match faults.first() {
            Some(first) => format!("{} faults, the first: {first}", faults.len()),
            None => format!("no fault, {} warnings", self.text("warnings", "count")),
        };
        self.check("kernel log", faults.is_empty(), got, "no fault");
    }

    /// What the agent could not do.
    fn errors(&mut self) {
        let errors: Vec<&str> = self.lines("error").collect();
        if let Some(first) = errors.first() {
            self.check("agent", false, *first, "no error");
        }
    }

    fn end(&mut self) {
        let got = match (&self.record.end, &self.record.process) {
            (Some(end), Process::Exited) => end.text.clone(),
            (_, Process::TimedOut(after)) => format!("killed after {} s", after.as_secs()),
            (_, Process::Broke(how)) => {
                let message = self.record.messages.last().map_or("", String::as_str);
                format!("kvm-xen ended with {how}: {message}")
            }
            (None, Process::Exited) => "kvm-xen said nothing of the end".to_owned(),
        };
        let holds = self.record.process == Process::Exited
            && self.record.end.as_ref().is_some_and(|end| end.powered_off);
        self.check("end", holds, got, "the guest powered off");
    }
}

/// Whether a complaint, `level=N text`, is one of a broken kernel, or of the
/// clocksource that it should use.
fn is_fault(complaint: &str, clocksource: &str) -> bool {
    let Some((level, text)) = complaint.split_once(' ') else { return false };
    let level = level.strip_prefix("level=").and_then(|level| level.parse::<u64>().ok());
    // 'tsc' or tsc, by the kernel's age. What it thinks of a clocksource that it
    // does not use is no matter: a slow host's tsc fails its watchdog now and then.
    let distrusts = text.split_once("Marking clocksource ").is_some_and(|(_, rest)| {
        rest.split_whitespace().next().is_some_and(|name| name.trim_matches('\'') == clocksource)
    });
    distrusts
        || level.is_some_and(|level| level <= FAULT_LEVEL)
        || FAULTS.iter().any(|fault| text.starts_with(fault))
}

#[cfg(test)]
mod tests;
