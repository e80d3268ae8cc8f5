//! From files to a machine that can start: everything a PVH guest finds in its
//! memory, and the registers that it is entered with.
//!
//! Memory, from low to high: kernel, start info on the next page, free RAM,
//! modules, end of the RAM below 4 GiB.

mod registers;
#[cfg(test)]
mod tests;

pub use registers::{PVH_MSRS, pvh_regs, pvh_sregs};

use crate::vmm::acpi::{self, AcpiConfig, AcpiError};
use crate::vmm::loader::start_info::{self, StartInfo, check_command_line};
use crate::vmm::loader::{
    FileSource, LoadError, LoadedKernel, LoadedModule, MAX_MODULES, ModuleSource, load_kernel,
    load_module,
};
use crate::vmm::memory::{GuestRam, HIGH_RAM_START, MemoryLayout, MemoryMapEntry, PAGE_SIZE};
use std::ops::Range;
use thiserror::Error;
use xen_abi::memory::E820_RAM;

/// What to boot.
#[derive(Clone, Copy)]
pub struct BootConfig<'a> {
    /// A bzImage, a vmlinux or any PVH ELF.
    pub kernel: FileSource<'a>,
    /// The initial RAM disk: becomes the first module.
    pub initrd: Option<FileSource<'a>>,
    /// More modules, each with its own command line.
    pub modules: &'a [ModuleSource<'a>],
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// CPUs and devices that ACPI tells of.
    pub acpi: AcpiConfig<'a>,
}

/// A guest that is ready to be entered.
#[derive(Debug, Clone)]
pub struct BootState<'a> {
    /// Address to enter ([`pvh_regs`]).
    pub entry: u32,
    /// Address of `hvm_start_info` ([`pvh_regs`]).
    pub start_info: u32,
    /// Address of the ACPI RSDP.
    pub rsdp: u64,
    /// The kernel.
    pub kernel: LoadedKernel,
    /// Modules in order, the initial RAM disk first.
    pub modules: Vec<LoadedModule<'a>>,
    /// What the guest was told of its memory; XENMEM_memory_map must say the same.
    pub memory_map: Vec<MemoryMapEntry>,
}

/// Why a guest could not be prepared.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel.
    #[error("kernel {name}: {error}")]
    Kernel {
        /// Its file name.
        name: String,
        /// What is wrong.
        error: LoadError,
    },
    /// The initial RAM disk or a module.
    #[error("module {name}: {error}")]
    Module {
        /// Its file name.
        name: String,
        /// What is wrong.
        error: LoadError,
    },
    /// A command line, or the start info as a whole.
    #[error("{0}")]
    StartInfo(LoadError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
}

/// Loads everything into fresh guest memory, which `layout` describes.
///
/// On an error, parts of it may have been written: throw the memory away.
pub fn prepare_boot<'a>(
    ram: &GuestRam,
    layout: &MemoryLayout,
    config: &BootConfig<'a>,
) -> Result<BootState<'a>, BootError> {
    let sources = module_sources(config)?;
    let memory_map = layout.memory_map();
    let kernel = load_kernel(ram, layout, &config.kernel)
        .map_err(|error| BootError::Kernel { name: config.kernel.name().into_owned(), error })?;
    let info_size =
        start_info::size(config.cmdline, sources.iter().map(|m| m.cmdline), &memory_map);
    let info = place_start_info(layout, kernel.end, info_size)?;
    let modules = load_all(ram, layout, info.end, &sources)?;
    let rsdp = acpi::build(ram, &config.acpi)?;
    let contents =
        StartInfo { cmdline: config.cmdline, modules: &modules, memory_map: &memory_map, rsdp };
    contents.write(ram, info.start).map_err(BootError::StartInfo)?;
    let start_info = u32::try_from(info.start).expect("placed below 4 GiB");
    Ok(BootState { entry: kernel.entry, start_info, rsdp, kernel, modules, memory_map })
}

/// The initial RAM disk and the modules, their command lines checked.
fn module_sources<'a>(config: &BootConfig<'a>) -> Result<Vec<ModuleSource<'a>>, BootError> {
    let initrd = config.initrd.map(|source| ModuleSource { source, cmdline: "" });
    let sources: Vec<_> = initrd.into_iter().chain(config.modules.iter().copied()).collect();
    if sources.len() > MAX_MODULES {
        return Err(BootError::StartInfo(LoadError::TooManyModules(sources.len())));
    }
    check_command_line(config.cmdline).map_err(BootError::StartInfo)?;
    for module in &sources {
        check_command_line(module.cmdline).map_err(|error| BootError::Module {
            name: module.source.name().into_owned(),
            error,
        })?;
    }
    Ok(sources)
}

/// RAM below 4 GiB, in rising order.
fn low_ram(layout: &MemoryLayout) -> impl DoubleEndedIterator<Item = Range<u64>> {
    let ram = |e: &MemoryMapEntry| e.kind == E820_RAM && e.addr < HIGH_RAM_START;
    layout.memory_map().into_iter().filter(ram).map(|e| e.addr..e.end())
}

/// The first page after the kernel, as Xen's domain builder places it.
fn place_start_info(
    layout: &MemoryLayout,
    kernel_end: u64,
    size: u64,
) -> Result<Range<u64>, BootError> {
    let first = kernel_end.next_multiple_of(PAGE_SIZE);
    low_ram(layout)
        .map(|range| range.start.max(first)..range.end)
        .find(|range| range.start.saturating_add(size) <= range.end)
        .map(|range| range.start..range.start + size)
        .ok_or(BootError::StartInfo(LoadError::KernelTooLarge {
            end: first.saturating_add(size),
            ram_end: layout.low_ram_end(),
        }))
}

/// Each module below the one before it, none below `floor`.
fn load_all<'a>(
    ram: &GuestRam,
    layout: &MemoryLayout,
    floor: u64,
    sources: &[ModuleSource<'a>],
) -> Result<Vec<LoadedModule<'a>>, BootError> {
    let mut free = low_ram(layout).next_back().unwrap_or(0..0);
    free.start = free.start.max(floor);
    let mut modules = Vec::with_capacity(sources.len());
    for source in sources {
        let module = load_module(ram, &free, source).map_err(|error| BootError::Module {
            name: source.source.name().into_owned(),
            error,
        })?;
        free.end = module.addr;
        modules.push(module);
    }
    Ok(modules)
}
