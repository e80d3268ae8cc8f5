//! A network that breaks: at a byte of its first connection, in one of several ways.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the source.
    Up,
    /// To it.
    Down,
}

/// How it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Both ends see the end of the connection.
    Close,
    /// Nothing arrives any more, and nobody is told.
    Silence,
    /// This byte is another one.
    Flip,
}

/// Where it breaks: before the byte of this number is passed on.
#[derive(Clone, Copy, Debug)]
pub struct Break {
    pub way: Way,
    pub at: usize,
    pub how: How,
    /// Whether it stays broken for later connections.
    pub for_good: bool,
}

pub struct Relay {
    pub address: SocketAddr,
    /// Bytes of the first connection, up and down.
    pub passed: [Arc<AtomicUsize>; 2],
}

struct Lane {
    from: TcpStream,
    to: TcpStream,
    rule: Option<Break>,
    passed: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

impl Relay {
    /// Passes on what comes to `to`.
    pub fn start(to: SocketAddr, rule: Option<Break>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let passed = [Arc::default(), Arc::default()];
        let counts = passed.clone();
        thread::spawn(move || {
            for (number, came) in listener.incoming().enumerate() {
                let Ok(source) = came else { return };
                let first = number == 0;
                if !first && rule.is_some_and(|rule| rule.for_good) {
                    continue;
                }
                let Ok(destination) = TcpStream::connect(to) else { continue };
                let silent = Arc::new(AtomicBool::new(false));
                for (lane, way) in [Way::Up, Way::Down].into_iter().enumerate() {
                    let (from, to) = match way {
                        Way::Up => (&source, &destination),
                        Way::Down => (&destination, &source),
                    };
                    let lane = Lane {
                        from: from.try_clone().expect("a socket"),
                        to: to.try_clone().expect("a socket"),
                        rule: rule.filter(|rule| first && rule.way == way),
                        passed: if first { Arc::clone(&counts[lane]) } else { Arc::default() },
                        silent: Arc::clone(&silent),
                    };
                    thread::spawn(move || lane.run());
                }
            }
        });
        Self { address, passed }
    }
}

impl Lane {
    fn run(mut self) {
        let mut bytes = [0; 4096];
        loop {
            let Ok(count @ 1..) = self.from.read(&mut bytes) else {
                if !self.silent.load(Ordering::SeqCst) {
                    drop(self.to.shutdown(Shutdown::Write));
                }
                return;
            };
            if self.silent.load(Ordering::SeqCst) {
                continue;
            }
            let before = self.passed.fetch_add(count, Ordering::SeqCst);
            let piece = &mut bytes[..count];
            let here = self.rule.filter(|rule| (before..before + count).contains(&rule.at));
            let mut until = count;
            if let Some(rule) = here {
                match rule.how {
                    How::Flip => piece[rule.at - before] ^= 0x10,
                    How::Close | How::Silence => until = rule.at - before,
                }
                if rule.how == How::Silence {
                    self.silent.store(true, Ordering::SeqCst);
                }
            }
            let written = self.to.write_all(&piece[..until]);
            if here.is_some_and(|rule| rule.how == How::Close) || written.is_err() {
                drop(self.from.shutdown(Shutdown::Both));
                drop(self.to.shutdown(Shutdown::Both));
                return;
            }
        }
    }
}
