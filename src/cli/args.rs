//! The command line, as `--help` shows it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::clock::args::ClockCommandArgs;
use super::handover::HandoverArgs;
use crate::kvm::{ClockMode, KVM_DEVICE, KvmFeature};
use crate::state::TimePolicy;
use crate::vmm::config::Console;
use crate::xen::Resumed;

/// Run unmodified Xen guests on KVM, with an exact clock
#[derive(Debug, Parser)]
#[command(
    name = "kvm-xen",
    version,
    arg_required_else_help = true,
    after_help = "Exit status: 0 the guest powered off or rebooted, 2 usage, 3 the guest crashed, \
                  1 anything else.\nKVM_XEN_LOG=debug (or trace, or a module) shows what happens \
                  inside."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a kernel as a Xen PVH guest
    Run(RunArgs),
    /// Go on with a guest that was saved to a file
    Restore(RestoreArgs),
    /// Wait for a guest that is migrated, and go on with it
    Receive(ReceiveArgs),
    /// Move a running guest to a process that waits for it
    Migrate(MigrateArgs),
    /// Save a running guest to a file, through its control socket
    Save(SaveCommandArgs),
    /// Have a running guest suspend itself, through its control socket
    Suspend(SocketArgs),
    /// Let a paused or suspended guest go on, through its control socket
    Resume(ResumeArgs),
    /// Stop a running guest's vCPUs, through its control socket
    Pause(SocketArgs),
    /// Say what this host's KVM offers, which modes work, and why not
    Probe(ProbeArgs),
    /// Show a guest's clocks: the embedded bare-metal guest, or a Linux kernel
    Demo(DemoArgs),
    /// Look at clocks: the laboratory of drift, a running guest's
    Clock(ClockCommandArgs),
    /// Run a Linux kernel through a matrix of Xen machines and judge it
    ///
    /// Exit status: 0 every cell holds, 1 some do not, 2 the check could not begin.
    Check(CheckArgs),
    /// One cell of a check, in a process of its own
    #[command(hide = true)]
    CheckCell(CheckCellArgs),
}

/// The machine that a guest runs on.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Guest memory, such as 512M or 2G
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    pub memory: String,
    /// Number of vCPUs
    #[arg(long, default_value = "1", value_name = "N")]
    pub cpus: String,
    /// Who writes the clock pages: us (owned), KVM under our watch (guarded), or
    /// us until the guest needs KVM to (auto)
    #[arg(long, value_enum, default_value_t = ClockArg::Auto)]
    pub clock: ClockArg,
    /// Whether the guest has a VMClock, which maps its TSC to TAI with error bounds,
    /// and a VM generation device
    #[arg(long, value_enum, default_value_t = SwitchArg::On)]
    pub vmclock: SwitchArg,
    /// Where the guest's VMClock and wallclock take the time from: auto (this host's clock
    /// by its best source), kvm, clock, ptp:DEVICE or vmclock:DEVICE
    #[arg(long, default_value = "auto", value_name = "SOURCE")]
    pub time_source: String,
    /// How hypercalls arrive: intercepted by KVM, or by port I/O from a kernel that
    /// is rewritten in memory
    #[arg(long, value_enum, default_value_t = HypercallsArg::Auto)]
    pub hypercalls: HypercallsArg,
    /// Whether the guest is offered upcall vectors of its vCPUs' own, or knows the
    /// VM-wide one alone [default: on, but off with --clock guarded]
    #[arg(long, value_enum)]
    pub upcall_vector: Option<SwitchArg>,
    /// Which event channels the guest may use: up to FIFO ones, or 2-level alone; auto
    /// is FIFO, but 2-level where KVM delivers events by itself (guarded)
    #[arg(long, value_enum, default_value_t = EventChannelsArg::Auto)]
    pub event_channels: EventChannelsArg,
    #[command(flatten)]
    pub kvm: KvmArgs,
    /// The Xen version that the guest sees
    #[arg(long, default_value = "4.17", value_name = "MAJOR.MINOR")]
    pub xen_version: String,
}

/// Which KVM, and how much of it.
#[derive(Args, Clone, Debug)]
pub struct KvmArgs {
    /// KVM's device
    #[arg(long, default_value = KVM_DEVICE, value_name = "FILE")]
    pub kvm_device: PathBuf,
    /// Do as on a host whose KVM lacks Xen support (CONFIG_KVM_XEN), or Hyper-V's
    /// synthetic interrupts (CONFIG_KVM_HYPERV)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FEATURE,…")]
    pub without: Vec<FeatureArg>,
}

/// A running machine.
#[derive(Args, Debug)]
pub struct SocketArgs {
    /// The machine's --api-socket
    #[arg(value_name = "API-SOCKET")]
    pub socket: PathBuf,
}

#[derive(Args, Debug)]
pub struct ResumeArgs {
    #[command(flatten)]
    pub machine: SocketArgs,
    /// A suspended guest finds all as it was, as if its suspension had failed
    #[arg(long)]
    pub cancelled: bool,
}

