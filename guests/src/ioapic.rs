//! The I/O APIC, as far as one level-triggered pin needs it.

#![expect(unsafe_code, reason = "device registers")]

use crate::lapic;

const MMIO: usize = 0xfec0_0000;
const WINDOW: usize = 0x10;
const FIRST_ENTRY: u32 = 0x10;
const LEVEL: u32 = 1 << 15;

/// Sends the interrupts of pin `gsi` (level triggered, active high) to this CPU
/// as `vector`.
pub fn route_level(gsi: u32, vector: u8) {
    let entry = FIRST_ENTRY + 2 * gsi;
    write(entry + 1, lapic::id() << 24);
    write(entry, LEVEL | u32::from(vector));
}

fn write(register: u32, value: u32) {
    let select = core::ptr::without_provenance_mut::<u32>(MMIO);
    let window = core::ptr::without_provenance_mut::<u32>(MMIO + WINDOW);
    // SAFETY: the first 4 GiB are mapped one to one; device registers do not
    // touch memory.
    unsafe { select.write_volatile(register) };
    // SAFETY: as above.
    unsafe { window.write_volatile(value) };
}
