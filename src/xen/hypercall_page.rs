//! The hypercall page: 128 stubs of 32 bytes, one per hypercall number, through
//! which older guests and portable ones reach the hypervisor.
//!
//! A guest writes the page's guest-physical address to the MSR that CPUID leaf 2
//! names, then calls `page + number * 32`. Which instruction a stub executes is
//! ours to choose: `VMCALL` or `VMMCALL` where KVM intercepts Xen hypercalls, or
//! port output where it does not.

use vm_memory::{Bytes, GuestAddress};
use xen_abi::errno::Errno;
use xen_abi::hypercall::{HYPERVISOR_IRET, HYPERVISOR_SCHED_OP};

use super::{Domain, shared_info};
use crate::pages::Width;

/// Size of a hypercall page in bytes.
pub const PAGE_SIZE: usize = 4096;
const STUB_SIZE: usize = 32;

const MOV_EAX_IMM32: u8 = 0xb8;
const OUT_IMM8_EAX: u8 = 0xe7;
const RET: u8 = 0xc3;
const INT3: u8 = 0xcc;
const UD2: [u8; 2] = [0x0f, 0x0b];
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

/// What a stub executes once the hypercall number is in EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StubKind {
    /// Intel's instruction.
    Vmcall,
    /// AMD's and Hygon's.
    Vmmcall,
    /// A 4-byte output of EAX to this port. The port is in the instruction, so
    /// that every register but RAX keeps its argument for the exit's handler.
    PortIo(u8),
}

/// Which stub each hypercall number gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypercallStubs {
    /// All but the one below.
    pub general: StubKind,
    /// `__HYPERVISOR_sched_op`: where KVM intercepts hypercalls it answers
    /// SCHEDOP_poll by itself, by a yield whatever the argument says.
    pub sched_op: StubKind,
}

impl From<StubKind> for HypercallStubs {
    /// The same for all.
    fn from(kind: StubKind) -> Self {
        Self { general: kind, sched_op: kind }
    }
}

/// Writes the stubs. The same bytes serve 64-bit and 32-bit guests.
///
/// What no stub uses is `int3`, so that a stray jump traps. The stub of
/// `__HYPERVISOR_iret` is `ud2`: no HVM guest may call it.
pub fn fill(stubs: HypercallStubs, page: &mut [u8; PAGE_SIZE]) {
    page.fill(INT3);
    for (number, stub) in (0u32..).zip(page.as_chunks_mut::<STUB_SIZE>().0) {
        if u64::from(number) == HYPERVISOR_IRET {
            stub[..2].copy_from_slice(&UD2);
            continue;
        }
        stub[0] = MOV_EAX_IMM32;
        stub[1..5].copy_from_slice(&number.to_le_bytes());
        let enter = &mut stub[5..];
        let is_sched_op = u64::from(number) == HYPERVISOR_SCHED_OP;
        let len = match if is_sched_op { stubs.sched_op } else { stubs.general } {
            StubKind::Vmcall => put(enter, &VMCALL),
            StubKind::Vmmcall => put(enter, &VMMCALL),
            StubKind::PortIo(port) => put(enter, &[OUT_IMM8_EAX, port]),
        };
        enter[len] = RET;
    }
}

fn put(at: &mut [u8], code: &[u8]) -> usize {
    at[..code.len()].copy_from_slice(code);
    code.len()
}

impl Domain {
    /// Serves a write to the hypercall-page MSR by a vCPU that runs in `width`,
    /// which from now on is the layout of `shared_info`.
    ///
    /// # Errors
    /// `EINVAL` where the low 12 bits, the page's index, are not 0 (there is one
    /// page), `EFAULT` where the address is not RAM. The vCPU then gets #GP.
    pub fn write_hypercall_msr(
        &self,
        value: u64,
        width: Width,
        stubs: HypercallStubs,
    ) -> Result<(), Errno> {
        if !value.is_multiple_of(PAGE_SIZE as u64) {
            tracing::debug!(value, "hypercall page MSR: only page 0 exists");
            return Err(Errno::EINVAL);
        }
        self.install_hypercall_page(GuestAddress(value), stubs)?;
        shared_info::latch_width(self, width);
        Ok(())
    }

    /// Writes a hypercall page at `gpa`.
    ///
    /// # Errors
    /// `EFAULT` where the page is not RAM.
    pub fn install_hypercall_page(
        &self,
        gpa: GuestAddress,
        stubs: HypercallStubs,
    ) -> Result<(), Errno> {
        let mut page = [0; PAGE_SIZE];
        fill(stubs, &mut page);
        self.memory().write_slice(&page, gpa).map_err(|_| Errno::EFAULT)
    }
}

#[cfg(test)]
mod tests {
    //! The bytes of the stubs, as a disassembler reads them.
    use super::*;

    #[test]
    fn stubs_load_their_number_and_enter() {
        let cases: [(StubKind, &[u8]); 3] = [
            (StubKind::Vmcall, &[0x0f, 0x01, 0xc1, 0xc3]),
            (StubKind::Vmmcall, &[0x0f, 0x01, 0xd9, 0xc3]),
            (StubKind::PortIo(0xe9), &[0xe7, 0xe9, 0xc3]),
        ];
        for (kind, enter) in cases {
            let mut page = [0; PAGE_SIZE];
            fill(kind.into(), &mut page);
            for number in (0..128u8).filter(|&number| number != 23) {
                let stub = &page[usize::from(number) * 32..][..32];
                assert_eq!(stub[..5], [0xb8, number, 0, 0, 0], "{kind:?}");
                assert_eq!(stub[5..5 + enter.len()], *enter, "{kind:?}");
                assert!(stub[5 + enter.len()..].iter().all(|&byte| byte == 0xcc));
            }
            assert_eq!(page[23 * 32..][..3], [0x0f, 0x0b, 0xcc]);
        }
    }

    #[test]
    fn sched_op_may_go_another_way() {
        let mut page = [0; PAGE_SIZE];
        let stubs = HypercallStubs { general: StubKind::Vmcall, sched_op: StubKind::PortIo(0xe9) };
        fill(stubs, &mut page);
        assert_eq!(page[29 * 32..][..8], [0xb8, 29, 0, 0, 0, 0xe7, 0xe9, 0xc3]);
        assert_eq!(page[28 * 32 + 5..][..3], VMCALL);
    }
}
