//! The port table: what each port is bound to, one atomic word each, so that
//! sending takes no lock. Memory is taken as ports are, for the FIFO ABI has
//! 131 072 of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xen_abi::event_channel::{EVTCHN_FIFO_NR_CHANNELS, EVTCHN_FIFO_PRIORITY_DEFAULT};

/// Xen makes ports in buckets of a page; one beyond the last bucket does not
/// exist, and every operation on it answers `EINVAL`.
const BUCKET: u32 = 64;

/// `EVTCHN_FIFO_PRIORITY_DEFAULT`.
const DEFAULT_PRIORITY: u8 = EVTCHN_FIFO_PRIORITY_DEFAULT.to_le_bytes()[0];

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
    /// Its queue in the FIFO ABI: 0, the most urgent, to 15.
    pub priority: u8,
    pub state: State,
}

impl Channel {
    pub(super) const FREE: Self = Self::new(0, State::Free);

    /// A port as it is bound: at the default priority.
    pub(super) const fn new(vcpu: u32, state: State) -> Self {
        Self { vcpu, priority: DEFAULT_PRIORITY, state }
    }

    /// Xen's `evtchn_usable`: whether it is bound.
    pub(super) fn is_usable(self) -> bool {
        !matches!(self.state, State::Free | State::Reserved)
    }

    /// Kind in bits 7..0, vCPU in 23..8 (at most 127), priority in 31..24, the
    /// rest in 63..32.
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
        u64::from(value) << 32
            | u64::from(self.priority) << 24
            | u64::from(self.vcpu & 0xffff) << 8
            | kind
    }

    fn unpack(word: u64) -> Self {
        let [kind, vcpu_low, vcpu_high, priority, v0, v1, v2, v3] = word.to_le_bytes();
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let state = match kind {
            1 => State::Reserved,
            2 => State::Unbound(u16::from_le_bytes([v0, v1])),
            3 => State::Loop(value),
            4 => State::Backend(value),
            5 => State::Virq(value),
            6 => State::Pirq(value),
            7 => State::Ipi,
            _ => return Self::FREE,
        };
        Self { vcpu: u32::from(u16::from_le_bytes([vcpu_low, vcpu_high])), priority, state }
    }
}

/// One `T` for each port of the FIFO ABI, made a bucket at a time.
#[derive(Debug)]
pub(super) struct Table<T>(Box<[OnceLock<Box<[T]>>]>);

impl<T: Default> Table<T> {
    /// Ports whose entries are made together.
    const STEP: u32 = 1024;

    pub(super) fn new() -> Self {
        let buckets = EVTCHN_FIFO_NR_CHANNELS / Self::STEP;
        Self((0..buckets).map(|_| OnceLock::new()).collect())
    }

    /// The entry of `port`, `None` if none near it was asked for in
    /// [`Table::make`].
    pub(super) fn get(&self, port: u32) -> Option<&T> {
        let (bucket, place) = Self::split(port)?;
        self.0.get(bucket)?.get()?.get(place)
    }

    /// The entry of `port`, `None` beyond the last port there can be.
    pub(super) fn make(&self, port: u32) -> Option<&T> {
        let (bucket, place) = Self::split(port)?;
        let entries =
            self.0.get(bucket)?.get_or_init(|| (0..Self::STEP).map(|_| T::default()).collect());
        entries.get(place)
    }

    fn split(port: u32) -> Option<(usize, usize)> {
        let bucket = usize::try_from(port / Self::STEP).ok()?;
        Some((bucket, usize::try_from(port % Self::STEP).ok()?))
    }
}

/// All ports. Whoever changes one holds `EventChannels::change`.
#[derive(Debug)]
pub(super) struct Ports {
    channels: Table<AtomicU64>,
    /// Ports that exist; those from here on were never made.
    valid: AtomicU32,
    /// All ports below this are taken.
    lowest: AtomicU32,
}

/// A port that may be taken, and how many were looked at to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub port: u32,
    pub steps: u32,
}

