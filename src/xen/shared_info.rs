//! Where `shared_info` and each `vcpu_info` are, and moving them.
//!
//! Xen overlays a page of its own at the frame the guest names. Here the RAM
//! of that frame is the page: the contents move in when it is mapped, and
//! along when it is mapped elsewhere. Until it is mapped it is a private page,
//! so that events raised early are found later.

mod snapshot;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use xen_abi::arch_x86::XEN_LEGACY_MAX_VCPUS;
use xen_abi::errno::Errno;
use xen_abi::event_channel::EVTCHN_FIFO_NR_CHANNELS;

pub use snapshot::LayoutState;

use super::domain::{Domain, read, write};
use super::event_channel::Fifo;
use crate::clock::WallclockEpoch;
use crate::pages::{self, GuestRam, Width};

const PAGE_SIZE: usize = 4096;
/// Frames beyond this lie outside any x86 physical address.
const MAX_GFN: u64 = 1 << (52 - 12);
/// `sizeof(struct vcpu_info)`, in both widths.
pub(super) const VCPU_INFO_SIZE: u64 = 64;
/// `offsetof(struct shared_info, evtchn_pending)`, in both widths.
const PENDING_OFFSET: u64 = 0x800;

/// Where the structures are that all of Xen's delivery works on.
#[derive(Debug)]
pub(super) struct Layout {
    /// The layout of `shared_info` and `vcpu_info`.
    pub width: Width,
    /// `shared_info`, once mapped.
    shared_info: Option<u64>,
    /// Each `vcpu_info` that was registered away from its default place.
    registered: Vec<Option<u64>>,
    /// The FIFO ABI, once the guest has chosen it; else pending and mask bits
    /// of ports are those of `shared_info`.
    pub fifo: Option<Box<Fifo>>,
}

/// The page that `shared_info` is before the guest maps it.
pub(super) struct PrivatePage(GuestRam);

/// A structure in memory: which, and from which address.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub memory: &'a GuestRam,
    pub gpa: u64,
}

impl PrivatePage {
    pub(super) fn new() -> Result<Self, String> {
        let page = [(GuestAddress(0), PAGE_SIZE)];
        GuestRam::from_ranges(&page).map(Self).map_err(|error| error.to_string())
    }
}

impl Layout {
    pub(super) fn new(vcpus: u32) -> Self {
        let vcpus = usize::try_from(vcpus).unwrap_or(0);
        Self { width: Width::Bits64, shared_info: None, registered: vec![None; vcpus], fifo: None }
    }

    /// `shared_info`: in guest memory, or the private page.
    pub(super) fn shared_info<'a>(&self, memory: &'a GuestRam, private: &'a PrivatePage) -> At<'a> {
        match self.shared_info {
            Some(gpa) => At { memory, gpa },
            None => At { memory: &private.0, gpa: 0 },
        }
    }

    /// `vcpu_info` of `vcpu`: registered, else its slot in `shared_info`;
    /// vCPUs from 32 on have none before they register one.
    pub(super) fn vcpu_info<'a>(
        &self,
        vcpu: u32,
        memory: &'a GuestRam,
        private: &'a PrivatePage,
    ) -> Option<At<'a>> {
        if let Some(gpa) = self.registered_at(vcpu) {
            return Some(At { memory, gpa });
        }
        let slot = default_slot(vcpu)?;
        let page = self.shared_info(memory, private);
        Some(At { gpa: page.gpa + slot, ..page })
    }

    pub(super) fn registered_at(&self, vcpu: u32) -> Option<u64> {
        usize::try_from(vcpu).ok().and_then(|index| *self.registered.get(index)?)
    }

    /// The number of ports that the guest's ABI of events allows.
    pub(super) fn ports(&self) -> u32 {
        if self.fifo.is_some() { EVTCHN_FIFO_NR_CHANNELS } else { self.two_level_ports() }
    }

    /// The number of 2-level ports: the square of the word's bits.
    fn two_level_ports(&self) -> u32 {
        match self.width {
            Width::Bits64 => 4096,
            Width::Bits32 => 1024,
        }
    }

    /// Offset of the word of `evtchn_pending` that holds `port`. Words of 64
    /// bits serve both layouts: the bitmaps are little-endian and aligned.
    pub(super) fn pending_offset(port: u32) -> u64 {
        PENDING_OFFSET + u64::from(port / 64) * 8
    }

    /// The same of `evtchn_mask`.
    pub(super) fn mask_offset(&self, port: u32) -> u64 {
        Self::pending_offset(port) + u64::from(self.two_level_ports() / 8)
    }

    /// The `vcpu_info` of `vcpu` in a mapped `shared_info`.
    pub(super) fn at_default(&self, vcpu: u32) -> Option<u64> {
        match (self.registered_at(vcpu), self.shared_info) {
            (None, Some(page)) => Some(page + default_slot(vcpu)?),
            _ => None,
        }
    }
}

