//! Guest memory: where RAM lies, what the guest is told of it, how it is mapped.
//!
//! ```text
//! 0x0000_0000 ..            RAM, up to 3 GiB
//! 0x000A_0000 ..0x0010_0000 reserved: no VGA and no BIOS; the last 128 KiB hold
//!                           the ACPI tables (`ACPI_START`)
//! 0xC000_0000 ..            hole: nothing of RAM
//! 0xFEC0_0000               IOAPIC
//! 0xFEE0_0000               LAPIC
//! 0xFEFF_0000 .. 8 pages    reserved, RAM-backed: pages of our own devices
//! 0xFEFF_8000 .. 8 pages    reserved, RAM-backed: Xen's special pages, at the
//!                           frames that Xen's own domain builder gives them
//! 0xFFFB_C000 .. 4 pages    KVM's identity map and TSS, never backed by us
//! 0x1_0000_0000 ..          the rest of RAM
//! ```
//!
//! The hole is a plain gap: an access there leaves the guest as MMIO.
#![expect(unsafe_code, reason = "advice on, and bytes of, the mappings that this module made")]

mod size;
#[cfg(test)]
mod tests;

pub use size::{MemorySizeError, parse_memory_size};

use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use xen_abi::memory::{E820_RAM, E820_RESERVED};

pub use crate::pages::GuestRam;
pub use crate::xen::MemoryMapEntry;

/// Size of a guest page, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// End of the RAM below 4 GiB, for guests that have that much.
pub const LOW_RAM_LIMIT: u64 = 0xC000_0000;
/// Start of the RAM that does not fit below [`LOW_RAM_LIMIT`].
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Start of the area of legacy devices and firmware, which is never RAM.
pub const LEGACY_START: u64 = 0xA_0000;
/// End of the area of legacy devices and firmware.
pub const LEGACY_END: u64 = 0x10_0000;
/// Where the ACPI tables lie, the RSDP first. A guest that scans for it, as
/// on a PC, finds it here too.
pub const ACPI_START: u64 = 0xE_0000;
/// Room for the ACPI tables, in bytes.
pub const ACPI_SIZE: u64 = LEGACY_END - ACPI_START;
/// Address of the IOAPIC's registers.
pub const IOAPIC_ADDR: u32 = 0xFEC0_0000;
/// Address of the LAPIC's registers.
pub const LAPIC_ADDR: u32 = 0xFEE0_0000;
/// First of [`DEVICE_PAGES`] reserved pages for devices of our own, such as a
/// VMClock.
pub const DEVICE_PAGES_START: u64 = 0xFEFF_0000;
/// Number of pages at [`DEVICE_PAGES_START`].
pub const DEVICE_PAGES: u64 = 8;
/// First of Xen's special pages. Xen's domain builder ends them below frame
/// 0xff000 and has eight of them.
pub const XEN_SPECIAL_START: u64 = 0xFEFF_8000;
/// Number of Xen's special pages.
pub const XEN_SPECIAL_PAGES: u64 = 8;
/// Frame of the xenstore ring: special page 4.
pub const XENSTORE_PFN: u64 = (XEN_SPECIAL_START >> 12) + 4;
/// Frame of the identity page table (`HVM_PARAM_IDENT_PT`): special page 6.
pub const IDENT_PT_PFN: u64 = (XEN_SPECIAL_START >> 12) + 6;
/// Frame of the console ring: special page 7.
pub const CONSOLE_PFN: u64 = (XEN_SPECIAL_START >> 12) + 7;
/// Where KVM may keep the page table of a guest without paging
/// (`KVM_SET_IDENTITY_MAP_ADDR`): one page, outside every region of ours.
pub const KVM_IDENTITY_MAP_ADDR: u64 = 0xFFFB_C000;
/// Where KVM may keep its real-mode TSS (`KVM_SET_TSS_ADDR`): three pages.
pub const KVM_TSS_ADDR: u64 = 0xFFFB_D000;
/// The largest guest, in bytes: 1 TiB.
pub const MAX_RAM: u64 = 1 << 40;