#[derive(Args, Debug)]
pub struct SaveCommandArgs {
    #[command(flatten)]
    pub machine: SocketArgs,
    /// The file; what is there is replaced by the whole new one, or not at all
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Let the guest go on; without, the machine ends
    #[arg(long)]
    pub go_on: bool,
    #[command(flatten)]
    pub handover: HandoverArgs,
}

#[derive(Args, Debug)]
pub struct ProbeArgs {
    #[command(flatten)]
    pub kvm: KvmArgs,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// A bzImage, a vmlinux or any PVH ELF
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial ramdisk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// A further boot module, FILE or FILE=COMMAND LINE; repeat for more
    #[arg(long, value_name = "FILE[=CMDLINE]")]
    pub module: Vec<String>,
    /// Kernel command line [default: the console, and panic=-1]
    #[arg(long, value_name = "STRING")]
    pub cmdline: Option<String>,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Which console is this terminal: ttyS0, hvc0 or neither
    #[arg(long, value_enum, default_value_t = ConsoleArg::Serial)]
    pub console: ConsoleArg,
    /// Serve HTTP and JSON on a Unix socket here: status, clock, metrics, pause, suspend,
    /// resume, save
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    #[command(flatten)]
    pub suspend: SuspendArgs,
    #[command(flatten)]
    pub save: SaveArgs,
}

/// A guest that is suspended and resumed by the clock, for tests.
#[derive(Args, Clone, Debug)]
pub struct SuspendArgs {
    /// Ask the guest to suspend itself so many seconds after its agent says that it
    /// is ready, and again after each resumption
    #[arg(long, hide = true, value_name = "S")]
    pub suspend_after: Option<u64>,
    /// Resume it after so many seconds, one number for each time
    #[arg(long, hide = true, value_name = "S,…", value_delimiter = ',', default_value = "3")]
    pub resume_after: Vec<u64>,
    /// How it goes on: as if the suspension was cancelled, or anew
    #[arg(long, hide = true, value_enum, default_value_t = ResumeArg::Anew)]
    pub resume_as: ResumeArg,
}

/// Saving and moving by the clock, for tests.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("handover", |arg| arg.hide(true)))]
pub struct SaveArgs {
    /// Save the guest to this file, and end
    #[arg(long, value_name = "FILE", hide = true, requires = "save_after")]
    pub save_to: Option<PathBuf>,
    /// After so many milliseconds
    #[arg(long, value_name = "MS", hide = true, requires = "save_to")]
    pub save_after: Option<u64>,
    /// Let the guest go on instead of ending it
    #[arg(long, hide = true, requires = "save_to")]
    pub save_and_go_on: bool,
    /// Migrate the guest there
    #[arg(long, value_name = "ADDR", hide = true, requires = "migrate_after")]
    pub migrate_to: Option<String>,
    /// After so many milliseconds
    #[arg(long, value_name = "MS", hide = true, requires = "migrate_to")]
    pub migrate_after: Option<u64>,
    /// With these certificates
    #[arg(long, value_name = "DIR", hide = true, requires = "migrate_to")]
    pub migrate_tls_dir: Option<PathBuf>,
    #[command(flatten)]
    pub handover: HandoverArgs,
}

#[derive(Args, Debug)]
pub struct MigrateArgs {
    /// The control socket of the process that runs the guest
    #[arg(value_name = "API-SOCKET")]
    pub api_socket: PathBuf,
    /// Where it is received: unix:PATH, or tcp:HOST:PORT with --tls-dir
    #[arg(value_name = "ADDR", required_unless_present_any = ["cancel", "take_back"])]
    pub to: Option<String>,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub handover: HandoverArgs,
    /// End the migration that is under way; the guest goes on where it is
    #[arg(long, conflicts_with_all = ["to", "tls_dir", "take_back"])]
    pub cancel: bool,
    /// The guest goes on here after a connection broke and nobody can be asked where it
    /// is: only where it is certain that it does not run at the destination
    #[arg(long, conflicts_with_all = ["to", "tls_dir"])]
    pub take_back: bool,
}

/// Certificates of this host.
#[derive(Args, Debug)]
pub struct TlsArgs {
    /// For tcp: addresses, a directory with ca.pem, cert.pem and key.pem: TLS in which both
    /// sides show a certificate of that authority
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct ReceiveArgs {
    /// Where it comes: unix:PATH, or tcp:HOST:PORT with --tls-dir, HOST an address of this
    /// host, or 0.0.0.0 or [::] for all
    #[arg(value_name = "ADDR")]
    pub at: String,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub go_on: GoOnArgs,
}

#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The file that the guest was saved to
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub go_on: GoOnArgs,
}

