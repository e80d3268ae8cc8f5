//! `kvm-xen check`: a Linux kernel on every kind of Xen machine that there is here,
//! and a verdict.

mod cell;
mod judge;
mod matrix;
mod record;
mod report;
mod runner;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use clap::ValueEnum;

use super::args::{
    CheckArgs, CheckCellArgs, ClockArg, ConsoleArg, EventChannelsArg, HypercallsArg, MachineArgs,
    SwitchArg,
};
use super::evidence::Report;
use super::run::CliError;
use super::{USAGE, complain, say};
use crate::kvm::{Capabilities, HypercallMode};
use crate::vmm::initrd::AGENT_PATH;
use crate::vmm::load::check_boot;
use judge::{Limits, Outcome};
use matrix::{Cell, Clock, Entry};
use record::Record;
use report::{Outcomes, Verdict};

/// Console lines shown of a cell that fails.
const LAST_LINES: usize = 12;

/// Why a check could not begin.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No cell is called so.
    #[error("--cells {0:?}: no cell has such a name; see kvm-xen check --list --all")]
    Pattern(String),
    /// The cells are called so, but there are no such machines.
    #[error("--cells {0:?}: no such machine can be; see kvm-xen check --list --all for why")]
    Nonsense(String),
    /// A report or the place of the logs can not be written.
    #[error("{what} {}: {error}; name a place that can be written", .path.display())]
    Output {
        /// The option.
        what: &'static str,
        /// The place.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The user's initial ramdisk can not be read.
    #[error("initrd {}: {error}", .path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The console that nobody hears.
    #[error("--console none: the guest reports on its console; give serial or hvc")]
    Console,
    /// The crate was built without the sources of the agent.
    #[error("this kvm-xen was built without its agent; build it from the whole repository")]
    NoAgent,
    /// A cell's process could not be made.
    #[error("no process for a cell: {0}")]
    Spawn(std::io::Error),
}

/// Runs one cell and tells of it; for `kvm-xen check` itself.
pub fn cell(args: &CheckCellArgs) -> Result<ExitCode, CliError> {
    cell::run(args)
}

/// Runs the check. Whatever keeps it from beginning is a matter of usage, so that
/// status 1 says something of the kernel and of nothing else.
pub fn check(args: &CheckArgs) -> Result<ExitCode, CliError> {
    begin(args).or_else(|error| {
        complain(&error);
        Ok(ExitCode::from(USAGE))
    })
}

