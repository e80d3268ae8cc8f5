//! The account of a vCPU outside of the guest.

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::super::snapshot::RestoreError;
use super::{Area, RunState, Runstate};
use crate::pages::{RunstateArea, Width};

/// The account of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunstateState {
    /// `RUNSTATE_*`.
    pub state: u32,
    /// System time at which it was entered, ns.
    pub entry_ns: u64,
    /// Time in each state before it, ns.
    pub time_ns: [u64; 4],
    /// Where the guest reads it.
    pub area: Option<AreaState>,
}

/// A runstate area.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaState {
    /// In the 32-bit layout.
    pub narrow: bool,
    /// Guest-physical address.
    pub gpa: u64,
    /// The page with the rest, where it crosses its own.
    pub next_page: Option<u64>,
    /// Registered by physical address.
    pub physical: bool,
}

impl Runstate {
    pub(in crate::xen) fn snapshot(&self) -> RunstateState {
        RunstateState {
            state: self.state as u32,
            entry_ns: self.entry_ns,
            time_ns: self.time_ns,
            area: self.area.as_ref().map(|area| AreaState {
                narrow: area.at.layout() == Width::Bits32,
                gpa: area.at.gpa().0,
                next_page: area.at.next_page().map(|page| page.0),
                physical: area.physical,
            }),
        }
    }

    pub(in crate::xen) fn restore(from: &RunstateState) -> Result<Self, RestoreError> {
        let state = match from.state {
            0 => RunState::Running,
            1 => RunState::Runnable,
            2 => RunState::Blocked,
            3 => RunState::Offline,
            other => return Err(RestoreError::Value { what: "runstate", value: other.into() }),
        };
        let area = |area: &AreaState| {
            let layout = if area.narrow { Width::Bits32 } else { Width::Bits64 };
            let next = area.next_page.map(GuestAddress);
            let at = RunstateArea::new(layout, GuestAddress(area.gpa), next);
            let at = at.map_err(|_| RestoreError::Value { what: "runstate area", value: area.gpa });
            Ok::<_, RestoreError>(Area { at: at?, physical: area.physical })
        };
        let area = from.area.as_ref().map(area).transpose()?;
        Ok(Self { state, entry_ns: from.entry_ns, time_ns: from.time_ns, area })
    }
}
