//! Setting up the FIFO ABI: `EVTCHNOP_init_control`, `_expand_array` and
//! `_set_priority`, and the way back to 2 levels.

use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use xen_abi::errno::Errno;
use xen_abi::event_channel::{
    EVTCHN_FIFO_LINK_BITS, EVTCHN_FIFO_PRIORITY_MIN, EvtchnExpandArray, EvtchnFifoControlBlock,
    EvtchnInitControl, EvtchnSetPriority,
};

use super::super::super::domain::{Domain, lock, read, write};
use super::super::op::check_port;
use super::super::{Channel, two_level};
use super::{ARRAY_PAGES, Fifo, NONE, WORDS_PER_PAGE};

const PAGE_SIZE: usize = 4096;
/// The last offset at which a control block does not cross its page.
const LAST_OFFSET: usize = PAGE_SIZE - size_of::<EvtchnFifoControlBlock>();

/// `EVTCHNOP_init_control`: the control block of a vCPU. The first one switches
/// the domain to the FIFO ABI.
///
/// # Errors
/// `ENOENT` for a vCPU that is not there, `EINVAL` for a block that crosses its
/// page, is not aligned to 8 bytes or not in RAM, and for a vCPU that has one,
/// `EOPNOTSUPP` where the machine delivers events in the 2-level bitmaps.
pub(in super::super) fn init_control(
    domain: &Domain,
    args: &mut EvtchnInitControl,
) -> Result<(), Errno> {
    args.link_bits = u8::try_from(EVTCHN_FIFO_LINK_BITS).unwrap_or(u8::MAX);
    domain.vcpu(args.vcpu).ok_or(Errno::ENOENT)?;
    let offset = usize::try_from(args.offset).map_err(|_| Errno::EINVAL)?;
    if offset > LAST_OFFSET || !offset.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let _change = lock(&domain.events.change);
    let first = read(&domain.layout).fifo.is_none();
    if first {
        let page = page_of(domain, args.control_gfn)?;
        let fifo = Fifo::new(domain.config.vcpus);
        fifo.place_control_block(args.vcpu, page + u64::from(args.offset))?;
        domain.platform.leave_two_levels()?;
        domain.switch_to_fifo(fifo);
        return Ok(());
    }
    let layout = read(&domain.layout);
    let fifo = layout.fifo.as_ref().ok_or(Errno::EINVAL)?;
    if fifo.control_block(args.vcpu).is_some() {
        return Err(Errno::EINVAL);
    }
    let page = page_of(domain, args.control_gfn)?;
    fifo.place_control_block(args.vcpu, page + u64::from(args.offset))
}

/// `EVTCHNOP_expand_array`: the next page of event words.
///
/// # Errors
/// `EOPNOTSUPP` in the 2-level ABI, `ENOSPC` where all 128 pages are there,
/// `EINVAL` for a frame that is not RAM.
pub(in super::super) fn expand_array(
    domain: &Domain,
    args: &EvtchnExpandArray,
) -> Result<(), Errno> {
    let _change = lock(&domain.events.change);
    let ports = {
        let layout = read(&domain.layout);
        let fifo = layout.fifo.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        let pages = fifo.pages.load(Ordering::Relaxed);
        if pages >= ARRAY_PAGES {
            return Err(Errno::ENOSPC);
        }
        let page = page_of(domain, args.array_gfn)?;
        let slot = usize::try_from(pages).ok().and_then(|page| fifo.array.get(page));
        slot.ok_or(Errno::ENOSPC)?.store(page, Ordering::Relaxed);
        // SeqCst: the page is seen by whoever sees the number, and who set a
        // waiting flag without seeing it is seen below.
        fifo.pages.store(pages + 1, Ordering::SeqCst);
        pages * WORDS_PER_PAGE..(pages + 1) * WORDS_PER_PAGE
    };
    // What came while the page was missing.
    for port in ports {
        if port >= domain.events.ports.valid() {
            break;
        }
        let waited = {
            let layout = read(&domain.layout);
            let fifo = layout.fifo.as_ref().ok_or(Errno::EOPNOTSUPP)?;
            fifo.ports.get(port).is_some_and(|state| state.waiting.swap(false, Ordering::SeqCst))
        };
        if waited {
            domain.raise_channel(port, domain.events.ports.get(port));
        }
    }
    Ok(())
}

/// `EVTCHNOP_set_priority`. An event that is on a queue already stays there.
///
/// # Errors
/// `EINVAL` for a port or priority that is not there, `ENOSYS` in the 2-level
/// ABI, which has no priorities, `EACCES` for a port that is not bound.
pub(in super::super) fn set_priority(
    domain: &Domain,
    args: &EvtchnSetPriority,
) -> Result<(), Errno> {
    check_port(domain, args.port)?;
    let _change = lock(&domain.events.change);
    if read(&domain.layout).fifo.is_none() {
        return Err(Errno::ENOSYS);
    }
    let channel = domain.events.ports.get(args.port);
    if !channel.is_usable() {
        return Err(Errno::EACCES);
    }
    if args.priority > EVTCHN_FIFO_PRIORITY_MIN {
        return Err(Errno::EINVAL);
    }
    let priority = u8::try_from(args.priority).map_err(|_| Errno::EINVAL)?;
    domain.events.ports.set(args.port, Channel { priority, ..channel });
    Ok(())
}

/// The address of a frame of the guest's RAM.
fn page_of(domain: &Domain, gfn: u64) -> Result<u64, Errno> {
    let gpa = gfn.checked_mul(PAGE_SIZE as u64).ok_or(Errno::EINVAL)?;
    domain.memory().get_slice(GuestAddress(gpa), PAGE_SIZE).map_err(|_| Errno::EINVAL)?;
    Ok(gpa)
}

impl Fifo {
    fn place_control_block(&self, vcpu: u32, gpa: u64) -> Result<(), Errno> {
        let slot = usize::try_from(vcpu).ok().and_then(|vcpu| self.control.get(vcpu));
        let slot = slot.ok_or(Errno::ENOENT)?;
        debug_assert!(slot.load(Ordering::Relaxed) == NONE, "checked by the caller");
        slot.store(gpa, Ordering::SeqCst);
        Ok(())
    }
}

impl Domain {
    /// From 2 levels to FIFO. What was pending waits for its page of the array.
    fn switch_to_fifo(&self, fifo: Fifo) {
        let memory = self.memory();
        // Exclusive: no event is on its way in the old ABI while we look.
        let mut layout = write(&self.layout);
        let ports = self.events.ports.valid().min(layout.ports());
        for port in 1..ports {
            if two_level::is_pending(&layout, &memory, &self.private, port)
                && let Some(state) = fifo.ports.make(port)
            {
                state.waiting.store(true, Ordering::SeqCst);
            }
        }
        layout.fifo = Some(Box::new(fifo));
        tracing::debug!(domain = self.config.domain_id, "the guest uses FIFO event channels");
    }

    /// Back to 2 levels, after every port was closed.
    pub(in super::super) fn leave_fifo(&self) {
        let memory = self.memory();
        let mut layout = write(&self.layout);
        if layout.fifo.take().is_some() {
            // Bits from before the switch: a port that is bound anew and looks
            // pending already would never tell anyone.
            two_level::clear_all(&layout, &memory, &self.private);
        }
    }
}
