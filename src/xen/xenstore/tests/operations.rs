//! Each operation, and what a guest is refused.

use xen_abi::hvm_params::{HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN};
use xen_abi::xs_wire::{
    XS_CONTROL, XS_DIRECTORY_PART, XS_ERROR, XS_GET_DOMAIN_PATH, XS_GET_PERMS, XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED, XS_READ, XS_RELEASE, XS_RESET_WATCHES, XS_RESUME, XS_SET_PERMS,
    XS_SET_TARGET, XS_UNWATCH, XS_WATCH, XS_WATCH_EVENT, XS_WRITE,
};

use super::*;

#[test]
fn what_linux_expects_to_find() {
    let mut guest = guest();
    assert_eq!(guest.domain.hvm_params().get(HVM_PARAM_STORE_PFN), PAGE >> 12);
    let port = guest.domain.xenstore.port().unwrap();
    assert_eq!(guest.domain.hvm_params().get(HVM_PARAM_STORE_EVTCHN), u64::from(port));
    assert_eq!(guest.read("domid").as_deref(), Ok("7"));
    assert_eq!(guest.read("name").as_deref(), Ok("test"));
    let vm = guest.read("vm").unwrap();
    assert_eq!(vm, "/vm/30313233-3435-3637-3839-616263646566");
    assert_eq!(guest.read(&format!("{vm}/uuid")).unwrap(), vm[4..]);
    for (path, value) in [
        ("control/shutdown", ""),
        ("control/platform-feature-multiprocessor-suspend", "1"),
        ("control/platform-feature-xs_reset_watches", "1"),
        ("cpu/1/availability", "online"),
        ("memory/target", "0"),
    ] {
        assert_eq!(guest.read(path).as_deref(), Ok(value), "{path}");
    }
    assert_eq!(guest.list("device"), Ok(vec!["suspend".to_owned()]));
    // What Linux writes there itself.
    assert_eq!(guest.write("control/feature-suspend", "1"), ok());
    assert_eq!(guest.write("control/shutdown", ""), ok());
    assert_eq!(guest.write("control/feature-balloon", "1"), error("EACCES"));
    assert_eq!(guest.write("name", "other"), error("EACCES"));
    assert_eq!(guest.write("/local/domain/8/data", "x"), error("EACCES"));
}

#[test]
fn nodes_come_and_go() {
    let mut guest = guest();
    assert_eq!(guest.write("data/a/b/c", "deep"), ok());
    assert_eq!(guest.read("data/a/b/c").as_deref(), Ok("deep"));
    assert_eq!(guest.read("data/a/b").as_deref(), Ok(""));
    assert_eq!(guest.mkdir("data/a/d"), ok());
    assert_eq!(guest.mkdir("data/a/d"), ok());
    assert_eq!(guest.list("data/a"), Ok(vec!["b".to_owned(), "d".to_owned()]));
    assert_eq!(guest.remove("data/a/b"), ok());
    assert_eq!(guest.read("data/a/b/c"), error("ENOENT"));
    assert_eq!(guest.list("data/a"), Ok(vec!["d".to_owned()]));
    assert_eq!(guest.remove("data/a/b"), ok(), "gone already");
    assert_eq!(guest.remove("data/x/y"), error("ENOENT"));
    assert_eq!(guest.remove("/"), error("EACCES"));
    // A value may have any bytes.
    let mut body = joined(&["data/bytes"]);
    body.extend_from_slice(&[0, 255, 0, 1]);
    assert_eq!(guest.request(XS_WRITE, 0, &body), ok());
    assert_eq!(guest.ask(XS_READ, &["data/bytes"]), Ok(vec![0, 255, 0, 1]));
}

#[test]
fn hidden_nodes_are_neither_there_nor_not() {
    let mut guest = guest();
    guest.domain.store_write("/secret/x", b"1").unwrap();
    guest.domain.store_set_perms("/secret", &[StorePerm::none(0)]).unwrap();
    guest.domain.store_set_perms("/secret/x", &[StorePerm::none(0)]).unwrap();
    for path in ["/secret", "/secret/x", "/secret/y", "/local"] {
        assert_eq!(guest.read(path), error("EACCES"), "{path}");
    }
    assert_eq!(guest.read("/nothing"), error("ENOENT"), "the root may be listed");
    assert_eq!(guest.write("/nothing", ""), error("EACCES"));
}

