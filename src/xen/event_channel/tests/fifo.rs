//! The FIFO ABI, single-threaded: its three operations, queues, priorities.

use super::*;

/// Where the tests keep control blocks and the event array.
pub(super) const CONTROL: u64 = 0x10000;
pub(super) const ARRAY: u64 = 0x20000;
const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;

pub(super) fn init_control(domain: &Domain, vcpu: u32, gpa: u64) -> Result<u8, Errno> {
    let args = EvtchnInitControl {
        control_gfn: gpa >> 12,
        offset: u32::try_from(gpa & 0xfff).unwrap(),
        vcpu,
        ..Default::default()
    };
    run(domain, EVTCHNOP_INIT_CONTROL, args).map(|args| args.link_bits)
}

pub(super) fn expand_array(domain: &Domain, gpa: u64) -> Reply {
    let args = EvtchnExpandArray { array_gfn: gpa >> 12 };
    run(domain, EVTCHNOP_EXPAND_ARRAY, args).map(|_| 0)
}

pub(super) fn set_priority(domain: &Domain, port: u32, priority: u32) -> Reply {
    run(domain, EVTCHNOP_SET_PRIORITY, EvtchnSetPriority { port, priority }).map(|_| 0)
}

/// A domain in the FIFO ABI, its vCPUs' control blocks at `CONTROL` one after
/// the other, 1024 event words at `ARRAY`.
pub(super) fn fifo_domain(vcpus: u32) -> (Arc<Domain>, Arc<super::FakePlatform>) {
    let (domain, platform, _) = domain(vcpus);
    for vcpu in 0..vcpus {
        init_control(&domain, vcpu, CONTROL + u64::from(vcpu) * 128).unwrap();
    }
    expand_array(&domain, ARRAY).unwrap();
    (domain, platform)
}

fn word_at(port: u32) -> u64 {
    ARRAY + u64::from(port) * 4
}

fn word(domain: &Domain, port: u32) -> u32 {
    get(domain, word_at(port))
}

fn set_word(domain: &Domain, port: u32, value: u32) {
    put(domain, word_at(port), &value);
}

fn block(domain: &Domain, vcpu: u32) -> EvtchnFifoControlBlock {
    get(domain, CONTROL + u64::from(vcpu) * 128)
}

/// Takes all events of a vCPU as a guest does; the ports in order.
fn consume(domain: &Domain, vcpu: u32) -> Vec<u32> {
    let at = CONTROL + u64::from(vcpu) * 128;
    let mut taken = Vec::new();
    let mut block: EvtchnFifoControlBlock = get(domain, at);
    put(domain, at, &0u32);
    while block.ready != 0 {
        let queue = block.ready.trailing_zeros();
        block.ready &= block.ready - 1;
        let mut port = block.head[queue as usize];
        while port != 0 {
            let old = word(domain, port);
            assert_ne!(old & LINKED, 0, "port {port} is on a queue");
            set_word(domain, port, old & !(LINKED | EVTCHN_FIFO_LINK_MASK | PENDING));
            if old & PENDING != 0 {
                taken.push(port);
            }
            port = old & EVTCHN_FIFO_LINK_MASK;
        }
    }
    taken
}

#[test]
fn control_blocks() {
    for domain in both(2) {
        assert_eq!(expand_array(&domain, ARRAY), Err(Errno::EOPNOTSUPP), "not yet");
        assert_eq!(set_priority(&domain, 1, 0), Err(Errno::ENOSYS), "2 levels have none");
        assert_eq!(set_priority(&domain, 64, 0), Err(Errno::EINVAL));
        let last = 4096 - 72;
        let cases = [
            (2, CONTROL, Errno::ENOENT),
            (u32::MAX, CONTROL + 4, Errno::ENOENT), // before the offset
            (0, CONTROL + 4, Errno::EINVAL),
            (0, CONTROL + last + 8, Errno::EINVAL),
            (0, CONTROL + 4092, Errno::EINVAL),
            (0, RAM_SIZE as u64, Errno::EINVAL),
            (0, !0xfff, Errno::EINVAL),
        ];
        for (vcpu, gpa, errno) in cases {
            assert_eq!(init_control(&domain, vcpu, gpa), Err(errno), "{vcpu} {gpa:#x}");
            assert!(read(&domain.layout).fifo.is_none(), "the old ABI after a failure");
        }
        let args = EvtchnInitControl { offset: 0x1_0000, ..Default::default() };
        assert_eq!(run(&domain, EVTCHNOP_INIT_CONTROL, args), Err(Errno::EINVAL));
        let args = EvtchnInitControl { control_gfn: u64::MAX, ..Default::default() };
        assert_eq!(run(&domain, EVTCHNOP_INIT_CONTROL, args), Err(Errno::EINVAL));
        assert_eq!(init_control(&domain, 1, CONTROL + last), Ok(17));
        assert_eq!(init_control(&domain, 1, CONTROL), Err(Errno::EINVAL), "it has one");
        assert_eq!(init_control(&domain, 0, RAM_SIZE as u64), Err(Errno::EINVAL));
        assert_eq!(init_control(&domain, 0, CONTROL), Ok(17));
    }
}