fn default_slot(vcpu: u32) -> Option<u64> {
    let slots = u32::try_from(XEN_LEGACY_MAX_VCPUS).unwrap_or(0);
    (vcpu < slots).then(|| u64::from(vcpu) * VCPU_INFO_SIZE)
}

/// Maps `shared_info` at `gfn`, from wherever it was. Its layout stays the one
/// that was latched last: Xen does not look at the caller's mode here.
///
/// # Errors
/// `EINVAL` for a frame beyond the address space, else what the machine says
/// where it can not serve the page there.
pub(super) fn place(domain: &Domain, vcpu: u32, gfn: u64) -> Result<(), Errno> {
    if gfn >= MAX_GFN {
        return Err(Errno::EINVAL);
    }
    let gpa = gfn << 12;
    let page = GuestAddress(gpa);
    if domain.memory().get_slice(page, PAGE_SIZE).is_err() {
        domain.platform.back_page(page)?;
        if domain.memory().get_slice(page, PAGE_SIZE).is_err() {
            return Err(Errno::EINVAL);
        }
    }
    let width = read(&domain.layout).width;
    {
        let memory = domain.memory();
        let mut layout = write(&domain.layout);
        let from = layout.shared_info(&memory, &domain.private);
        if layout.shared_info != Some(gpa) {
            // Whoever delivers events by itself stops before the contents go over.
            if layout.shared_info.is_some() {
                domain.platform.shared_info_placed(None, width == Width::Bits64)?;
            }
            let mut contents = [0u8; PAGE_SIZE];
            let from_page = GuestAddress(from.gpa);
            from.memory.read_slice(&mut contents, from_page).map_err(|_| Errno::EINVAL)?;
            memory.write_slice(&contents, page).map_err(|_| Errno::EINVAL)?;
        }
        domain.platform.shared_info_placed(Some(page), width == Width::Bits64)?;
        layout.shared_info = Some(gpa);
        publish_wallclock(domain, &layout);
    }
    tracing::debug!(vcpu, gpa, ?width, "shared_info is mapped");
    republish_default_slots(domain)
}

/// Takes `shared_info` out of guest memory, with its contents: until it is
/// mapped again it is the private page. Nobody writes to its frame afterwards.
pub(super) fn unmap(domain: &Domain) {
    for vcpu in domain.vcpu_ids() {
        domain.default_info_leaves(vcpu);
    }
    let memory = domain.memory();
    let mut layout = write(&domain.layout);
    let Some(gpa) = layout.shared_info else { return };
    let long_mode = layout.width == Width::Bits64;
    if let Err(errno) = domain.platform.shared_info_placed(None, long_mode) {
        tracing::debug!(gpa, %errno, "the machine holds on to shared_info");
    }
    let mut contents = [0u8; PAGE_SIZE];
    let copied = memory
        .read_slice(&mut contents, GuestAddress(gpa))
        .and_then(|()| domain.private.0.write_slice(&contents, GuestAddress(0)));
    if copied.is_err() {
        tracing::debug!(gpa, "shared_info had no memory behind it any more");
    }
    layout.shared_info = None;
    tracing::debug!(gpa, "shared_info is taken out");
}

/// `shared_info` and each `vcpu_info` as of a new domain: nowhere in guest
/// memory, and zero; but all ports are masked. No vCPU runs.
///
/// Xen's are not. Linux takes for granted that they are: it unmasks those that it
/// wants, and dies of an event that it never unmasked (that of its spin locks).
pub(super) fn renew(domain: &Domain) {
    for vcpu in domain.vcpu_ids() {
        domain.forget_areas(vcpu);
    }
    unmap(domain);
    let mut layout = write(&domain.layout);
    layout.registered.fill(None);
    let mut page = [0u8; PAGE_SIZE];
    let mask = usize::try_from(layout.mask_offset(0)).unwrap_or(PAGE_SIZE);
    let ports = usize::try_from(layout.two_level_ports()).unwrap_or(0);
    page.iter_mut().skip(mask).take(ports / 8).for_each(|byte| *byte = 0xff);
    // The page is our own, and large enough.
    let _ = domain.private.0.write_slice(&page, GuestAddress(0));
}

