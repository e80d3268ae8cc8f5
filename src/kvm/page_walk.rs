//! A guest's page tables, walked in user space: from a linear address to a
//! guest-physical one, as the processor would at privilege level 0.
//!
//! KVM_TRANSLATE does the same for the price of an ioctl, which takes as long
//! as all the rest of a hypercall. Intel SDM volume 3A, chapter 5.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use crate::pages::GuestRam;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PRESENT: u64 = 1;
/// The entry maps a large page; bit 7 of all but the lowest level.
const LARGE: u64 = 1 << 7;
/// Physical address in a 64-bit entry: bits 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The registers that say how a vCPU translates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

impl Paging {
    /// Translates; `None` where nothing is mapped, or a table lies outside RAM.
    ///
    /// Tables are the guest's and may change under the walk: each entry is read
    /// once, and at most five are.
    pub fn translate(&self, memory: &GuestRam, linear: u64) -> Option<GuestAddress> {
        if self.cr0 & CR0_PG == 0 {
            return Some(GuestAddress(linear & 0xffff_ffff));
        }
        if self.efer & EFER_LMA != 0 {
            let levels = if self.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            return is_canonical(linear, levels)
                .then(|| walk(memory, self.cr3 & ADDRESS, linear, levels))?;
        }
        let linear = linear & 0xffff_ffff;
        if self.cr4 & CR4_PAE != 0 {
            // Four entries, in a table that is aligned to 32 bytes only.
            let table = self.cr3 & 0xffff_ffe0;
            let entry = entry_64(memory, at(table, linear >> 30, 8)?)?;
            return walk(memory, entry & ADDRESS, linear, 2);
        }
        self.translate_32(memory, linear)
    }

    /// Two levels of 32-bit entries, with 4 MiB pages up to 40 bits (PSE-36).
    fn translate_32(&self, memory: &GuestRam, linear: u64) -> Option<GuestAddress> {
        let entry = |table: u64, index: u64| -> Option<u64> {
            let slice = memory.get_slice(at(table, index, 4)?, size_of::<u32>()).ok()?;
            let entry = slice.get_atomic_ref::<AtomicU32>(0).ok()?.load(Ordering::Relaxed);
            present(u64::from(entry))
        };
        let directory = entry(self.cr3 & 0xffff_f000, linear >> 22)?;
        if directory & LARGE != 0 && self.cr4 & CR4_PSE != 0 {
            let high = (directory >> 13 & 0xff) << 32;
            return Some(GuestAddress(directory & 0xffc0_0000 | high | linear & 0x3f_ffff));
        }
        let page = entry(directory & 0xffff_f000, linear >> 12 & 0x3ff)?;
        Some(GuestAddress(page & 0xffff_f000 | linear & 0xfff))
    }
}

/// Bits above the translated ones repeat the highest of them.
fn is_canonical(linear: u64, levels: u32) -> bool {
    let unused = 64 - (12 + 9 * levels);
    let linear = linear.cast_signed();
    linear << unused >> unused == linear
}

/// Walks tables of 512 64-bit entries, `levels` of them, the topmost at `table`.
fn walk(memory: &GuestRam, mut table: u64, linear: u64, levels: u32) -> Option<GuestAddress> {
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = entry_64(memory, at(table, linear >> shift & 0x1ff, 8)?)?;
        let offset = (1 << shift) - 1;
        // 2 MiB and 1 GiB pages exist; larger ones do not.
        if level == 0 || entry & LARGE != 0 && level <= 2 {
            return Some(GuestAddress(entry & ADDRESS & !offset | linear & offset));
        }
        table = entry & ADDRESS;
    }
    None
}

/// An entry of eight bytes, in one load as the processor makes it.
fn entry_64(memory: &GuestRam, at: GuestAddress) -> Option<u64> {
    let slice = memory.get_slice(at, size_of::<u64>()).ok()?;
    present(slice.get_atomic_ref::<AtomicU64>(0).ok()?.load(Ordering::Relaxed))
}

fn present(entry: u64) -> Option<u64> {
    (entry & PRESENT != 0).then_some(entry)
}

