//! Random operations, in either ABI and width, against a table that is updated
//! the simplest way that the interface's words allow.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::fifo::{ARRAY, CONTROL, expand_array, init_control, set_priority};
use super::*;

const PAGE: u64 = 0x5000;
const VCPUS: u32 = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    BindIpi(u32),
    BindVirq(u32, u32),
    BindPirq(u32),
    Alloc(u16),
    Loop(u32),
    Close(u32),
    Send(u32),
    RaisePirq(u32),
    RaiseVirq(u32, u32),
    BindVcpu(u32, u32),
    Priority(u32, u32),
    Mask(u32),
    Unmask(u32),
    Take,
}

fn ops() -> impl Strategy<Value = Op> {
    // More ports than there usually are, and one that never is.
    let port = || prop_oneof![20 => 0..12u32, 1 => Just(64), 1 => Just(u32::MAX)];
    let vcpu = || 0..=VCPUS;
    prop_oneof![
        2 => vcpu().prop_map(Op::BindIpi),
        2 => (0..26u32, vcpu()).prop_map(|(virq, vcpu)| Op::BindVirq(virq, vcpu)),
        1 => (0..4u32).prop_map(Op::BindPirq),
        1 => prop_oneof![Just(DOMID_SELF), Just(0), Just(3)].prop_map(Op::Alloc),
        1 => port().prop_map(Op::Loop),
        2 => port().prop_map(Op::Close),
        6 => port().prop_map(Op::Send),
        1 => (0..4u32).prop_map(Op::RaisePirq),
        2 => (0..26u32, vcpu()).prop_map(|(virq, vcpu)| Op::RaiseVirq(virq, vcpu)),
        2 => (port(), vcpu()).prop_map(|(port, vcpu)| Op::BindVcpu(port, vcpu)),
        1 => (port(), 0..17u32).prop_map(|(port, priority)| Op::Priority(port, priority)),
        2 => (1..12u32).prop_map(Op::Mask),
        2 => port().prop_map(Op::Unmask),
        2 => Just(Op::Take),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Ipi,
    Virq(u32),
    Pirq(u32),
    Unbound(u16),
    Loop(u32),
}

/// The table, and what of it a guest may expect.
#[derive(Default)]
struct Oracle {
    ports: BTreeMap<u32, (Kind, u32)>,
    pending: BTreeSet<u32>,
    masked: BTreeSet<u32>,
    /// FIFO: closed while queued, until the guest has taken its events.
    held: BTreeSet<u32>,
    queued: BTreeSet<u32>,
    fifo: bool,
}

impl Oracle {
    fn bind(&mut self, kind: Kind, vcpu: u32) -> u32 {
        let free = |port: &u32| !self.ports.contains_key(port) && !self.held.contains(port);
        let port = (1..).find(free).unwrap();
        self.ports.insert(port, (kind, vcpu));
        port
    }

    fn find(&self, kind: Kind, vcpu: Option<u32>) -> Option<u32> {
        let mut all = self.ports.iter();
        all.find(|(_, bound)| bound.0 == kind && vcpu.is_none_or(|vcpu| bound.1 == vcpu))
            .map(|(port, _)| *port)
    }

    fn raise(&mut self, port: u32) {
        self.pending.insert(port);
        if !self.masked.contains(&port) {
            self.queued.insert(port);
        }
    }

    fn per_vcpu(virq: u32) -> bool {
        [VIRQ_TIMER, VIRQ_DEBUG, 7, 13].contains(&virq)
    }

    /// What the hypercall answers: a port, or 0.
    fn apply(&mut self, op: Op) -> Result<u32, Errno> {
        let known = |port: u32| if port < 64 { Ok(()) } else { Err(Errno::EINVAL) };
        let vcpu_there = |vcpu: u32| if vcpu < VCPUS { Ok(()) } else { Err(Errno::ENOENT) };
        match op {
            Op::BindIpi(vcpu) => vcpu_there(vcpu).map(|()| self.bind(Kind::Ipi, vcpu)),
            Op::BindVirq(virq, vcpu) => {
                let global = !Self::per_vcpu(virq);
                if virq >= 24 || global && vcpu != 0 {
                    return Err(Errno::EINVAL);
                }
                vcpu_there(vcpu)?;
                let own = (!global).then_some(vcpu);
                if self.find(Kind::Virq(virq), own).is_some() {
                    return Err(Errno::EEXIST);
                }
                Ok(self.bind(Kind::Virq(virq), vcpu))
            }
            Op::BindPirq(pirq) if self.find(Kind::Pirq(pirq), None).is_some() => Err(Errno::EEXIST),
            Op::BindPirq(pirq) => Ok(self.bind(Kind::Pirq(pirq), 0)),
            Op::Alloc(DOMID_SELF) => Ok(self.bind(Kind::Unbound(OWN), 0)),
            Op::Alloc(remote) => Ok(self.bind(Kind::Unbound(remote), 0)),
            Op::Loop(far) => match self.ports.get(&far) {
                Some(&(Kind::Unbound(OWN), vcpu)) => {
                    let near = self.bind(Kind::Loop(far), 0);
                    self.ports.insert(far, (Kind::Loop(near), vcpu));
                    self.raise(near);
                    Ok(near)
                }
                _ => Err(Errno::EINVAL),
            },
            Op::Close(port) => {
                let (kind, _) = self.ports.remove(&port).ok_or(Errno::EINVAL)?;
                if let Kind::Loop(far) = kind {
                    let vcpu = self.ports[&far].1;
                    self.ports.insert(far, (Kind::Unbound(OWN), vcpu));
                }
                self.pending.remove(&port);
                if self.fifo && self.queued.contains(&port) {
                    self.held.insert(port);
                }
                Ok(0)
            }
            Op::Send(port) => {
                match self.ports.get(&port).ok_or(Errno::EINVAL)?.0 {
                    Kind::Ipi => self.raise(port),
                    Kind::Loop(far) => self.raise(far),
                    Kind::Unbound(_) => {}
                    Kind::Virq(_) | Kind::Pirq(_) => return Err(Errno::EINVAL),
                }
                Ok(0)
            }
            Op::RaisePirq(pirq) => {
                let port = self.find(Kind::Pirq(pirq), None);
                port.into_iter().for_each(|port| self.raise(port));
                Ok(u32::from(port.is_some()))
            }
            Op::RaiseVirq(virq, vcpu) => {
                let own = Self::per_vcpu(virq).then_some(vcpu);
                let port = self.find(Kind::Virq(virq), own);
                port.into_iter().for_each(|port| self.raise(port));
                Ok(u32::from(port.is_some()))
            }
            Op::BindVcpu(port, vcpu) => {
                vcpu_there(vcpu)?;
                let bound = self.ports.get_mut(&port).ok_or(Errno::EINVAL)?;
                match bound.0 {
                    Kind::Ipi => return Err(Errno::EINVAL),
                    Kind::Virq(virq) if Self::per_vcpu(virq) => return Err(Errno::EINVAL),
                    _ => bound.1 = vcpu,
                }
                Ok(0)
            }
            Op::Priority(port, priority) => {
                known(port)?;
                match (self.fifo, self.ports.contains_key(&port), priority) {
                    (false, ..) => Err(Errno::ENOSYS),
                    (true, false, _) => Err(Errno::EACCES),
                    (true, true, 16..) => Err(Errno::EINVAL),
                    (true, true, _) => Ok(0),
                }
            }
            Op::Mask(port) => {
                self.masked.insert(port);
                Ok(0)
            }
            Op::Unmask(port) => {
                known(port)?;
                let bound = self.ports.contains_key(&port);
                if bound && self.masked.remove(&port) && self.pending.contains(&port) {
                    self.queued.insert(port);
                }
                Ok(0)
            }
            Op::Take => {
                let taken: Vec<u32> = self.pending.difference(&self.masked).copied().collect();
                self.pending.retain(|port| !taken.contains(port));
                self.queued.clear();
                self.held.clear();
                Ok(u32::try_from(taken.len()).unwrap())
            }
        }
    }
}

/// The guest's hands on the shared words; single-threaded, so no exchanges.
struct Guest {
    fifo: bool,
    width: Width,
}

impl Guest {
    fn mask(&self, domain: &Domain, port: u32) {
        if self.fifo {
            let at = ARRAY + u64::from(port) * 4;
            let word: u32 = get(domain, at);
            put(domain, at, &(word | 1 << EVTCHN_FIFO_MASKED));
        } else {
            let at = PAGE + 0x800 + if self.width == Width::Bits64 { 0x200 } else { 0x80 };
            let word: u64 = get(domain, at);
            put(domain, at, &(word | 1 << port));
        }
    }

    /// Takes what the vCPUs were told of; how many events that was.
    fn take(&self, domain: &Domain) -> u32 {
        let mut taken = 0;
        for vcpu in 0..u64::from(VCPUS) {
            let info = PAGE + vcpu * 64;
            let told: u8 = get(domain, info);
            put(domain, info, &0u8);
            if self.fifo {
                let block_at = CONTROL + vcpu * 128;
                let block: EvtchnFifoControlBlock = get(domain, block_at);
                put(domain, block_at, &0u32);
                assert!(block.ready == 0 || told != 0, "ready, and not told");
                for queue in (0..16).filter(|queue| block.ready >> queue & 1 != 0) {
                    let mut port = block.head[queue];
                    while port != 0 {
                        let at = ARRAY + u64::from(port) * 4;
                        let word: u32 = get(domain, at);
                        let masked = word & 1 << EVTCHN_FIFO_MASKED;
                        let pending = word & 1 << EVTCHN_FIFO_PENDING;
                        taken += u32::from(pending != 0 && masked == 0);
                        put(domain, at, &(masked | if masked == 0 { 0 } else { pending }));
                        port = word & EVTCHN_FIFO_LINK_MASK;
                    }
                }
            } else {
                let selector: u32 = match self.width {
                    Width::Bits64 => get(domain, info + 8),
                    Width::Bits32 => get(domain, info + 4),
                };
                put(domain, info + 4, &0u32);
                put(domain, info + 8, &0u32);
                assert!(selector == 0 || told != 0, "selected, and not told");
                if selector & 1 != 0 {
                    let mask_at = if self.width == Width::Bits64 { 0xa00 } else { 0x880 };
                    let mask: u32 = get(domain, PAGE + mask_at);
                    let pending: u32 = get(domain, PAGE + 0x800);
                    taken += (pending & !mask).count_ones();
                    put(domain, PAGE + 0x800, &(pending & mask));
                }
            }
        }
        taken
    }
}

fn apply(domain: &Domain, guest: &Guest, op: Op) -> Result<u32, Errno> {
    let zero = |reply: Reply| reply.map(|_| 0);
    match op {
        Op::BindIpi(vcpu) => bind_ipi(domain, vcpu),
        Op::BindVirq(virq, vcpu) => bind_virq(domain, virq, vcpu),
        Op::BindPirq(pirq) => bind_pirq(domain, pirq),
        Op::Alloc(remote) => alloc_unbound(domain, DOMID_SELF, remote),
        Op::Loop(far) => bind_interdomain(domain, DOMID_SELF, far),
        Op::Close(port) => zero(close(domain, port)),
        Op::Send(port) => zero(send(domain, port)),
        Op::RaisePirq(pirq) => Ok(u32::from(domain.raise_pirq(pirq))),
        Op::RaiseVirq(virq, vcpu) => Ok(u32::from(domain.raise_virq(vcpu, virq))),
        Op::BindVcpu(port, vcpu) => zero(bind_vcpu(domain, port, vcpu)),
        Op::Priority(port, priority) => zero(set_priority(domain, port, priority)),
        Op::Unmask(port) => run(domain, EVTCHNOP_UNMASK, EvtchnUnmask { port }).map(|_| 0),
        Op::Mask(port) => {
            guest.mask(domain, port);
            Ok(0)
        }
        Op::Take => Ok(guest.take(domain)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_sequence_ends_as_the_table_says(
        fifo: bool,
        narrow: bool,
        ops in prop::collection::vec(ops(), 1..80),
    ) {
        let width = if narrow { Width::Bits32 } else { Width::Bits64 };
        let (domain, ..) = domain(VCPUS);
        shared_info::place(&domain, 0, PAGE >> 12).unwrap();
        shared_info::latch_width(&domain, width);
        if fifo {
            for vcpu in 0..VCPUS {
                init_control(&domain, vcpu, CONTROL + u64::from(vcpu) * 128).unwrap();
            }
            expand_array(&domain, ARRAY).unwrap();
        }
        let guest = Guest { fifo, width };
        let mut oracle = Oracle { fifo, ..Oracle::default() };
        for (step, op) in ops.into_iter().chain([Op::Take]).enumerate() {
            let want = oracle.apply(op);
            prop_assert_eq!(apply(&domain, &guest, op), want, "step {}: {:?}", step, op);
            for port in 1..12 {
                let pending = oracle.pending.contains(&port);
                prop_assert_eq!(domain.event_pending(port), pending, "step {}: {:?}, port {}", step, op, port);
            }
        }
    }
}