/// Takes `width` as the layout of the shared structures from now on, as Xen does
/// when the guest writes the hypercall page's MSR or sets `HVM_PARAM_CALLBACK_IRQ`.
pub(super) fn latch_width(domain: &Domain, width: Width) {
    {
        let mut layout = write(&domain.layout);
        if layout.width == width {
            return;
        }
        layout.width = width;
        if let Some(gpa) = layout.shared_info {
            let placed = Some(GuestAddress(gpa));
            if let Err(errno) = domain.platform.shared_info_placed(placed, width == Width::Bits64) {
                tracing::debug!(gpa, %errno, "the machine does not follow the width");
            }
        }
        publish_wallclock(domain, &layout);
    }
    for vcpu in domain.vcpu_ids() {
        domain.publish_clock_pages(vcpu);
    }
}

/// Moves the `vcpu_info` of `vcpu` to `gpa`, with its contents.
///
/// # Errors
/// `EINVAL` where it was registered before, or no RAM lies there.
pub(super) fn register_vcpu_info(domain: &Domain, vcpu: u32, gpa: u64) -> Result<(), Errno> {
    let index = usize::try_from(vcpu).map_err(|_| Errno::ENOENT)?;
    let memory = domain.memory();
    {
        let mut layout = write(&domain.layout);
        if layout.registered_at(vcpu).is_some() {
            return Err(Errno::EINVAL);
        }
        let mut contents = [0u8; 64];
        if let Some(from) = layout.vcpu_info(vcpu, &memory, &domain.private) {
            let from_slot = GuestAddress(from.gpa);
            from.memory.read_slice(&mut contents, from_slot).map_err(|_| Errno::EINVAL)?;
        }
        let size = contents.len();
        memory.get_slice(GuestAddress(gpa), size).map_err(|_| Errno::EINVAL)?;
        memory.write_slice(&contents, GuestAddress(gpa)).map_err(|_| Errno::EINVAL)?;
        if let Some(slot) = layout.registered.get_mut(index) {
            *slot = Some(gpa);
        }
    }
    if let Err(errno) = domain.vcpu_info_placed(vcpu, gpa) {
        // Refused by the machine: the default place is as it was.
        if let Some(slot) = write(&domain.layout).registered.get_mut(index) {
            *slot = None;
        }
        return Err(errno);
    }
    Ok(())
}

/// The slots in `shared_info` moved with it: their clocks are placed anew.
fn republish_default_slots(domain: &Domain) -> Result<(), Errno> {
    for vcpu in domain.vcpu_ids() {
        domain.default_info_placed(vcpu)?;
    }
    Ok(())
}

fn publish_wallclock(domain: &Domain, layout: &Layout) {
    let Some(gpa) = layout.shared_info else { return };
    let epoch = domain.clock.wallclock_epoch();
    let page = GuestAddress(gpa);
    if pages::publish_wallclock(&domain.memory(), page, layout.width, epoch).is_err() {
        tracing::debug!(gpa, "shared_info has no memory behind it any more");
    }
}

impl Domain {
    /// Publishes the wallclock again, after its epoch moved.
    pub fn refresh_wallclock(&self) {
        // Exclusive: one writer at a time, and none while the page moves.
        let layout = write(&self.layout);
        publish_wallclock(self, &layout);
    }

    /// The wallclock as the guest finds it in `shared_info`, if that is mapped.
    pub fn wallclock_page(&self) -> Option<WallclockEpoch> {
        let layout = read(&self.layout);
        let page = layout.shared_info.map(GuestAddress)?;
        pages::read_wallclock(&self.memory(), page, layout.width).ok()
    }

    /// Where `shared_info` is mapped, if it is.
    pub fn shared_info_address(&self) -> Option<GuestAddress> {
        read(&self.layout).shared_info.map(GuestAddress)
    }
}

#[cfg(test)]
mod tests;
