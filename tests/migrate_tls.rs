//! Promise: a guest moves over a network to whom it may and to nobody else; whatever
//! breaks, one of the two ends has it, never both, and the other one says why in a line.

#[path = "migrate_tls/certs.rs"]
mod certs;
#[path = "migrate_tls/ends.rs"]
mod ends;
#[path = "common/faults.rs"]
mod faults;
#[path = "migrate_tls/relay.rs"]
mod relay;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use certs::{Fault, authority};
use ends::*;
use faults::counted;
use kvm_xen::vmm::migrate::MovePlace;
use kvm_xen::vmm::migrate::door::MOST_STRANGERS;
use kvm_xen::vmm::migrate::handover::network::{self, Asker};
use kvm_xen::vmm::migrate::tls::Tls;
use relay::{Break, How, Relay, Way};

#[test]
fn a_guest_moves_by_every_kind_of_address() {
    let authority = authority();
    let directory = tempfile::tempdir().expect("a directory");
    authority.write(directory.path(), &authority.identity(Fault::None));
    let tls = Tls::load(directory.path()).expect("good files");
    for (bind, name) in
        [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]"), ("127.0.0.1:0", "localhost")]
    {
        let destination = destination_at(bind, &tls);
        let sent = send_to(destination.address, name, &tls);
        assert!(matches!(sent, Sent::There), "{name}: {sent:?}");
        destination.thread.join().expect("no panic").expect("it has the guest");
    }
}

#[test]
fn files_that_do_not_do_are_named() {
    let (one, other) = (authority(), authority());
    let directory = tempfile::tempdir().expect("a directory");
    let mut cases = 0;
    let mut refused = |file: &str, spoil: &dyn Fn(&Path), words: &str| {
        let tls = directory.path().join("tls");
        drop(fs::remove_dir_all(&tls));
        one.write(&tls, &one.identity(Fault::None));
        assert!(Tls::load(&tls).is_ok());
        spoil(&tls);
        let error = one_line(&Tls::load(&tls).expect_err(words).to_string());
        let path = tls.join(file).display().to_string();
        assert!(error.starts_with("--tls-dir: ") && error.contains(&path), "{error}");
        assert!(error.contains(words), "{words}: {error}");
        let place = MovePlace::new("tcp:10.0.0.1:7000", Some(&tls)).expect_err("refused");
        assert_eq!(place.to_string(), error);
        cases += 1;
    };
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        refused(file, &|tls| fs::remove_file(tls.join(file)).expect("gone"), "cannot read");
        let directory = |tls: &Path| {
            fs::remove_file(tls.join(file)).expect("gone");
            fs::create_dir(tls.join(file)).expect("made");
            fs::set_permissions(tls.join(file), fs::Permissions::from_mode(0o700)).expect("set");
        };
        refused(file, &directory, "cannot read");
        let long = |tls: &Path| fs::write(tls.join(file), vec![b'A'; 2 << 20]).expect("written");
        refused(file, &long, "longer than");
        for text in [
            "",
            "\n",
            "a text",
            "-----BEGIN CERTIFICATE-----\n",
            "-----BEGIN PRIVATE KEY-----\n@@@@\n-----END PRIVATE KEY-----\n",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        ] {
            let spoil = |tls: &Path| fs::write(tls.join(file), text).expect("written");
            refused(file, &spoil, "in PEM");
        }
        let cut = |tls: &Path| {
            let text = fs::read_to_string(tls.join(file)).expect("text");
            fs::write(tls.join(file), &text[..text.len() / 2]).expect("written");
        };
        refused(file, &cut, "in PEM");
    }
    for file in ["ca.pem", "cert.pem"] {
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let spoil = |tls: &Path| fs::write(tls.join(file), nonsense).expect("written");
        refused(file, &spoil, file);
    }
    let key = |tls: &Path, text: &str| fs::write(tls.join("key.pem"), text).expect("written");
    let nonsense = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    refused("key.pem", &|tls| key(tls, nonsense), "not the key of cert.pem");
    let foreign = other.identity(Fault::None);
    refused("key.pem", &|tls| key(tls, &foreign.key_pem), "not the key of cert.pem");
    for mode in [0o604, 0o610, 0o620, 0o640, 0o644, 0o660, 0o666, 0o777, 0o400 | 0o004] {
        let open = fs::Permissions::from_mode(mode);
        let spoil =
            |tls: &Path| fs::set_permissions(tls.join("key.pem"), open.clone()).expect("a mode");
        refused("key.pem", &spoil, "chmod 600");
    }
    for (fault, words) in [
        (Fault::Expired, "expired"),
        (Fault::NotYet, "not valid yet"),
        (Fault::ServerOnly, "does not do"),
    ] {
        refused("cert.pem", &|tls| one.write(tls, &one.identity(fault)), words);
    }
    let of_another = |tls: &Path| {
        one.write(tls, &foreign);
    };
    refused("cert.pem", &of_another, "does not do");
    assert!(cases >= 47, "{cases}");
    counted("tls-files", cases);
}

