//! Transactions: isolation and conflicts.

use xen_abi::xs_wire::{XS_READ, XS_TRANSACTION_END};

use super::*;

#[test]
fn changes_are_seen_at_the_end() {
    let mut guest = guest();
    guest.watch("data", "w").unwrap();
    guest.take_events();
    let id = guest.start();
    assert_ne!(id, 0);
    assert_eq!(guest.write_in(id, "data/a", "1"), ok());
    assert_eq!(guest.write_in(id, "data/a", "2"), ok());
    assert_eq!(guest.read("data/a"), error("ENOENT"));
    assert_eq!(guest.request(XS_READ, id, b"data/a\0"), Ok(b"2".to_vec()));
    assert_eq!(guest.take_events(), []);
    assert_eq!(guest.end(id, "T"), ok());
    assert_eq!(guest.read("data/a").as_deref(), Ok("2"));
    assert_eq!(guest.take_events(), [event("data/a", "w")]);
    assert_eq!(guest.end(id, "T"), error("ENOENT"), "it is over");
}

#[test]
fn aborted_or_wrongly_ended() {
    let mut guest = guest();
    let id = guest.start();
    assert_eq!(guest.write_in(id, "data/a", "1"), ok());
    assert_eq!(guest.end(id, "X"), error("EINVAL"));
    assert_eq!(guest.request(XS_TRANSACTION_END, id, b"T"), error("EINVAL"));
    assert_eq!(guest.end(id, "F"), ok());
    assert_eq!(guest.read("data/a"), error("ENOENT"));
    assert_eq!(guest.end(0, "T"), error("ENOENT"));
    assert_eq!(guest.write_in(77, "data/a", ""), error("ENOENT"));
}

/// What happens meanwhile, and whether it is a conflict.
#[test]
fn conflicts() {
    type Step = fn(&mut Guest, u32);
    let read: Step = |guest, id| drop(guest.request(XS_READ, id, b"data/a\0"));
    let write: Step = |guest, id| drop(guest.write_in(id, "data/a", "mine"));
    let new: Step = |guest, id| drop(guest.write_in(id, "data/new", "mine"));
    let none: Step = |guest, id| drop(guest.request(XS_READ, id, b"data/none\0"));
    let back_end = |path: &'static str| {
        move |guest: &Guest| guest.domain.store_write(path, b"theirs").unwrap()
    };
    type Other = Box<dyn Fn(&Guest)>;
    let table: [(&str, Step, Other, bool); 9] = [
        ("read, changed", read, Box::new(back_end("data/a")), true),
        ("read, other changed", read, Box::new(back_end("data/b")), false),
        ("written, changed", write, Box::new(back_end("data/a")), true),
        ("written, other changed", write, Box::new(back_end("data/b")), false),
        ("new, made by other", new, Box::new(back_end("data/new")), true),
        ("new, sibling made", new, Box::new(back_end("data/sibling")), true),
        ("not there, made", none, Box::new(back_end("data/none")), true),
        (
            "read, removed",
            read,
            Box::new(|guest| guest.domain.store_remove("data/a").unwrap()),
            true,
        ),
        (
            "read, perms",
            read,
            Box::new(|guest| {
                guest.domain.store_set_perms("data/a", &[StorePerm::none(7)]).unwrap();
            }),
            true,
        ),
    ];
    for (what, step, other, conflict) in table {
        let mut guest = guest();
        guest.write("data/a", "0").unwrap();
        guest.write("data/b", "0").unwrap();
        let id = guest.start();
        step(&mut guest, id);
        other(&guest);
        let wanted = if conflict { error("EAGAIN") } else { ok() };
        assert_eq!(guest.end(id, "T"), wanted, "{what}");
        let now = guest.read("data/a");
        assert_eq!(
            now == Ok("mine".to_owned()),
            !conflict && what.starts_with("written"),
            "{what}"
        );
    }
}

#[test]
fn two_transactions_of_one_guest() {
    let mut guest = guest();
    guest.write("data/a", "0").unwrap();
    let (first, second) = (guest.start(), guest.start());
    assert_ne!(first, second);
    assert_eq!(guest.write_in(first, "data/a", "1"), ok());
    assert_eq!(guest.write_in(second, "data/a", "2"), ok());
    assert_eq!(guest.end(second, "T"), ok());
    assert_eq!(guest.end(first, "T"), error("EAGAIN"));
    assert_eq!(guest.read("data/a").as_deref(), Ok("2"));
}