#[test]
fn the_array_grows_page_by_page() {
    let (domain, ..) = domain(1);
    init_control(&domain, 0, CONTROL).unwrap();
    assert_eq!(expand_array(&domain, RAM_SIZE as u64), Err(Errno::EINVAL));
    let args = EvtchnExpandArray { array_gfn: u64::MAX };
    assert_eq!(run(&domain, EVTCHNOP_EXPAND_ARRAY, args), Err(Errno::EINVAL));
    // Xen does not mind a page twice.
    for _ in 0..128 {
        assert_eq!(expand_array(&domain, ARRAY), Ok(0));
    }
    assert_eq!(expand_array(&domain, ARRAY), Err(Errno::ENOSPC));
    assert_eq!(expand_array(&domain, RAM_SIZE as u64), Err(Errno::ENOSPC), "before the frame");
}

#[test]
fn switched_off_it_is_not_there() {
    let (domain, ..) = domain_with(DomainConfig { fifo_events: false, ..config(1) });
    for cmd in [EVTCHNOP_INIT_CONTROL, EVTCHNOP_EXPAND_ARRAY, EVTCHNOP_SET_PRIORITY] {
        assert_eq!(call_op(&domain, cmd, ARG), Err(Errno::ENOSYS));
        assert_eq!(call_op(&domain, cmd, u64::MAX), Err(Errno::ENOSYS), "not even read");
    }
}

#[test]
fn all_131071_ports() {
    let (domain, ..) = fifo_domain(1);
    for port in 1..131_072 {
        assert_eq!(bind_ipi(&domain, 0), Ok(port));
    }
    assert_eq!(bind_ipi(&domain, 0), Err(Errno::ENOSPC));
    assert_eq!(send(&domain, 131_072), Err(Errno::EINVAL));
    assert_eq!(send(&domain, 131_071), Ok(0));
    // A page for each, 128 in all: the last page lies over the first.
    for page in 1..128 {
        assert_eq!(domain.events_delivered(), 1, "it waits for its page: {page}");
        assert!(!domain.event_pending(131_071));
        expand_array(&domain, ARRAY).unwrap();
    }
    assert!(domain.event_pending(131_071));
    assert_eq!(block(&domain, 0).head[7], 131_071);
    close(&domain, 100_000).unwrap();
    assert_eq!(bind_virq(&domain, VIRQ_TIMER, 0), Ok(100_000));
}

#[test]
fn events_are_queued_in_order() {
    let (domain, platform) = fifo_domain(2);
    super::super::super::upcall::set_vector(&domain, 0, 0xf3).unwrap();
    for port in 1..=5 {
        assert_eq!(bind_ipi(&domain, 0), Ok(port));
    }
    for port in [3, 1, 4, 1, 5] {
        assert_eq!(send(&domain, port), Ok(0));
    }
    assert_eq!(domain.events_delivered(), 4, "one of them was pending already");
    assert_eq!(platform.take().vectors, [(0, 0xf3)], "one interrupt for all");
    assert_eq!(block(&domain, 0).ready, 1 << 7);
    assert_eq!(block(&domain, 0).head[7], 3);
    assert_eq!(word(&domain, 3), PENDING | LINKED | 1);
    assert_eq!(word(&domain, 5), PENDING | LINKED);
    assert_eq!(consume(&domain, 0), [3, 1, 4, 5]);
    assert_eq!(consume(&domain, 0), [0; 0]);
    // The last one again: it is the tail, but its queue is empty.
    send(&domain, 5).unwrap();
    assert_eq!(consume(&domain, 0), [5]);
    assert_eq!(block(&domain, 1).ready, 0, "nobody else was told");
}

