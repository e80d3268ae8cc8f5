//! Guest memory with everything in it that the guest boots from.

use std::time::Instant;

use super::acpi::AcpiConfig;
use super::boot::{BootConfig, prepare_boot};
use super::config::{Initrd, Kernel, MachineConfig, MachineError};
use super::hypercall_sites;
use super::loader::{FileSource, KernelCode, LoadedKernel, ModuleSource};
use super::memory::{self, MemoryLayout, MemoryOptions};
use super::vcpu::HYPERCALL_PORT;
use super::vmclock_device;
use crate::pages::GuestRam;
use crate::xen::MemoryMapEntry;

pub(super) fn check_cpus(cpus: u32, most: u32) -> Result<(), MachineError> {
    if (1..=most).contains(&cpus) {
        return Ok(());
    }
    Err(MachineError::Cpus { cpus, most })
}

pub(super) fn make_memory(size: u64) -> Result<(MemoryLayout, GuestRam), MachineError> {
    let layout = match memory::host_memory() {
        Some(host) => MemoryLayout::for_host(size, host)?,
        None => MemoryLayout::new(size)?,
    };
    let ram = layout.create(MemoryOptions::default())?;
    Ok((layout, ram))
}

/// What is left to do with a loaded guest.
pub(super) struct Loaded {
    pub entry: u32,
    pub start_info: u32,
    pub memory_map: Vec<MemoryMapEntry>,
    pub code: KernelCode,
    /// It makes its hypercalls by VMCALL and VMMCALL, or none at all.
    needs_sites: bool,
}

pub(super) fn load(
    ram: &GuestRam,
    layout: &MemoryLayout,
    config: &MachineConfig,
) -> Result<Loaded, MachineError> {
    let modules: Vec<ModuleSource<'_>> = config
        .modules
        .iter()
        .map(|(path, cmdline)| ModuleSource { source: FileSource::Path(path), cmdline })
        .collect();
    let kernel = match &config.kernel {
        Kernel::File(path) => FileSource::Path(path),
        Kernel::Embedded(bytes) => FileSource::Bytes(bytes),
    };
    let boot = BootConfig {
        kernel,
        initrd: config.initrd.as_ref().map(Initrd::source),
        modules: &modules,
        cmdline: &config.cmdline,
        acpi: AcpiConfig { cpus: config.cpus, devices: vmclock_device::aml(config.vmclock) },
    };
    let boot = prepare_boot(ram, layout, &boot)?;
    let LoadedKernel { notes, code, .. } = boot.kernel;
    // Other guests say nothing of how they make theirs.
    let needs_sites = notes.guest_os.as_deref() == Some("linux") && !notes.hypercall_page;
    Ok(Loaded {
        entry: boot.entry,
        start_info: boot.start_info,
        memory_map: boot.memory_map,
        code,
        needs_sites,
    })
}

/// Makes the kernel's direct hypercalls port output. Returns how many it has.
pub(super) fn rewrite_hypercalls(
    ram: &GuestRam,
    boot: &Loaded,
    kernel: &Kernel,
) -> Result<usize, MachineError> {
    let began = Instant::now();
    let done = hypercall_sites::rewrite(ram, &boot.code, HYPERCALL_PORT)?;
    tracing::debug!(sites = done.sites, unsure = done.unsure, took = ?began.elapsed(),
        "direct hypercalls are port output now");
    if done.sites == 0 && boot.needs_sites {
        let kernel = match kernel {
            Kernel::File(path) => path.display().to_string(),
            Kernel::Embedded(_) => "(built in)".to_owned(),
        };
        return Err(MachineError::NoHypercalls { kernel });
    }
    Ok(done.sites)
}

/// Loads what `config` boots into memory that is then thrown away: whether it is
/// a kernel, and fits, is known before anything runs.
///
/// # Errors
/// As `Machine::new`, as far as files and memory are concerned.
pub fn check_boot(config: &MachineConfig) -> Result<(), MachineError> {
    let (layout, ram) = make_memory(config.memory)?;
    load(&ram, &layout, config).map(drop)
}
