//! What the VMM tells a PVH guest: command line, memory map, and the CPUs of
//! the ACPI MADT (`public/arch-x86/hvm/start_info.h`, ACPI 6.5 section 5.2.12).

#![expect(unsafe_code, reason = "reads tables at physical addresses")]

use xen_abi::hvm_start_info::{
    HvmMemmapTableEntry, HvmStartInfo, XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE,
};
use zerocopy::FromBytes;

use crate::smp::MAX_CPUS;

const CMDLINE_BYTES: usize = 512;
const MAX_TABLES: u64 = 64;
const MAX_MEMMAP: u64 = 128;
const PAGE: u64 = 4096;
/// First candidate page for the trampoline; the real-mode vectors lie below.
const LOW_FIRST: u32 = 8;
const LOW_END: u32 = 0x9f;

/// The parsed start info.
#[derive(Debug)]
pub struct Machine {
    cmdline: [u8; CMDLINE_BYTES],
    cmdline_length: usize,
    apic_ids: [u32; MAX_CPUS],
    apic_count: usize,
    trampoline: Option<u32>,
}

impl Machine {
    /// Reads everything that the guest will need, so that later nothing depends
    /// on the VMM's tables. `address` is EBX at entry.
    #[must_use]
    pub fn read(address: u64) -> Self {
        let mut machine = Self {
            cmdline: [0; CMDLINE_BYTES],
            cmdline_length: 0,
            apic_ids: [0; MAX_CPUS],
            apic_count: 0,
            trampoline: Some(LOW_FIRST * 4096),
        };
        let info: HvmStartInfo = physical(address);
        if info.magic != XEN_HVM_START_MAGIC_VALUE {
            return machine;
        }
        if info.cmdline_paddr != 0 {
            for slot in &mut machine.cmdline {
                let byte: u8 = physical(info.cmdline_paddr + machine.cmdline_length as u64);
                if byte == 0 {
                    break;
                }
                *slot = byte;
                machine.cmdline_length += 1;
            }
        }
        if info.rsdp_paddr != 0 {
            machine.read_acpi(info.rsdp_paddr);
        }
        machine.trampoline = find_low_page(&info, address);
        machine
    }

    /// The command line, up to 512 bytes of it, or "" if it is not UTF-8.
    #[must_use]
    pub fn cmdline(&self) -> &str {
        let bytes = self.cmdline.get(..self.cmdline_length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or("")
    }

    /// The text after `name=` on the command line.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.cmdline()
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// The number after `name=`, decimal or 0x-hexadecimal, or `default` where
    /// there is none that fits.
    #[must_use]
    pub fn number(&self, name: &str, default: u64) -> u64 {
        let Some(text) = self.text(name) else { return default };
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        parsed.unwrap_or(default)
    }

    /// APIC ids of the enabled CPUs in the MADT's order; empty without ACPI.
    #[must_use]
    pub fn apic_ids(&self) -> &[u32] {
        self.apic_ids.get(..self.apic_count).unwrap_or_default()
    }

    /// A page of RAM below 1 MiB that none of the start info touches.
    #[must_use]
    pub const fn trampoline_page(&self) -> Option<u32> {
        self.trampoline
    }

    fn read_acpi(&mut self, rsdp: u64) {
        let signature: [u8; 8] = physical(rsdp);
        if &signature != b"RSD PTR " {
            return;
        }
        let revision: u8 = physical(rsdp + 15);
        let (root, entry_bytes) = if revision >= 2 {
            (physical::<u64>(rsdp + 24), 8)
        } else {
            (u64::from(physical::<u32>(rsdp + 16)), 4)
        };
        let length = u64::from(physical::<u32>(root + 4)).saturating_sub(36);
        for i in 0..(length / entry_bytes).min(MAX_TABLES) {
            let at = root + 36 + i * entry_bytes;
            let table =
                if entry_bytes == 8 { physical::<u64>(at) } else { u64::from(physical::<u32>(at)) };
            if &physical::<[u8; 4]>(table) == b"APIC" {
                self.read_madt(table);
            }
        }
    }

    fn read_madt(&mut self, madt: u64) {
        let end = madt + u64::from(physical::<u32>(madt + 4));
        let mut at = madt + 44;
        while at + 2 <= end {
            let [kind, length]: [u8; 2] = physical(at);
            if length < 2 {
                break;
            }
            // Flags bit 0: enabled.
            match kind {
                0 if physical::<u32>(at + 4) & 1 != 0 => {
                    self.add_cpu(u32::from(physical::<u8>(at + 3)));
                }
                9 if physical::<u32>(at + 8) & 1 != 0 => self.add_cpu(physical(at + 4)),
                _ => {}
            }
            at += u64::from(length);
        }
    }

    fn add_cpu(&mut self, apic_id: u32) {
        if let Some(slot) = self.apic_ids.get_mut(self.apic_count) {
            *slot = apic_id;
            self.apic_count += 1;
        }
    }
}

fn find_low_page(info: &HvmStartInfo, info_address: u64) -> Option<u32> {
    let taken = [
        (info_address, size_of::<HvmStartInfo>() as u64),
        (info.cmdline_paddr, PAGE),
        (info.rsdp_paddr, PAGE),
        (info.modlist_paddr, PAGE),
        (info.memmap_paddr, PAGE),
    ];
    let entries = u64::from(info.memmap_entries).min(MAX_MEMMAP);
    let is_ram = |page: u64| {
        entries == 0
            || (0..entries).any(|i| {
                let entry: HvmMemmapTableEntry =
                    physical(info.memmap_paddr + i * size_of::<HvmMemmapTableEntry>() as u64);
                entry.type_ == XEN_HVM_MEMMAP_TYPE_RAM
                    && entry.addr <= page
                    && page + PAGE <= entry.addr.saturating_add(entry.size)
            })
    };
    (LOW_FIRST..LOW_END).map(|number| number * 4096).find(|&page| {
        let page = u64::from(page);
        is_ram(page)
            && taken.iter().all(|&(start, size)| start + size <= page || page + PAGE <= start)
    })
}

/// Reads a value at a physical address below 4 GiB; zero bytes elsewhere, which
/// no table here takes for an entry.
fn physical<T: FromBytes>(address: u64) -> T {
    let address = match usize::try_from(address) {
        Ok(address @ 1..0xffff_0000) => address,
        _ => return T::new_zeroed(),
    };
    let pointer = core::ptr::without_provenance::<T>(address);
    // SAFETY: the first 4 GiB are mapped one to one, any bytes are a valid `T`,
    // and the VMM's tables do not overlap the image. Not aligned: ACPI packs.
    unsafe { pointer.read_unaligned() }
}
