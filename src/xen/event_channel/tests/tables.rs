//! Unmasking in both layouts, and what is refused for the machine's sake or for
//! the work that a hypercall has made.

use super::super::super::call::WORK;
use super::fifo::{ARRAY, CONTROL, expand_array, init_control};
use super::*;

fn unmask(domain: &Domain, port: u32) -> Reply {
    run(domain, EVTCHNOP_UNMASK, EvtchnUnmask { port }).map(|_| 0)
}

fn reset(domain: &Domain) -> Reply {
    run(domain, EVTCHNOP_RESET, EvtchnReset { dom: DOMID_SELF }).map(|_| 0)
}

#[test]
fn masks_in_both_layouts() {
    // (width, bits of a word, masks, pending bits, selector of vCPU 0)
    let layouts =
        [(Width::Bits64, 64, 0x5a00, 0x5800, 0x5008), (Width::Bits32, 32, 0x5880, 0x5800, 0x5004)];
    for (width, bits, masks, pending, selector) in layouts {
        let (domain, platform, _) = domain(1);
        shared_info::latch_width(&domain, width);
        shared_info::place(&domain, 0, 5).unwrap();
        super::super::super::upcall::set_vector(&domain, 0, 0xf3).unwrap();
        // The second port of the second word.
        let port = bits + 1;
        while bind_ipi(&domain, 0).unwrap() != port {}
        let word = u64::from(bits / 8);
        let (mask, pending) = (masks + word, pending + word);
        let selected = |domain: &Domain| get::<u32>(domain, selector);

        put(&domain, mask, &2u8);
        send(&domain, port).unwrap();
        assert_eq!(platform.take().vectors, [], "masked {width:?}");
        assert_eq!((get::<u8>(&domain, pending), selected(&domain)), (2, 0), "{width:?}");
        assert_eq!(get::<u8>(&domain, 0x5000), 0, "no upcall");
        assert_eq!(unmask(&domain, port), Ok(0));
        assert_eq!(platform.take().vectors, [(0, 0xf3)], "{width:?}");
        assert_eq!((get::<u8>(&domain, mask), selected(&domain)), (0, 2), "{width:?}");
        assert_eq!(get::<u8>(&domain, 0x5000), 1, "upcall");

        // Pending, but not masked: the guest was told.
        put(&domain, 0x5000, &[0u64; 2]);
        assert_eq!(unmask(&domain, port), Ok(0));
        assert_eq!((platform.take().vectors, selected(&domain)), (vec![], 0), "{width:?}");
        // Masked, but not pending: nothing to tell.
        put(&domain, pending, &0u8);
        put(&domain, mask, &6u8);
        assert_eq!(unmask(&domain, port), Ok(0));
        assert_eq!((platform.take().vectors, selected(&domain)), (vec![], 0), "{width:?}");
        assert_eq!(get::<u8>(&domain, mask), 4, "its own mask only");
        assert_eq!(get::<u8>(&domain, 0x5000), 0);
        // Selected already: another event of its word was told.
        put(&domain, mask, &2u8);
        put(&domain, selector, &2u32);
        send(&domain, port).unwrap();
        assert_eq!(unmask(&domain, port), Ok(0));
        assert_eq!(platform.take().vectors, [], "{width:?}");
    }
}

#[test]
fn ports_that_can_be_unmasked() {
    for domain in both(1) {
        let masks = if read(&domain.layout).width == Width::Bits64 { 0x5a00 } else { 0x5880 };
        shared_info::place(&domain, 0, 5).unwrap();
        // (ports that exist, those of 0, 1, 2 and 3 that are bound)
        let expect = |valid: u32, bound: u8, when: &str| {
            put(&domain, masks, &0xffu8);
            for port in [0, 1, 2, 3, valid - 1] {
                assert_eq!(unmask(&domain, port), Ok(0), "{port} {when}");
            }
            // Nothing happens to the others.
            assert_eq!(get::<u8>(&domain, masks), !bound, "{when}");
            for port in [valid, 4096, 1 << 17, u32::MAX] {
                assert_eq!(unmask(&domain, port), Err(Errno::EINVAL), "{port} {when}");
            }
        };
        expect(64, 0, "free");
        while bind_ipi(&domain, 0).unwrap() != 64 {}
        expect(128, 0b1110, "bound");
        close(&domain, 2).unwrap();
        expect(128, 0b1010, "after a close");
        reset(&domain).unwrap();
        expect(128, 0, "after a reset");
        assert_eq!(bind_ipi(&domain, 0), Ok(1));
        expect(128, 0b10, "bound again");
    }
}

#[test]
fn a_machine_that_stays_with_two_levels() {
    for width in WIDTHS {
        let (domain, platform, _) = domain(2);
        shared_info::latch_width(&domain, width);
        shared_info::place(&domain, 0, 5).unwrap();
        platform.refuses.store(true, Ordering::SeqCst);
        for vcpu in [0, 1] {
            assert_eq!(init_control(&domain, vcpu, CONTROL), Err(Errno::EOPNOTSUPP), "{width:?}");
        }
        // The guest's own mistakes come first.
        assert_eq!(init_control(&domain, 2, CONTROL), Err(Errno::ENOENT));
        assert_eq!(init_control(&domain, 0, CONTROL + 1), Err(Errno::EINVAL));
        assert_eq!(init_control(&domain, 0, CONTROL + 0xff8), Err(Errno::EINVAL));
        assert_eq!(init_control(&domain, 0, RAM_SIZE as u64), Err(Errno::EINVAL));
        assert_eq!(expand_array(&domain, ARRAY), Err(Errno::EOPNOTSUPP));
        // Events go on in the bitmaps.
        let port = bind_ipi(&domain, 0).unwrap();
        send(&domain, port).unwrap();
        assert_eq!(get::<u32>(&domain, 0x5800), 1 << port, "{width:?}");
        // A refusal leaves nothing behind.
        platform.refuses.store(false, Ordering::SeqCst);
        assert_eq!(init_control(&domain, 0, CONTROL), Ok(17), "{width:?}");
        assert_eq!(init_control(&domain, 1, CONTROL + 128), Ok(17), "{width:?}");
    }
}