/// Both ends say what is wrong, and the destination goes on waiting for a good one.
#[test]
fn only_who_may_is_taken() {
    let (ours, theirs) = (authority(), authority());
    let good = good(&ours);
    let of = |fault| ours.unchecked(Some(&ours.identity(fault)));
    let waiting = destination(&good);
    let sources: Vec<(&str, Tls, &str)> = vec![
        ("expired", of(Fault::Expired), "expired"),
        ("not valid yet", of(Fault::NotYet), "not valid yet"),
        ("for servers alone", of(Fault::ServerOnly), "extended key usage"),
        ("none", ours.unchecked(None), "there was none"),
        (
            "of another authority",
            ours.unchecked(Some(&theirs.identity(Fault::None))),
            "cert.pem here",
        ),
        ("who trusts another", self::good(&theirs), "ca.pem here and cert.pem there"),
        (
            "who trusts another and has ours",
            theirs.unchecked(Some(&ours.identity(Fault::None))),
            "ca.pem here and cert.pem there",
        ),
    ];
    let mut cases = 0;
    for (what, tls, words) in &sources {
        match send(waiting.address, tls) {
            Sent::Here(why) => assert!(why.contains(words), "{what}: {why}"),
            other => panic!("{what}: {other:?}"),
        }
        cases += 1;
    }
    assert!(matches!(send(waiting.address, &good), Sent::There));
    waiting.thread.join().expect("no panic").expect("it waited for the right one");
    // The destination is the wrong one.
    let destinations: Vec<(&str, Tls, &str)> = vec![
        ("expired", of(Fault::Expired), "expired"),
        ("not valid yet", of(Fault::NotYet), "not valid yet"),
        ("for clients alone", of(Fault::ClientOnly), "its certificate does not do"),
        ("of another host", of(Fault::OtherName), "not valid for name"),
        (
            "of another authority",
            ours.unchecked(Some(&theirs.identity(Fault::None))),
            "another authority signed",
        ),
        ("of strangers", self::good(&theirs), "another authority signed"),
    ];
    for (what, tls, words) in &destinations {
        let other = destination(tls);
        match send(other.address, &good) {
            Sent::Here(why) => assert!(why.contains(words), "{what}: {why}"),
            sent => panic!("{what}: {sent:?}"),
        }
        assert!(!other.thread.is_finished(), "{what}: it goes on waiting");
        cases += 1;
    }
    counted("tls-certificates", cases);
}

/// What others than sources say to a port.
fn noises() -> Vec<Vec<u8>> {
    let mut noises: Vec<Vec<u8>> = [
        &b""[..],
        b"\0",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"HELO\x01\0\0\0",
        b"GIVE\x01\0\0\0a guest of tests",
        b"ASKS\x01\0\0\0a guest of tests",
        b"KVMXEN\x1a\x0a\x02\0\0\0\0\0\0\0",
        b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10",
        b"\x15\x03\x03\0\x02\x02\x28",
        b"\x17\x03\x03\x40\x01",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x40\0\x01\xff\xff\xff",
        b"\x16\x03\x01\0\x04\x01\0\0\0",
        b"\x16\x03\x01\0\0",
        b"\x14\x03\x03\0\x01\x01",
        b"\x18\x03\x02\0\x03\x01\x40\0",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    let mut seed = 0x1234_5678_9abc_def1_u64;
    for _ in 0..15 {
        noises.push(
            (0..700)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed.to_le_bytes()[0]
                })
                .collect(),
        );
    }
    noises
}

#[test]
fn plain_bytes_are_no_guest_and_no_destination() {
    let tls = good(&authority());
    let waiting = destination(&tls);
    let mut cases = 0;
    for noise in noises() {
        let mut stream = TcpStream::connect(waiting.address).expect("a connection");
        stream.write_all(&noise).expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("shut");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        // An alert at the most, and the end.
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        assert!(answer.len() < 64, "{noise:?}: {answer:?}");
        cases += 1;
    }
    assert!(matches!(send(waiting.address, &tls), Sent::There));
    waiting.thread.join().expect("no panic").expect("it waited for the right one");
    for noise in noises() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            drop(stream.write_all(&noise));
            drop(stream.shutdown(std::net::Shutdown::Write));
            drop(io::copy(&mut stream, &mut io::sink()));
        });
        let sent = send(address, &tls);
        assert!(matches!(sent, Sent::Here(_)), "{sent:?}");
        server.join().expect("no panic");
        cases += 1;
    }
    counted("tls-plain-bytes", cases);
}

