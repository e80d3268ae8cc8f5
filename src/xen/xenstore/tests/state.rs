//! The state: a store that is put back goes on as the one it was taken from.

use xen_abi::xs_wire::XS_READ;

use super::super::StoreStateError;
use super::*;

#[test]
fn it_goes_on_in_another_domain() {
    let mut guest = guest();
    guest.write("data/a", "1").unwrap();
    guest.watch("data", "t").unwrap();
    let (good, bad) = (guest.start(), guest.start());
    guest.write_in(good, "data/new/deep", "x").unwrap();
    guest.request(XS_READ, bad, b"data/a\0").unwrap();
    guest.take_events();
    // Half a message is on its way, and an event waits in the ring.
    let header = XsdSockmsg { type_: XS_READ, req_id: 50, tx_id: 0, len: 7 };
    guest.put_some(&[header.as_bytes(), b"dat"].concat());
    guest.domain.store_write("data/a", b"2").unwrap();
    let state = guest.domain.xenstore_state();
    assert_eq!(state.input.len(), 19);

    let other = new_domain();
    let mut page = [0u8; 4096];
    guest.domain.memory().read_slice(&mut page, GuestAddress(PAGE)).unwrap();
    other.memory().write_slice(&page, GuestAddress(PAGE)).unwrap();
    other.restore_xenstore(&state).unwrap();
    assert_eq!(other.xenstore_state(), state);
    let mut moved = Guest::on(other);
    moved.next_id = 100;
    moved.put_some(b"a/a\0");
    moved.kick();
    moved.take();
    let (header, body) = moved.message().unwrap();
    assert_eq!((header.type_, body), (XS_WATCH_EVENT, b"data/a\0t\0".to_vec()));
    let (header, body) = moved.message().unwrap();
    assert_eq!((header.req_id, body), (50, b"2".to_vec()));
    assert_eq!(moved.end(bad, "T"), error("EAGAIN"));
    assert_eq!(moved.end(good, "T"), ok());
    assert_eq!(moved.read("data/new/deep").as_deref(), Ok("x"));
    assert_eq!(moved.take_events(), [event("data/new/deep", "t")]);
}

#[test]
fn a_state_that_is_no_tree() {
    let domain = new_domain();
    let good = domain.xenstore_state();
    let orphan = |path: &str| {
        let mut state = good.clone();
        state.nodes.last_mut().unwrap().path = path.to_owned();
        state
    };
    for path in ["/not/there", "relative", "/a//b", ""] {
        let wrong = domain.restore_xenstore(&orphan(path));
        assert_eq!(wrong, Err(StoreStateError::Node(path.to_owned())));
    }
    let mut state = good.clone();
    state.nodes[0].perms.clear();
    assert!(domain.restore_xenstore(&state).is_err());
    let empty = super::super::XenstoreState::default();
    assert_eq!(domain.restore_xenstore(&empty), Err(StoreStateError::Node("/".to_owned())));
    assert_eq!(domain.xenstore_state(), good, "it is as it was");
}
