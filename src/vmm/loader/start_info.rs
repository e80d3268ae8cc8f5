//! `hvm_start_info` version 1 (public `arch-x86/hvm/start_info.h`): what the
//! guest's first register points at.
//!
//! One blob, as Xen's domain builder makes it: the structure, the module list,
//! the memory map, the command lines.

use super::{LoadError, LoadedModule};
use crate::vmm::memory::{GuestRam, MemoryMapEntry};
use vm_memory::{Bytes, GuestAddress};
use xen_abi::hvm_start_info::{
    HvmMemmapTableEntry, HvmModlistEntry, HvmStartInfo, XEN_HVM_START_MAGIC_VALUE,
};
use zerocopy::IntoBytes;

/// The longest command line in bytes, without its NUL: Linux's
/// COMMAND_LINE_SIZE on x86 is 2048 with it.
pub const MAX_COMMAND_LINE: usize = 2047;

/// What the guest is told. The command lines have passed
/// [`check_command_line`].
#[derive(Debug, Clone, Copy)]
pub struct StartInfo<'a> {
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Modules in order; the first is the initial RAM disk.
    pub modules: &'a [LoadedModule<'a>],
    /// The memory map.
    pub memory_map: &'a [MemoryMapEntry],
    /// Physical address of the ACPI RSDP; 0 for none.
    pub rsdp: u64,
}

/// Refuses a command line that the guest would cut short.
pub fn check_command_line(cmdline: &str) -> Result<(), LoadError> {
    if let Some(at) = cmdline.bytes().position(|b| b == 0) {
        return Err(LoadError::CommandLineNul { at });
    }
    if cmdline.len() > MAX_COMMAND_LINE {
        return Err(LoadError::CommandLineTooLong { len: cmdline.len() });
    }
    Ok(())
}

/// Bytes that a blob takes with these parts.
pub(crate) fn size<'a>(
    cmdline: &str,
    module_cmdlines: impl Iterator<Item = &'a str>,
    memory_map: &[MemoryMapEntry],
) -> u64 {
    let fixed = size_of::<HvmStartInfo>()
        + size_of_val(memory_map) / size_of::<MemoryMapEntry>() * size_of::<HvmMemmapTableEntry>()
        + cmdline.len()
        + 1;
    let module = |line: &str| size_of::<HvmModlistEntry>() + line.len() + 1;
    (fixed + module_cmdlines.map(module).sum::<usize>()) as u64
}

impl StartInfo<'_> {
    /// The blob as it lies at `addr`.
    fn blob(&self, addr: u64) -> Vec<u8> {
        let modlist = addr + size_of::<HvmStartInfo>() as u64;
        let memmap = modlist + (self.modules.len() * size_of::<HvmModlistEntry>()) as u64;
        let text = memmap + (self.memory_map.len() * size_of::<HvmMemmapTableEntry>()) as u64;
        let mut lines = Vec::new();
        let mut line_at = |line: &str| {
            let at = text + lines.len() as u64;
            lines.extend_from_slice(line.as_bytes());
            lines.push(0);
            at
        };
        let info = HvmStartInfo {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: 1,
            flags: 0,
            nr_modules: count(self.modules.len()),
            modlist_paddr: if self.modules.is_empty() { 0 } else { modlist },
            cmdline_paddr: line_at(self.cmdline),
            rsdp_paddr: self.rsdp,
            memmap_paddr: memmap,
            memmap_entries: count(self.memory_map.len()),
            reserved: 0,
        };
        let mut blob = info.as_bytes().to_vec();
        for module in self.modules {
            let cmdline_paddr = match module.cmdline {
                "" => 0,
                line => line_at(line),
            };
            let entry = HvmModlistEntry {
                paddr: module.addr,
                size: module.size,
                cmdline_paddr,
                reserved: 0,
            };
            blob.extend_from_slice(entry.as_bytes());
        }
        for range in self.memory_map {
            let entry = HvmMemmapTableEntry {
                addr: range.addr,
                size: range.size,
                type_: range.kind,
                reserved: 0,
            };
            blob.extend_from_slice(entry.as_bytes());
        }
        blob.append(&mut lines);
        blob
    }

    /// Writes it at `addr`, which must be RAM below 4 GiB with room for
    /// it.
    pub fn write(&self, ram: &GuestRam, addr: u64) -> Result<(), LoadError> {
        Ok(ram.write_slice(&self.blob(addr), GuestAddress(addr))?)
    }
}

/// Lossless: modules and ranges are a handful.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