#[test]
fn priorities() {
    let (domain, _) = fifo_domain(1);
    for port in 1..=17 {
        assert_eq!(bind_ipi(&domain, 0), Ok(port));
        if port <= 16 {
            assert_eq!(set_priority(&domain, port, 16 - port), Ok(0));
        }
    }
    assert_eq!(set_priority(&domain, 1, 16), Err(Errno::EINVAL));
    assert_eq!(set_priority(&domain, 1, u32::MAX), Err(Errno::EINVAL));
    assert_eq!(set_priority(&domain, 64, 16), Err(Errno::EINVAL));
    assert_eq!(set_priority(&domain, 40, 3), Err(Errno::EACCES), "a free port has none");
    for port in 1..=17 {
        send(&domain, port).unwrap();
    }
    assert_eq!(block(&domain, 0).ready, 0xffff);
    // Ports 16, 15, … have priorities 0, 1, …; 17 has the default, as 9.
    let want: Vec<u32> = (10..=16).rev().chain([9, 17]).chain((1..=8).rev()).collect();
    assert_eq!(consume(&domain, 0), want);
    // Bound anew, a port has the default again.
    close(&domain, 16).unwrap();
    assert_eq!(bind_ipi(&domain, 0), Ok(16));
    send(&domain, 16).unwrap();
    assert_eq!(block(&domain, 0).head[7], 16);
}

#[test]
fn a_port_that_moves_is_queued_once() {
    let (domain, _) = fifo_domain(2);
    let pirq = bind_pirq(&domain, 1).unwrap();
    let ipi = bind_ipi(&domain, 0).unwrap();
    domain.raise_pirq(1);
    send(&domain, ipi).unwrap();
    bind_vcpu(&domain, pirq, 1).unwrap();
    set_priority(&domain, pirq, 2).unwrap();
    domain.raise_pirq(1);
    assert_eq!(block(&domain, 1).ready, 0, "it stays where it was queued");
    assert_eq!(consume(&domain, 0), [pirq, ipi]);
    domain.raise_pirq(1);
    assert_eq!((block(&domain, 0).ready, block(&domain, 1).ready), (0, 4));
    assert_eq!(consume(&domain, 1), [pirq]);
    // Back, after it was the tail of the queue that it left.
    send(&domain, ipi).unwrap();
    bind_vcpu(&domain, pirq, 0).unwrap();
    set_priority(&domain, pirq, 7).unwrap();
    domain.raise_pirq(1);
    assert_eq!(consume(&domain, 0), [ipi, pirq]);
    bind_vcpu(&domain, pirq, 1).unwrap();
    domain.raise_pirq(1);
    assert_eq!(consume(&domain, 1), [pirq]);
    send(&domain, ipi).unwrap();
    assert_eq!(consume(&domain, 0), [ipi], "the old queue knows that its tail left");
}

#[test]
fn masks() {
    let (domain, platform) = fifo_domain(1);
    super::super::super::upcall::set_vector(&domain, 0, 0xf3).unwrap();
    let unmask = |port| run(&domain, EVTCHNOP_UNMASK, EvtchnUnmask { port }).map(|_| 0);
    let port = bind_ipi(&domain, 0).unwrap();
    set_word(&domain, port, MASKED);
    send(&domain, port).unwrap();
    assert_eq!(word(&domain, port), MASKED | PENDING);
    assert!(domain.event_pending(port));
    assert_eq!(platform.take().vectors, []);
    assert_eq!(unmask(port), Ok(0));
    assert_eq!(word(&domain, port), PENDING | LINKED);
    assert_eq!(platform.take().vectors, [(0, 0xf3)]);
    assert_eq!(consume(&domain, 0), [port]);
    put(&domain, 0, &[0u64; 2]);
    set_word(&domain, port, MASKED);
    assert_eq!(unmask(port), Ok(0));
    assert_eq!(word(&domain, port), 0);
    assert_eq!(platform.take().vectors, [], "nothing was pending");
    assert_eq!(unmask(64), Err(Errno::EINVAL));
    assert_eq!(domain.events_delivered(), 1, "told twice, come once");
}

#[test]
fn a_closed_port_is_not_bound_while_it_is_queued() {
    let (domain, _) = fifo_domain(1);
    let port = bind_ipi(&domain, 0).unwrap();
    send(&domain, port).unwrap();
    close(&domain, port).unwrap();
    assert_eq!(word(&domain, port), LINKED, "not pending any more");
    assert_eq!(bind_ipi(&domain, 0), Ok(port + 1));
    assert_eq!(consume(&domain, 0), [0; 0], "the guest finds nothing to do");
    assert_eq!(bind_ipi(&domain, 0), Ok(port), "and the port is free");
}