fn at(table: u64, index: u64, size: u64) -> Option<GuestAddress> {
    table.checked_add(index.checked_mul(size)?).map(GuestAddress)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const LONG: Paging =
        Paging { cr0: CR0_PG | 1, cr3: 0x1000, cr4: CR4_PAE, efer: EFER_LMA | 1 << 8 };

    fn memory(entries: &[(u64, u64)]) -> GuestRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x10_000)]).unwrap();
        for &(at, value) in entries {
            ram.write_obj(value, GuestAddress(at)).unwrap();
        }
        ram
    }

    fn found(paging: Paging, ram: &GuestRam, linear: u64) -> Option<u64> {
        paging.translate(ram, linear).map(|gpa| gpa.0)
    }

    #[test]
    fn without_paging_linear_is_physical() {
        let ram = memory(&[]);
        assert_eq!(found(Paging::default(), &ram, 0x1_2345_6789), Some(0x2345_6789));
    }

    #[test]
    fn four_levels() {
        // Linear 0xffff_8080_4020_1abc: indices 257, 1, 1, 1.
        let linear = 0xffff_8080_4020_1abc_u64;
        let ram = memory(&[
            (0x1000 + 257 * 8, 0x2003),
            (0x2000 + 8, 0x3003),
            (0x3000 + 8, 0x4003),
            (0x4000 + 8, 0x8000_0000_0abc_d003),
        ]);
        assert_eq!(found(LONG, &ram, linear), Some(0x0abc_dabc));
        // The neighbour is not present, nor is the other half.
        assert_eq!(found(LONG, &ram, linear + 0x1000), None);
        assert_eq!(found(LONG, &ram, 0x8080_4020_1abc), None);
    }

    #[test]
    fn large_pages() {
        let ram = memory(&[
            (0x1000, 0x2003),
            (0x2000, 0x3003),
            (0x3000, 0x0060_0083),
            (0x2000 + 8, 0x4000_0083),
        ]);
        assert_eq!(found(LONG, &ram, 0x12_3456), Some(0x0072_3456));
        assert_eq!(found(LONG, &ram, 0x4012_3456), Some(0x4012_3456));
    }

    #[test]
    fn five_levels_and_canonical_addresses() {
        let five = Paging { cr4: CR4_PAE | CR4_LA57, ..LONG };
        let ram =
            memory(&[(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x0060_0083)]);
        assert_eq!(found(five, &ram, 0x1234), Some(0x0060_1234));
        assert_eq!(found(LONG, &ram, 0x0000_8000_0000_0000), None);
        assert_eq!(found(LONG, &ram, 0xffff_0000_0000_0000), None);
        assert!(is_canonical(0x00ff_ffff_ffff_ffff, 5));
        assert!(!is_canonical(0x0100_0000_0000_0000, 5));
        assert!(is_canonical(u64::MAX, 4));
    }

    #[test]
    fn pae() {
        let pae = Paging { cr0: CR0_PG | 1, cr3: 0x1020, cr4: CR4_PAE, efer: 0 };
        let ram = memory(&[
            (0x1020 + 3 * 8, 0x2001),
            (0x2000 + 2 * 8, 0x3003),
            (0x3000 + 5 * 8, 0x7003),
            (0x2000 + 3 * 8, 0x0080_0083),
        ]);
        assert_eq!(found(pae, &ram, 0xc040_5123), Some(0x7123));
        assert_eq!(found(pae, &ram, 0xc061_2345), Some(0x0081_2345));
        assert_eq!(found(pae, &ram, 0x0040_5123), None);
    }

    #[test]
    fn two_levels_of_32_bits() {
        let legacy = Paging { cr0: CR0_PG | 1, cr3: 0x1000, cr4: CR4_PSE, efer: 0 };
        let ram = memory(&[]);
        for (at, value) in [(0x1000 + 4, 0x2003u32), (0x2000 + 8, 0x5003), (0x1008, 0x0060_2083)] {
            ram.write_obj(value, GuestAddress(at)).unwrap();
        }
        assert_eq!(found(legacy, &ram, 0x0040_2abc), Some(0x5abc));
        // PSE-36: bit 13 is address bit 32.
        assert_eq!(found(legacy, &ram, 0x0081_2345), Some(0x1_0041_2345));
        // Without PSE bit 7 means nothing: the entry names a table.
        let plain = Paging { cr4: 0, ..legacy };
        assert_eq!(found(plain, &ram, 0x0081_2345), None);
    }

    #[test]
    fn tables_outside_ram_map_nothing() {
        let ram = memory(&[(0x1000, 0x000f_ffff_ffff_f003)]);
        assert_eq!(found(LONG, &ram, 0), None);
        let nowhere = Paging { cr3: u64::MAX, ..LONG };
        assert_eq!(found(nowhere, &ram, 0), None);
    }
}
