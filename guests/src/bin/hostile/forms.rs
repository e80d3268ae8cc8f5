//! Calls in the form of real ones: the right operation, and a structure whose
//! fields are of their kind but not always right.

use xen_abi::event_channel::*;
use xen_abi::grant_table::*;
use xen_abi::hvm_op::*;
use xen_abi::hypercall::{
    HYPERVISOR_CONSOLE_IO, HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_GRANT_TABLE_OP,
    HYPERVISOR_HVM_OP, HYPERVISOR_MEMORY_OP, HYPERVISOR_SCHED_OP, HYPERVISOR_SET_TIMER_OP,
    HYPERVISOR_VCPU_OP, HYPERVISOR_VM_ASSIST, HYPERVISOR_XEN_VERSION,
};
use xen_abi::memory::*;
use xen_abi::sched::{SCHEDOP_POLL, SCHEDOP_WATCHDOG, SCHEDOP_YIELD};
use xen_abi::vcpu::*;

use super::Caller;
use super::random::Random;

/// What a field holds.
#[derive(Clone, Copy)]
enum Field {
    /// A domain's number, of 2 bytes.
    Domain,
    /// A small number of 2 bytes.
    Half,
    /// A small number of 4 bytes.
    Small,
    /// A vCPU that may be there.
    Vcpu,
    /// An event channel.
    Port,
    /// An offset within a page, of 4 bytes.
    Offset,
    /// A small number of 8 bytes.
    Long,
    /// A frame of the sandbox, of 8 bytes.
    Frame,
    /// The address of more values.
    List,
    /// The address of memory that may be written.
    Buffer,
    /// A moment that is past, in nanoseconds.
    Past,
    /// Any 8 bytes.
    Any,
    /// Seconds that do not pass in a test; 0 would be at once.
    Never,
}
use Field::*;

/// How the operation and the structure's address lie in the arguments.
#[derive(Clone, Copy)]
enum Shape {
    /// (operation, structure).
    Two,
    /// (operation, vCPU, structure).
    Vcpus,
    /// (operation, type).
    Assist,
    /// (operation, structure, count).
    Counted,
}