/// Calls where a multicall has left `work` steps of what it may make.
fn after_much<T: IntoBytes + Immutable>(domain: &Domain, work: u32, cmd: u32, args: &T) -> Reply {
    put(domain, ARG, args);
    let width = read(&domain.layout).width;
    with_width(domain, 0, width, |call| {
        call.spend_many(u64::from(WORK - work)).unwrap();
        op(call, cmd.into(), ARG)
    })
}

#[test]
fn a_long_search_at_the_end_of_a_multicall() {
    for domain in both(1) {
        let far = alloc_unbound(&domain, DOMID_SELF, DOMID_SELF).unwrap();
        while bind_ipi(&domain, 0).unwrap() != 200 {}
        // The search for a free port starts at the lowest that was closed last,
        // now bound again: it looks at 199 ports, three steps of work.
        let search_from_2 = || {
            close(&domain, 2).unwrap();
            assert_eq!(bind_ipi(&domain, 0), Ok(2));
        };
        let bind = |work, cmd: u32| {
            search_from_2();
            let domain = &*domain;
            match cmd {
                EVTCHNOP_ALLOC_UNBOUND => {
                    let args = EvtchnAllocUnbound { dom: OWN, remote_dom: 0, port: 0 };
                    after_much(domain, work, cmd, &args)
                }
                EVTCHNOP_BIND_INTERDOMAIN => {
                    let (remote_dom, remote_port) = (OWN, far);
                    let args =
                        EvtchnBindInterdomain { remote_dom, remote_port, ..Default::default() };
                    after_much(domain, work, cmd, &args)
                }
                EVTCHNOP_BIND_VIRQ => {
                    let args = EvtchnBindVirq { virq: VIRQ_TIMER, vcpu: 0, port: 0 };
                    after_much(domain, work, cmd, &args)
                }
                EVTCHNOP_BIND_PIRQ => {
                    after_much(domain, work, cmd, &EvtchnBindPirq { pirq: 5, flags: 0, port: 0 })
                }
                _ => after_much(domain, work, cmd, &EvtchnBindIpi { vcpu: 0, port: 0 }),
            }
        };
        // (command, the least work that is enough): an IPI costs the machine more.
        let commands = [
            (EVTCHNOP_ALLOC_UNBOUND, 3),
            (EVTCHNOP_BIND_INTERDOMAIN, 3),
            (EVTCHNOP_BIND_VIRQ, 3),
            (EVTCHNOP_BIND_PIRQ, 3),
            (EVTCHNOP_BIND_IPI, 64 + 3),
        ];
        for ((cmd, enough), free) in commands.into_iter().zip(201..) {
            for work in [0, enough - 1] {
                assert_eq!(bind(work, cmd), Err(Errno::E2BIG), "{cmd} with {work}");
                let closed = (EVTCHNSTAT_CLOSED, 0, 0, 0);
                assert_eq!(status(&domain, OWN, free), Ok(closed), "{cmd} took no port");
            }
            // Nor anything else: what it names can still be bound.
            assert_eq!(bind(enough, cmd), Ok(0), "{cmd}");
            assert_ne!(status(&domain, OWN, free).unwrap().0, EVTCHNSTAT_CLOSED, "{cmd}");
        }
    }
}

#[test]
fn what_looks_at_every_port_at_the_end_of_a_multicall() {
    for domain in both(1) {
        while bind_ipi(&domain, 0).unwrap() != 200 {}
        // 256 ports exist, four steps of work.
        let dom = DOMID_SELF;
        for work in [0, 3] {
            let refused = after_much(&domain, work, EVTCHNOP_RESET, &EvtchnReset { dom });
            assert_eq!(refused, Err(Errno::E2BIG), "{work}");
            assert_eq!(status(&domain, OWN, 200).map(|found| found.0), Ok(EVTCHNSTAT_IPI));
            let control = EvtchnInitControl { control_gfn: CONTROL >> 12, ..Default::default() };
            let refused = after_much(&domain, work, EVTCHNOP_INIT_CONTROL, &control);
            assert_eq!(refused, Err(Errno::E2BIG), "{work}");
            assert_eq!(expand_array(&domain, ARRAY), Err(Errno::EOPNOTSUPP), "still 2 levels");
        }
        assert_eq!(init_control(&domain, 0, CONTROL), Ok(17));
        let array = EvtchnExpandArray { array_gfn: ARRAY >> 12 };
        let refused = after_much(&domain, 15, EVTCHNOP_EXPAND_ARRAY, &array);
        assert_eq!(refused, Err(Errno::E2BIG));
        assert_eq!(after_much(&domain, 16, EVTCHNOP_EXPAND_ARRAY, &array), Ok(0));
        assert_eq!(after_much(&domain, 4, EVTCHNOP_RESET, &EvtchnReset { dom }), Ok(0));
        assert_eq!(bind_ipi(&domain, 0), Ok(1));
    }
}
