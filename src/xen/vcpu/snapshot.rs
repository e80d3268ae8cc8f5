//! A vCPU's side of the emulated hypervisor, outside of the guest.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::super::domain::lock;
use super::super::runstate::{Runstate, RunstateState};
use super::super::snapshot::RestoreError;
use super::super::timer::{Timers, TimersState};
use super::{ClockArea, Vcpu, VcpuStart};

/// What the hypervisor keeps for a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Vector of its upcalls, 0 for none.
    pub upcall_vector: u8,
    /// Its VIRQs that are bound: number and port.
    pub virqs: Vec<(u32, u32)>,
    /// Work to do before its next entry.
    pub requests: u32,
    /// It has had its start state.
    pub initialised: bool,
    /// It is to run.
    pub up: bool,
    /// The state of `VCPUOP_initialise`, if it has not started yet.
    pub start: Option<VcpuStart>,
    /// Where the time of its `vcpu_info` is published.
    pub info: AreaState,
    /// Its secondary time area.
    pub time: AreaState,
    /// Its account.
    pub runstate: RunstateState,
    /// Its timers.
    pub timers: TimersState,
}

/// A clock area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaState {
    /// Guest-physical address of the time fields.
    pub time_at: Option<u64>,
    /// They were published.
    pub published: bool,
}

impl AreaState {
    fn of(area: &ClockArea) -> Self {
        Self { time_at: area.time_at, published: area.published }
    }

    fn area(self) -> ClockArea {
        ClockArea { time_at: self.time_at, foreign: false, published: self.published }
    }
}

impl Vcpu {
    /// # Errors
    /// [`RestoreError::KvmOwnsClock`].
    pub(in crate::xen) fn snapshot(&self) -> Result<VcpuState, RestoreError> {
        let areas = lock(&self.areas);
        if areas.info.foreign || areas.time.foreign {
            return Err(RestoreError::KvmOwnsClock);
        }
        let bound = |(virq, port): (u32, &std::sync::atomic::AtomicU32)| {
            let port = port.load(Ordering::SeqCst);
            (port != 0).then_some((virq, port))
        };
        Ok(VcpuState {
            upcall_vector: self.upcall_vector.load(Ordering::SeqCst),
            virqs: (0u32..).zip(&self.virqs).filter_map(bound).collect(),
            requests: self.requests.load(Ordering::SeqCst),
            initialised: self.initialised.load(Ordering::SeqCst),
            up: self.up.load(Ordering::SeqCst),
            start: lock(&self.start).as_deref().copied(),
            info: AreaState::of(&areas.info),
            time: AreaState::of(&areas.time),
            runstate: lock(&self.runstate).snapshot(),
            timers: lock(&self.timers).snapshot(),
        })
    }

    /// The vCPU has not run yet.
    pub(in crate::xen) fn restore(&self, from: &VcpuState) -> Result<(), RestoreError> {
        for &(virq, port) in &from.virqs {
            let slot = usize::try_from(virq).ok().and_then(|virq| self.virqs.get(virq));
            let slot = slot.ok_or(RestoreError::Value { what: "VIRQ", value: virq.into() })?;
            slot.store(port, Ordering::SeqCst);
        }
        self.upcall_vector.store(from.upcall_vector, Ordering::SeqCst);
        self.requests.store(from.requests, Ordering::SeqCst);
        self.initialised.store(from.initialised, Ordering::SeqCst);
        self.up.store(from.up, Ordering::SeqCst);
        *lock(&self.start) = from.start.map(Box::new);
        let mut areas = lock(&self.areas);
        (areas.info, areas.time) = (from.info.area(), from.time.area());
        drop(areas);
        *lock(&self.runstate) = Runstate::restore(&from.runstate)?;
        *lock(&self.timers) = Timers::restore(&from.timers);
        Ok(())
    }
}
