//! `kvm-xen run`: a kernel as a Xen guest on this terminal.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::args::{
    ConsoleArg, EventChannelsArg, HypercallsArg, MachineArgs, RunArgs, SaveArgs, SuspendArgs,
    SwitchArg,
};
use super::check::CheckError;
use super::client::ClientError;
use super::clock::ClockError;
use crate::host::NoTimeSource;
use crate::kvm::{HypercallMode, ProbeError};
use crate::vmm::api::ApiServer;
use crate::vmm::api::http::Limits;
use crate::vmm::api::socket::{ApiSocket, SocketError};
use crate::vmm::config::{Console, Initrd, Kernel, MachineConfig, MachineError};
use crate::vmm::exit::ExitReason;
use crate::vmm::machine::Machine;
use crate::vmm::memory::{MemorySizeError, parse_memory_size};
use crate::vmm::migrate::{MigrateError, PlaceError};
use crate::vmm::suspend::{SuspendError, Suspender};

/// Anything that ends the program with one line.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// `--memory`.
    #[error("--memory: {0}")]
    Memory(#[from] MemorySizeError),
    /// `--cpus`.
    #[error("--cpus {0:?}: give a whole number from 1 up")]
    Cpus(String),
    /// `--xen-version`.
    #[error("--xen-version {0:?}: give MAJOR.MINOR from 4.0 to 4.20, such as 4.17")]
    XenVersion(String),
    /// `--time-source`.
    #[error("--time-source {0}")]
    TimeSource(#[from] NoTimeSource),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// KVM.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// What was shown is wrong.
    #[error("{0}")]
    Check(String),
    /// `--api-socket`.
    #[error(transparent)]
    ApiSocket(#[from] SocketError),
    /// The control socket.
    #[error("no thread for the control socket: {0}")]
    ApiThread(std::io::Error),
    /// An address to migrate to, or to receive at.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A guest that did not move.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// A running machine, by its control socket.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// `kvm-xen clock`.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// `kvm-xen check` could not begin.
    #[error(transparent)]
    Begin(#[from] CheckError),
}

impl CliError {
    /// The exit status of this end.
    pub fn status(&self) -> u8 {
        if self.is_usage() { super::USAGE } else { 1 }
    }

    /// Whether the command line itself is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Place(PlaceError::Address(_))
                | Self::Memory(_)
                | Self::Cpus(_)
                | Self::XenVersion(_)
                | Self::Begin(_)
                | Self::TimeSource(_)
        ) || matches!(self, Self::Clock(error) if error.is_usage())
            || matches!(self, Self::Machine(MachineError::Memory(_) | MachineError::Cpus { .. }))
    }
}

/// The versions whose interface is the one emulated here.
fn parse_xen_version(text: &str) -> Result<(u16, u16), CliError> {
    let version = text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u16>().ok()?, minor.parse::<u16>().ok()?)));
    match version {
        Some((4, minor @ 0..=20)) => Ok((4, minor)),
        _ => Err(CliError::XenVersion(text.to_owned())),
    }
}

/// The machine that these arguments describe, without what it boots.
pub fn machine_config(args: &MachineArgs, kernel: Kernel) -> Result<MachineConfig, CliError> {
    Ok(MachineConfig {
        kernel,
        initrd: None,
        modules: Vec::new(),
        cmdline: String::new(),
        memory: parse_memory_size(&args.memory)?,
        cpus: args.cpus.parse().map_err(|_| CliError::Cpus(args.cpus.clone()))?,
        clock: args.clock.into(),
        vmclock: args.vmclock == SwitchArg::On,
        time_source: args.time_source.parse()?,
        fifo_events: match args.event_channels {
            EventChannelsArg::Auto => None,
            EventChannelsArg::Fifo => Some(true),
            EventChannelsArg::TwoLevel => Some(false),
        },
        upcall_vector: args.upcall_vector.map(|arg| arg == SwitchArg::On),
        hypercalls: match args.hypercalls {
            HypercallsArg::Auto => None,
            HypercallsArg::KvmXen => Some(HypercallMode::KvmXen),
            HypercallsArg::PortIo => Some(HypercallMode::PortIo),
        },
        kvm_device: args.kvm.kvm_device.clone(),
        without: args.kvm.without.iter().copied().map(Into::into).collect(),
        xen_version: parse_xen_version(&args.xen_version)?,
        console: Console::None,
        input: false,
    })
}