#[test]
fn permissions() {
    let mut guest = guest();
    assert_eq!(guest.ask(XS_GET_PERMS, &["domid"]), Ok(joined(&["n0", "r7"])));
    assert_eq!(guest.write("data/x", ""), ok());
    assert_eq!(guest.ask(XS_GET_PERMS, &["data/x"]), Ok(joined(&["n7"])));
    assert_eq!(guest.ask(XS_SET_PERMS, &["data/x", "r7", "b3"]), ok());
    assert_eq!(guest.ask(XS_GET_PERMS, &["data/x"]), Ok(joined(&["r7", "b3"])));
    assert_eq!(guest.ask(XS_SET_PERMS, &["data/x", "n0"]), error("EPERM"), "given away");
    assert_eq!(guest.ask(XS_SET_PERMS, &["domid", "n7"]), error("EACCES"));
    assert_eq!(guest.ask(XS_SET_PERMS, &["data/x"]), error("EINVAL"));
    assert_eq!(guest.ask(XS_SET_PERMS, &["data/x", "q7"]), error("EINVAL"));
    assert_eq!(guest.ask(XS_SET_PERMS, &["data/none", "n7"]), error("ENOENT"));
    let six = ["data/x", "n7", "n1", "n2", "n3", "n4", "n5"];
    assert_eq!(guest.ask(XS_SET_PERMS, &six), error("ENOSPC"));
    assert_eq!(guest.ask(XS_SET_PERMS, &six[..6]), ok());
}

#[test]
fn questions_about_domains() {
    let mut guest = guest();
    assert_eq!(guest.ask(XS_GET_DOMAIN_PATH, &["7"]), Ok(joined(&["/local/domain/7"])));
    assert_eq!(guest.ask(XS_GET_DOMAIN_PATH, &["0"]), Ok(joined(&["/local/domain/0"])));
    assert_eq!(guest.request(XS_GET_DOMAIN_PATH, 0, b"7"), error("EINVAL"), "no end");
    for (domid, answer) in [("0", "T"), ("7", "T"), ("32752", "T"), ("8", "F")] {
        assert_eq!(guest.ask(XS_IS_DOMAIN_INTRODUCED, &[domid]), Ok(joined(&[answer])));
    }
}

#[test]
fn what_only_domain_0_may() {
    let mut guest = guest();
    for kind in [XS_CONTROL, XS_INTRODUCE, XS_RELEASE, XS_RESUME, XS_SET_TARGET] {
        assert_eq!(guest.ask(kind, &["7", "1"]), error("EACCES"), "{kind}");
        // Before the transaction is looked at.
        assert_eq!(guest.request(kind, 99, &[]), error("EACCES"), "{kind}");
    }
    for kind in [XS_WATCH_EVENT, XS_ERROR, 20, 23, 0xffff, u32::MAX] {
        assert_eq!(guest.ask(kind, &["x"]), error("ENOSYS"), "{kind}");
    }
}

#[test]
fn malformed_bodies() {
    let mut guest = guest();
    let table: [(u32, &[u8]); 9] = [
        (XS_READ, b""),
        (XS_READ, b"name"),
        (XS_READ, b"name\0x"),
        (XS_READ, b"na me\0"),
        (XS_WRITE, b"data/x"),
        (XS_WATCH, b"name\0"),
        (XS_WATCH, b"name\0token"),
        (XS_UNWATCH, b"a\0b\0c\0"),
        (XS_DIRECTORY_PART, b"name\0"),
    ];
    for (kind, body) in table {
        assert_eq!(guest.request(kind, 0, body), error("EINVAL"), "{kind} {body:?}");
    }
}

