//! The command line of `kvm-xen clock`, as `--help` shows it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::units::{Ntp, parse_days, parse_duration, parse_ntp};
use crate::clock::lab::Scaling;

#[derive(Args, Debug)]
pub struct ClockCommandArgs {
    #[command(subcommand)]
    pub command: ClockCommand,
}

#[derive(Debug, Subcommand)]
pub enum ClockCommand {
    /// Compute how far KVM's clocks and ours drift and jump, over days or years
    ///
    /// Nothing runs: the rates follow from KVM's own arithmetic. DURATION is a number
    /// with s, m, h, d or y (365.25 days), such as 90m; RATE is a number with ppm or
    /// ppb, such as -20ppm; STEP is a number with ns, us, ms or s, such as +5ms.
    #[command(after_help = "Examples:\n  \
        kvm-xen clock lab\n  \
        kvm-xen clock lab --guest-khz 2500000,2600000 --scaling amd --updates-every 1h\n  \
        kvm-xen clock lab --scaling none --duration 1h --ntp 1h:+500ppm --html slew.html")]
    Lab(LabArgs),
    /// Show the clocks of a running guest, every second
    Watch(WatchArgs),
    /// Sample the clocks of a running guest and say whether each sample was within
    /// the bound that the guest was told
    ///
    /// Exit status: 0 every sample was, 1 some were not, or none could be had.
    Verify(VerifyArgs),
}

#[derive(Args, Debug)]
pub struct LabArgs {
    /// Frequencies of the host's TSC
    #[arg(long, value_name = "KHZ,…", value_delimiter = ',', default_value = "3000000",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub host_khz: Vec<u32>,
    /// Frequencies that guests ask for; not looked at with --scaling none
    #[arg(long, value_name = "KHZ,…", value_delimiter = ',', default_value = "2500000",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub guest_khz: Vec<u32>,
    /// TSC scaling of the host: 48 fractional bits, 32, or none
    #[arg(long, value_enum, default_value_t = ScalingArg::Intel)]
    pub scaling: ScalingArg,
    /// The time that is looked at, in days
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_days)]
    pub days: u64,
    /// The same as a duration
    #[arg(long, value_name = "DURATION", conflicts_with = "days", value_parser = parse_duration)]
    pub duration: Option<u64>,
    /// A masterclock update of KVM's at every DURATION
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub updates_every: Option<u64>,
    /// Masterclock updates at these times after the start
    #[arg(long, value_name = "DURATION,…", value_delimiter = ',',
          conflicts_with = "updates_every", value_parser = parse_duration)]
    pub updates_at: Vec<u64>,
    /// What NTP does to the host's clock, one stretch after the other, each with a
    /// step at its end if one is given; @FILE reads them, one a line
    #[arg(long, value_name = "DURATION:RATE[:STEP],…", allow_hyphen_values = true,
          value_parser = parse_ntp)]
    pub ntp: Option<Ntp>,
    /// The rate of CLOCK_MONOTONIC_RAW: exactly the TSC's, or as Linux rounds it
    #[arg(long, value_enum, default_value_t = RawArg::Exact)]
    pub raw: RawArg,
    /// Points of each series
    #[arg(long, value_name = "N", default_value_t = 400,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub points: u32,
    /// Write a report with plots, one file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the series
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct WatchArgs {
    /// The socket of kvm-xen run --api-socket
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// End after so many seconds [default: with the guest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The socket of kvm-xen run --api-socket
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// How long it samples
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub seconds: u64,
    /// Milliseconds between two samples
    #[arg(long, value_name = "MS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub interval: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScalingArg {
    Intel,
    Amd,
    None,
}

impl From<ScalingArg> for Scaling {
    fn from(arg: ScalingArg) -> Self {
        match arg {
            ScalingArg::Intel => Self::Intel,
            ScalingArg::Amd => Self::Amd,
            ScalingArg::None => Self::None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RawArg {
    Exact,
    Linux,
}
