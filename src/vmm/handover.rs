//! Asking a guest to gather its vCPUs before it is saved or moved, and telling
//! it afterwards how far its clocks moved. `docs/handover.md` has the protocol.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::config::MachineError;
use super::restore::host_now;
use super::vcpu::Shared;
use crate::kvm::KvmClock;
use crate::state::{RestoredTime, StoppedClock};
use crate::xen::{Clock, Domain, HandoverAnswer, HandoverError};

/// How long a guest may take to gather its vCPUs. It runs on meanwhile.
const WITHIN: Duration = Duration::from_secs(3);
/// How often it is looked whether the guest still can answer.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether a guest is to be asked before it is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandoverMode {
    /// If it registered for it; if it does not answer, it is moved all the same.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// It is moved only if it is gathered.
    Require,
}

/// Whether a guest was gathered when it was moved, and why not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handover {
    /// All its vCPUs were.
    Gathered,
    /// It was not to be asked, or has not been yet.
    #[default]
    Off,
    /// It has no page for it.
    NotRegistered,
    /// It has not bound the VIRQ by which it would have been asked.
    NotBound,
    /// It is paused or suspended, and can not answer.
    Still,
    /// It has not finished the handover before this one.
    Unfinished,
    /// It did not answer in time.
    NoAnswer,
    /// It declined.
    Declined,
    /// Its page is no memory any more.
    BadPage,
}

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gathered => f.write_str("the guest gathered its vCPUs"),
            Self::Off => f.write_str("the guest was not asked"),
            Self::NotRegistered => f.write_str("the guest has not registered for a handover"),
            Self::NotBound => f.write_str("the guest has not bound the handover's VIRQ"),
            Self::Still => f.write_str("the guest is paused or suspended, and can not answer"),
            Self::Unfinished => f.write_str("the guest has not finished its last handover"),
            Self::NoAnswer => {
                write!(f, "the guest did not gather its vCPUs within {} s", WITHIN.as_secs())
            }
            Self::Declined => f.write_str("the guest declined"),
            Self::BadPage => f.write_str("the guest's handover page is no memory"),
        }
    }
}

/// A handover was demanded, and there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--handover require: {0}; it goes on as it was")]
pub struct NoHandover(pub Handover);

/// The guest, asked. Dropped it goes on here, if it was gathered and still is.
pub(super) struct Asked<'a> {
    domain: &'a Domain,
    /// What came of it.
    pub outcome: Handover,
    /// Since when the guest stands, if it does.
    pub since: Option<Instant>,
    /// It runs elsewhere, or not any more: nobody is let go here.
    gone: bool,
}

impl<'a> Asked<'a> {
    /// Asks as `mode` says, and waits for the answer. The guest runs meanwhile,
    /// or waits for this to be dropped.
    pub(super) fn ask(shared: &'a Shared, mode: HandoverMode) -> Result<Self, NoHandover> {
        let outcome = match mode {
            HandoverMode::Off => Handover::Off,
            HandoverMode::Auto | HandoverMode::Require => ask(shared),
        };
        let gathered = outcome == Handover::Gathered;
        let since = gathered.then(Instant::now);
        let asked = Self { domain: &shared.domain, outcome, since, gone: false };
        match (mode, outcome) {
            (HandoverMode::Require, outcome) if !gathered => return Err(NoHandover(outcome)),
            (_, Handover::Off | Handover::NotRegistered | Handover::Gathered) => {}
            (_, why) => tracing::warn!("moving without a handover: {why}"),
        }
        Ok(asked)
    }

    /// The guest was asked and kept its host waiting, for nothing.
    pub(super) fn waited(&self) -> bool {
        matches!(self.outcome, Handover::NoAnswer | Handover::Unfinished)
    }

    /// The guest does not go on here.
    pub(super) fn gone(&mut self) {
        self.gone = true;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.outcome == Handover::Gathered && !self.gone {
            self.domain.handover_stays();
        }
    }
}

fn ask(shared: &Shared) -> Handover {
    let domain = &shared.domain;
    if domain.handover_phase().is_none() {
        return Handover::NotRegistered;
    }
    // It would not run to answer.
    let still = || shared.pause.is_held() || domain.is_suspended() || shared.exit.is_ending();
    let until = Instant::now() + WITHIN;
    let ticket = loop {
        if still() {
            return Handover::Still;
        }
        let asked = {
            // Nobody saves it at this moment.
            let _outside = shared.quiesce.from_outside();
            domain.handover_ask()
        };
        match asked {
            Ok(ticket) => break ticket,
            Err(HandoverError::NotRegistered) => return Handover::NotRegistered,
            Err(HandoverError::NotBound) => return Handover::NotBound,
            Err(HandoverError::Page(_)) => return Handover::BadPage,
            // It may just be about to say so.
            Err(HandoverError::Unfinished) if Instant::now() < until => {
                std::thread::sleep(LOOK_EVERY);
            }
            Err(HandoverError::Unfinished) => return Handover::Unfinished,
        }
    };
    loop {
        match domain.handover_answer(ticket, LOOK_EVERY) {
            HandoverAnswer::Ready => return Handover::Gathered,
            HandoverAnswer::Declined => return Handover::Declined,
            HandoverAnswer::Late => {}
        }
        let still = still();
        if still || Instant::now() >= until {
            return match domain.handover_withdraw(ticket) {
                HandoverAnswer::Ready => Handover::Gathered,
                HandoverAnswer::Declined => Handover::Declined,
                HandoverAnswer::Late if still => Handover::Still,
                HandoverAnswer::Late => Handover::NoAnswer,
            };
        }
    }
}

/// Tells a guest that goes on how far its clocks moved, and lets it go if it is
/// gathered. None of its vCPUs runs.
pub(super) fn tell(
    domain: &Domain,
    clock: &KvmClock,
    stopped: &StoppedClock,
    time: &RestoredTime,
    host_khz: u32,
) -> Result<(), MachineError> {
    let Some((phase, ticket)) = domain.handover_phase() else { return Ok(()) };
    let now = host_now(host_khz)?;
    let record = stopped.handover(&now, clock.tsc().from_host(now.host_tsc), time)?;
    domain.handover_moved(record);
    tracing::info!(
        ?phase,
        ticket,
        tsc_delta = record.tsc_delta,
        system_time_delta_ns = record.system_time_delta_ns,
        tai_delta_ns = record.tai_delta_ns,
        tai_error_ns = record.tai_error_ns,
        "the guest is told how far its clocks moved"
    );
    debug_assert_eq!(clock.line().system_time_ns(record.tsc_after), record.system_time_after_ns);
    Ok(())
}