#[test]
fn a_large_directory_comes_in_parts() {
    let mut guest = guest();
    let names: Vec<String> =
        (0..300).map(|number| format!("a-rather-long-name-{number:04}")).collect();
    for name in &names {
        guest.domain.store_write(&format!("device/{name}"), b"").unwrap();
    }
    assert_eq!(guest.list("device"), error("E2BIG"));
    let (mut list, mut generations) = (Vec::new(), Vec::new());
    loop {
        let offset = list.len().to_string();
        let part = guest.ask(XS_DIRECTORY_PART, &["device", &offset]).unwrap();
        assert!(part.len() <= 4096);
        let end = part.iter().position(|byte| *byte == 0).unwrap();
        generations.push(part[..end].to_vec());
        let part = &part[end + 1..];
        if part.ends_with(&[0, 0]) || part == [0] {
            list.extend_from_slice(&part[..part.len() - 1]);
            break;
        }
        list.extend_from_slice(part);
    }
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    wanted.push("suspend");
    assert_eq!(list, joined(&wanted));
    assert!(generations.len() > 1 && generations.iter().all(|one| *one == generations[0]));
    let behind = guest.ask(XS_DIRECTORY_PART, &["device", "999999999999999999999"]).unwrap();
    assert_eq!(behind, [generations[0].as_slice(), &[0, 0]].concat());
    guest.domain.store_write("device/z", b"").unwrap();
    let part = guest.ask(XS_DIRECTORY_PART, &["device", "0"]).unwrap();
    assert!(!part.starts_with(&generations[0]), "it changed");
}

#[test]
fn watches() {
    let mut guest = guest();
    assert_eq!(guest.watch("data", "t1"), ok());
    assert_eq!(guest.watch("/local/domain/7/data/a", "t2"), ok());
    assert_eq!(guest.take_events(), [event("data", "t1"), event("/local/domain/7/data/a", "t2")]);
    assert_eq!(guest.watch("data", "t1"), error("EEXIST"));
    assert_eq!(guest.write("data/a/b", "1"), ok());
    assert_eq!(
        guest.take_events(),
        [event("data/a/b", "t1"), event("/local/domain/7/data/a/b", "t2")]
    );
    guest.domain.store_write("data", b"back end").unwrap();
    assert_eq!(guest.take_events(), [event("data", "t1")]);
    assert_eq!(guest.remove("data"), ok());
    // The one below hears of its own node, the one above of the top.
    assert_eq!(guest.take_events(), [event("data", "t1"), event("/local/domain/7/data/a", "t2")]);
    assert_eq!(guest.ask(XS_UNWATCH, &["data", "t2"]), error("ENOENT"));
    assert_eq!(guest.ask(XS_UNWATCH, &["data", "t1"]), ok());
    guest.domain.store_write("data/x", b"").unwrap();
    assert_eq!(guest.take_events(), []);
    assert_eq!(guest.ask(XS_RESET_WATCHES, &[""]), ok());
    guest.domain.store_write("data/a", b"").unwrap();
    assert_eq!(guest.take_events(), []);
    assert_eq!(guest.watch("@releaseDomain", "x"), ok());
    assert_eq!(guest.take_events(), [event("@releaseDomain", "x")]);
    assert_eq!(guest.watch("@bad name", "x"), error("EINVAL"));
}

#[test]
fn an_event_that_waits_is_told_once() {
    let mut guest = guest();
    guest.watch("data", "t").unwrap();
    guest.take_events();
    // The first goes into the ring at once.
    let fill = |guest: &Guest| {
        for number in 0..200 {
            guest.domain.store_write(&format!("data/{number}"), b"").unwrap();
        }
    };
    fill(&guest);
    fill(&guest);
    let events = guest.take_events();
    let count = |path: &str| events.iter().filter(|(name, _)| name == path).count();
    assert_eq!((count("data/0"), count("data/199")), (2, 1));
    guest.domain.store_write("data/199", b"").unwrap();
    assert_eq!(guest.take_events(), [event("data/199", "t")], "it was told; now it is again");
}

#[test]
fn watches_tell_nothing_that_may_not_be_read() {
    let mut guest = guest();
    guest.domain.store_write("/secret/x", b"1").unwrap();
    guest.domain.store_set_perms("/secret", &[StorePerm::none(0)]).unwrap();
    guest.domain.store_set_perms("/secret/x", &[StorePerm::none(0)]).unwrap();
    assert_eq!(guest.watch("/secret", "t"), ok());
    assert_eq!(guest.take_events(), [event("/secret", "t")]);
    guest.domain.store_write("/secret/x", b"2").unwrap();
    assert_eq!(guest.take_events(), []);
    guest.domain.store_set_perms("/secret/x", &[StorePerm::read(0)]).unwrap();
    assert_eq!(guest.take_events(), [event("/secret/x", "t")]);
    // It could be read until now.
    guest.domain.store_set_perms("/secret/x", &[StorePerm::none(0)]).unwrap();
    assert_eq!(guest.take_events(), [event("/secret/x", "t")]);
}
