//! The few devices a Xen guest finds: a serial port, the ports through which
//! ACPI sleeps and resets, and nothing else. Unknown ports read as all ones.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::acpi;
use super::output::ConsoleOutput;
use super::save::SerialSection;
use crate::state::{StateError, tag};

const COM1: std::ops::RangeInclusive<u16> = acpi::COM1_PORT..=acpi::COM1_PORT + 7;
/// Xen's debug port: a byte written here goes to the hypervisor's console.
const DEBUG_PORT: u16 = 0xe9;
/// A timer that is not there. Linux calibrates its TSC against it, and while it
/// reads all ones waits 100 000 reads for it to count down; a zero tells it at
/// once that there is nothing to see. It has the frequency from Xen anyway.
const PIT_CHANNEL_2: u16 = 0x42;
/// The keyboard controller, for the one command that resets a PC.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// The serial port's interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

/// What a write to a port did, beyond the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortEffect {
    /// Nothing.
    None,
    /// The guest switched the machine off.
    Poweroff,
    /// The guest reset the machine.
    Reset,
}

/// The port devices, shared by all vCPUs.
pub struct PortDevices {
    serial: Mutex<Serial<Line, NoEvents, ConsoleOutput>>,
    debug: ConsoleOutput,
}

impl PortDevices {
    /// Devices that print to `console` and interrupt through `serial_line`.
    pub fn new(serial_line: EventFd, serial: ConsoleOutput, debug: ConsoleOutput) -> Self {
        Self { serial: Mutex::new(Serial::new(Line(serial_line), serial)), debug }
    }

    /// Devices whose serial port is as it was saved.
    ///
    /// # Errors
    /// More typed characters than the port holds.
    pub(super) fn restored(
        serial_line: EventFd,
        serial: ConsoleOutput,
        debug: ConsoleOutput,
        from: SerialSection,
    ) -> Result<Self, StateError> {
        let serial = Serial::from_state(&from.into(), Line(serial_line), NoEvents, serial);
        let refused = |error| StateError::Contents { tag: tag::SERIAL, why: format!("{error:?}") };
        Ok(Self { serial: Mutex::new(serial.map_err(refused)?), debug })
    }

    /// The serial port outside of the guest.
    pub(super) fn snapshot(&self) -> SerialSection {
        self.serial().state().into()
    }

    fn serial(&self) -> MutexGuard<'_, Serial<Line, NoEvents, ConsoleOutput>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read of 1, 2 or 4 bytes.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let [byte] = data else { return };
        if COM1.contains(&port) {
            // The offset is below 8: the range is eight ports.
            *byte = self.serial().read((port - COM1.start()).to_le_bytes()[0]);
        } else if matches!(port, acpi::SLEEP_STATUS_PORT | PIT_CHANNEL_2) {
            *byte = 0;
        }
    }

    /// A write of 1, 2 or 4 bytes, or of several single ones (`REP OUTSB`).
    pub fn write(&self, port: u16, data: &[u8]) -> PortEffect {
        if COM1.contains(&port) {
            let mut serial = self.serial();
            let offset = (port - COM1.start()).to_le_bytes()[0];
            for byte in data {
                if let Err(error) = serial.write(offset, *byte) {
                    tracing::debug!(?error, "serial port");
                }
            }
            return PortEffect::None;
        }
        match (port, data) {
            (DEBUG_PORT, bytes) => {
                self.debug.push(bytes);
                PortEffect::None
            }
            (KEYBOARD_COMMAND, [KEYBOARD_RESET]) => PortEffect::Reset,
            (acpi::RESET_PORT, [acpi::RESET_VALUE]) => PortEffect::Reset,
            (acpi::SLEEP_CONTROL_PORT, [acpi::SLEEP_POWER_OFF]) => PortEffect::Poweroff,
            _ => PortEffect::None,
        }
    }

    /// Gives the serial port what was typed; returns how much it took.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let mut serial = self.serial();
        let room = serial.fifo_capacity().min(bytes.len());
        serial.enqueue_raw_bytes(bytes.get(..room).unwrap_or_default()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> (PortDevices, super::super::output::ConsoleWriter) {
        let (output, writer) = ConsoleOutput::start(Box::new(std::io::sink())).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (PortDevices::new(line, output.clone(), output), writer)
    }

    #[test]
    fn unknown_ports_read_as_ones() {
        let (devices, _writer) = devices();
        let mut data = [0; 4];
        devices.read(0x1234, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn the_keyboard_resets() {
        let (devices, _writer) = devices();
        assert_eq!(devices.write(0x64, &[0xfe]), PortEffect::Reset);
        assert_eq!(devices.write(0x64, &[0xd1]), PortEffect::None);
        assert_eq!(devices.write(0x64, &[]), PortEffect::None);
    }

    #[test]
    fn acpi_ends_the_machine() {
        let (devices, _writer) = devices();
        let off = acpi::SLEEP_POWER_OFF;
        assert_eq!(devices.write(acpi::SLEEP_CONTROL_PORT, &[off]), PortEffect::Poweroff);
        assert_eq!(devices.write(acpi::SLEEP_CONTROL_PORT, &[off & !0x20]), PortEffect::None);
        assert_eq!(devices.write(acpi::RESET_PORT, &[acpi::RESET_VALUE]), PortEffect::Reset);
    }

    #[test]
    fn the_transmitter_is_empty() {
        let (devices, _writer) = devices();
        let mut status = [0];
        devices.read(0x3fd, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
    }
}
