//! `/init` of a Linux guest: reports on the console what the guest sees of Xen
//! and of its clocks, then ends the guest in the way it was asked to.
//!
//! Every line is `KVMXEN topic key=value …`; numbers are decimal. Parameters on
//! the kernel command line: `agent.seconds=N` (default 1) to watch the clocks,
//! `agent.jumps=1` to hold five of them against each other meanwhile,
//! `agent.mode=poweroff|reboot|crash|shell` (default poweroff) to end,
//! `agent.check=1` for all that `kvm-xen check` judges: sleeps, interrupts, CPU
//! hotplug, `agent.gaps=N` to report N suspensions before that. What the kernel
//! lacks for a check is a line `missing check=…`. With the feature `vmclock`,
//! `agent.vmclock=N` reads /dev/vmclock0 and /dev/ptp0 for N seconds, and
//! `agent.disruptions=N` ends the watch of the clocks when the VMClock page has told of N
//! disruptions; where no driver shows it, `agent.vmclock-page=0xADDRESS` says where it is.
//! `agent.run=PROGRAM,ARGUMENT,…` runs a program of the initial ramdisk, its output on the
//! console; it may be given more than once.
//!
//! Run as anything but process 1 it only reports, and changes nothing.

mod check;
mod clocks;
mod gaps;
mod hotplug;
mod interrupts;
mod ipis;
mod jumps;
mod sleeps;
mod system;
mod term;
#[cfg(feature = "vmclock")]
mod vmclock;
mod watch;
mod xenstore;

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use system::{Console, EndMode};
use term::Term;

/// Where an initial ramdisk may put modules that a kernel needs.
const MODULES: &str = "/kvm-xen/modules";

fn main() -> ExitCode {
    let first_process = std::process::id() == 1;
    let mut console = if first_process { Console::open() } else { Console::stdout() };
    // Before anything else: the time to here is a benchmark.
    console.line(format_args!("init reached"));
    if first_process {
        for error in system::mount_all() {
            console.line(format_args!("error {error}"));
        }
        for error in system::load_modules(MODULES) {
            console.line(format_args!("error {error}"));
        }
    }
    let cmdline = system::read("/proc/cmdline");
    let parameter = |name: &str| {
        cmdline.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let seconds = parameter("agent.seconds").and_then(|text| text.parse().ok()).unwrap_or(1);
    let gaps = parameter("agent.gaps").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mode = EndMode::from_name(parameter("agent.mode").unwrap_or("poweroff"));

    report_system(&mut console, &cmdline);
    report_store(&mut console);
    if gaps > 0 {
        gaps::report(&mut console, gaps, Duration::from_secs(60));
    }
    let term = Arc::new(Term::new(Duration::from_secs(seconds)));
    let jumps = (parameter("agent.jumps") == Some("1")).then(|| {
        let term = Arc::clone(&term);
        std::thread::spawn(move || jumps::watch(&term))
    });
    #[cfg(feature = "vmclock")]
    let page = watch_page(&mut console, &parameter, &term);
    report_clocks(&mut console, &term);
    if let Some(Ok(seen)) = jumps.map(std::thread::JoinHandle::join) {
        report_jumps(&mut console, &seen);
    }
    #[cfg(feature = "vmclock")]
    if let Some(Ok(seen)) = page.map(std::thread::JoinHandle::join) {
        match seen {
            Ok(seen) => seen.report(&mut console),
            Err(error) => console.line(format_args!("missing check=page reason: {error}")),
        }
    }
    #[cfg(feature = "vmclock")]
    if let Some(seconds) = parameter("agent.vmclock").and_then(|text| text.parse().ok()) {
        vmclock::report(&mut console, Duration::from_secs(seconds));
    }
    let runs = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("agent.run="));
    runs.for_each(|run| run_program(&mut console, run));
    if parameter("agent.check") == Some("1") {
        check::report(&mut console, first_process);
    }
    report_log(&mut console);
    console.line(format_args!("end mode={mode:?}"));
    if first_process {
        let error = system::end(mode);
        console.line(format_args!("error cannot end the guest: {error}"));
        // Process 1 must not return.
        loop {
            std::thread::park();
        }
    }
    ExitCode::SUCCESS
}

/// Runs `PROGRAM,ARGUMENT,…` to its end, and says how it ended.
fn run_program(console: &mut Console, words: &str) {
    let mut words = words.split(',');
    let program = words.next().unwrap_or_default();
    let ended = console.again().and_then(|output| {
        Command::new(program).args(words).stdin(Stdio::null()).stdout(output).status()
    });
    match ended {
        Ok(status) => console.line(format_args!("ran {program} status={:?}", status.code())),
        Err(error) => console.line(format_args!("error {program}: {error}")),
    }
}

