use std::cell::Cell;
use std::thread;

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// An end that dies at its n-th use of the connection, before or after it.
struct Mortal {
    stream: UnixStream,
    left: Cell<u32>,
    after: bool,
}

impl Mortal {
    fn new(stream: UnixStream, uses: u32, after: bool) -> Self {
        Self { stream, left: Cell::new(uses), after }
    }

    fn is_dead(&self) -> bool {
        self.left.get() == 0
    }

    fn used<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let dead = || Err(io::Error::other("dead"));
        match self.left.get() {
            0 => return dead(),
            1 => {
                if self.after {
                    drop(work());
                }
                self.left.set(0);
                // As the kernel does with what a dead process had open.
                self.stream.shutdown(Shutdown::Both)?;
                return dead();
            }
            left => self.left.set(left - 1),
        }
        work()
    }
}

impl Read for Mortal {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.used(|| (&self.stream).read(to))
    }
}

impl Write for Mortal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.used(|| (&self.stream).write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Channel for Mortal {
    fn read_within(&self, within: Option<Duration>) -> io::Result<()> {
        self.stream.read_within(within)
    }
}

impl LocalChannel for Mortal {
    fn refuse_more(&self) -> io::Result<()> {
        self.stream.refuse_more()
    }
}

/// What an end does with its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Runs,
    Not,
    /// The process was killed, before it had the guest or after.
    Dead,
}

/// A state that stands for any.
const STATE: &[u8] = b"the whole state";

fn source(mut channel: Mortal) -> End {
    let sent = greet(&mut channel, SOON).and_then(|()| {
        channel.write_all(STATE).map_err(io_error("sending"))?;
        hand_over(&mut channel, SOON)
    });
    match sent {
        _ if channel.is_dead() => End::Dead,
        Ok(()) => End::Not,
        Err(_) => End::Runs,
    }
}

fn destination(mut channel: Mortal) -> (End, bool) {
    let taken = welcome(&mut channel, SOON).and_then(|()| {
        let mut state = [0; STATE.len()];
        channel.read_exact(&mut state).map_err(io_error("reading"))?;
        take_over(&mut channel)
    });
    match taken {
        // It died in its very last message: the guest was its own already.
        Ok(()) if channel.is_dead() => (End::Dead, true),
        Ok(()) => (End::Runs, true),
        Err(_) if channel.is_dead() => (End::Dead, false),
        Err(_) => (End::Not, false),
    }
}

fn both(source_uses: u32, destination_uses: u32, after: bool) -> (End, (End, bool)) {
    let (one, other) = UnixStream::pair().unwrap();
    let one = Mortal::new(one, source_uses, after);
    let other = Mortal::new(other, destination_uses, after);
    thread::scope(|scope| {
        let source = scope.spawn(move || source(one));
        let destination = scope.spawn(move || destination(other));
        (source.join().unwrap(), destination.join().unwrap())
    })
}

const IMMORTAL: u32 = u32::MAX;

#[test]
fn a_guest_is_handed_over() {
    assert_eq!(both(IMMORTAL, IMMORTAL, false), (End::Not, (End::Runs, true)));
}

/// Uses of the source: HELO, its answer, the state, REDY, GOGO, RUNS.
#[test]
fn a_source_that_dies_leaves_one_guest_once_the_destination_is_ready() {
    for after in [false, true] {
        for uses in 1..=6 {
            for _ in 0..20 {
                let (source, (destination, _)) = both(uses, IMMORTAL, after);
                assert_eq!(source, End::Dead, "{uses} {after}");
                // REDY was read, or could be: from there on the other one runs.
                if (uses, after) >= (4, true) || uses > 4 {
                    assert_eq!(destination, End::Runs, "{uses} {after}");
                }
                if uses < 3 {
                    assert_eq!(destination, End::Not, "{uses} {after}");
                }
            }
        }
    }
}

/// Uses of the destination: HELO, its answer, the state, REDY, GOGO, RUNS.
#[test]
fn a_destination_that_dies_leaves_the_guest_at_the_source() {
    for after in [false, true] {
        for uses in 1..=6 {
            for _ in 0..20 {
                let (source, (destination, _)) = both(IMMORTAL, uses, after);
                assert_eq!(destination, End::Dead, "{uses} {after}");
                // With RUNS written the guest had gone over.
                let wanted = if (uses, after) == (6, true) { End::Not } else { End::Runs };
                assert_eq!(source, wanted, "{uses} {after}");
            }
        }
    }
}

#[test]
fn both_may_die_and_never_do_two_run() {
    for after in [false, true] {
        for one in 1..=7 {
            for other in 1..=7 {
                let (source, (destination, _)) = both(one, other, after);
                assert!(
                    source != End::Runs || destination != End::Runs,
                    "{one} {other} {after}: {source:?} {destination:?}"
                );
            }
        }
    }
}

#[test]
fn a_destination_that_is_never_ready_is_given_up_for_good() {
    let (mut one, mut other) = UnixStream::pair().unwrap();
    let within = Duration::from_millis(30);
    let error = hand_over(&mut one, within).unwrap_err();
    assert!(matches!(error, HandoverError::Late(_)), "{error}");
    // Late by a moment, or by a day: it can not become ready any more.
    assert!(take_over(&mut other).is_err());
}

#[test]
fn what_the_destination_says_is_told() {
    let (mut one, mut other) = UnixStream::pair().unwrap();
    refuse(&mut other, "no memory for 3 guests \u{20ac}");
    drop(other);
    let error = hand_over(&mut one, SOON).unwrap_err();
    assert_eq!(error.to_string(), "the destination says: no memory for 3 guests \u{20ac}");
    let (mut one, mut other) = UnixStream::pair().unwrap();
    let long = "\u{20ac}".repeat(2000);
    refuse(&mut other, &long);
    let Some(HandoverError::Refused(why)) = reason(&mut one) else { panic!("nothing is told") };
    assert!(why.len() > 900 && long.starts_with(&why));
}

#[test]
fn strangers_and_other_versions_are_told_apart() {
    let (mut one, mut other) = UnixStream::pair().unwrap();
    Message::Hello(VERSION + 1).send(&mut other).unwrap();
    assert!(matches!(greet(&mut one, SOON), Err(HandoverError::Version { found: 2 })));
    let (mut one, mut other) = UnixStream::pair().unwrap();
    other.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
    assert!(matches!(greet(&mut one, SOON), Err(HandoverError::Strange(_))));
    let (mut one, mut other) = UnixStream::pair().unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(matches!(welcome(&mut one, SOON), Err(HandoverError::Strange(_))));
}
