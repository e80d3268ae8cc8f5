//! Two-level event channels from the guest's side: upcalls by a vector for each
//! vCPU, the pending and mask bits in `shared_info`, and the operations.

#![expect(unsafe_code, reason = "bits shared with the hypervisor")]

use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use xen_abi::arch_x86::{SharedInfo, VcpuInfo};
use xen_abi::event_channel::{
    EVTCHNOP_BIND_IPI, EVTCHNOP_BIND_VIRQ, EVTCHNOP_CLOSE, EVTCHNOP_SEND, EVTCHNOP_STATUS,
    EVTCHNOP_UNMASK, EvtchnBindIpi, EvtchnBindVirq, EvtchnClose, EvtchnSend, EvtchnStatus,
    EvtchnUnmask,
};
use xen_abi::hvm_op::{
    HVMOP_SET_EVTCHN_UPCALL_VECTOR, HVMOP_SET_PARAM, HvmEvtchnUpcallVector, HvmParam,
};
use xen_abi::hvm_params::HVM_PARAM_CALLBACK_IRQ;
use xen_abi::hypercall::{HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_HVM_OP};
use xen_abi::xen::DOMID_SELF;
use zerocopy::{FromBytes, IntoBytes};

use crate::cpu::guest_tsc;
use crate::interrupts::{cpu_index, set_handler, set_handler_past_lapic};
use crate::{hypercall, shared};

/// The vector that [`set_upcall_vector`] is usually given.
pub const UPCALL_VECTOR: u8 = 0xf3;
/// Ports whose events are counted; a guest here never has more.
pub const COUNTED_PORTS: usize = 256;
const BITS: usize = 64;
/// `HVM_PARAM_CALLBACK_TYPE_VECTOR`, in the upper byte of the parameter.
const VECTOR_TYPE: u64 = 2 << 56;

static COUNTS: [AtomicU32; COUNTED_PORTS] = [const { AtomicU32::new(0) }; COUNTED_PORTS];
static ARRIVED_TSC: [AtomicU64; COUNTED_PORTS] = [const { AtomicU64::new(0) }; COUNTED_PORTS];

/// Asks for upcalls of a vCPU by `vector` and counts the events they bring.
/// Returns Xen's answer.
pub fn set_upcall_vector(vcpu: u32, vector: u8) -> i64 {
    upcall_by(vcpu, vector, upcall)
}

/// Asks for upcalls of a vCPU by `vector`, for `handler` to take the events.
/// Returns Xen's answer.
pub fn upcall_by(vcpu: u32, vector: u8, handler: fn()) -> i64 {
    if vector >= 32 {
        set_handler(vector, handler);
    }
    let mut request = HvmEvtchnUpcallVector { vcpu, vector, _pad: [0; 3] };
    hypercall::call(HYPERVISOR_HVM_OP, HVMOP_SET_EVTCHN_UPCALL_VECTOR, &mut request)
}

/// Asks for the upcalls of every vCPU by `vector`, which comes past the local
/// APIC. Returns Xen's answer.
pub fn set_callback_vector(vector: u8) -> i64 {
    callback_by(vector, upcall)
}

/// The same, for `handler` to take the events.
pub fn callback_by(vector: u8, handler: fn()) -> i64 {
    if vector >= 32 {
        set_handler_past_lapic(vector, handler);
    }
    let mut request = HvmParam {
        domid: DOMID_SELF,
        index: HVM_PARAM_CALLBACK_IRQ,
        value: VECTOR_TYPE | u64::from(vector),
        ..Default::default()
    };
    hypercall::call(HYPERVISOR_HVM_OP, HVMOP_SET_PARAM, &mut request)
}

/// Counts this CPU's pending events.
fn upcall() {
    take(
        |_| u64::MAX,
        |port| {
            let port = port as usize;
            if let (Some(count), Some(tsc)) = (COUNTS.get(port), ARRIVED_TSC.get(port)) {
                tsc.store(guest_tsc(), Ordering::Relaxed);
                count.fetch_add(1, Ordering::Release);
            }
        },
    );
}

