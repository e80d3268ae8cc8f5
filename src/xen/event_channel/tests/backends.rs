//! Back ends in this process.

use super::*;

/// A back end that counts the guest's notifications.
fn heard() -> (Arc<AtomicU32>, Arc<dyn Fn() + Send + Sync>) {
    let heard = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&heard);
    (
        heard,
        Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }),
    )
}

fn count(heard: &AtomicU32) -> u32 {
    heard.load(Ordering::SeqCst)
}

#[test]
fn one_that_the_guest_closes_and_binds_again() {
    let (domain, ..) = domain(2);
    let (heard, on_send) = heard();
    let handle = domain.alloc_backend_port(on_send).unwrap();
    assert_eq!(status(&domain, DOMID_SELF, handle), Ok((EVTCHNSTAT_INTERDOMAIN, 0, 0, 1)));
    assert_eq!(send(&domain, handle), Ok(0));
    assert_eq!(count(&heard), 1);
    assert!(!domain.event_pending(handle));
    bind_vcpu(&domain, handle, 1).unwrap();
    domain.notify_port(handle);
    assert!(domain.event_pending(handle) && domain.upcall_pending(1));
    assert_eq!(bind_interdomain(&domain, 0, 1), Err(Errno::EINVAL), "still bound");
    // The guest resets its ports and binds to the same back end again.
    assert_eq!(close(&domain, handle), Ok(0));
    domain.notify_port(handle);
    assert!(!domain.event_pending(handle), "nobody listens");
    let other = bind_ipi(&domain, 0).unwrap();
    assert_eq!(other, handle, "the number is free for others");
    for port in [0, 2, u32::MAX] {
        assert_eq!(bind_interdomain(&domain, 0, port), Err(Errno::EINVAL), "{port}");
    }
    let again = bind_interdomain(&domain, 0, 1).unwrap();
    assert!(domain.event_pending(again));
    domain.clear_pending(again);
    domain.notify_port(handle);
    assert!(domain.event_pending(again) && !domain.event_pending(other));
    assert_eq!(send(&domain, again), Ok(0));
    assert_eq!(count(&heard), 2);
    domain.notify_port(999);
}

#[test]
fn names_are_never_given_twice() {
    let (domain, ..) = domain(1);
    let (first, on_send) = heard();
    let one = domain.alloc_backend_port(on_send).unwrap();
    close(&domain, one).unwrap();
    let (second, on_send) = heard();
    let two = domain.alloc_backend_port(on_send).unwrap();
    assert_ne!(one, two, "port 1 is free, but names the first back end");
    send(&domain, two).unwrap();
    assert_eq!((count(&first), count(&second)), (0, 1));
    assert_eq!(bind_ipi(&domain, 0), Ok(one), "the guest may have it");
}

#[test]
fn one_that_goes_away() {
    let (domain, ..) = domain(1);
    let (heard, on_send) = heard();
    let handle = domain.alloc_backend_port(on_send).unwrap();
    assert_eq!(domain.close_backend_port(handle), Ok(()));
    assert_eq!(domain.close_backend_port(handle), Err(Errno::EINVAL));
    assert_eq!(status(&domain, DOMID_SELF, handle), Ok((EVTCHNSTAT_UNBOUND, 0, 0, 0)));
    assert_eq!(send(&domain, handle), Ok(0), "dropped");
    domain.notify_port(handle);
    assert!(!domain.event_pending(handle));
    assert_eq!(count(&heard), 0);
    assert_eq!(bind_interdomain(&domain, 0, 1), Err(Errno::EINVAL), "nobody is there");
    // It is back, at the port that waits for it.
    let (again, on_send) = super::backends::heard();
    let name = domain.bind_backend_port(handle, on_send).unwrap();
    assert_eq!(count(&again), 1, "what may have been sent meanwhile");
    domain.notify_port(name);
    assert!(domain.event_pending(handle));
    send(&domain, handle).unwrap();
    assert_eq!((count(&heard), count(&again)), (0, 2));
    // Gone when the guest has closed already.
    close(&domain, handle).unwrap();
    assert_eq!(domain.close_backend_port(name), Ok(()));
    assert_eq!(close(&domain, handle), Err(Errno::EINVAL));
}

#[test]
fn one_at_a_port_of_the_guests_choice() {
    let (domain, ..) = domain(2);
    let (heard, on_send) = heard();
    let ipi = bind_ipi(&domain, 0).unwrap();
    let own = alloc_unbound(&domain, DOMID_SELF, DOMID_SELF).unwrap();
    let port = alloc_unbound(&domain, DOMID_SELF, 0).unwrap();
    bind_vcpu(&domain, port, 1).unwrap();
    for wrong in [0, ipi, own, 63, 4000, u32::MAX] {
        let bound = domain.bind_backend_port(wrong, on_send.clone());
        assert_eq!(bound, Err(Errno::EINVAL), "{wrong}");
    }
    assert_eq!(count(&heard), 0);
    let name = domain.bind_backend_port(port, on_send.clone()).unwrap();
    assert!(name > 131_072, "not to be taken for a port");
    assert_eq!(domain.bind_backend_port(port, on_send), Err(Errno::EINVAL), "taken");
    assert_eq!(status(&domain, DOMID_SELF, port), Ok((EVTCHNSTAT_INTERDOMAIN, 1, 0, 1)));
    domain.notify_port(name);
    assert!(domain.event_pending(port) && domain.upcall_pending(1), "the vCPU stays");
    let unmask = EvtchnUnmask { port };
    assert!(run(&domain, EVTCHNOP_UNMASK, unmask).is_ok());
}

/// `on_send` may call everything that a back end calls.
#[test]
fn no_lock_is_held_while_one_is_told() {
    let (domain, ..) = domain(1);
    let weak = Arc::downgrade(&domain);
    let name = Arc::new(AtomicU32::new(0));
    let own_name = Arc::clone(&name);
    let port = domain
        .alloc_backend_port(Arc::new(move || {
            let domain = weak.upgrade().unwrap();
            let own = own_name.load(Ordering::SeqCst);
            domain.notify_port(own);
            let other = domain.alloc_backend_port(Arc::new(|| {})).unwrap();
            assert_eq!(domain.close_backend_port(other), Ok(()));
            assert_eq!(domain.close_backend_port(own), Ok(()));
        }))
        .unwrap();
    name.store(port, Ordering::SeqCst);
    assert_eq!(send(&domain, port), Ok(0));
    assert!(domain.event_pending(port));
    assert_eq!(status(&domain, DOMID_SELF, port), Ok((EVTCHNSTAT_UNBOUND, 0, 0, 0)));
}

#[test]
fn a_reset_leaves_them_to_be_bound_again() {
    let (domain, ..) = domain(1);
    let (heard, on_send) = heard();
    let handle = domain.alloc_backend_port(on_send).unwrap();
    let reset = EvtchnReset { dom: DOMID_SELF };
    assert!(run(&domain, EVTCHNOP_RESET, reset).is_ok());
    assert_eq!(bind_interdomain(&domain, 0, 1), Ok(1));
    send(&domain, 1).unwrap();
    domain.notify_port(handle);
    assert!(domain.event_pending(1));
    assert_eq!(count(&heard), 1);
}
