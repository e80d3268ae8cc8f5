//! The other side: back ends in this process.

use std::sync::Mutex;

use xen_abi::errno::Errno;

use super::*;

#[test]
fn a_back_end_hears_of_the_guest() {
    let mut guest = guest();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&heard);
    let domain = Arc::downgrade(&guest.domain);
    let on_change = move |path: &str| {
        // Nothing is locked: it may ask at once.
        let value = domain.upgrade().unwrap().store_read(path);
        into.lock().unwrap().push((path.to_owned(), value));
    };
    let id = guest.domain.store_watch("control", Arc::new(on_change)).unwrap();
    let heard = || std::mem::take(&mut *heard.lock().unwrap());
    assert_eq!(heard(), [("/local/domain/7/control".to_owned(), Ok(Vec::new()))]);
    guest.write("control/shutdown", "ack").unwrap();
    assert_eq!(heard(), [("/local/domain/7/control/shutdown".to_owned(), Ok(b"ack".to_vec()))]);
    guest.write("data/x", "").unwrap();
    assert_eq!(heard(), []);
    guest.domain.store_unwatch(id);
    guest.write("control/shutdown", "").unwrap();
    assert_eq!(heard(), []);
}

#[test]
fn as_domain_0() {
    let guest = guest();
    let domain = &guest.domain;
    domain.store_write("device/vbd/1/state", b"1").unwrap();
    assert_eq!(domain.store_read("/local/domain/7/device/vbd/1/state"), Ok(b"1".to_vec()));
    assert_eq!(domain.store_list("device"), Ok(vec!["suspend".to_owned(), "vbd".to_owned()]));
    domain.store_remove("device/vbd").unwrap();
    assert_eq!(domain.store_read("device/vbd/1/state"), Err(Errno::ENOENT));
    assert_eq!(domain.store_read("no good"), Err(Errno::EINVAL));
    assert_eq!(domain.store_remove("/"), Err(Errno::EINVAL));
    assert_eq!(domain.store_set_perms("device", &[]), Err(Errno::EINVAL));
}

#[test]
fn the_guest_is_notified() {
    let mut guest = guest();
    let events = || guest.domain.events_delivered();
    let before = events();
    guest.domain.store_write("data", b"1").unwrap();
    assert_eq!(events(), before, "it watches nothing");
    guest.watch("data", "t").unwrap();
    let port = guest.domain.xenstore.port().unwrap();
    assert!(guest.domain.event_pending(port));
}

#[test]
fn without_a_page_there_is_none() {
    let (domain, _, _) = domain_with(config(1));
    domain.attach_xenstore("x").unwrap();
    assert_eq!(domain.xenstore.port(), None);
    domain.service_xenstore();
}