type Form = (u64, u32, Shape, &'static [Field]);

const EVENT: u64 = HYPERVISOR_EVENT_CHANNEL_OP;
const VCPU: u64 = HYPERVISOR_VCPU_OP;
const MEMORY: u64 = HYPERVISOR_MEMORY_OP;
const GRANT: u64 = HYPERVISOR_GRANT_TABLE_OP;
const HVM: u64 = HYPERVISOR_HVM_OP;

const RESERVATION: &[Field] = &[List, Long, Small, Small, Domain];

/// Fields in the order of Xen's structures, naturally aligned.
const FORMS: &[Form] = &[
    (EVENT, EVTCHNOP_ALLOC_UNBOUND, Shape::Two, &[Domain, Domain, Small]),
    (EVENT, EVTCHNOP_BIND_INTERDOMAIN, Shape::Two, &[Domain, Port, Small]),
    (EVENT, EVTCHNOP_BIND_VIRQ, Shape::Two, &[Small, Vcpu, Small]),
    (EVENT, EVTCHNOP_BIND_PIRQ, Shape::Two, &[Small, Small, Small]),
    (EVENT, EVTCHNOP_BIND_IPI, Shape::Two, &[Vcpu, Small]),
    (EVENT, EVTCHNOP_CLOSE, Shape::Two, &[Port]),
    (EVENT, EVTCHNOP_SEND, Shape::Two, &[Port]),
    (EVENT, EVTCHNOP_SEND, Shape::Two, &[Port]),
    (EVENT, EVTCHNOP_STATUS, Shape::Two, &[Domain, Port]),
    (EVENT, EVTCHNOP_BIND_VCPU, Shape::Two, &[Port, Vcpu]),
    (EVENT, EVTCHNOP_UNMASK, Shape::Two, &[Port]),
    (EVENT, EVTCHNOP_RESET, Shape::Two, &[Domain]),
    (EVENT, EVTCHNOP_INIT_CONTROL, Shape::Two, &[Frame, Offset, Vcpu, Small, Small]),
    (EVENT, EVTCHNOP_EXPAND_ARRAY, Shape::Two, &[Frame]),
    (EVENT, EVTCHNOP_SET_PRIORITY, Shape::Two, &[Port, Small]),
    (VCPU, VCPUOP_REGISTER_VCPU_INFO, Shape::Vcpus, &[Frame, Offset, Small]),
    (VCPU, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, Shape::Vcpus, &[Buffer]),
    (VCPU, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, Shape::Vcpus, &[Buffer]),
    (VCPU, VCPUOP_GET_RUNSTATE_INFO, Shape::Vcpus, &[]),
    (VCPU, VCPUOP_IS_UP, Shape::Vcpus, &[]),
    (VCPU, VCPUOP_UP, Shape::Vcpus, &[]),
    (VCPU, VCPUOP_INITIALISE, Shape::Vcpus, &[Any, Any, Any]),
    (VCPU, VCPUOP_SET_PERIODIC_TIMER, Shape::Vcpus, &[Any]),
    (VCPU, VCPUOP_STOP_PERIODIC_TIMER, Shape::Vcpus, &[]),
    (VCPU, VCPUOP_SET_SINGLESHOT_TIMER, Shape::Vcpus, &[Past, Small]),
    (VCPU, VCPUOP_SET_SINGLESHOT_TIMER, Shape::Vcpus, &[Any, Small]),
    (VCPU, VCPUOP_STOP_SINGLESHOT_TIMER, Shape::Vcpus, &[]),
    (MEMORY, XENMEM_ADD_TO_PHYSMAP, Shape::Two, &[Domain, Half, Small, Long, Frame]),
    (
        MEMORY,
        XENMEM_ADD_TO_PHYSMAP_BATCH,
        Shape::Two,
        &[Domain, Half, Half, Domain, List, List, Buffer],
    ),
    (MEMORY, XENMEM_REMOVE_FROM_PHYSMAP, Shape::Two, &[Domain, Frame]),
    (MEMORY, XENMEM_DECREASE_RESERVATION, Shape::Two, RESERVATION),
    (MEMORY, XENMEM_INCREASE_RESERVATION, Shape::Two, RESERVATION),
    (MEMORY, XENMEM_POPULATE_PHYSMAP, Shape::Two, RESERVATION),
    (MEMORY, XENMEM_MEMORY_MAP, Shape::Two, &[Small, Buffer]),
    (MEMORY, XENMEM_CURRENT_RESERVATION, Shape::Two, &[Domain]),
    (MEMORY, XENMEM_MAXIMUM_GPFN, Shape::Two, &[Domain]),
    (GRANT, GNTTABOP_QUERY_SIZE, Shape::Counted, &[Domain]),
    (GRANT, GNTTABOP_SETUP_TABLE, Shape::Counted, &[Domain, Small, Half, Buffer]),
    (GRANT, GNTTABOP_SET_VERSION, Shape::Counted, &[Small]),
    (GRANT, GNTTABOP_GET_VERSION, Shape::Counted, &[Domain]),
    (GRANT, GNTTABOP_GET_STATUS_FRAMES, Shape::Counted, &[Small, Domain, Half, Buffer]),
    (GRANT, GNTTABOP_COPY, Shape::Counted, &[Frame, Domain, Half, Frame, Domain, Half, Half, Half]),
    (GRANT, GNTTABOP_MAP_GRANT_REF, Shape::Counted, &[Buffer, Small, Small, Domain]),
    (GRANT, GNTTABOP_UNMAP_GRANT_REF, Shape::Counted, &[Buffer, Any, Small]),
    (GRANT, GNTTABOP_SWAP_GRANT_REF, Shape::Counted, &[Small, Small]),
    (HVM, HVMOP_GET_PARAM, Shape::Two, &[Domain, Small, Any]),
    (HVM, HVMOP_SET_PARAM, Shape::Two, &[Domain, Small, Any]),
    (HVM, HVMOP_SET_EVTCHN_UPCALL_VECTOR, Shape::Two, &[Vcpu, Small]),
    (HVM, HVMOP_GET_TIME, Shape::Two, &[]),
    (HVM, HVMOP_GET_MEM_TYPE, Shape::Two, &[Domain, Half, Small, Frame]),
    (HVM, HVMOP_PAGETABLE_DYING, Shape::Two, &[Domain, Half, Small, Any]),
    (HVM, HVMOP_XENTRACE, Shape::Two, &[Half, Half, Any, Any]),
    (HYPERVISOR_SCHED_OP, SCHEDOP_YIELD, Shape::Two, &[]),
    (HYPERVISOR_SCHED_OP, SCHEDOP_POLL, Shape::Two, &[List, Small, Past]),
    (HYPERVISOR_SCHED_OP, SCHEDOP_WATCHDOG, Shape::Two, &[Small, Never]),
    (HYPERVISOR_XEN_VERSION, 0, Shape::Two, &[]),
    (HYPERVISOR_XEN_VERSION, 1, Shape::Two, &[]),
    (HYPERVISOR_XEN_VERSION, 2, Shape::Two, &[]),
    (HYPERVISOR_XEN_VERSION, 3, Shape::Two, &[]),
    (HYPERVISOR_XEN_VERSION, 6, Shape::Two, &[Small]),
    (HYPERVISOR_XEN_VERSION, 8, Shape::Two, &[]),
    (HYPERVISOR_VM_ASSIST, 0, Shape::Assist, &[]),
    (HYPERVISOR_VM_ASSIST, 1, Shape::Assist, &[]),
    (HYPERVISOR_SET_TIMER_OP, 1, Shape::Two, &[]),
    (HYPERVISOR_CONSOLE_IO, 0, Shape::Vcpus, &[]),
];
/// Where the values are that a [`Field::List`] names, in words of the sandbox.
const LIST: usize = 40;

/// A call out of the table.
pub fn call(random: &mut Random, sandbox: Caller) -> (u64, [u64; 6]) {
    let index = usize::try_from(random.below(FORMS.len() as u64)).unwrap_or(0);
    let (number, operation, shape, fields) = FORMS[index];
    // Most lists are of frames of the sandbox, some of small numbers.
    let frames = random.below(4) != 0;
    for word in 0..16 {
        let value = if frames { random.target() >> 12 } else { random.below(64) };
        sandbox.write(LIST + word, value);
    }
    // Word by word, without SSE: a software KVM knows little of it.
    let (mut word, mut index, mut at) = (0_u64, 0_usize, 0_usize);
    for field in fields {
        let (value, size) = field_value(*field, random, sandbox);
        at = at.next_multiple_of(size);
        if at / 8 != index {
            sandbox.write(index, word);
            (word, index) = (0, at / 8);
        }
        word |= value << (at % 8 * 8);
        at += size;
    }
    sandbox.write(index, word);
    let structure = sandbox.address(0);
    let operation = u64::from(operation);
    // A zero that the compiler does not know, so that it needs no SSE to store it.
    let none = core::hint::black_box(0);
    let arguments = match shape {
        Shape::Two => [operation, structure, none, none, none, none],
        Shape::Vcpus => [operation, random.below(3), structure, none, none, none],
        Shape::Assist => [operation, 4 + random.below(2), none, none, none, none],
        Shape::Counted => [operation, structure, random.below(3), none, none, none],
    };
    (number, arguments)
}

/// The value of a field, and its size in bytes.
fn field_value(field: Field, random: &mut Random, sandbox: Caller) -> (u64, usize) {
    let odd = random.below(16) == 0;
    match field {
        Domain => (
            match random.below(5) {
                0 | 1 => 0x7ff0,
                2 => 1,
                3 => 0,
                _ => 77,
            },
            2,
        ),
        Half => (random.below(if odd { 1 << 16 } else { 4 }), 2),
        Small => (random.below(if odd { 1 << 32 } else { 24 }), 4),
        Vcpu => (random.below(if odd { 1 << 32 } else { 2 }), 4),
        Port => (random.below(if odd { 1 << 18 } else { 48 }), 4),
        Offset => (random.below(if odd { 8192 } else { 64 }) * 64, 4),
        Long => (random.below(if odd { 1 << 32 } else { 16 }), 8),
        Frame => (if odd { random.value() } else { random.target() >> 12 }, 8),
        List if odd => (super::unmapped_address(random), 8),
        List => (sandbox.address(LIST as u64), 8),
        Buffer if odd => (super::unmapped_address(random), 8),
        Buffer => (random.target(), 8),
        Past => (random.below(1000) + 1, 8),
        Any => (random.value(), 8),
        Never => (1 << 30 | random.below(1 << 30), 4),
    }
}
