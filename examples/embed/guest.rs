//! The guest: its code, its memory, the registers that it starts with.

use std::error::Error;

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use kvm_xen::pages::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// Bytes of memory.
pub const RAM: u64 = 4 << 20;
/// Where the guest asks for its `shared_info`.
pub const SHARED_INFO: u64 = 0x4000;
const CODE: u64 = 0x1000;
const ARGUMENTS: u64 = 0x3000;

/// 32-bit code, flat segments. Ports 0xe0 to 0xe2 are for our eyes.
const GUEST: [u8; 58] = [
    0xb9, 0x00, 0x00, 0x00, 0x40, //  mov ecx, 0x40000000     the hypercall page MSR,
    0xb8, 0x00, 0x20, 0x00, 0x00, //  mov eax, 0x2000         a page for it
    0x31, 0xd2, //                    xor edx, edx
    0x0f, 0x30, //                    wrmsr
    0xbb, 0x07, 0x00, 0x00, 0x00, //  mov ebx, 7              XENMEM_add_to_physmap
    0xb9, 0x00, 0x30, 0x00, 0x00, //  mov ecx, 0x3000         its arguments
    0xb8, 0x80, 0x21, 0x00, 0x00, //  mov eax, 0x2000 + 12*32 memory_op
    0xff, 0xd0, //                    call eax
    0xe7, 0xe0, //                    out 0xe0, eax           its result
    0x0f, 0x31, //                    rdtsc
    0xe7, 0xe1, //                    out 0xe1, eax           low half
    0x89, 0xd0, //                    mov eax, edx
    0xe7, 0xe2, //                    out 0xe2, eax           high half
    0xbb, 0x02, 0x00, 0x00, 0x00, //  mov ebx, 2              SCHEDOP_shutdown
    0xb9, 0x10, 0x30, 0x00, 0x00, //  mov ecx, 0x3010         0: power off
    0xb8, 0xa0, 0x23, 0x00, 0x00, //  mov eax, 0x2000 + 29*32 sched_op
    0xff, 0xd0, //                    call eax
];

/// Memory with code and arguments in it.
pub fn memory() -> Result<GuestRam, Box<dyn Error>> {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), usize::try_from(RAM)?)])?;
    ram.write_slice(&GUEST, GuestAddress(CODE))?;
    // struct xen_add_to_physmap of a 32-bit guest: DOMID_SELF, space 0
    // (shared_info), index 0, frame.
    let arguments = [0x7ff0, 0, 0, u32::try_from(SHARED_INFO >> 12)?];
    for (at, word) in (ARGUMENTS..).step_by(4).zip(arguments) {
        ram.write_obj(word, GuestAddress(at))?;
    }
    Ok(ram)
}

/// 32-bit protected mode without paging, flat segments, as a PVH guest starts.
pub fn enter(vcpu: &VcpuFd) -> Result<(), Box<dyn Error>> {
    let flat = |selector, type_| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    let data = flat(0x10, 3);
    (sregs.cs, sregs.ds, sregs.es, sregs.ss) = (flat(0x8, 11), data, data, data);
    sregs.cr0 = 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: CODE, rsp: 0x8000, rflags: 2, ..kvm_regs::default() })?;
    Ok(())
}