/// Takes this CPU's pending events: clear the upcall flag first, then the
/// selector, then the bits, so that an event that comes meanwhile raises a new
/// upcall and none is lost. `mine` says which ports of a word of 64 are this
/// CPU's; `handle` gets each after it was cleared. Returns how many there were.
pub fn take(mine: fn(usize) -> u64, handle: fn(u32)) -> u32 {
    let mut taken = 0;
    let info = shared::vcpu_info(cpu_index()).cast::<u8>();
    let flag = info.wrapping_add(offset_of!(VcpuInfo, evtchn_upcall_pending));
    let selector = info.wrapping_add(offset_of!(VcpuInfo, evtchn_pending_sel)).cast::<u64>();
    // SAFETY: a byte of this CPU's static page, accessed atomically everywhere.
    let flag = unsafe { AtomicU8::from_ptr(flag) };
    // SAFETY: as above, and aligned: `vcpu_info` is.
    let selector = unsafe { AtomicU64::from_ptr(selector) };
    flag.store(0, Ordering::SeqCst);
    let mut words = selector.swap(0, Ordering::SeqCst);
    while words != 0 {
        let word = words.trailing_zeros() as usize;
        words &= words - 1;
        let unmasked = !mask_word(word).load(Ordering::Acquire);
        let ready = pending_word(word).load(Ordering::Acquire) & unmasked & mine(word);
        // Of two CPUs that look at one word, whoever clears a bit has its event.
        let mut ready = ready & pending_word(word).fetch_and(!ready, Ordering::AcqRel);
        while ready != 0 {
            let port = word * BITS + ready.trailing_zeros() as usize;
            ready &= ready - 1;
            taken += 1;
            handle(u32::try_from(port).unwrap_or(0));
        }
    }
    taken
}

/// Events of a port that upcalls brought so far.
#[must_use]
pub fn count(port: u32) -> u32 {
    COUNTS.get(port as usize).map_or(0, |count| count.load(Ordering::Acquire))
}

/// The TSC at which the last event of a port was taken.
#[must_use]
pub fn arrived_tsc(port: u32) -> u64 {
    ARRIVED_TSC.get(port as usize).map_or(0, |tsc| tsc.load(Ordering::Acquire))
}

/// Whether a port's pending bit is set.
#[must_use]
pub fn is_pending(port: u32) -> bool {
    pending_word(port as usize / BITS).load(Ordering::Acquire) & bit(port) != 0
}

/// Sets a port's mask bit.
pub fn mask(port: u32) {
    mask_word(port as usize / BITS).fetch_or(bit(port), Ordering::SeqCst);
}

/// Clears a port's mask and pending bits, without a hypercall.
pub fn clear(port: u32) {
    pending_word(port as usize / BITS).fetch_and(!bit(port), Ordering::SeqCst);
    mask_word(port as usize / BITS).fetch_and(!bit(port), Ordering::SeqCst);
}

const fn bit(port: u32) -> u64 {
    1 << (port as usize % BITS)
}

fn pending_word(word: usize) -> &'static AtomicU64 {
    shared::shared_word(offset_of!(SharedInfo, evtchn_pending) + word * 8)
}

fn mask_word(word: usize) -> &'static AtomicU64 {
    shared::shared_word(offset_of!(SharedInfo, evtchn_mask) + word * 8)
}

/// An event-channel operation. Returns Xen's answer.
pub fn operation<T: FromBytes + IntoBytes>(operation: u32, argument: &mut T) -> i64 {
    hypercall::call(HYPERVISOR_EVENT_CHANNEL_OP, operation, argument)
}

/// Binds an IPI port of a vCPU.
///
/// # Errors
/// Xen's answer, negative.
pub fn bind_ipi(vcpu: u32) -> Result<u32, i64> {
    let mut bind = EvtchnBindIpi { vcpu, port: 0 };
    match operation(EVTCHNOP_BIND_IPI, &mut bind) {
        0 => Ok(bind.port),
        error => Err(error),
    }
}

/// Binds a VIRQ of a vCPU.
///
/// # Errors
/// Xen's answer, negative.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<u32, i64> {
    let mut bind = EvtchnBindVirq { virq, vcpu, port: 0 };
    match operation(EVTCHNOP_BIND_VIRQ, &mut bind) {
        0 => Ok(bind.port),
        error => Err(error),
    }
}

/// Sends to a port. Returns Xen's answer.
#[must_use]
pub fn send(port: u32) -> i64 {
    operation(EVTCHNOP_SEND, &mut EvtchnSend { port })
}

/// Unmasks a port by hypercall. Returns Xen's answer.
#[must_use]
pub fn unmask(port: u32) -> i64 {
    operation(EVTCHNOP_UNMASK, &mut EvtchnUnmask { port })
}

/// Closes a port. Returns Xen's answer.
#[must_use]
pub fn close(port: u32) -> i64 {
    operation(EVTCHNOP_CLOSE, &mut EvtchnClose { port })
}

/// A port's state.
///
/// # Errors
/// Xen's answer, negative.
pub fn status(port: u32) -> Result<EvtchnStatus, i64> {
    let mut status = EvtchnStatus { dom: DOMID_SELF, port, ..Default::default() };
    match operation(EVTCHNOP_STATUS, &mut status) {
        0 => Ok(status),
        error => Err(error),
    }
}