impl Ports {
    pub(super) fn new() -> Self {
        let ports = Self {
            channels: Table::new(),
            valid: AtomicU32::new(BUCKET),
            lowest: AtomicU32::new(1),
        };
        ports.set(0, Channel::new(0, State::Reserved));
        ports
    }

    /// The number of ports that exist, which only ever grows.
    pub(super) fn valid(&self) -> u32 {
        self.valid.load(Ordering::Acquire)
    }

    /// A port that does not exist is free.
    pub(super) fn get(&self, port: u32) -> Channel {
        // Acquire: partner of the Release in `set`, for a back end's entry.
        let slot = self.channels.get(port);
        slot.map_or(Channel::FREE, |slot| Channel::unpack(slot.load(Ordering::Acquire)))
    }

    pub(super) fn set(&self, port: u32, channel: Channel) {
        let Some(slot) = self.channels.make(port) else { return };
        slot.store(channel.pack(), Ordering::Release);
        if channel.state == State::Free {
            self.lowest.fetch_min(port, Ordering::Relaxed);
        } else if port >= self.valid() {
            self.valid.store((port / BUCKET + 1) * BUCKET, Ordering::Release);
        }
    }

    /// The lowest free port below `limit`, as Xen hands them out, that is not
    /// `busy` with an event from before it was closed.
    pub(super) fn find_free(&self, limit: u32, busy: impl Fn(u32) -> bool) -> Option<Found> {
        let start = self.lowest.load(Ordering::Relaxed);
        let mut skipped = false;
        for port in start..limit {
            if self.get(port).state != State::Free {
                continue;
            }
            if !skipped {
                self.lowest.store(port, Ordering::Relaxed);
            }
            if !busy(port) {
                return Some(Found { port, steps: port - start });
            }
            skipped = true;
        }
        if !skipped {
            self.lowest.store(limit.max(start), Ordering::Relaxed);
        }
        None
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
            State::Loop(131_071),
            State::Backend(u32::MAX),
            State::Virq(23),
            State::Pirq(255),
            State::Ipi,
        ];
        for (state, vcpu) in states.into_iter().zip([0, 1, 31, 32, 63, 64, 126, 127]) {
            let priority = if state == State::Free { 7 } else { u8::try_from(vcpu % 16).unwrap() };
            let channel = Channel { vcpu, priority, state };
            assert_eq!(Channel::unpack(channel.pack()), channel);
        }
    }

    #[test]
    fn the_lowest_free_port_that_is_not_busy() {
        let ports = Ports::new();
        let find = |limit, busy: u32| ports.find_free(limit, |port| port == busy);
        assert_eq!(find(64, 0), Some(Found { port: 1, steps: 0 }));
        for port in 1..64 {
            ports.set(port, Channel::new(0, State::Ipi));
        }
        assert_eq!((find(64, 0), ports.valid()), (None, 64));
        assert_eq!(find(65, 0), Some(Found { port: 64, steps: 0 }));
        ports.set(64, Channel::new(0, State::Ipi));
        assert_eq!(ports.valid(), 128);
        ports.set(7, Channel::FREE);
        ports.set(9, Channel::FREE);
        assert_eq!(find(128, 7), Some(Found { port: 9, steps: 2 }));
        ports.set(9, Channel::new(0, State::Ipi));
        assert_eq!(find(128, 0).map(|found| found.port), Some(7), "it was only skipped");
    }

    #[test]
    fn beyond_the_last_port_there_is_none() {
        let ports = Ports::new();
        ports.set(131_071, Channel::new(5, State::Ipi));
        ports.set(131_072, Channel::new(5, State::Ipi));
        assert_eq!(ports.get(131_071).vcpu, 5);
        assert_eq!(ports.get(131_072), Channel::FREE);
        assert_eq!(ports.get(u32::MAX), Channel::FREE);
        assert_eq!(ports.valid(), 131_072);
    }
}
