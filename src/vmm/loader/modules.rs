//! The initial RAM disk and other modules.

use super::{FileSource, LoadError};
use crate::vmm::memory::{GuestRam, PAGE_SIZE};
use std::ops::Range;

/// The most modules that are taken; Linux uses the first, Xen-aware boot
/// loaders and unikernels a handful.
pub const MAX_MODULES: usize = 64;

/// A file for the guest, with its own command line.
#[derive(Debug, Clone, Copy)]
pub struct ModuleSource<'a> {
    /// Its bytes.
    pub source: FileSource<'a>,
    /// Its command line; may be empty.
    pub cmdline: &'a str,
}

/// A module in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedModule<'a> {
    /// Guest physical address, page aligned.
    pub addr: u64,
    /// Bytes, without padding.
    pub size: u64,
    /// Its command line; may be empty.
    pub cmdline: &'a str,
}

/// Puts a module as high as possible into the free RAM `free`.
pub(crate) fn load_module<'a>(
    ram: &GuestRam,
    free: &Range<u64>,
    module: &ModuleSource<'a>,
) -> Result<LoadedModule<'a>, LoadError> {
    let room = free.end.saturating_sub(free.start);
    let image = module.source.open(room)?;
    let size = image.len();
    if size == 0 {
        return Err(LoadError::Empty);
    }
    let addr = free
        .end
        .checked_sub(size)
        .map(|addr| addr & !(PAGE_SIZE - 1))
        .filter(|addr| *addr >= free.start)
        .ok_or(LoadError::ModuleTooLarge { size, free: room })?;
    image.copy_to_guest(0, size, ram, addr)?;
    Ok(LoadedModule { addr, size, cmdline: module.cmdline })
}
