//! Standard input as the guest's keyboard: raw while the guest runs, with
//! Ctrl-A X as the way out.

#![expect(unsafe_code, reason = "a terminal is known by its descriptor")]

use std::io::{IsTerminal, Read};
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use vmm_sys_util::terminal::Terminal;

use super::config::Console;
use super::exit::ExitReason;
use super::vcpu::Shared;

const CTRL_A: u8 = 1;

/// Standard input. Its lock is not taken: the input thread holds that while it
/// waits for a key.
struct StandardInput;

// SAFETY: descriptor 0 is standard input, and only used where it is a terminal.
unsafe impl Terminal for StandardInput {
    fn tty_fd(&self) -> RawFd {
        libc::STDIN_FILENO
    }
}

/// The terminal in raw mode; in its line mode again when dropped.
pub struct RawTerminal {
    raw: bool,
}

impl RawTerminal {
    /// Standard input in raw mode, if it is a terminal.
    pub fn enter() -> Self {
        if !std::io::stdin().is_terminal() {
            return Self { raw: false };
        }
        let set = StandardInput.set_raw_mode();
        if let Err(error) = &set {
            tracing::warn!(%error, "the terminal stays in its line mode");
        }
        Self { raw: set.is_ok() }
    }

    /// Whether there is a terminal in raw mode.
    pub fn is_raw(&self) -> bool {
        self.raw
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if self.raw
            && let Err(error) = StandardInput.set_canon_mode()
        {
            tracing::warn!(%error, "the terminal stays raw: type reset");
        }
    }
}

/// What was typed, with the escape taken out.
#[derive(Debug, Default)]
struct Escape {
    armed: bool,
}

/// What one byte from the terminal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed {
    Byte(u8),
    Nothing,
    Quit,
}

impl Escape {
    /// Ctrl-A X ends, Ctrl-A Ctrl-A is one Ctrl-A, any other pair is dropped.
    fn take(&mut self, byte: u8) -> Typed {
        match (std::mem::replace(&mut self.armed, false), byte) {
            (false, CTRL_A) => {
                self.armed = true;
                Typed::Nothing
            }
            (true, CTRL_A) | (false, _) => Typed::Byte(byte),
            (true, b'x' | b'X') => Typed::Quit,
            (true, _) => Typed::Nothing,
        }
    }
}

/// Types standard input into the console until it ends. The thread is left
/// behind at the machine's end: a blocking read can not be called off.
pub(super) fn spawn(shared: &Arc<Shared>, console: Console, raw: bool) -> std::io::Result<()> {
    let shared = Arc::downgrade(shared);
    let work = move || {
        let mut buffer = [0; 64];
        let mut escape = Escape::default();
        let mut stdin = std::io::stdin().lock();
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            let mut typed = Vec::with_capacity(count);
            for &byte in buffer.iter().take(count) {
                match if raw { escape.take(byte) } else { Typed::Byte(byte) } {
                    Typed::Byte(byte) => typed.push(byte),
                    Typed::Nothing => {}
                    Typed::Quit => {
                        if let Some(shared) = shared.upgrade() {
                            shared.end(ExitReason::Stopped);
                        }
                        return;
                    }
                }
            }
            if !type_in(&shared, console, &typed) {
                return;
            }
        }
    };
    std::thread::Builder::new().name("input".to_owned()).spawn(work).map(drop)
}

/// Waits for room as a keyboard does; `false` when the machine is gone.
fn type_in(shared: &Weak<Shared>, console: Console, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some(shared) = shared.upgrade() else { return false };
        let outside = shared.quiesce.from_outside();
        let taken = match console {
            Console::Serial => shared.devices.type_in(bytes),
            Console::Hvc => shared.domain.console_input(bytes),
            Console::None => bytes.len(),
        };
        drop(outside);
        if shared.exit.is_ending() {
            return false;
        }
        bytes = bytes.get(taken..).unwrap_or_default();
        if taken == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> Vec<Typed> {
        let mut escape = Escape::default();
        bytes.iter().map(|byte| escape.take(*byte)).collect()
    }

    #[test]
    fn the_way_out() {
        assert_eq!(typed(b"x"), [Typed::Byte(b'x')]);
        assert_eq!(typed(b"\x01x"), [Typed::Nothing, Typed::Quit]);
        assert_eq!(typed(b"\x01X"), [Typed::Nothing, Typed::Quit]);
    }

    #[test]
    fn ctrl_a_itself() {
        assert_eq!(typed(b"\x01\x01x"), [Typed::Nothing, Typed::Byte(1), Typed::Byte(b'x')]);
        assert_eq!(typed(b"\x01bx"), [Typed::Nothing, Typed::Nothing, Typed::Byte(b'x')]);
    }
}