fn begin(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let entries = chosen(args)?;
    if args.console == ConsoleArg::None {
        return Err(CheckError::Console.into());
    }
    if args.list {
        list(&entries, args.kvm.probe().ok().as_ref());
        return Ok(ExitCode::SUCCESS);
    }
    let outputs = Outputs::open(args)?;
    check_boot(&cell::config(&cell_args(args, &Cell::BASE))?)?;
    let caps = args.kvm.probe()?;
    let cells: Vec<Cell> =
        entries.iter().filter(|entry| entry.excluded.is_none()).map(|entry| entry.cell).collect();
    if cells.is_empty() {
        return Err(CheckError::Nonsense(args.cells.join(",")).into());
    }
    say(format_args!("Checking {} in {} cells\n", args.kernel.display(), cells.len()));
    let outcomes = run_all(args, &cells, &caps)?;
    let counts = report::count(&outcomes);
    outputs.write(args, &outcomes)?;
    say(format_args!("{} hold, {} fail, {} skipped\n", counts.hold, counts.fail, counts.skipped));
    let fine = counts.fail == 0 && counts.hold > 0 && !(args.fail_on_skip && counts.skipped > 0);
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The entries that the patterns name; all without a pattern. A pattern may name
/// any cell of the full product.
fn chosen(args: &CheckArgs) -> Result<Vec<Entry>, CheckError> {
    let set = matrix::matrix(args.all);
    if args.cells.is_empty() {
        return Ok(set);
    }
    let whole = matrix::matrix(true);
    let mut chosen = vec![false; whole.len()];
    for pattern in &args.cells {
        let named = |entries: &[Entry]| {
            entries.iter().any(|e| matrix::matches(pattern, &e.cell.to_string()))
        };
        // The covering set first: `*tsc*` means its few cells, not 48.
        let within = if named(&set) { &set } else { &whole };
        if !named(within) {
            return Err(CheckError::Pattern(pattern.clone()));
        }
        for (entry, chosen) in whole.iter().zip(&mut chosen) {
            *chosen |= within.contains(entry) && matrix::matches(pattern, &entry.cell.to_string());
        }
    }
    let kept = whole.into_iter().zip(chosen).filter_map(|(entry, chosen)| chosen.then_some(entry));
    Ok(kept.collect())
}

fn list(entries: &[Entry], caps: Option<&Capabilities>) {
    for entry in entries {
        let settings: Vec<String> = entry
            .cell
            .settings()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let lacking = caps.and_then(|caps| entry.cell.lacking(caps));
        let note = match (entry.excluded, lacking) {
            (Some(why), _) => format!("\n    left out: {why}"),
            (None, Some(why)) => format!("\n    not on this host: {why}"),
            (None, None) => String::new(),
        };
        say(format_args!("{}\n    {}{note}\n", entry.cell, settings.join(" ")));
    }
}

/// The files that a user asked for, opened before anything runs.
struct Outputs {
    junit: Option<File>,
    json: Option<File>,
}

impl Outputs {
    fn open(args: &CheckArgs) -> Result<Self, CheckError> {
        let create = |what, path: &Option<PathBuf>| {
            path.as_ref().map(|path| File::create(path).map_err(output(what, path))).transpose()
        };
        let outputs =
            Self { junit: create("--junit", &args.junit)?, json: create("--json", &args.json)? };
        if let Some(path) = &args.logs {
            fs::create_dir_all(path).map_err(output("--logs", path))?;
        }
        Ok(outputs)
    }

    fn write(self, args: &CheckArgs, outcomes: &[Outcomes]) -> Result<(), CheckError> {
        let kernel = args.kernel.display().to_string();
        if let (Some(mut file), Some(path)) = (self.junit, &args.junit) {
            let xml = report::junit(&kernel, outcomes);
            file.write_all(xml.as_bytes()).map_err(output("--junit", path))?;
        }
        if let (Some(mut file), Some(path)) = (self.json, &args.json) {
            writeln!(file, "{:#}", report::json(&kernel, outcomes))
                .map_err(output("--json", path))?;
        }
        Ok(())
    }
}

fn output(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CheckError {
    let path = path.to_owned();
    move |error| CheckError::Output { what, path, error }
}

/// Runs the cells, so many at a time, and prints each as it ends. Their order in
/// the result is that of `cells`.
fn run_all(
    args: &CheckArgs,
    cells: &[Cell],
    caps: &Capabilities,
) -> Result<Vec<Outcomes>, CheckError> {
    let next = AtomicUsize::new(0);
    let retries = AtomicU32::new(args.retries);
    let done: Mutex<Vec<(usize, Result<Outcomes, CheckError>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..usize::from(args.jobs).min(cells.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(cell) = cells.get(at) else { return };
                    let outcome = run_cell(args, cell, caps, &retries);
                    if let Ok(outcome) = &outcome {
                        say(row(outcome));
                    }
                    done.lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((at, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn run_cell(
    args: &CheckArgs,
    cell: &Cell,
    caps: &Capabilities,
    retries: &AtomicU32,
) -> Result<Outcomes, CheckError> {
    if let Some(why) = cell.lacking(caps) {
        return Ok(skipped(cell, why));
    }
    let arguments = arguments(&cell_args(args, cell));
    let mut tries = 1;
    loop {
        let record = runner::run(&arguments, Duration::from_secs(args.timeout))
            .map_err(CheckError::Spawn)?;
        let mut outcome = judged(args, cell, &record);
        outcome.tries = tries;
        if outcome.verdict != Verdict::Fails {
            return Ok(outcome);
        }
        let again =
            retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        keep_log(args, cell, &record, tries, &mut outcome);
        if again.is_err() {
            return Ok(outcome);
        }
        say(format_args!("again {cell}: {}\n", outcome.faults().next().unwrap_or_default()));
        tries += 1;
    }
}

fn skipped(cell: &Cell, why: String) -> Outcomes {
    Outcomes {
        cell: *cell,
        verdict: Verdict::Skipped(why),
        checks: Vec::new(),
        took: Duration::ZERO,
        tries: 0,
        release: None,
        last_lines: Vec::new(),
        log: None,
    }
}

fn judged(args: &CheckArgs, cell: &Cell, record: &Record) -> Outcomes {
    let limits = Limits {
        late: Duration::from_millis(args.max_late),
        realtime: Duration::from_millis(args.max_realtime_error),
    };
    let checks = judge::judge(cell, record, &limits);
    let fails = checks.iter().any(|check| check.outcome == Outcome::Fails);
    let verdict = if fails {
        Verdict::Fails
    } else if judge::fell_to_guarded(cell, record) {
        Verdict::Skipped(
            "this kernel knows the VM-wide vector alone, so KVM wrote its clock pages; \
             everything else holds"
                .to_owned(),
        )
    } else {
        Verdict::Holds
    };
    let release = record
        .console
        .iter()
        .filter_map(|line| Report::parse(line))
        .find(|report| report.topic == "kernel")
        .and_then(|report| report.text("release").map(str::to_owned));
    let mut last_lines = Vec::new();
    if fails {
        for lines in [&record.console, &record.messages] {
            last_lines.extend(lines.iter().skip(lines.len().saturating_sub(LAST_LINES)).cloned());
        }
    }
    Outcomes {
        cell: *cell,
        verdict,
        checks,
        took: record.took,
        tries: 1,
        release,
        last_lines,
        log: None,
    }
}

/// Keeps a failed cell's console, if asked to. That it can not be kept is said,
/// and takes nothing from the verdict.
fn keep_log(args: &CheckArgs, cell: &Cell, record: &Record, tries: u32, outcome: &mut Outcomes) {
    let Some(directory) = &args.logs else { return };
    let name = if tries == 1 { format!("{cell}.log") } else { format!("{cell}.{tries}.log") };
    let path = directory.join(name);
    let mut text = record.console.join("\n");
    text.push('\n');
    for message in &record.messages {
        text.push_str(message);
        text.push('\n');
    }
    match fs::write(&path, text) {
        Ok(()) => outcome.log = Some(path.display().to_string()),
        Err(error) => tracing::warn!(path = %path.display(), %error, "a console is not kept"),
    }
}

/// One cell for a person.
fn row(outcome: &Outcomes) -> String {
    let took = outcome.took.as_secs();
    let name = outcome.cell.to_string();
    let mut text = match &outcome.verdict {
        Verdict::Skipped(why) => return format!("SKIP  {name:<32}  {took:>3} s  {why}\n"),
        Verdict::Holds => format!("ok    {name:<32}  {took:>3} s"),
        Verdict::Fails => format!("FAIL  {name:<32}  {took:>3} s"),
    };
    let count = |outcome_of| outcome.checks.iter().filter(|c| c.outcome == outcome_of).count();
    text.push_str(&format!("  {} checks hold", count(Outcome::Holds)));
    let absent: Vec<&str> = outcome
        .checks
        .iter()
        .filter(|check| check.outcome == Outcome::NotAvailable)
        .map(|check| check.name)
        .collect();
    if !absent.is_empty() {
        text.push_str(&format!(", not available: {}", absent.join(", ")));
    }
    if outcome.tries > 1 {
        text.push_str(&format!(", try {}", outcome.tries));
    }
    text.push('\n');
    for fault in outcome.faults() {
        text.push_str(&format!("      {fault}\n"));
    }
    for line in &outcome.last_lines {
        text.push_str(&format!("      | {line}\n"));
    }
    if let Some(log) = &outcome.log {
        text.push_str(&format!("      the whole console: {log}\n"));
    }
    text
}

/// What a cell's process is told.
fn cell_args(args: &CheckArgs, cell: &Cell) -> CheckCellArgs {
    let console = if args.console == ConsoleArg::Hvc { "hvc0" } else { "ttyS0" };
    let words = [
        format!("console={console} quiet panic=-1 rdinit={AGENT_PATH}"),
        format!("agent.check=1 agent.seconds={}", args.seconds),
        cell.cmdline(),
        args.append.clone(),
    ];
    let words: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    CheckCellArgs {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: words.join(" "),
        console: args.console,
        machine: MachineArgs {
            memory: args.memory.clone(),
            cpus: cell.cpus.to_string(),
            // A kernel that knows the VM-wide vector alone would be refused it in
            // owned mode, and wait for events for ever.
            clock: if cell.clock == Clock::Owned { ClockArg::Auto } else { ClockArg::Guarded },
            vmclock: SwitchArg::On,
            time_source: "auto".to_owned(),
            hypercalls: match cell.hypercalls {
                HypercallMode::KvmXen => HypercallsArg::KvmXen,
                HypercallMode::PortIo => HypercallsArg::PortIo,
            },
            upcall_vector: Some(if cell.upcall_vector { SwitchArg::On } else { SwitchArg::Off }),
            event_channels: if cell.fifo {
                EventChannelsArg::Fifo
            } else {
                EventChannelsArg::TwoLevel
            },
            kvm: args.kvm.clone(),
            xen_version: args.xen_version.clone(),
        },
    }
}

/// The same as words of a command line.
fn arguments(args: &CheckCellArgs) -> Vec<OsString> {
    let machine = &args.machine;
    let mut words = vec![OsString::from("check-cell")];
    let mut option = |name: &str, value: &OsStr| words.extend([name.into(), value.to_owned()]);
    option("--kernel", args.kernel.as_os_str());
    if let Some(initrd) = &args.initrd {
        option("--initrd", initrd.as_os_str());
    }
    option("--kvm-device", machine.kvm.kvm_device.as_os_str());
    let mut option = |name: &str, value: &str| option(name, OsStr::new(value));
    option("--cmdline", &args.cmdline);
    option("--console", &value_name(args.console));
    option("--memory", &machine.memory);
    option("--cpus", &machine.cpus);
    option("--clock", &value_name(machine.clock));
    option("--hypercalls", &value_name(machine.hypercalls));
    if let Some(upcall_vector) = machine.upcall_vector {
        option("--upcall-vector", &value_name(upcall_vector));
    }
    option("--event-channels", &value_name(machine.event_channels));
    option("--xen-version", &machine.xen_version);
    for &feature in &machine.kvm.without {
        option("--without", &value_name(feature));
    }
    words
}

fn value_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
