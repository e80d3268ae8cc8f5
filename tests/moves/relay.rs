//! Stands between the two ends of a move by a Unix socket, and stops it at one point.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::process::eventually;

/// What is kept from its reader. All before it goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Memory, after so many bytes: the guest runs at the source.
    Memory(usize),
    /// The last section: the guest stands, and is nothing yet at the destination.
    Last,
    /// `REDY`: the whole guest is at the destination, gathered, and stands at both.
    Ready,
    /// `GOGO`.
    Go,
    /// `RUNS`: it runs at the destination.
    Runs,
}

/// Each message of the destination: a tag and a number.
const MESSAGE: usize = 8;
/// How the last section of a state begins: tag, number, length. More follows.
const LAST: &[u8] = b"DONE\0\0\0\0\x08\0\0\0\0\0\0\0";
/// With its checksums and contents.
const LAST_BYTES: usize = 32;

pub struct Relay {
    ends: Arc<OnceLock<[UnixStream; 2]>>,
    held: Arc<AtomicBool>,
    released: Arc<AtomicBool>,
}

struct Lane {
    from: UnixStream,
    to: UnixStream,
    /// Bytes that may pass.
    most: usize,
    /// Nothing passes once the other way has passed so many.
    until_other: usize,
    /// Nothing passes from the last section on.
    last: bool,
    passed: Arc<AtomicUsize>,
    other: Arc<AtomicUsize>,
    held: Arc<AtomicBool>,
    released: Arc<AtomicBool>,
}

impl Relay {
    /// Takes one connection at `at`, and passes it on to `to` up to `point`.
    pub fn start(at: &Path, to: &Path, point: Point) -> Self {
        let listener = UnixListener::bind(at).expect("a socket");
        let ends = Arc::new(OnceLock::new());
        let [held, released] = [Arc::<AtomicBool>::default(), Arc::default()];
        let (shared, to) = (Arc::clone(&ends), to.to_owned());
        let flags = [Arc::clone(&held), Arc::clone(&released)];
        thread::spawn(move || {
            let (source, _) = listener.accept().expect("a source");
            let destination = UnixStream::connect(to).expect("a destination");
            let again = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
            assert!(shared.set([again(&source), again(&destination)]).is_ok());
            let [up, down] = [Arc::<AtomicUsize>::default(), Arc::default()];
            let open = (usize::MAX, usize::MAX);
            let (up_rule, down_rule) = match point {
                Point::Memory(bytes) => ((bytes, usize::MAX), open),
                Point::Last => (open, open),
                Point::Ready => (open, (MESSAGE, usize::MAX)),
                Point::Go => ((usize::MAX, 2 * MESSAGE), open),
                Point::Runs => (open, (2 * MESSAGE, usize::MAX)),
            };
            let held_at_last = point == Point::Last;
            let lane = |from, to, (most, until_other), [passed, other]: [&Arc<AtomicUsize>; 2]| {
                let [passed, other] = [Arc::clone(passed), Arc::clone(other)];
                let [held, released] = flags.clone();
                Lane {
                    from,
                    to,
                    most,
                    until_other,
                    last: held_at_last,
                    passed,
                    other,
                    held,
                    released,
                }
            };
            let upward = lane(again(&source), again(&destination), up_rule, [&up, &down]);
            let downward = lane(destination, source, down_rule, [&down, &up]);
            thread::spawn(move || upward.pass());
            downward.pass();
        });
        Self { ends, held, released }
    }

    /// Waits until the move stands at its point.
    pub fn wait_held(&self) {
        eventually("the move comes to its point", || self.held.load(Ordering::SeqCst));
    }

    /// Lets it go on.
    pub fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    /// Ends both connections, as the end of one side's process does. What was held
    /// is lost.
    pub fn cut(&self) {
        for end in self.ends.get().into_iter().flatten() {
            // It may have ended already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Lane {
    fn pass(mut self) {
        let mut bytes = vec![0; 64 << 10];
        let mut before = Vec::new();
        loop {
            let passed = self.passed.load(Ordering::SeqCst);
            // One byte beyond is read: it shows that there is something to hold.
            let most = self.most.saturating_sub(passed).saturating_add(1).min(bytes.len());
            let count = match self.from.read(&mut bytes[..most]) {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            // It is all that comes at the end, in one piece or two.
            before.extend_from_slice(&bytes[count.saturating_sub(LAST_BYTES)..count]);
            before.drain(..before.len().saturating_sub(LAST_BYTES));
            let is_last = self.last && before.windows(LAST.len()).any(|part| part == LAST);
            let answered = self.other.load(Ordering::SeqCst) >= self.until_other;
            if is_last || answered || passed + count > self.most {
                self.held.store(true, Ordering::SeqCst);
                // The rest stays where it is, for good where the connection is cut.
                while !self.released.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
                (self.most, self.until_other, self.last) = (usize::MAX, usize::MAX, false);
            }
            // Before it is there: the answer may be faster than this thread.
            self.passed.fetch_add(count, Ordering::SeqCst);
            if self.to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = self.to.shutdown(Shutdown::Write);
    }
}
