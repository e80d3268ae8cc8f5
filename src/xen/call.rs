//! One hypercall in flight: who made it, in which width, and the copies
//! between its arguments in guest memory and ours.

use vm_memory::{Bytes, GuestAddress};
use xen_abi::errno::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{CallingVcpu, Domain};
use crate::pages::Width;

const PAGE_SIZE: u64 = 4096;

/// What becomes of the vCPU after a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Goes on at once with this value in RAX (or EAX).
    Return(i64),
    /// Gives up its time slice, then goes on with 0.
    Yield,
    /// Waits until `Platform::wake` or this system time, then goes on with 0.
    Wait {
        /// Absolute system time in nanoseconds; `None` waits for an event only.
        deadline_ns: Option<u64>,
    },
    /// The domain shut down, for this `SHUTDOWN_*` reason; the vCPU stops.
    Shutdown(u32),
}

/// What a handler answers; an error is returned to the guest as its negative.
pub type Reply = Result<i64, Errno>;

/// A hypercall as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hypercall {
    /// `__HYPERVISOR_*`.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8, R9 (64-bit) or EBX, ECX, EDX, ESI, EDI, EBP.
    pub args: [u64; 6],
    /// The mode the vCPU was in.
    pub width: Width,
    /// Current privilege level; only ring 0 may make hypercalls.
    pub cpl: u8,
}

/// The context that handlers work in.
pub struct Call<'a> {
    /// The domain.
    pub domain: &'a Domain,
    /// The vCPU that called.
    pub vcpu: u32,
    /// The layout of its arguments.
    pub width: Width,
    access: &'a mut dyn CallingVcpu,
}

impl<'a> Call<'a> {
    /// A context for one hypercall.
    pub fn new(domain: &'a Domain, access: &'a mut dyn CallingVcpu, width: Width) -> Self {
        Self { domain, vcpu: access.id(), width, access }
    }

    /// Translates a linear address of the guest.
    ///
    /// # Errors
    /// `EFAULT` where nothing is mapped.
    pub fn translate(&mut self, linear: u64) -> Result<GuestAddress, Errno> {
        self.access.translate(linear).ok_or(Errno::EFAULT)
    }

    /// Copies bytes in from a linear address, page by page.
    ///
    /// # Errors
    /// `EFAULT` where a page is not mapped or not RAM.
    pub fn read_bytes(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let memory = self.domain.memory();
        self.chunks(linear, buf.len(), |gpa, range| {
            memory.read_slice(&mut buf[range], gpa).map_err(|_| Errno::EFAULT)
        })
    }

    /// Copies bytes out to a linear address, page by page.
    ///
    /// # Errors
    /// `EFAULT` where a page is not mapped or not RAM; pages before it are written.
    pub fn write_bytes(&mut self, linear: u64, buf: &[u8]) -> Result<(), Errno> {
        let memory = self.domain.memory();
        self.chunks(linear, buf.len(), |gpa, range| {
            memory.write_slice(&buf[range], gpa).map_err(|_| Errno::EFAULT)
        })
    }

    /// Copies a structure in, once: later changes by the guest are not seen.
    ///
    /// # Errors
    /// As [`Call::read_bytes`].
    pub fn read<T: FromBytes + IntoBytes + FromZeros>(&mut self, linear: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(linear, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a structure out.
    ///
    /// # Errors
    /// As [`Call::write_bytes`].
    pub fn write<T: IntoBytes + Immutable>(&mut self, linear: u64, value: &T) -> Result<(), Errno> {
        self.write_bytes(linear, value.as_bytes())
    }

    fn chunks(
        &mut self,
        linear: u64,
        len: usize,
        mut copy: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut done = 0usize;
        while done < len {
            let at = linear.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let gpa = self.translate(at)?;
            let room = PAGE_SIZE - at % PAGE_SIZE;
            let take = usize::try_from(room).map_or(len - done, |room| room.min(len - done));
            copy(gpa, done..done + take)?;
            done += take;
        }
        Ok(())
    }
}
