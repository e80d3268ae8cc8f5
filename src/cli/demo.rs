//! `kvm-xen demo`: a guest, and a table of how its clocks stand.

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use super::args::DemoArgs;
use super::evidence::{Report, agreement, realtime_error, samples};
use super::masterclock::MasterclockCounter;
use super::run::{CliError, machine_config};
use super::table::Table;
use crate::host::{RealtimePair, read_realtime};
use crate::vmm::config::{Console, Initrd, Kernel};
use crate::vmm::demo_guest;
use crate::vmm::exit::ExitReason;
use crate::vmm::machine::{Machine, MachineReport};

/// The wallclock page states UTC at system time 0, once. The system-time line
/// runs at the TSC's nominal rate and the host's UTC as NTP steers it: 500 ppm
/// at the most, so half a millisecond for each second of a demonstration.
const WALLCLOCK_WITHIN_NS: i128 = 1_000_000;

/// How near the line KVM's clock is set.
const GUARDED_WITHIN_NS: u64 = 1_000;

/// A report of the guest, and what the host's clocks said when it arrived.
type Heard = (Report, RealtimePair);

/// Collects the guest's reports from its console, and shows it if asked.
#[derive(Clone)]
struct Listener {
    heard: Arc<Mutex<Vec<Heard>>>,
    masterclock: Arc<std::io::Result<MasterclockCounter>>,
    line: Vec<u8>,
    verbose: bool,
}

impl Listener {
    /// Masterclock updates so far, where they can be counted.
    fn masterclock_updates(&self) -> Option<usize> {
        self.masterclock.as_ref().as_ref().ok().and_then(|counter| counter.count().ok())
    }

    fn hear(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if self.verbose {
            super::say(format_args!("    {}\n", text.trim_end()));
        }
        let Some(report) = Report::parse(&text) else { return };
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push((report, read_realtime()));
    }
}

impl Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.hear(&line);
            } else {
                self.line.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn demo(args: &DemoArgs) -> Result<ExitCode, CliError> {
    let linux = args.kernel.is_some();
    let kernel = match &args.kernel {
        Some(path) => Kernel::File(path.clone()),
        None => Kernel::Embedded(demo_guest::CLOCK),
    };
    let mut config = machine_config(&args.machine, kernel)?;
    config.initrd = args.initrd.clone().map(Initrd::File);
    config.console = Console::Serial;
    config.cmdline = if linux {
        format!("console=ttyS0 quiet panic=-1 agent.seconds={}", args.seconds)
    } else {
        format!("seconds={}", args.seconds)
    };
    let listener = Listener {
        heard: Arc::default(),
        masterclock: Arc::new(MasterclockCounter::start()),
        line: Vec::new(),
        verbose: args.verbose,
    };
    let machine = Machine::new(&config, Box::new(listener.clone()))?;
    let masterclock_before = listener.masterclock_updates();
    super::say(format_args!(
        "Booting {} …\n",
        if linux { "Linux" } else { "the built-in clock guest" }
    ));
    let report = machine.run()?;
    let heard = listener.heard.lock().unwrap_or_else(PoisonError::into_inner);
    let mut table = Table::default();
    table.check("end", &report.exit, report.exit == ExitReason::Poweroff);
    table.tell("Xen version", format!("{}.{}", config.xen_version.0, config.xen_version.1));
    table.tell("hypercalls", report.hypercalls);
    if report.rewritten_sites > 0 {
        table.tell("hypercalls rewritten in memory", report.rewritten_sites);
    }
    table.tell("clock pages", if report.guarded.active { "guarded (KVM's)" } else { "owned" });
    if linux {
        linux_rows(&mut table, &report, &heard)
    } else {
        bare_rows(&mut table, &report, &heard)
    }
    clock_rows(&mut table, &report, &listener, config.cpus, masterclock_before);
    super::say(&table);
    if table.holds() {
        return Ok(ExitCode::SUCCESS);
    }
    if let ExitReason::Crash(_) | ExitReason::Failed(_) = report.exit {
        super::complain(&report.exit);
        return Ok(ExitCode::from(report.exit.status()));
    }
    Err(CliError::Check("the demonstration shows a clock that is not right".to_owned()))
}

fn find<'a>(heard: &'a [Heard], topic: &str) -> Option<&'a Heard> {
    heard.iter().find(|(report, _)| report.topic == topic)
}