/// Connections that say nothing hold nobody up, and do not add up.
#[test]
fn silent_strangers_give_way() {
    let tls = good(&authority());
    let waiting = destination(&tls);
    let strangers: Vec<TcpStream> = (0..3 * MOST_STRANGERS)
        .map(|_| TcpStream::connect(waiting.address).expect("a connection"))
        .collect();
    let began = Instant::now();
    assert!(matches!(send(waiting.address, &tls), Sent::There));
    assert!(began.elapsed() < LIMITS.stranger, "{:?}", began.elapsed());
    waiting.thread.join().expect("no panic").expect("it has the guest");
    counted("tls-silent-strangers", strangers.len());
}

/// From one who may, and who says something else.
#[test]
fn other_words_are_answered_and_it_goes_on_waiting() {
    let tls = good(&authority());
    let waiting = destination(&tls);
    let mut cases = 0;
    for (words, wanted) in [
        (&b"HELO\x01\0\0\0"[..], &b"HELO"[..]),
        (b"HELO\x02\0\0\0", b"HELO"),
        (b"GIVE\x02\0\0\0a guest of tests", b"HELO\x01\0\0\0"),
        (b"GIVE\0\0\0\0a guest of tests", b"HELO\x01\0\0\0"),
        (b"ASKS\x02\0\0\0a guest of tests", b"HELO\x01\0\0\0"),
        (b"ASKS\x01\0\0\0another of tests", b"FAIL"),
        (b"GOGO\0\0\0\0", b""),
        (b"SEEN\0\0\0\0", b""),
        (b"RUNS\0\0\0\0", b""),
        (b"FAIL\x04\0\0\0none", b""),
        (b"FAIL\xff\xff\xff\xffnone", b""),
        (b"NONE\x04\0\0\0none", b""),
        (b"GIVE\x01\0\0\0a guest", b""),
        (b"GI", b""),
        (b"", b""),
    ] {
        let mut link = connect(waiting.address, "127.0.0.1", &tls).expect("TLS");
        link.write_all(words).and_then(|()| link.flush()).expect("written");
        link.until(Instant::now().checked_add(Duration::from_millis(400)));
        let mut answer = vec![0; wanted.len()];
        link.read_exact(&mut answer).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        assert_eq!(answer, wanted, "{words:?}");
        link.close();
        cases += 1;
    }
    assert!(matches!(send(waiting.address, &tls), Sent::There));
    waiting.thread.join().expect("no panic").expect("it waited for the right one");
    counted("tls-words", cases);
}

#[test]
fn a_second_guest_is_told_that_it_is_late() {
    let tls = good(&authority());
    let waiting = destination(&tls);
    let mut first = connect(waiting.address, "127.0.0.1", &tls).expect("TLS");
    network::offer(&mut first, *b"another of tests", SOON).expect("it is taken");
    let Sent::Here(why) = send(waiting.address, &tls) else { panic!("two were taken") };
    assert!(why.contains("another one was first"), "{why}");
    drop(first);
    let error = waiting.thread.join().expect("no panic").expect_err("it was cut off");
    assert!(error.contains("did not come") && error.contains("after 0 bytes"), "{error}");
    counted("tls-second-guest", 1);
}

/// A state that is damaged is refused by the destination, which tells the source.
#[test]
fn a_damaged_state_stays_at_the_source() {
    let tls = good(&authority());
    let whole = state();
    let mut cases = 0;
    for at in (0..whole.len()).step_by(whole.len() / 12) {
        let waiting = destination(&tls);
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let mut link = connect(waiting.address, "127.0.0.1", &tls).expect("TLS");
        network::offer(&mut link, SESSION, SOON).expect("it is taken");
        // It may have looked away before all was written.
        drop(link.write_all(&bytes).and_then(|()| link.flush()));
        let asker = Asker {
            connect: &|| panic!("there is nothing to ask"),
            taken_back: &|| false,
            answer: SOON,
            pause: SOON,
        };
        let error = network::hand_over(&mut link, SESSION, SOON, &asker).expect_err("damaged");
        let error = one_line(&error.to_string());
        assert!(error.contains("the destination says: cannot restore"), "{at}: {error}");
        waiting.thread.join().expect("no panic").expect_err("it has no guest");
        cases += 1;
    }
    counted("tls-damaged-state", cases);
}

/// The bytes that one move takes, up and down.
fn lengths(tls: &Tls) -> [usize; 2] {
    let waiting = destination(tls);
    let relay = Relay::start(waiting.address, None);
    assert!(matches!(send(relay.address, tls), Sent::There));
    waiting.thread.join().expect("no panic").expect("it has the guest");
    // The last ones may be on their way.
    thread::sleep(Duration::from_millis(100));
    [0, 1].map(|way| relay.passed[way].load(Ordering::SeqCst))
}

