//! Event channels outside of the guest. Pending and mask bits, event words and
//! queue links are in the guest's memory; here is what they mean.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use xen_abi::event_channel::EVTCHN_FIFO_NR_CHANNELS;

use super::super::domain::{Domain, lock, read, write};
use super::super::snapshot::RestoreError;
use super::fifo::FifoState;
use super::{Channel, Fifo, State};

/// The event channels of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsState {
    /// Ports that exist.
    pub valid: u32,
    /// Those that are in use.
    pub ports: Vec<PortState>,
    /// PIRQs that are bound: number and port.
    pub pirqs: Vec<(u32, u32)>,
    /// Back ends by their index.
    pub backends: Vec<Option<BackendState>>,
    /// Events delivered so far.
    pub delivered: u64,
    /// The FIFO ABI, once the guest has chosen it.
    pub fifo: Option<FifoState>,
}

/// A port that is in use, or has a priority of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Its number.
    pub port: u32,
    /// The vCPU that is told.
    pub vcpu: u32,
    /// Its queue in the FIFO ABI.
    pub priority: u8,
    /// What it is bound to.
    pub bound: Binding,
}

/// What a port is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binding {
    /// Nothing, but it has a priority.
    Free,
    /// Port 0.
    Reserved,
    /// Waits for this domain.
    Unbound(u16),
    /// This other port of the domain's.
    Loop(u32),
    /// The back end of this index.
    Backend(u32),
    /// A VIRQ.
    Virq(u32),
    /// A PIRQ.
    Pirq(u32),
    /// Interrupts between vCPUs.
    Ipi,
}

/// A back end's end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendState {
    /// The back end's name for it.
    pub handle: u32,
    /// The guest's port, 0 while it is closed.
    pub port: u32,
}

impl From<State> for Binding {
    fn from(state: State) -> Self {
        match state {
            State::Free => Self::Free,
            State::Reserved => Self::Reserved,
            State::Unbound(domain) => Self::Unbound(domain),
            State::Loop(port) => Self::Loop(port),
            State::Backend(index) => Self::Backend(index),
            State::Virq(virq) => Self::Virq(virq),
            State::Pirq(pirq) => Self::Pirq(pirq),
            State::Ipi => Self::Ipi,
        }
    }
}

impl From<Binding> for State {
    fn from(bound: Binding) -> Self {
        match bound {
            Binding::Free => Self::Free,
            Binding::Reserved => Self::Reserved,
            Binding::Unbound(domain) => Self::Unbound(domain),
            Binding::Loop(port) => Self::Loop(port),
            Binding::Backend(index) => Self::Backend(index),
            Binding::Virq(virq) => Self::Virq(virq),
            Binding::Pirq(pirq) => Self::Pirq(pirq),
            Binding::Ipi => Self::Ipi,
        }
    }
}

impl Domain {
    pub(in crate::xen) fn snapshot_events(&self) -> EventsState {
        let _change = lock(&self.events.change);
        let events = &self.events;
        let valid = events.ports.valid();
        let ports = (0..valid)
            .map(|port| (port, events.ports.get(port)))
            .filter(|(_, channel)| *channel != Channel::FREE)
            .map(|(port, channel)| PortState {
                port,
                vcpu: channel.vcpu,
                priority: channel.priority,
                bound: channel.state.into(),
            })
            .collect();
        let pirqs = (0u32..).zip(&events.pirqs).filter_map(|(pirq, port)| {
            let port = port.load(Ordering::SeqCst);
            (port != 0).then_some((pirq, port))
        });
        EventsState {
            valid,
            ports,
            pirqs: pirqs.collect(),
            backends: read(&events.backends).snapshot(),
            delivered: events.delivered.load(Ordering::SeqCst),
            fifo: read(&self.layout).fifo.as_ref().map(|fifo| fifo.snapshot(valid)),
        }
    }

    /// The domain has not run yet. Its back ends are to be attached again.
    pub(in crate::xen) fn restore_events(&self, from: &EventsState) -> Result<(), RestoreError> {
        let events = &self.events;
        let wrong = |what, value: u32| RestoreError::Value { what, value: value.into() };
        if from.valid > EVTCHN_FIFO_NR_CHANNELS || !from.valid.is_multiple_of(64) {
            return Err(wrong("number of ports", from.valid));
        }
        // Leaves the ports at least as many as there were.
        if let Some(last) = from.valid.checked_sub(1).filter(|last| *last >= events.ports.valid()) {
            events.ports.set(last, Channel::new(0, State::Reserved));
            events.ports.set(last, Channel::FREE);
        }
        let vcpus = self.config.vcpus;
        for port in &from.ports {
            if port.port >= from.valid || port.vcpu >= vcpus || port.priority > 15 {
                return Err(wrong("event channel port", port.port));
            }
            let state = State::from(port.bound);
            let channel = Channel { vcpu: port.vcpu, priority: port.priority, state };
            events.ports.set(port.port, channel);
            match state {
                State::Ipi => self.platform.ipi_port(port.port, Some(port.vcpu)),
                State::Virq(xen_abi::xen::VIRQ_TIMER) => {
                    self.platform.timer_port(port.vcpu, port.port);
                }
                _ => {}
            }
        }
        for &(pirq, port) in &from.pirqs {
            let slot = usize::try_from(pirq).ok().and_then(|pirq| events.pirqs.get(pirq));
            slot.ok_or_else(|| wrong("PIRQ", pirq))?.store(port, Ordering::SeqCst);
        }
        write(&events.backends).restore(&from.backends);
        events.delivered.store(from.delivered, Ordering::SeqCst);
        if let Some(state) = &from.fifo {
            let fifo = Fifo::restore(vcpus, state)?;
            self.platform.leave_two_levels().map_err(RestoreError::Platform)?;
            write(&self.layout).fifo = Some(Box::new(fifo));
        }
        Ok(())
    }

    /// Attaches a back end of a restored domain again, by the name that its
    /// channel had: from now on `on_send` runs as [`Domain::alloc_backend_port`]
    /// says, and once at once, for what the guest sent and nobody saw.
    ///
    /// # Errors
    /// [`RestoreError::Value`] where there is no such back end.
    pub fn reattach_backend(
        &self,
        handle: u32,
        on_send: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(), RestoreError> {
        let found = write(&self.events.backends).reattach(handle, Arc::clone(&on_send));
        if !found {
            return Err(RestoreError::Value { what: "back end", value: handle.into() });
        }
        on_send();
        Ok(())
    }
}
