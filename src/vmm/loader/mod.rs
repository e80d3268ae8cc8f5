//! Puts a kernel and its modules into guest memory, the PVH way.
//!
//! A kernel is a PVH ELF: 32 or 64 bits, loaded by physical address, entered
//! where its Xen ELF note `PHYS32_ENTRY` says. A bzImage is a wrapper around
//! one: its compressed payload is unpacked here, on the host, so that neither
//! the guest's own decompressor nor any real-mode code runs.
//!
//! Guest memory must be fresh (all zero): zeros are not written again.

mod bzimage;
mod code;
mod elf;
mod error;
mod in_place;
mod modules;
mod payload;
mod source;
pub mod start_info;
#[cfg(test)]
mod tests;

pub use code::KernelCode;
pub use error::LoadError;
pub(crate) use modules::load_module;
pub use modules::{LoadedModule, MAX_MODULES, ModuleSource};
pub use payload::Compression;
pub use source::FileSource;

use crate::vmm::memory::{GuestRam, MemoryLayout};
use payload::Payload;
use source::Image;
use std::borrow::Cow;

/// What kind of file a kernel came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// A PVH ELF, such as a vmlinux.
    Elf,
    /// A Linux bzImage, with the compression of its payload.
    BzImage(Compression),
}

/// One loaded segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub paddr: u64,
    /// Bytes that came from the file.
    pub file_size: u64,
    /// Bytes in memory; those beyond `file_size` are zero.
    pub mem_size: u64,
    /// Whether it holds code.
    pub executable: bool,
}

/// What the kernel says of itself in its Xen ELF notes (public `elfnote.h`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XenNotes {
    /// `XEN_ELFNOTE_PHYS32_ENTRY`.
    pub phys32_entry: Option<u64>,
    /// Whether there is a `XEN_ELFNOTE_HYPERCALL_PAGE`.
    pub hypercall_page: bool,
    /// `XEN_ELFNOTE_GUEST_OS`, such as "linux".
    pub guest_os: Option<String>,
    /// `XEN_ELFNOTE_GUEST_VERSION`, such as "2.6".
    pub guest_version: Option<String>,
    /// `XEN_ELFNOTE_XEN_VERSION`, such as "xen-3.0".
    pub xen_version: Option<String>,
    /// `XEN_ELFNOTE_LOADER`, such as "generic".
    pub loader: Option<String>,
}

/// A kernel in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Guest physical address to enter, in 32-bit protected mode.
    pub entry: u32,
    /// Lowest address of any segment.
    pub start: u64,
    /// First address after the last segment, its zeros included.
    pub end: u64,
    /// What kind of file it was.
    pub kind: KernelKind,
    /// Its segments, in file order.
    pub segments: Vec<Segment>,
    /// Its Xen notes.
    pub notes: XenNotes,
    /// Where its code is.
    pub code: KernelCode,
}

/// Loads a bzImage, a vmlinux or any PVH ELF into fresh guest memory: all zero,
/// and until this returns nothing else, no vCPU and no thread, uses it.
///
/// On an error, parts of it may have been written: throw the memory away.
pub fn load_kernel(
    ram: &GuestRam,
    layout: &MemoryLayout,
    source: &FileSource<'_>,
) -> Result<LoadedKernel, LoadError> {
    let image = source.open(layout.size())?;
    let head = image.head(bzimage::HEADER_END)?;
    if head.starts_with(&elf::MAGIC) {
        return elf::load(ram, layout, &image, KernelKind::Elf);
    }
    let Some(range) = bzimage::payload_range(&head, image.len())? else {
        return Err(LoadError::not_a_kernel(&head));
    };
    let packed = image.range("bzImage", range.start, range.end - range.start)?;
    // More than all of RAM cannot be loaded into it.
    let payload = Payload::open(&packed, layout.size())?;
    if let Some(kernel) = in_place::load(ram, layout, &payload)? {
        return Ok(kernel);
    }
    let vmlinux = payload.unpack()?;
    let kind = KernelKind::BzImage(payload.compression());
    drop(packed);
    elf::load(ram, layout, &Image::Bytes(Cow::Owned(vmlinux)), kind)
}