#[test]
fn what_was_pending_survives_the_switch() {
    for domain in both(2) {
        let early = bind_ipi(&domain, 1).unwrap();
        let quiet = bind_ipi(&domain, 1).unwrap();
        let closed = bind_ipi(&domain, 1).unwrap();
        send(&domain, early).unwrap();
        send(&domain, closed).unwrap();
        init_control(&domain, 1, CONTROL + 128).unwrap();
        init_control(&domain, 0, CONTROL).unwrap();
        let missing = bind_ipi(&domain, 0).unwrap();
        send(&domain, missing).unwrap();
        close(&domain, closed).unwrap();
        assert!(!domain.event_pending(early), "its word is not there");
        expand_array(&domain, ARRAY).unwrap();
        assert!(domain.event_pending(early) && domain.event_pending(missing));
        assert_eq!(consume(&domain, 1), [early]);
        assert_eq!(consume(&domain, 0), [missing]);
        assert_eq!(word(&domain, quiet), 0);
        assert_eq!(word(&domain, closed), 0);
    }
}

#[test]
fn a_reset_goes_back_to_two_levels() {
    let (domain, _, _) = domain(1);
    shared_info::place(&domain, 0, 5).unwrap();
    assert_eq!(bind_ipi(&domain, 0), Ok(1));
    send(&domain, 1).unwrap();
    init_control(&domain, 0, CONTROL).unwrap();
    expand_array(&domain, ARRAY).unwrap();
    assert_eq!(get::<u64>(&domain, 0x5800), 2, "the old bits stay for the while");
    let reset = EvtchnReset { dom: DOMID_SELF };
    run(&domain, EVTCHNOP_RESET, reset).unwrap();
    assert_eq!(get::<u64>(&domain, 0x5800), 0);
    assert_eq!(word(&domain, 1), LINKED, "the guest has not taken it");
    assert_eq!(bind_ipi(&domain, 0), Ok(1), "which matters no more");
    send(&domain, 1).unwrap();
    assert_eq!(get::<u64>(&domain, 0x5800), 2);
    assert_eq!(word(&domain, 1), LINKED);
    assert_eq!(expand_array(&domain, ARRAY), Err(Errno::EOPNOTSUPP));
    // And to FIFO once more, with an array that starts anew.
    assert_eq!(init_control(&domain, 0, CONTROL + 256), Ok(17));
    assert_eq!(expand_array(&domain, ARRAY + 0x1000), Ok(0));
    assert_eq!(get::<u32>(&domain, ARRAY + 0x1004), PENDING | LINKED);
}

#[test]
fn a_vcpu_without_a_control_block() {
    let (domain, platform, _) = domain(2);
    super::super::super::upcall::set_vector(&domain, 1, 0xf3).unwrap();
    init_control(&domain, 0, CONTROL).unwrap();
    expand_array(&domain, ARRAY).unwrap();
    let port = bind_ipi(&domain, 1).unwrap();
    send(&domain, port).unwrap();
    assert_eq!(word(&domain, port), PENDING, "queued nowhere");
    assert_eq!(platform.take().vectors, []);
    init_control(&domain, 1, CONTROL + 128).unwrap();
    send(&domain, port).unwrap();
    assert_eq!(word(&domain, port), PENDING | LINKED);
    assert_eq!(platform.take().vectors, [(1, 0xf3)]);
}

/// What a guest may scribble over its words: nothing of ours breaks, and other
/// queues still work.
#[test]
fn hostile_words() {
    let (domain, _) = fifo_domain(2);
    let ports: Vec<u32> = (0..4).map(|_| bind_ipi(&domain, 0).unwrap()).collect();
    let other = bind_ipi(&domain, 1).unwrap();
    let scribbles =
        [u32::MAX, LINKED | BUSY | 0x1_ffff, PENDING | LINKED | ports[0], BUSY, LINKED | 99_999, 0];
    for scribble in scribbles {
        for &port in &ports {
            set_word(&domain, port, scribble);
            assert_eq!(send(&domain, port), Ok(0));
            assert_eq!(send(&domain, ports[0]), Ok(0));
        }
        put(&domain, CONTROL, &EvtchnFifoControlBlock { ready: scribble, ..Default::default() });
        assert_eq!(send(&domain, other), Ok(0));
        assert_eq!(consume(&domain, 1), [other], "{scribble:#x}");
    }
}
