//! FIFO event channels from the guest's side (`public/event_channel.h`): event
//! words, one control block per CPU, and the taking of events as Linux does it.

#![expect(unsafe_code, reason = "words shared with the hypervisor")]

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use xen_abi::arch_x86::VcpuInfo;
use xen_abi::event_channel::{
    EVTCHN_FIFO_BUSY, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_LINKED, EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING, EVTCHNOP_EXPAND_ARRAY, EVTCHNOP_INIT_CONTROL, EVTCHNOP_SET_PRIORITY,
    EvtchnExpandArray, EvtchnFifoControlBlock, EvtchnInitControl, EvtchnSetPriority,
};

use crate::events::operation;
use crate::interrupts::cpu_index;
use crate::shared;
use crate::smp::MAX_CPUS;

/// Ports whose event words the guest has given: one page of them.
pub const PORTS: usize = 1024;
/// Where in its page a control block lies; not 0, so that the offset counts.
const OFFSET: u32 = 0x40;
const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;
const QUEUES: usize = 16;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: accessed by atomics only, here as in the hypervisor.
unsafe impl Sync for Page {}

static WORDS: Page = Page(UnsafeCell::new([0; 4096]));
static CONTROL: [Page; MAX_CPUS] = [const { Page(UnsafeCell::new([0; 4096])) }; MAX_CPUS];
/// The head of each queue as this CPU went on from it.
static HEADS: [[AtomicU32; QUEUES]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; QUEUES] }; MAX_CPUS];

/// Gives Xen the control block of a CPU. Returns Xen's answer; the first call
/// turns the guest to the FIFO ABI.
pub fn init_control(cpu: usize) -> i64 {
    let mut request = EvtchnInitControl {
        control_gfn: CONTROL[cpu].0.get() as u64 >> 12,
        offset: OFFSET,
        vcpu: shared::vcpu_id(cpu),
        ..Default::default()
    };
    operation(EVTCHNOP_INIT_CONTROL, &mut request)
}

/// Gives Xen the page of event words. Returns Xen's answer.
pub fn expand_array() -> i64 {
    let mut request = EvtchnExpandArray { array_gfn: WORDS.0.get() as u64 >> 12 };
    operation(EVTCHNOP_EXPAND_ARRAY, &mut request)
}

/// Sets a port's priority, 0 the most urgent to 15. Returns Xen's answer.
pub fn set_priority(port: u32, priority: u32) -> i64 {
    operation(EVTCHNOP_SET_PRIORITY, &mut EvtchnSetPriority { port, priority })
}

/// Masks a port.
pub fn mask(port: u32) {
    word(port).fetch_or(MASKED, Ordering::SeqCst);
}

/// Unmasks a port: by hypercall where it is pending, so that Xen queues it.
/// Returns Xen's answer, 0 without a hypercall.
#[must_use]
pub fn unmask(port: u32) -> i64 {
    let mut old = word(port).load(Ordering::Acquire) & !BUSY;
    while old & PENDING == 0 {
        // Not while Xen is at the word: BUSY makes the exchange fail.
        let new = old & !MASKED;
        match word(port).compare_exchange(old, new, Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => return 0,
            Err(now) => old = now & !BUSY,
        }
    }
    crate::events::unmask(port)
}

/// Takes this CPU's events in the order of their priorities; `handle` gets each
/// port after its PENDING was cleared. Returns how many that were.
pub fn take(handle: fn(u32)) -> u32 {
    let cpu = cpu_index();
    let info = shared::vcpu_info(cpu).cast::<u8>();
    let flag = info.wrapping_add(offset_of!(VcpuInfo, evtchn_upcall_pending));
    // SAFETY: a byte of this CPU's static page, accessed atomically everywhere.
    let flag = unsafe { AtomicU8::from_ptr(flag) };
    flag.store(0, Ordering::SeqCst);
    let Some(heads) = HEADS.get(cpu) else { return 0 };
    let ready_word = control(cpu, offset_of!(EvtchnFifoControlBlock, ready));
    let mut taken = 0;
    let mut ready = ready_word.swap(0, Ordering::SeqCst);
    while ready != 0 {
        let queue = ready.trailing_zeros() as usize % QUEUES;
        let mut port = heads[queue].load(Ordering::Relaxed);
        if port == 0 {
            let head = offset_of!(EvtchnFifoControlBlock, head) + queue * 4;
            port = control(cpu, head).load(Ordering::Acquire);
        }
        let was = word(port).fetch_and(!(LINKED | EVTCHN_FIFO_LINK_MASK), Ordering::SeqCst);
        let next = was & EVTCHN_FIFO_LINK_MASK;
        heads[queue].store(next, Ordering::Relaxed);
        if next == 0 {
            ready &= !(1 << queue);
        }
        if word(port).load(Ordering::Acquire) & (PENDING | MASKED) == PENDING {
            word(port).fetch_and(!PENDING, Ordering::SeqCst);
            taken += 1;
            handle(port);
        }
        ready |= ready_word.swap(0, Ordering::SeqCst);
    }
    taken
}

/// The event word of a port; numbers beyond the page share it.
fn word(port: u32) -> &'static AtomicU32 {
    let address = WORDS.0.get().cast::<u32>().wrapping_add(port as usize % PORTS);
    // SAFETY: inside the static page and aligned; atomic everywhere.
    unsafe { AtomicU32::from_ptr(address) }
}

fn control(cpu: usize, offset: usize) -> &'static AtomicU32 {
    let page = CONTROL[cpu].0.get().cast::<u8>();
    let address = page.wrapping_add(OFFSET as usize + offset).cast::<u32>();
    // SAFETY: inside the static page: the block has 72 bytes; atomic everywhere.
    unsafe { AtomicU32::from_ptr(address) }
}
