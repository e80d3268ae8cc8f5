//! Arguments and printing.

mod args;
mod check;
mod client;
mod clock;
mod demo;
mod evidence;
mod handover;
mod masterclock;
mod migrate;
mod probe;
mod remote;
mod restore;
mod run;
mod table;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};

/// Exit status of a command line that can not be understood.
pub const USAGE: u8 = 2;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    init_tracing();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Restore(args) => restore::restore(&args),
        Command::Receive(args) => migrate::receive(&args),
        Command::Migrate(args) => migrate::ask(&args),
        Command::Save(args) => remote::save(&args),
        Command::Suspend(args) => remote::suspend(&args),
        Command::Resume(args) => remote::resume(&args),
        Command::Pause(args) => remote::pause(&args),
        Command::Probe(args) => probe::probe(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Clock(args) => clock::clock(&args),
        Command::Check(args) => check::check(&args),
        Command::CheckCell(args) => check::cell(&args),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(error.status())
    })
}

/// One line of what is wrong.
fn complain(what: impl std::fmt::Display) {
    let line = format!("kvm-xen: {what}\n");
    if std::io::stderr().write_all(line.as_bytes()).is_err() {
        tracing::debug!("standard error is closed");
    }
}

/// Prints for a person. Nobody may be there to read it, which is no failure.
fn say(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.to_string().as_bytes()).and_then(|()| out.flush()).is_err() {
        tracing::debug!("standard output is closed");
    }
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
    complain(format_args!("{}; see kvm-xen --help", what.strip_prefix("error: ").unwrap_or(&what)));
    ExitCode::from(USAGE)
}

/// Warnings go to standard error; `KVM_XEN_LOG` chooses otherwise, in the
/// syntax of `tracing`'s filters (`debug`, `kvm_xen::xen=trace`).
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KVM_XEN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // Told to a standard error that is closed, they would end the guest.
        .log_internal_errors(false)
        .init();
}
