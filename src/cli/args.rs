//! The command line, as `--help` shows it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::kvm::{ClockMode, KVM_DEVICE, KvmFeature};

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
    /// Say what this host's KVM offers, which modes work, and why not
    Probe(ProbeArgs),
    /// Show a guest's clocks: the embedded bare-metal guest, or a Linux kernel
    Demo(DemoArgs),
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
    /// How hypercalls arrive: intercepted by KVM, or by port I/O from a kernel that
    /// is rewritten in memory
    #[arg(long, value_enum, default_value_t = HypercallsArg::Auto)]
    pub hypercalls: HypercallsArg,
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
pub enum ConsoleArg {
    Serial,
    Hvc,
    None,
}
