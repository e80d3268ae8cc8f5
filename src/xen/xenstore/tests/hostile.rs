//! A guest that writes what it likes into the ring.

use proptest::prelude::*;
use xen_abi::xs_wire::{
    XENSTORE_CONNECTED, XENSTORE_ERROR_NONE, XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX,
    XENSTORE_RECONNECT,
};

use super::super::ring::{CONNECTION, ERROR, FEATURES};
use super::*;

#[test]
fn messages_in_pieces_of_every_size() {
    for piece in [1, 2, 3, 15, 16, 17, 100, 1023] {
        let mut guest = guest();
        guest.piece = piece;
        // The indices wrap on the way.
        for offset in [REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD] {
            guest.set_index(offset, u32::MAX - 700);
        }
        for round in 0..20 {
            let value = "v".repeat(round * 97);
            assert_eq!(guest.write("data/x", &value), ok(), "{piece}");
            assert_eq!(guest.read("data/x").unwrap(), value, "{piece}");
        }
    }
}

#[test]
fn many_requests_before_any_answer_is_read() {
    let mut guest = guest();
    for _ in 0..40 {
        guest.send(XS_DIRECTORY, 0, b"control\0");
        // Only what lies in the ring is waited for.
        assert!(guest.domain.xenstore_state().output.len() <= 1000);
    }
    let mut answers = 0;
    for _ in 0..1000 {
        guest.take();
        guest.kick();
        while guest.message().is_some() {
            answers += 1;
        }
    }
    assert_eq!(answers, 40);
}

#[test]
fn requests_are_left_alone_while_no_answer_is_read() {
    let guest = guest();
    let header = XsdSockmsg { type_: XS_DIRECTORY, req_id: 1, tx_id: 0, len: 8 };
    let message = [header.as_bytes(), b"control\0"].concat();
    let mut sent = 0;
    while guest.put_some(&message) == message.len() {
        guest.kick();
        sent += 1;
        assert!(sent < 10_000, "there is no bound");
    }
    let waiting: usize = guest.domain.xenstore_state().output.iter().map(Vec::len).sum();
    assert!(waiting < (64 << 10) + 8192, "{waiting}");
}

#[test]
fn wrong_indices_and_lengths_end_the_connection() {
    let too_long = XsdSockmsg { type_: XS_READ, req_id: 1, tx_id: 0, len: 4097 };
    type Wrong = fn(&Guest, &XsdSockmsg);
    let table: [(Wrong, u32); 3] = [
        (
            |guest, _| guest.set_index(REQ_PROD, guest.index(REQ_CONS) + 1025),
            XENSTORE_ERROR_RINGIDX,
        ),
        (
            |guest, _| {
                guest.domain.store_write("data/x", b"1").unwrap();
                guest.set_index(RSP_CONS, guest.index(RSP_PROD) + 1);
                // Something is to be sent.
                guest.put_some(&[XS_READ.to_le_bytes(), [1; 4], [0; 4], [0; 4]].concat());
            },
            XENSTORE_ERROR_RINGIDX,
        ),
        (|guest, header| assert_eq!(guest.put_some(header.as_bytes()), 16), XENSTORE_ERROR_PROTO),
    ];
    for (number, (wrong, error)) in table.into_iter().enumerate() {
        let mut guest = guest();
        guest.watch("data", "t").unwrap();
        guest.start();
        wrong(&guest, &too_long);
        guest.kick();
        assert_eq!(guest.index(ERROR), error, "{number}");
        let state = guest.domain.xenstore_state();
        assert!(state.ignored && state.watches.is_empty() && state.transactions.is_empty());
        // Nothing is heard any more.
        let cons = guest.index(REQ_CONS);
        guest.set_index(REQ_PROD, cons.wrapping_add(16));
        guest.kick();
        assert_eq!(guest.index(REQ_CONS), cons);
        // Until the guest connects anew.
        guest.set_index(CONNECTION, XENSTORE_RECONNECT);
        guest.kick();
        assert_eq!(guest.index(CONNECTION), XENSTORE_CONNECTED);
        assert_eq!(guest.index(ERROR), XENSTORE_ERROR_NONE);
        assert_eq!(guest.index(FEATURES), 3);
        let mut guest = Guest::on(guest.domain);
        assert_eq!(guest.read("domid").as_deref(), Ok("7"));
    }
}

