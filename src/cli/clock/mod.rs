//! `kvm-xen clock`: the laboratory of drift, and a running guest's clocks.

pub mod args;
mod csv;
mod html;
mod lab;
mod plot;
mod slew;
mod spread;
mod units;
mod verify;
mod watch;

use std::process::ExitCode;

use args::{ClockCommand, ClockCommandArgs};

use super::client::ClientError;

/// Why a command of `kvm-xen clock` ended.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The laboratory.
    #[error(transparent)]
    Lab(#[from] lab::LabCommandError),
    /// A running machine.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl ClockError {
    /// Whether the command line itself is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Lab(lab::LabCommandError::Lab { .. } | lab::LabCommandError::TooMany(_))
        )
    }
}

pub fn clock(args: &ClockCommandArgs) -> Result<ExitCode, crate::cli::run::CliError> {
    Ok(match &args.command {
        ClockCommand::Lab(args) => lab::lab(args)?,
        ClockCommand::Watch(args) => watch::watch(args)?,
        ClockCommand::Verify(args) => verify::verify(args)?,
    })
}
