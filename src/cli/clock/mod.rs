//! `kvm-xen clock`: the laboratory of drift, and a running guest's clocks.

pub mod args;
mod csv;
mod html;
mod lab;
mod plot;
mod slew;
mod units;

use std::process::ExitCode;

use args::{ClockCommand, ClockCommandArgs};

/// Why a command of `kvm-xen clock` ended.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The laboratory.
    #[error(transparent)]
    Lab(#[from] lab::LabCommandError),
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
        ClockCommand::Watch(_) | ClockCommand::Verify(_) => ExitCode::FAILURE,
    })
}
