//! The port table: what each port is bound to, one atomic word each, so that
//! sending takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// The most ports of the 2-level ABI: 64 words of 64 bits.
const PORTS: usize = 4096;

/// What a port is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// Port 0.
    Reserved,
    /// Waits for this domain to bind to it.
    Unbound(u16),
    /// The other end is this port of the same domain.
    Loop(u32),
    /// The other end is this back end.
    Backend(u32),
    Virq(u32),
    Pirq(u32),
    Ipi,
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Channel {
    /// The vCPU that is told of its events.
    pub vcpu: u32,
    pub state: State,
}

impl Channel {
    pub(super) const FREE: Self = Self { vcpu: 0, state: State::Free };

    /// Kind in bits 7..0, vCPU in 23..8 (at most 127), the rest in 63..32.
    fn pack(self) -> u64 {
        let (kind, value) = match self.state {
            State::Free => (0, 0),
            State::Reserved => (1, 0),
            State::Unbound(domain) => (2, u32::from(domain)),
            State::Loop(port) => (3, port),
            State::Backend(index) => (4, index),
            State::Virq(virq) => (5, virq),
            State::Pirq(pirq) => (6, pirq),
            State::Ipi => (7, 0),
        };
        u64::from(value) << 32 | u64::from(self.vcpu & 0xffff) << 8 | kind
    }

    fn unpack(word: u64) -> Self {
        let [kind, vcpu_low, vcpu_high, _, v0, v1, v2, v3] = word.to_le_bytes();
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let state = match kind {
            1 => State::Reserved,
            2 => State::Unbound(u16::from_le_bytes([v0, v1])),
            3 => State::Loop(value),
            4 => State::Backend(value),
            5 => State::Virq(value),
            6 => State::Pirq(value),
            7 => State::Ipi,
            _ => State::Free,
        };
        Self { vcpu: u32::from(u16::from_le_bytes([vcpu_low, vcpu_high])), state }
    }
}

/// All ports. Whoever sets one holds `EventChannels::change`.
pub(super) struct Ports(Box<[AtomicU64]>);

impl Ports {
    pub(super) fn new() -> Self {
        let ports = Self((0..PORTS).map(|_| AtomicU64::new(0)).collect());
        ports.set(0, Channel { vcpu: 0, state: State::Reserved });
        ports
    }

    /// A port that is beyond the table is free.
    pub(super) fn get(&self, port: u32) -> Channel {
        let slot = usize::try_from(port).ok().and_then(|port| self.0.get(port));
        // Acquire: partner of the Release in `set`, for a back end's entry.
        slot.map_or(Channel::FREE, |slot| Channel::unpack(slot.load(Ordering::Acquire)))
    }

    pub(super) fn set(&self, port: u32, channel: Channel) {
        if let Some(slot) = usize::try_from(port).ok().and_then(|port| self.0.get(port)) {
            slot.store(channel.pack(), Ordering::Release);
        }
    }

    /// The lowest free port below `limit`, as Xen hands them out.
    pub(super) fn find_free(&self, limit: u32) -> Option<u32> {
        (1..limit).find(|&port| self.get(port).state == State::Free)
    }

    /// The first port in this state.
    pub(super) fn find(&self, state: State) -> Option<u32> {
        (1..=u32::try_from(PORTS - 1).unwrap_or(0)).find(|&port| self.get(port).state == state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_packing() {
        let states = [
            State::Free,
            State::Reserved,
            State::Unbound(0x7fef),
            State::Loop(4095),
            State::Backend(u32::MAX),
            State::Virq(23),
            State::Pirq(255),
            State::Ipi,
        ];
        for (state, vcpu) in states.into_iter().zip([0, 1, 31, 32, 63, 64, 126, 127]) {
            let channel = Channel { vcpu, state };
            assert_eq!(Channel::unpack(channel.pack()), channel);
        }
    }
}
