//! A saved guest as it is read, before there is a machine for it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestRegionMmap};

use super::config::MachineError;
use super::load::{check_cpus, make_memory};
use super::memory::PAGE_SIZE;
use super::save::{MachineState, SerialSection, VcpuSection, VmClockSection};
use crate::kvm::{IrqchipState, PlatformState};
use crate::pages::GuestRam;
use crate::state::{Section, StateError, StateReader, StoppedClock, Tag, read_pages, tag};
use crate::xen::{DomainState, HandoverState, MAX_VCPUS, XenstoreState};

/// A saved guest, read whole: its memory, and everything else of it.
pub struct SavedGuest {
    pub(super) machine: MachineState,
    pub(super) ram: GuestRam,
    /// Regions that it began with.
    pub(super) ram_regions: usize,
    pub(super) domain: DomainState,
    pub(super) vcpus: Vec<VcpuSection>,
    pub(super) irqchip: IrqchipState,
    pub(super) platform: PlatformState,
    pub(super) serial: SerialSection,
    pub(super) vmclock: Option<VmClockSection>,
    pub(super) handover: Option<HandoverState>,
    pub(super) store: Option<XenstoreState>,
    pub(super) clock: StoppedClock,
}

impl std::fmt::Debug for SavedGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedGuest").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// A section that there is once.
struct Once<T>(Tag, Option<T>);

impl<T: serde::de::DeserializeOwned> Once<T> {
    fn take(&mut self, section: &Section) -> Result<(), StateError> {
        if self.1.is_some() || section.index != 0 {
            return Err(StateError::Misplaced { tag: self.0, index: section.index });
        }
        self.1 = Some(section.value()?);
        Ok(())
    }

    fn get(self) -> Result<T, StateError> {
        self.1.ok_or(StateError::Missing { tag: self.0 })
    }
}

impl SavedGuest {
    /// Opens and reads a file.
    ///
    /// # Errors
    /// [`StateError`], or what memory the host has not got.
    pub fn open(path: &Path) -> Result<Self, MachineError> {
        let open = |error| StateError::Open { path: path.to_owned(), error };
        let file = File::open(path).map_err(open)?;
        Self::read(BufReader::with_capacity(1 << 20, file))
    }

    /// Reads a stream to its end.
    ///
    /// # Errors
    /// As [`SavedGuest::open`].
    pub fn read(from: impl Read) -> Result<Self, MachineError> {
        let mut reader = StateReader::new(from)?;
        let saved = Self::read_from(&mut reader)?;
        reader.finish()?;
        Ok(saved)
    }

    /// Reads the sections of a stream that may go on after its end.
    pub(super) fn read_from(reader: &mut StateReader<impl Read>) -> Result<Self, MachineError> {
        let first = reader.next_section()?.ok_or(StateError::Missing { tag: tag::MACHINE })?;
        if first.tag != tag::MACHINE {
            return Err(StateError::Missing { tag: tag::MACHINE }.into());
        }
        let machine: MachineState = first.value()?;
        check_cpus(machine.cpus, MAX_VCPUS)?;
        let (ram, ram_regions) = memory_of(&machine)?;
        let mut domain = Once(tag::DOMAIN, None);
        let mut irqchip = Once(tag::IRQCHIP, None);
        let mut platform = Once(tag::PLATFORM, None);
        let mut serial = Once(tag::SERIAL, None);
        let mut vmclock = Once(tag::VMCLOCK, None);
        let mut handover = Once(tag::HANDOVER, None);
        let mut store = Once(tag::XENSTORE, None);
        let mut clock = Once(tag::CLOCK, None);
        let mut vcpus = Vec::new();
        while let Some(section) = reader.next_section()? {
            match section.tag {
                tag::PAGES => read_pages(&section, &ram)?,
                tag::DOMAIN => domain.take(&section)?,
                tag::IRQCHIP => irqchip.take(&section)?,
                tag::PLATFORM => platform.take(&section)?,
                tag::SERIAL => serial.take(&section)?,
                tag::VMCLOCK => vmclock.take(&section)?,
                tag::HANDOVER => handover.take(&section)?,
                tag::XENSTORE => store.take(&section)?,
                tag::CLOCK => clock.take(&section)?,
                tag::VCPU if section.index as usize == vcpus.len() => vcpus.push(section.value()?),
                tag::VCPU | tag::MACHINE => {
                    let (tag, index) = (section.tag, section.index);
                    return Err(StateError::Misplaced { tag, index }.into());
                }
                tag if tag.is_critical() => return Err(StateError::Unknown { tag }.into()),
                tag => tracing::debug!(%tag, "a section that is not known is left out"),
            }
        }
        if vcpus.len() != machine.cpus as usize {
            return Err(StateError::Missing { tag: tag::VCPU }.into());
        }
        let domain: DomainState = domain.get()?;
        if domain.config.vcpus != machine.cpus {
            let why = format!("it has {} vCPUs, the machine {}", domain.config.vcpus, machine.cpus);
            return Err(StateError::Contents { tag: tag::DOMAIN, why }.into());
        }
        Ok(Self {
            machine,
            ram,
            ram_regions,
            domain,
            vcpus,
            irqchip: irqchip.get()?,
            platform: platform.get()?,
            serial: serial.get()?,
            vmclock: vmclock.1,
            handover: handover.1,
            store: store.1,
            clock: clock.get()?,
        })
    }

    /// What the machine is made of.
    pub fn machine(&self) -> &MachineState {
        &self.machine
    }

    /// The emulated hypervisor.
    pub fn domain(&self) -> &DomainState {
        &self.domain
    }

    /// The clock at which it stopped.
    pub fn clock(&self) -> &StoppedClock {
        &self.clock
    }
}

/// The memory that a machine had: as it began, and the pages that were put
/// beyond it since.
fn memory_of(machine: &MachineState) -> Result<(GuestRam, usize), MachineError> {
    let (layout, mut ram) = make_memory(machine.memory)?;
    let first: Vec<_> = layout.regions().into_iter().map(|(at, len)| (at.0, len as u64)).collect();
    let refused = |why: String| StateError::Contents { tag: tag::MACHINE, why };
    if let Some((at, _)) = first.iter().find(|region| !machine.regions.contains(region)) {
        return Err(refused(format!("it has no memory at {at:#x}")).into());
    }
    for (at, len) in machine.regions.iter().filter(|region| !first.contains(region)) {
        let page = *len == PAGE_SIZE && at % PAGE_SIZE == 0;
        let size = usize::try_from(PAGE_SIZE).ok().filter(|_| page);
        let region =
            size.and_then(|size| GuestRegionMmap::from_range(GuestAddress(*at), size, None).ok());
        let grown = region.and_then(|region| ram.insert_region(Arc::new(region)).ok());
        ram = grown.ok_or_else(|| refused(format!("no memory can be at {at:#x}+{len:#x}")))?;
    }
    Ok((ram, first.len()))
}