/// Why guest memory could not be made.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is zero.
    #[error("memory size is 0: give the guest RAM, for example 512M")]
    Zero,
    /// The size is not a whole number of pages.
    #[error("memory size {0} is not a multiple of 4096 bytes: use a suffix such as 512M")]
    NotPageMultiple(u64),
    /// Too small for the tables below 1 MiB.
    #[error("memory size {0} bytes is below 1 MiB: give the guest at least 1M, Linux 64M or more")]
    TooSmall(u64),
    /// Larger than [`MAX_RAM`].
    #[error("memory size {} MiB is above the limit of 1 TiB: ask for 1T or less", .0 >> 20)]
    TooLarge(u64),
    /// Larger than the host's memory.
    #[error(
        "memory size {} MiB is more than this host's {} MiB: ask for less",
        .size >> 20, .host >> 20
    )]
    BeyondHost {
        /// Asked for, in bytes.
        size: u64,
        /// The host's MemTotal, in bytes.
        host: u64,
    },
    /// The mapping failed.
    #[error("cannot map {} MiB of guest memory: {error}; ask for less", .size >> 20)]
    Map {
        /// Asked for, in bytes.
        size: u64,
        /// What the system answered.
        error: String,
    },
}

/// How guest memory is mapped.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryOptions {
    /// Ask for transparent huge pages (`MADV_HUGEPAGE`). Fewer faults while the
    /// guest first touches its RAM, but up to 2 MiB resident for each touch.
    pub huge_pages: bool,
}

/// Where the RAM of one guest lies. A pure function of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLayout {
    size: u64,
}

impl MemoryLayout {
    /// Layout of a guest with `size` bytes of RAM: a multiple of 4 KiB, from
    /// 1 MiB to 1 TiB. The reserved pages come on top of it.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        match size {
            0 => Err(MemoryError::Zero),
            _ if !size.is_multiple_of(PAGE_SIZE) => Err(MemoryError::NotPageMultiple(size)),
            _ if size < LEGACY_END => Err(MemoryError::TooSmall(size)),
            _ if size > MAX_RAM => Err(MemoryError::TooLarge(size)),
            _ => Ok(Self { size }),
        }
    }

    /// As [`new`](Self::new), and refuses more than the host has: `host` is its
    /// memory in bytes, see [`host_memory`].
    pub fn for_host(size: u64, host: u64) -> Result<Self, MemoryError> {
        let layout = Self::new(size)?;
        if size > host {
            return Err(MemoryError::BeyondHost { size, host });
        }
        Ok(layout)
    }

    /// Bytes of RAM, the 384 KiB of the legacy area included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// End of the RAM below 4 GiB.
    pub fn low_ram_end(&self) -> u64 {
        self.size.min(LOW_RAM_LIMIT)
    }

    /// End of the RAM above 4 GiB, or `None` without any.
    pub fn high_ram_end(&self) -> Option<u64> {
        let high = self.size.saturating_sub(LOW_RAM_LIMIT);
        (high > 0).then_some(HIGH_RAM_START + high)
    }

    /// What the guest is told, in rising order.
    pub fn memory_map(&self) -> Vec<MemoryMapEntry> {
        let range = |addr, end: u64, kind| MemoryMapEntry { addr, size: end - addr, kind };
        let reserved_end = XEN_SPECIAL_START + XEN_SPECIAL_PAGES * PAGE_SIZE;
        let mut map =
            vec![range(0, LEGACY_START, E820_RAM), range(LEGACY_START, LEGACY_END, E820_RESERVED)];
        if self.low_ram_end() > LEGACY_END {
            map.push(range(LEGACY_END, self.low_ram_end(), E820_RAM));
        }
        map.push(range(DEVICE_PAGES_START, reserved_end, E820_RESERVED));
        if let Some(end) = self.high_ram_end() {
            map.push(range(HIGH_RAM_START, end, E820_RAM));
        }
        map
    }

    /// The ranges that are backed by host memory, in rising order: one KVM
    /// memory slot each.
    pub fn regions(&self) -> Vec<(GuestAddress, usize)> {
        let mut regions = vec![(0, self.low_ram_end())];
        regions.push((DEVICE_PAGES_START, (DEVICE_PAGES + XEN_SPECIAL_PAGES) * PAGE_SIZE));
        if let Some(end) = self.high_ram_end() {
            regions.push((HIGH_RAM_START, end - HIGH_RAM_START));
        }
        let bytes = |size| usize::try_from(size).expect("x86-64 has a 64-bit usize");
        regions.into_iter().map(|(addr, size)| (GuestAddress(addr), bytes(size))).collect()
    }

    /// Maps the guest's memory: anonymous, private, no swap reserved, so that
    /// only what is touched becomes resident. It reads as zero.
    pub fn create(&self, options: MemoryOptions) -> Result<GuestRam, MemoryError> {
        let map_error = |error: String| MemoryError::Map { size: self.size, error };
        let ram = GuestRam::from_ranges(&self.regions()).map_err(|e| map_error(e.to_string()))?;
        if options.huge_pages {
            advise_huge_pages(&ram).map_err(|e| map_error(e.to_string()))?;
        }
        Ok(ram)
    }
}

