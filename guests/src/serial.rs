//! Text to the serial port 0x3f8, one byte per OUT: the most any VMM, QEMU in
//! its Xen mode included, is sure to understand.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{inb, outb, settle};

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// A port that is not there must not hang the guest.
const MAX_POLLS: u32 = 100_000;
/// A CPU that died while it printed must not silence the others.
const MAX_SPINS: u32 = 50_000_000;

static BUSY: AtomicBool = AtomicBool::new(false);

/// Longest line; what is beyond is lost.
const LINE_BYTES: usize = 1024;

/// A line is formatted as a whole before its first byte goes out: no formatting
/// between two exits to the VMM, see [`settle`].
struct Line {
    bytes: [u8; LINE_BYTES],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            *self.bytes.get_mut(self.length).ok_or(fmt::Error)? = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// Writes formatted text; lines of different CPUs do not mix. Not for use in
/// interrupt handlers, except for one that ends the guest.
pub fn print(args: fmt::Arguments<'_>) {
    settle();
    let mut line = Line { bytes: [0; LINE_BYTES], length: 0 };
    // Fails only when the line is too long, and then prints its start.
    let _ = line.write_fmt(args);
    let mut spins = 0;
    while BUSY.swap(true, Ordering::Acquire) && spins < MAX_SPINS {
        core::hint::spin_loop();
        spins += 1;
    }
    for &byte in line.bytes.get(..line.length).unwrap_or_default() {
        for _ in 0..MAX_POLLS {
            if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        outb(PORT, byte);
    }
    BUSY.store(false, Ordering::Release);
    settle();
}

/// Prints a line to the serial port.
#[macro_export]
macro_rules! println {
    () => { $crate::serial::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($arg)*))) };
}
