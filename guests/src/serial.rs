//! Text to the serial port 0x3f8, one byte per OUT: the most any VMM, QEMU in
//! its Xen mode included, is sure to understand.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{inb, outb};

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// A port that is not there must not hang the guest.
const MAX_POLLS: u32 = 100_000;
/// A CPU that died while it printed must not silence the others.
const MAX_SPINS: u32 = 50_000_000;

static BUSY: AtomicBool = AtomicBool::new(false);

/// The port, held by one CPU until dropped: lines of different CPUs do not mix.
/// Not for interrupt handlers, except for one that ends the guest.
#[derive(Debug)]
pub struct Port(());

impl Port {
    /// Waits for the port, within bounds.
    #[must_use]
    pub fn take() -> Self {
        let mut spins = 0;
        while BUSY.swap(true, Ordering::Acquire) && spins < MAX_SPINS {
            core::hint::spin_loop();
            spins += 1;
        }
        Self(())
    }

    /// Writes one byte.
    pub fn byte(&self, byte: u8) {
        for _ in 0..MAX_POLLS {
            if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        outb(PORT, byte);
    }

    /// Writes text.
    pub fn text(&self, text: &str) {
        for &byte in text.as_bytes() {
            self.byte(byte);
        }
    }
}

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text);
        Ok(())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

/// Writes formatted text.
pub fn print(args: fmt::Arguments<'_>) {
    // The port itself never fails.
    let _ = Port::take().write_fmt(args);
}

/// Prints a line for people. Lines for programs are made by [`report!`](crate::report!).
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($arg)*))) };
}