#[test]
fn a_ring_that_is_always_full_lets_the_guest_run() {
    let guest = guest();
    // Of messages without a meaning that have no end: the guest refills as fast
    // as we read. Here a page whose indices are never in step.
    let header = XsdSockmsg { type_: 99, req_id: 1, tx_id: 0, len: 0 };
    for _ in 0..100 {
        while guest.put_some(header.as_bytes()) == 16 {}
        guest.set_index(RSP_CONS, guest.index(RSP_PROD));
        guest.kick();
    }
    assert!(guest.domain.xenstore_state().output.len() < 5000);
}

#[derive(Clone, Debug)]
enum Move {
    Word(usize, u32),
    Bytes(usize, Vec<u8>),
    Message(u32, u32, Vec<u8>),
    Advance(usize, u32),
    Kick,
    Reconnect,
    BackEnd(u8),
}

fn any_move() -> impl Strategy<Value = Move> {
    let path = "[a-c/@]{0,6}";
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        (path, "[nrwb]?[0-9]{0,3}").prop_map(|(path, rest)| joined(&[&path, &rest])),
        path.prop_map(|path| joined(&[&format!("data/{path}")])),
    ];
    let index = prop_oneof![Just(REQ_CONS), Just(REQ_PROD), Just(RSP_CONS), Just(RSP_PROD)];
    prop_oneof![
        1 => (0usize..520, any::<u32>()).prop_map(|(word, value)| Move::Word(word * 4, value)),
        1 => (0usize..1024, proptest::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(at, bytes)| Move::Bytes(at, bytes)),
        12 => (0u32..25, 0u32..4, body).prop_map(|(kind, id, body)| Move::Message(kind, id, body)),
        2 => (index, 0u32..1100).prop_map(|(index, by)| Move::Advance(index, by)),
        6 => Just(Move::Kick),
        1 => Just(Move::Reconnect),
        1 => any::<u8>().prop_map(Move::BackEnd),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn nothing_breaks(moves in proptest::collection::vec(any_move(), 1..120)) {
        let mut guest = guest();
        for one in moves {
            match one {
                Move::Word(at, value) => guest.set_index(at, value),
                Move::Bytes(at, bytes) => {
                    let at = GuestAddress(PAGE + at as u64);
                    guest.domain.memory().write_slice(&bytes, at).unwrap();
                }
                Move::Message(kind, id, body) => {
                    let len = u32::try_from(body.len()).unwrap();
                    let header = XsdSockmsg { type_: kind, req_id: 5, tx_id: id, len };
                    let used = guest.index(REQ_PROD).wrapping_sub(guest.index(REQ_CONS));
                    if used <= 1024 {
                        guest.put_some(&[header.as_bytes(), &body].concat());
                    }
                }
                Move::Advance(index, by) => {
                    guest.set_index(index, guest.index(index).wrapping_add(by));
                }
                Move::Kick => guest.kick(),
                Move::Reconnect => guest.set_index(CONNECTION, XENSTORE_RECONNECT),
                Move::BackEnd(value) => guest.domain.store_write("data/a", &[value]).unwrap(),
            }
            let used = guest.index(RSP_PROD).wrapping_sub(guest.index(RSP_CONS));
            if used <= 1024 {
                guest.take();
            }
            guest.received.clear();
        }
        guest.set_index(CONNECTION, XENSTORE_RECONNECT);
        guest.kick();
        // It is a tree still, and serves.
        let state = guest.domain.xenstore_state();
        guest.domain.restore_xenstore(&state).unwrap();
        prop_assert_eq!(guest.domain.xenstore_state(), state);
        prop_assert_eq!(guest.read("domid"), Ok("7".to_owned()));
    }
}
