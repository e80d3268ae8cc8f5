//! `--handover`: whether a guest is asked to gather its vCPUs before it is moved.

use clap::{Args, ValueEnum};

use crate::vmm::handover::{Handover, HandoverMode};

/// The option of whatever saves or moves a guest.
#[derive(Args, Clone, Copy, Debug)]
pub struct HandoverArgs {
    /// Whether the guest is asked to gather its vCPUs first: if it registered for it, never,
    /// or nothing is done without
    #[arg(long, value_enum, default_value_t = HandoverArg::Auto)]
    pub handover: HandoverArg,
}

impl HandoverArgs {
    pub fn mode(self) -> HandoverMode {
        match self.handover {
            HandoverArg::Auto => HandoverMode::Auto,
            HandoverArg::Off => HandoverMode::Off,
            HandoverArg::Require => HandoverMode::Require,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HandoverArg {
    Auto,
    Off,
    Require,
}

/// What is told of a guest that registered for a handover, or could have been
/// asked.
pub(super) fn handover_note(handover: Handover) -> String {
    match handover {
        Handover::Off | Handover::NotRegistered => String::new(),
        Handover::Gathered => "; it gathered its vCPUs".to_owned(),
        other => format!("; without a handover: {other}"),
    }
}
