//! A handover outside of the guest. One that was under way goes on with the
//! guest, wherever that is restored.

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::super::domain::{Domain, lock};
use super::super::snapshot::RestoreError;
use super::{State, bit};

/// How far a handover is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandoverPhase {
    /// None is under way.
    #[default]
    Idle,
    /// The guest was asked.
    Asked,
    /// All its vCPUs are gathered, and wait.
    Gathered,
    /// They were let go, and the guest has not said that it is done.
    Going,
}

/// What is kept of a guest that registered for handovers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverState {
    /// Guest-physical address of its page.
    pub page: u64,
    /// Sequence count of the page.
    pub sequence: u32,
    /// The last ticket.
    pub ticket: u32,
    /// How far it is.
    pub phase: HandoverPhase,
    /// vCPUs whose NMI is held back.
    pub held_nmis: Vec<u32>,
}

impl Domain {
    /// The state of handovers, for a guest that registered for them; under the
    /// conditions of [`Domain::snapshot`].
    #[must_use]
    pub fn snapshot_handover(&self) -> Option<HandoverState> {
        let state = lock(&self.handover.state);
        let held = |vcpu: &u32| state.held_nmis & bit(*vcpu) != 0;
        state.page.map(|page| HandoverState {
            page: page.0,
            sequence: state.sequence,
            ticket: state.ticket,
            phase: state.phase,
            held_nmis: self.vcpu_ids().filter(held).collect(),
        })
    }

    /// Takes it over, before [`Domain::handover_moved`].
    ///
    /// # Errors
    /// [`RestoreError::Value`] for a page that is none, a vCPU that is not there.
    pub fn restore_handover(&self, from: &HandoverState) -> Result<(), RestoreError> {
        let wrong = |what, value| RestoreError::Value { what, value };
        let there = self.memory().check_range(GuestAddress(from.page), 4096);
        if !from.page.is_multiple_of(4096) || !there {
            return Err(wrong("handover page", from.page));
        }
        if let Some(vcpu) = from.held_nmis.iter().find(|vcpu| !self.vcpu_ids().contains(vcpu)) {
            return Err(wrong("vCPU", u64::from(*vcpu)));
        }
        *lock(&self.handover.state) = State {
            page: Some(GuestAddress(from.page)),
            sequence: from.sequence,
            ticket: from.ticket,
            phase: from.phase,
            held_nmis: from.held_nmis.iter().fold(0, |held, vcpu| held | bit(*vcpu)),
        };
        Ok(())
    }
}