/// What the store says of this guest, and whether it takes what is written.
fn report_store(console: &mut Console) {
    let ask = || {
        let mut store = xenstore::Store::open()?;
        let (domid, name) = (store.read("domid")?, store.read("name")?);
        store.write("data/agent", "ready")?;
        let written = store.read("data/agent")?;
        Ok::<_, std::io::Error>(format!("domid={domid} name={name} written={written}"))
    };
    match ask() {
        Ok(line) => console.line(format_args!("store {line}")),
        Err(error) => console.line(format_args!("store none {error}")),
    }
}

fn report_system(console: &mut Console, cmdline: &str) {
    let release = system::read("/proc/sys/kernel/osrelease");
    console.line(format_args!("kernel release={release} cpus={}", system::online_cpus()));
    let source = |name: &str| {
        system::read(&format!("/sys/devices/system/clocksource/clocksource0/{name}_clocksource"))
            .replace(' ', ",")
    };
    let (current, available) = (source("current"), source("available"));
    console.line(format_args!("clocksource current={current} available={available}"));
    let xen = |name: &str| system::read(&format!("/sys/hypervisor/{name}"));
    console.line(format_args!(
        "hypervisor type={} version={}.{}{}",
        xen("type"),
        xen("version/major"),
        xen("version/minor"),
        xen("version/extra"),
    ));
    console.line(format_args!("cmdline {cmdline}"));
}

fn report_clocks(console: &mut Console, term: &Term) {
    let cost = clocks::cost();
    console.line(format_args!(
        "vdso used={} gettime_cycles={} syscall_cycles={}",
        u8::from(cost.is_vdso()),
        cost.library_cycles,
        cost.syscall_cycles,
    ));
    let began = Instant::now();
    let seen = watch::watch(term);
    for sample in &seen.samples {
        console.line(format_args!(
            "sample before_tsc={} raw_ns={} after_tsc={}",
            sample.before_tsc, sample.clock_ns, sample.after_tsc,
        ));
    }
    for (cpu, tally) in &seen.tallies {
        console.line(format_args!(
            "spin-cpu cpu={cpu} reads={} backward={} cross_backward={} worst_ns={}",
            tally.reads, tally.backward, tally.cross_backward, tally.worst_ns,
        ));
    }
    let total = seen.total();
    console.line(format_args!(
        "spin cpus={} seconds={} reads={} backward={} cross_backward={} worst_ns={}",
        seen.tallies.len(),
        began.elapsed().as_secs(),
        total.reads,
        total.backward,
        total.cross_backward,
        total.worst_ns,
    ));
    // Last, and printed at once: the host reads its own clock when this arrives.
    let realtime = clocks::narrowest(libc::CLOCK_REALTIME);
    console.line(format_args!(
        "realtime before_tsc={} realtime_ns={} after_tsc={}",
        realtime.before_tsc, realtime.clock_ns, realtime.after_tsc,
    ));
}

/// Watches the VMClock page for as many disruptions as a parameter says.
#[cfg(feature = "vmclock")]
fn watch_page<'a>(
    console: &mut Console,
    parameter: &impl Fn(&str) -> Option<&'a str>,
    term: &Arc<Term>,
) -> Option<std::thread::JoinHandle<std::io::Result<vmclock::disruptions::Seen>>> {
    let count = parameter("agent.disruptions")?.parse().ok()?;
    let page = parameter("agent.vmclock-page")
        .and_then(|text| i64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let term = Arc::clone(term);
    let again = console.again();
    let thread =
        std::thread::spawn(move || vmclock::disruptions::watch(&mut again?, page, count, &term));
    console.line(format_args!("page-watch disruptions={count}"));
    Some(thread)
}

fn report_jumps(console: &mut Console, seen: &jumps::Jumps) {
    for step in &seen.jumps {
        console.line(format_args!("jump {step}"));
    }
    for (index, (name, _)) in jumps::CLOCKS.iter().enumerate() {
        let (backward, longest_ns) = (seen.backward[index], seen.longest_ns[index]);
        console.line(format_args!("five {name} backward={backward} longest_ns={longest_ns}"));
    }
    console.line(format_args!("jumps looks={} count={}", seen.looks, seen.jumps.len()));
}

fn report_log(console: &mut Console) {
    let messages = match system::kernel_log() {
        Ok(messages) => messages,
        Err(error) => {
            console.line(format_args!("missing check=log reason: /dev/kmsg: {error}"));
            return;
        }
    };
    let says = |text: &str| messages.iter().any(|message| message.text.contains(text));
    if says("Using FIFO-based ABI") {
        console.line(format_args!("events abi=fifo"));
    } else if says("Using 2-level ABI") {
        console.line(format_args!("events abi=2-level"));
    }
    let warnings = messages.iter().filter(|message| message.is_complaint());
    for warning in warnings.clone() {
        console.line(format_args!("warn: level={} {}", warning.level, warning.text));
    }
    console.line(format_args!("warnings count={}", warnings.count()));
}
