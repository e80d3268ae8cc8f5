//! What a guest may have at most; domain 0 has no bounds.

use xen_abi::xs_wire::{XS_READ, XS_WRITE};

use super::*;

#[test]
fn values() {
    let mut guest = guest();
    // 24 bytes of header, 8 for one permission, and below 2048 in all.
    let most = 2048 - 24 - 8 - 1;
    assert_eq!(guest.write("data/x", &"v".repeat(most)), ok());
    assert_eq!(guest.read("data/x").unwrap().len(), most);
    assert_eq!(guest.write("data/x", &"v".repeat(most + 1)), error("ENOSPC"));
    assert_eq!(guest.write("data/y", &"v".repeat(most + 1)), error("ENOSPC"));
    assert_eq!(guest.read("data/y"), error("ENOENT"));
    guest.domain.store_write("data/z", &[7; 4096]).unwrap();
    guest.domain.store_set_perms("data/z", &[StorePerm::none(7)]).unwrap();
    assert_eq!(guest.ask(XS_READ, &["data/z"]), Ok(vec![7; 4096]));
    guest.domain.store_write("data/z", &[7; 4097]).unwrap();
    assert_eq!(guest.ask(XS_READ, &["data/z"]), error("E2BIG"));
}

#[test]
fn nodes() {
    let mut guest = guest();
    let mut made = 0;
    // Few in each directory, for that has a bound of its own.
    let full = loop {
        let answer = guest.write(&format!("data/{}/{}", made / 50, made % 50), "");
        if answer != ok() {
            break answer;
        }
        made += 1;
        assert!(made < 1100);
    };
    assert_eq!(full, error("ENOSPC"));
    assert!(made > 900, "{made}");
    assert_eq!(guest.write("data/0/0", "again"), ok());
    let id = guest.start();
    assert_eq!(guest.write_in(id, "data/deep/er", ""), error("ENOSPC"));
    assert_eq!(guest.end(id, "T"), ok());
    assert_eq!(guest.remove("data/0"), ok());
    assert_eq!(guest.write("data/deep/er", ""), ok());
    guest.domain.store_write("data/back-end", b"").unwrap();
}

#[test]
fn nodes_of_transactions_count_when_they_come() {
    let mut guest = guest();
    let (first, second) = (guest.start(), guest.start());
    for (id, top) in [(first, "data/a"), (second, "feature/b")] {
        for node in 0..600 {
            let path = format!("{top}/{}/{}", node / 50, node % 50);
            assert_eq!(guest.write_in(id, &path, ""), ok());
        }
    }
    assert_eq!(guest.end(first, "T"), ok());
    assert_eq!(guest.end(second, "T"), error("ENOSPC"));
}

#[test]
fn watches_and_transactions() {
    let mut guest = guest();
    for number in 0..128 {
        assert_eq!(guest.watch("data", &number.to_string()), ok());
    }
    assert_eq!(guest.watch("data", "one more"), error("E2BIG"));
    let ids: Vec<u32> = (0..10).map(|_| guest.start()).collect();
    assert_eq!(guest.ask(XS_TRANSACTION_START, &[""]), error("ENOSPC"));
    assert_eq!(guest.end(ids[3], "F"), ok());
    guest.start();
}

#[test]
fn a_transaction_touches_so_many_nodes() {
    let mut guest = guest();
    let id = guest.start();
    let mut seen = 0;
    while guest.request(XS_READ, id, &joined(&[&format!("data/{seen}")])) != error("ENOSPC") {
        seen += 1;
        assert!(seen <= 1024);
    }
    assert!(seen > 1000);
    assert_eq!(guest.write_in(id, "data/more/and/more", ""), error("ENOSPC"));
    assert_eq!(guest.end(id, "T"), ok());
}

#[test]
fn paths_and_messages() {
    let mut guest = guest();
    assert_eq!(guest.read(&"x".repeat(2049)), error("EINVAL"));
    assert_eq!(guest.read(&"x".repeat(2048)), error("ENOENT"));
    assert_eq!(guest.read(&format!("/{}", "x".repeat(3072))), error("EINVAL"));
    assert_eq!(guest.read(&format!("/{}", "x".repeat(3071))), error("ENOENT"));
    // The longest message there is.
    let mut body = joined(&["data/x"]);
    body.resize(4096, b'v');
    assert_eq!(guest.request(XS_WRITE, 0, &body), error("ENOSPC"));
}