/// How a guest that was saved or is received goes on.
#[derive(Args, Debug)]
pub struct GoOnArgs {
    /// How the guest's clocks get over the time in which it stood still: as if nothing had
    /// happened, as if no time had passed, or as a suspend that the guest knows of
    #[arg(long, value_enum, default_value_t = TimeArg::Advance)]
    pub time: TimeArg,
    /// Which console is this terminal [default: the one that was]
    #[arg(long, value_enum)]
    pub console: Option<ConsoleArg>,
    /// Serve HTTP and JSON on a Unix socket here, as run does
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    #[command(flatten)]
    pub kvm: KvmArgs,
    #[command(flatten)]
    pub save: SaveArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimeArg {
    /// Every clock reads as if nothing had happened
    Advance,
    /// TSC and system time go on from where they stopped
    Freeze,
    /// The guest is told how long it was away; it has to be suspended when it is saved
    Inject,
}

impl From<TimeArg> for TimePolicy {
    fn from(arg: TimeArg) -> Self {
        match arg {
            TimeArg::Advance => Self::Advance,
            TimeArg::Freeze => Self::Freeze,
            TimeArg::Inject => Self::Inject,
        }
    }
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// A Linux kernel to show instead of the embedded guest; needs --initrd
    #[arg(long, value_name = "FILE", requires = "initrd")]
    pub kernel: Option<PathBuf>,
    /// An initial ramdisk whose init is the agent of this project
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// How long the guest watches its clocks
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seconds: u32,
    /// Show the guest's console too
    #[arg(long)]
    pub verbose: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// A bzImage or a vmlinux with a PVH entry
    #[arg(value_name = "KERNEL")]
    pub kernel: PathBuf,
    /// An initial ramdisk for the kernel beside the built-in agent; modules that it
    /// has in /kvm-xen/modules are loaded first
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Only cells whose names match one of these, with * and ?, such as 'base,*tsc*'
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub cells: Vec<String>,
    /// Every combination, not the covering set
    #[arg(long)]
    pub all: bool,
    /// Print the cells, what each one is, and what is left out and why; run nothing
    #[arg(long)]
    pub list: bool,
    /// Write the verdicts as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the verdicts and every measured value as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Keep the console of each cell that fails in this directory
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
    /// Seconds that a cell may take
    #[arg(long, default_value_t = 120, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Cells at the same time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Seconds for which each cell watches its clocks
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// A sleep that ends later than this fails, in milliseconds
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    pub max_late: u64,
    /// A guest's CLOCK_REALTIME further than this from the host's fails, in milliseconds
    /// (Linux counts ticks while it boots, and loses some where that is slow)
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    pub max_realtime_error: u64,
    /// How many failed cells of the whole run may have a second try, which is told
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub retries: u32,
    /// A cell that this host can not run counts as failed
    #[arg(long)]
    pub fail_on_skip: bool,
    /// More for the kernel's command line
    #[arg(long, default_value = "", value_name = "STRING", allow_hyphen_values = true)]
    pub append: String,
    /// The console that the kernel has a driver for
    #[arg(long, value_enum, default_value_t = ConsoleArg::Serial)]
    pub console: ConsoleArg,
    /// Memory of each guest
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    pub memory: String,
    #[command(flatten)]
    pub kvm: KvmArgs,
    /// The Xen version that the guests see
    #[arg(long, default_value = "4.17", value_name = "MAJOR.MINOR")]
    pub xen_version: String,
}

#[derive(Args, Debug)]
pub struct CheckCellArgs {
    /// The kernel
    #[arg(long)]
    pub kernel: PathBuf,
    /// What comes behind the agent
    #[arg(long)]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, allow_hyphen_values = true)]
    pub cmdline: String,
    /// The console that is heard
    #[arg(long, value_enum)]
    pub console: ConsoleArg,
    #[command(flatten)]
    pub machine: MachineArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClockArg {
    Auto,
    Owned,
    Guarded,
}

impl From<ClockArg> for ClockMode {
    fn from(arg: ClockArg) -> Self {
        match arg {
            ClockArg::Auto => Self::Auto,
            ClockArg::Owned => Self::Owned,
            ClockArg::Guarded => Self::Guarded,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventChannelsArg {
    Auto,
    Fifo,
    #[value(name = "2-level")]
    TwoLevel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SwitchArg {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HypercallsArg {
    Auto,
    KvmXen,
    PortIo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FeatureArg {
    KvmXen,
    Synic,
}

impl From<FeatureArg> for KvmFeature {
    fn from(arg: FeatureArg) -> Self {
        match arg {
            FeatureArg::KvmXen => Self::Xen,
            FeatureArg::Synic => Self::Synic,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResumeArg {
    Cancelled,
    Anew,
}

impl From<ResumeArg> for Resumed {
    fn from(arg: ResumeArg) -> Self {
        match arg {
            ResumeArg::Cancelled => Self::Cancelled,
            ResumeArg::Anew => Self::Anew,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsoleArg {
    Serial,
    Hvc,
    None,
}

impl From<ConsoleArg> for Console {
    fn from(arg: ConsoleArg) -> Self {
        match arg {
            ConsoleArg::Serial => Self::Serial,
            ConsoleArg::Hvc => Self::Hvc,
            ConsoleArg::None => Self::None,
        }
    }
}