/// What the bare-metal guest counted.
fn bare_rows(table: &mut Table, report: &MachineReport, heard: &[Heard]) {
    let Some((said, _)) = find(heard, "clock") else {
        table.check("guest's report", "none", false);
        return;
    };
    let zero = |table: &mut Table, name: &str, key: &str, unit: &str| match said.number(key) {
        Some(value) => table.check(name, format!("{value}{unit}"), value == 0),
        None => table.check(name, "not reported", false),
    };
    if let (Some(cpus), Some(reads)) = (said.number("cpus"), said.number("reads")) {
        table.check("clock reads", format!("{reads} on {cpus} vCPUs"), reads > 0);
    }
    zero(table, "backward steps on a vCPU", "backward", "");
    zero(table, "backward steps across vCPUs", "cross_backward", "");
    zero(table, "from the published line", "max_error_ns", " ns");
    if report.guarded.active {
        // KVM writes its pages again, with what they say already, as it likes.
        table.tell("page rewrites seen by the guest", said.text("rewrites").unwrap_or("?"));
    } else {
        zero(table, "page rewrites seen by the guest", "rewrites", "");
    }
}

/// What the agent in a Linux guest saw.
fn linux_rows(table: &mut Table, report: &MachineReport, heard: &[Heard]) {
    let text = |topic: &str, key: &str| {
        find(heard, topic).and_then(|(report, _)| report.text(key)).unwrap_or("not reported")
    };
    table.tell("kernel", text("kernel", "release"));
    let source = text("clocksource", "current");
    table.check("clocksource", source, source == "xen");
    let hypervisor = text("hypervisor", "type");
    table.check("/sys/hypervisor/type", hypervisor, hypervisor == "xen");
    for (name, key) in [
        ("backward steps on a vCPU", "backward"),
        ("backward steps across vCPUs", "cross_backward"),
    ] {
        let value = text("spin", key);
        table.check(name, value, value == "0");
    }
    let samples = samples(heard.iter().map(|(report, _)| report));
    match agreement(&report.line, &samples) {
        Some(found) => table.check(
            "guest clock against the exact line",
            format!(
                "{} ns off in {} samples (each to {} ns or more)",
                found.strayed_ns, found.samples, found.resolution_ns
            ),
            found.strayed_ns == 0,
        ),
        None => table.check("guest clock against the exact line", "no samples", false),
    }
    // Until it has chosen a clocksource, late in its boot, Linux counts ticks,
    // and a slow host loses it some: its own CLOCK_REALTIME only tells.
    if let Some((error_ns, bracket_ns)) = find(heard, "realtime")
        .and_then(|(said, pair)| realtime_error(&report.line, report.guest_tsc, said, pair))
    {
        table.tell(
            "Linux's CLOCK_REALTIME from the host's",
            format!("{error_ns} ns (known to {bracket_ns} ns)"),
        );
    }
}

/// What the machine itself counted.
fn clock_rows(
    table: &mut Table,
    report: &MachineReport,
    listener: &Listener,
    cpus: u32,
    set_up: Option<usize>,
) {
    match report.wallclock_error_ns {
        Some(error_ns) => table.check(
            "wallclock page against the host",
            format!("{error_ns} ns"),
            error_ns.abs() <= WALLCLOCK_WITHIN_NS,
        ),
        None => table.check("wallclock page against the host", "no page", false),
    }
    let rewrites = report.clock_page_rewrites;
    table.check("clock page rewrites by us", rewrites, rewrites == 0);
    let guarded = &report.guarded;
    if guarded.active {
        table.tell("clock pages changed by KVM", guarded.rewrites);
        table.check(
            "KVM's pages from the line",
            format!(
                "{} ns; {} ns at the most, {} corrections",
                guarded.deviation_ns, guarded.max_deviation_ns, guarded.corrections
            ),
            guarded.deviation_ns <= GUARDED_WITHIN_NS,
        );
    }
    match (listener.masterclock.as_ref(), set_up, listener.masterclock_updates()) {
        (Ok(_), Some(set_up), Some(total)) => {
            // KVM_CREATE_VM takes the first snapshot, before there is a vCPU.
            let after = total.saturating_sub(set_up);
            let most = 1 + usize::try_from(cpus).unwrap_or(usize::MAX);
            let value = format!("{set_up} while the VM was made, {after} since the guest runs");
            if report.guarded.active {
                // Each correction is one.
                table.tell("KVM masterclock updates", value);
            } else {
                table.check("KVM masterclock updates", value, set_up <= most && after == 0);
            }
        }
        (Err(error), ..) => {
            table.tell("KVM masterclock updates", format!("not counted: no tracing: {error}"));
        }
        _ => table.tell("KVM masterclock updates", "not counted: the trace can not be read"),
    }
}