fn advise_huge_pages(ram: &GuestRam) -> std::io::Result<()> {
    for region in ram.iter() {
        let start =
            region.get_host_address(MemoryRegionAddress(0)).map_err(std::io::Error::other)?;
        let len = usize::try_from(region.len()).map_err(std::io::Error::other)?;
        // SAFETY: [start, start + len) is one live mapping, owned by `region`
        // for longer than this call, and the advice changes no contents.
        let failed = unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) } != 0;
        let error = std::io::Error::last_os_error();
        // A host built without huge pages answers EINVAL; the guest runs all the same.
        if failed && error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Ok(())
}

/// The RAM below 3 GiB as plain bytes: its index is the guest address.
///
/// # Safety
/// While the slice lives nothing else may use this memory: no vCPU runs, no
/// other thread or reference reads or writes it.
#[expect(clippy::mut_from_ref, reason = "regions hand out their mapping; the caller is alone")]
pub(super) unsafe fn low_ram_mut(ram: &GuestRam) -> Option<&mut [u8]> {
    let region = ram.find_region(GuestAddress(0))?;
    let start = region.get_host_address(MemoryRegionAddress(0)).ok()?;
    let len = usize::try_from(region.len()).ok()?;
    // SAFETY: one live, readable and writable mapping of `len` bytes, owned by
    // `region` for longer than the borrow of `ram`; the caller is alone with it.
    Some(unsafe { std::slice::from_raw_parts_mut(start, len) })
}

/// Marks bytes of the RAM below 3 GiB that were written through
/// [`low_ram_mut`].
pub(super) fn mark_dirty(ram: &GuestRam, start: u64, size: usize) {
    let region = ram.find_region(GuestAddress(0));
    if let (Some(region), Ok(start)) = (region, usize::try_from(start)) {
        region.bitmap().mark_dirty(start, size);
    }
}

/// Makes pages of the RAM below 3 GiB resident, from `start` up, until `stop`.
/// Contents stay as they are. A host that cannot (Linux before 5.14) does
/// nothing.
pub(super) fn populate(ram: &GuestRam, start: u64, size: usize, stop: &AtomicBool) {
    /// A huge page: what is populated in one piece.
    const PIECE: u64 = 2 << 20;
    let Some(region) = ram.find_region(GuestAddress(0)) else { return };
    let end = start.saturating_add(size as u64).next_multiple_of(PAGE_SIZE).min(region.len());
    let mut at = start & !(PAGE_SIZE - 1);
    while at < end && !stop.load(Ordering::Relaxed) {
        let next = (at + 1).next_multiple_of(PIECE).min(end);
        let Ok(host) = region.get_host_address(MemoryRegionAddress(at)) else { return };
        let Ok(len) = usize::try_from(next - at) else { return };
        // SAFETY: [host, host + len) lies in one live mapping, owned by `region`
        // for longer than this call, and no contents change.
        if unsafe { libc::madvise(host.cast(), len, libc::MADV_POPULATE_WRITE) } != 0 {
            return;
        }
        at = next;
    }
}

/// This host's memory in bytes: MemTotal of /proc/meminfo. `None` where /proc
/// cannot be read; the caller then has no limit to check.
pub fn host_memory() -> Option<u64> {
    parse_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