pub fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    let mut config = machine_config(&args.machine, Kernel::File(args.kernel.clone()))?;
    config.initrd = args.initrd.clone().map(Initrd::File);
    config.modules = args.module.iter().map(|module| split_module(module)).collect();
    let default = match args.console {
        ConsoleArg::Serial => "console=ttyS0 panic=-1",
        ConsoleArg::Hvc => "console=hvc0 panic=-1",
        ConsoleArg::None => "panic=-1",
    };
    config.console = args.console.into();
    config.input = config.console != Console::None;
    config.cmdline = args.cmdline.clone().unwrap_or_else(|| default.to_owned());
    // Bound before there is a guest: a path that can not be is told at once.
    let socket = args.api_socket.as_deref().map(ApiSocket::bind).transpose()?;
    let machine = Machine::new(&config, Box::new(std::io::stdout()))?;
    let server = serve(socket, &machine)?;
    if machine.rewritten_sites() > 0 {
        // The guest's code is not what its file holds: whoever debugs it must know.
        super::complain(format_args!(
            "hypercalls by port I/O: {} VMCALL and VMMCALL instructions of the kernel are \
             rewritten in guest memory; those of modules are not",
            machine.rewritten_sites()
        ));
    }
    if args.suspend.suspend_after.is_some() {
        suspend_by_clock(machine.suspender(), args.suspend.clone())?;
    }
    let status = run_to_end(machine, &args.save);
    drop(server);
    status
}

/// Serves a machine's control socket, if it has one.
pub(super) fn serve(
    socket: Option<ApiSocket>,
    machine: &Machine,
) -> Result<Option<ApiServer>, CliError> {
    socket
        .map(|socket| ApiServer::start(socket, machine.control(), Limits::default()))
        .transpose()
        .map_err(CliError::ApiThread)
}

/// Runs a machine to its end, and saves it where that is asked for.
pub(super) fn run_to_end(machine: Machine, save: &SaveArgs) -> Result<ExitCode, CliError> {
    let saving = match (&save.save_to, save.save_after) {
        (Some(path), Some(after)) => Some(super::restore::save_after(&machine, path, after, save)?),
        _ => None,
    };
    if let (Some(to), Some(after)) = (&save.migrate_to, save.migrate_after) {
        super::migrate::migrate_after(&machine, save, to, after)?;
    }
    let control = machine.control();
    let report = machine.run()?;
    let migrated = report.exit == ExitReason::Migrated;
    let too_late = !migrated && control.migration().guest_ended();
    if too_late {
        super::complain(MigrateError::Ended);
    }
    if migrated || too_late {
        // Who asked for it by the control socket learns how it went.
        control.migration().wait_told(Duration::from_secs(2));
    }
    if let (ExitReason::Saved, Some(saving)) = (&report.exit, saving)
        && saving.join().is_err()
    {
        tracing::error!("the saving thread panicked");
    }
    if report.exit.status() != 0 {
        super::complain(&report.exit);
    }
    Ok(ExitCode::from(report.exit.status()))
}

/// Suspends and resumes the guest from a thread of its own, and says what the
/// gap was in the guest's system time. It ends with the process.
fn suspend_by_clock(suspender: Suspender, args: SuspendArgs) -> Result<(), CliError> {
    let work = move || {
        for (number, seconds) in (1..).zip(&args.resume_after) {
            match suspend_once(&suspender, &args, *seconds) {
                Ok(line) => super::complain(format_args!("suspend number={number} {line}")),
                Err(error) => {
                    super::complain(format_args!("suspend number={number} failed: {error}"));
                    return;
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("suspend".to_owned()).spawn(work);
    thread.map(drop).map_err(|error| {
        CliError::Machine(MachineError::Host { what: "the thread that suspends", error })
    })
}

fn suspend_once(
    suspender: &Suspender,
    args: &SuspendArgs,
    seconds: u64,
) -> Result<String, SuspendError> {
    const PATIENCE: Duration = Duration::from_secs(60);
    const RETRY: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    while !(suspender.may_be_asked() && suspender.agent_is_ready()) && begun.elapsed() < PATIENCE {
        std::thread::sleep(RETRY);
    }
    std::thread::sleep(Duration::from_secs(args.suspend_after.unwrap_or(0)));
    suspender.request_suspend()?;
    let asked = Instant::now();
    suspender.wait_suspended(PATIENCE)?;
    let took = asked.elapsed();
    let before_ns = suspender.system_time_ns();
    std::thread::sleep(Duration::from_secs(seconds));
    suspender.resume(args.resume_as.into())?;
    let gap_ns = suspender.system_time_ns().saturating_sub(before_ns);
    Ok(format!("took_ms={} gap_ns={gap_ns}", took.as_millis()))
}

fn split_module(text: &str) -> (PathBuf, String) {
    match text.split_once('=') {
        Some((path, cmdline)) => (PathBuf::from(path), cmdline.to_owned()),
        None => (PathBuf::from(text), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xen_versions() {
        assert_eq!(parse_xen_version("4.17").unwrap(), (4, 17));
        for wrong in ["", "4", "4.", "4.x", "3.4", "4.21", "5.0", "4.17.1", "-4.1", "4.99999"] {
            let error = parse_xen_version(wrong).unwrap_err();
            assert!(error.is_usage());
            assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
        }
    }

    #[test]
    fn modules_may_have_command_lines() {
        assert_eq!(split_module("a"), (PathBuf::from("a"), String::new()));
        assert_eq!(split_module("a=b c=d"), (PathBuf::from("a"), "b c=d".to_owned()));
    }
}