/// Moves a guest over a network that breaks so, and says who has it: the source, the
/// destination, and whether the source was made to take it back.
fn broken(tls: &Tls, rule: Break) -> (bool, bool, bool) {
    let waiting = destination(tls);
    let relay = Relay::start(waiting.address, Some(rule));
    let sent = send(relay.address, tls);
    // One that never got to hear of a guest waits for ever: it does not have it.
    if matches!(sent, Sent::Here(_)) && !waiting.thread.is_finished() {
        thread::sleep(Duration::from_millis(20));
    }
    let never = matches!(sent, Sent::Here(_)) && {
        let end = Instant::now() + LIMITS.silence + LIMITS.asked + SOON;
        // The first message may not have come: then nothing will.
        while !waiting.thread.is_finished() && rule.at > 4000 && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        !waiting.thread.is_finished()
    };
    let runs = !never && waiting.thread.join().expect("no panic").is_ok();
    let (here, back) = match sent {
        Sent::There => (false, false),
        Sent::Here(_) => (true, false),
        Sent::TakenBack => (true, true),
    };
    (here, runs, back)
}

/// Every few bytes, and each byte where it matters: `step` near the end.
fn places(length: usize, few: usize, end: usize, step: usize) -> Vec<usize> {
    let spread = (0..few).map(|case| (length.saturating_sub(end)) * case / few);
    spread.chain((length.saturating_sub(end)..length).step_by(step)).collect()
}

fn break_at(tls: &Tls, name: &str, rules: impl Iterator<Item = Break>) {
    let mut cases = 0;
    let (mut stayed, mut moved) = (0, 0);
    for rule in rules {
        let (here, there, back) = broken(tls, rule);
        assert!(!back, "{rule:?}: the destination could be asked");
        assert!(here != there, "{rule:?}: here {here}, there {there}");
        (stayed, moved) = (stayed + usize::from(here), moved + usize::from(there));
        cases += 1;
    }
    println!("{name}: {stayed} stayed, {moved} moved");
    assert!(stayed > 0, "{name}");
    counted(name, cases);
}

#[test]
fn a_cut_on_the_way_up_leaves_one_guest() {
    let tls = good(&authority());
    let [up, _] = lengths(&tls);
    let rule = |at| Break { way: Way::Up, at, how: How::Close, for_good: false };
    break_at(&tls, "tls-cut-up", places(up, 60, 110, 2).into_iter().map(rule));
}

#[test]
fn a_cut_on_the_way_down_leaves_one_guest() {
    let tls = good(&authority());
    let [_, down] = lengths(&tls);
    let rule = |at| Break { way: Way::Down, at, how: How::Close, for_good: false };
    break_at(&tls, "tls-cut-down", places(down, 25, 120, 2).into_iter().map(rule));
}

#[test]
fn a_byte_that_is_changed_leaves_one_guest() {
    let tls = good(&authority());
    let [up, down] = lengths(&tls);
    let rule = |way| move |at| Break { way, at, how: How::Flip, for_good: false };
    let ups = places(up, 20, 100, 9).into_iter().map(rule(Way::Up));
    let downs = places(down, 10, 120, 9).into_iter().map(rule(Way::Down));
    break_at(&tls, "tls-flip", ups.chain(downs));
}

#[test]
fn a_network_that_falls_silent_leaves_one_guest() {
    let tls = good(&authority());
    let [up, down] = lengths(&tls);
    let rule = |way| move |at| Break { way, at, how: How::Silence, for_good: false };
    let ups = places(up, 3, 90, 28).into_iter().map(rule(Way::Up));
    let downs = places(down, 2, 110, 28).into_iter().map(rule(Way::Down));
    break_at(&tls, "tls-silence", ups.chain(downs));
}

/// Nobody can be asked any more: the source goes on only where the guest cannot run at
/// the destination, and otherwise stands still until somebody takes the guest back.
#[test]
fn a_network_that_is_gone_never_makes_two_guests() {
    let tls = good(&authority());
    let [up, down] = lengths(&tls);
    let mut cases = 0;
    let mut unknown = 0;
    let rule = |way| move |at| Break { way, at, how: How::Close, for_good: true };
    let ups = places(up, 4, 110, 6).into_iter().map(rule(Way::Up));
    let downs = places(down, 3, 120, 6).into_iter().map(rule(Way::Down));
    for rule in ups.chain(downs) {
        let (here, there, back) = broken(&tls, rule);
        assert!(back || here != there, "{rule:?}: here {here}, there {there}");
        unknown += usize::from(back);
        cases += 1;
    }
    // GOGO or RUNS was lost there.
    assert!(unknown > 0 && unknown < cases / 2, "{unknown} of {cases}");
    counted("tls-gone", cases);
}
