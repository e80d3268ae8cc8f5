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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HandoverArg {
    Auto,
    Off,
    Require,
}

impl From<HandoverArg> for HandoverMode {
    fn from(arg: HandoverArg) -> Self {
        match arg {
            HandoverArg::Auto => Self::Auto,
            HandoverArg::Off => Self::Off,
            HandoverArg::Require => Self::Require,
        }
    }
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
