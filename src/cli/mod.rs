//! Arguments and printing.

mod args;
mod demo;
mod evidence;
mod masterclock;
mod probe;
mod run;
mod table;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};

/// Exit status of a command line that can not be understood.
const USAGE: u8 = 2;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    init_tracing();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Probe(args) => probe::probe(&args),
        Command::Demo(args) => demo::demo(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("kvm-xen: {error}");
        ExitCode::from(if error.is_usage() { USAGE } else { 1 })
    })
}

/// Help and version as they are; an error as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let printed = error.print();
        let status = u8::try_from(error.exit_code()).unwrap_or(1);
        return ExitCode::from(if printed.is_err() { 1 } else { status });
    }
    let text = error.to_string();
    let what: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let what = what.join(" ");
    eprintln!("kvm-xen: {}; see kvm-xen --help", what.strip_prefix("error: ").unwrap_or(&what));
    ExitCode::from(USAGE)
}

/// Warnings go to standard error; `KVM_XEN_LOG` chooses otherwise, in the
/// syntax of `tracing`'s filters (`debug`, `kvm_xen::xen=trace`).
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KVM_XEN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
