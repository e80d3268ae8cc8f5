//! One hypercall in flight: who made it, in which width, and the copies
//! between its arguments in guest memory and ours.

use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryError};
use xen_abi::errno::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{CallingVcpu, Domain};
use crate::pages::{GuestRam, GuestRamHandle, Width};

const PAGE_SIZE: u64 = 4096;

/// Steps of work that one hypercall may make, with all the calls of a
/// multicall. Xen interrupts a long call and continues it; here it ends early,
/// so that a vCPU never stays away from its thread for more than some 0.1 s.
pub(super) const WORK: u32 = 1 << 14;

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
    /// Guest memory, taken once for the call: each look costs a good part of it.
    memory: <GuestRamHandle as GuestAddressSpace>::T,
    work: u32,
}

impl<'a> Call<'a> {
    /// A context for one hypercall.
    pub fn new(domain: &'a Domain, access: &'a mut dyn CallingVcpu, width: Width) -> Self {
        Self { domain, vcpu: access.id(), width, access, memory: domain.memory(), work: WORK }
    }

    /// Whether the arguments have the 64-bit layout.
    pub fn is_64bit(&self) -> bool {
        self.width == Width::Bits64
    }

    /// Accounts for one step of a list, about a page copied.
    ///
    /// # Errors
    /// `E2BIG` where the hypercall has made all the work that it may.
    pub fn spend(&mut self) -> Result<(), Errno> {
        self.spend_many(1)
    }

    /// Accounts for `steps` at once.
    ///
    /// # Errors
    /// As [`Call::spend`]; nothing is accounted for then.
    pub fn spend_many(&mut self, steps: u64) -> Result<(), Errno> {
        let steps = u32::try_from(steps).map_err(|_| Errno::E2BIG)?;
        self.work = self.work.checked_sub(steps).ok_or(Errno::E2BIG)?;
        Ok(())
    }

    /// Reads element `index` of an array of `unsigned long`.
    ///
    /// # Errors
    /// As [`Call::read_bytes`].
    pub fn read_ulong(&mut self, array: u64, index: u64) -> Result<u64, Errno> {
        if self.is_64bit() {
            return self.read(element(array, index, 8)?);
        }
        self.read::<u32>(element(array, index, 4)?).map(u64::from)
    }

    /// Writes element `index` of an array of `unsigned long`, cut to its width.
    ///
    /// # Errors
    /// As [`Call::write_bytes`].
    pub fn write_ulong(&mut self, array: u64, index: u64, value: u64) -> Result<(), Errno> {
        let bytes = value.to_le_bytes();
        let size = if self.is_64bit() { 8 } else { 4 };
        self.write_bytes(element(array, index, size)?, &bytes[..usize::from(size)])
    }

    /// Translates a linear address of the guest.
    ///
    /// # Errors
    /// `EFAULT` where nothing is mapped.
    pub fn translate(&mut self, linear: u64) -> Result<GuestAddress, Errno> {
        self.access.translate(&self.memory, linear).ok_or(Errno::EFAULT)
    }

    /// Copies bytes in from a linear address, page by page.
    ///
    /// # Errors
    /// `EFAULT` where a page is not mapped or not RAM.
    pub fn read_bytes(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.chunks(linear, buf.len(), |memory, gpa, range| {
            let slice = memory.get_slice(gpa, range.len())?;
            slice.copy_to(&mut buf[range]);
            Ok(())
        })
    }

    /// Copies bytes out to a linear address, page by page.
    ///
    /// # Errors
    /// `EFAULT` where a page is not mapped or not RAM; pages before it are written.
    pub fn write_bytes(&mut self, linear: u64, buf: &[u8]) -> Result<(), Errno> {
        self.chunks(linear, buf.len(), |memory, gpa, range| {
            memory.get_slice(gpa, range.len())?.copy_from(&buf[range]);
            Ok(())
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
        mut copy: impl FnMut(
            &GuestRam,
            GuestAddress,
            std::ops::Range<usize>,
        ) -> Result<(), GuestMemoryError>,
    ) -> Result<(), Errno> {
        let mut done = 0usize;
        while done < len {
            let at = linear.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let gpa = self.translate(at)?;
            let room = PAGE_SIZE - at % PAGE_SIZE;
            let take = usize::try_from(room).map_or(len - done, |room| room.min(len - done));
            if copy(&self.memory, gpa, done..done + take).is_err() {
                // A page that this very call put there is not in what it took.
                self.memory = self.domain.memory();
                copy(&self.memory, gpa, done..done + take).map_err(|_| Errno::EFAULT)?;
            }
            done += take;
        }
        Ok(())
    }
}

fn element(array: u64, index: u64, size: u8) -> Result<u64, Errno> {
    index.checked_mul(size.into()).and_then(|at| array.checked_add(at)).ok_or(Errno::EFAULT)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestRegionMmap, MmapRegion};

    use super::super::test_platform::{domain, with_call};
    use super::*;

    #[test]
    fn a_page_that_came_during_the_call_is_found() {
        const NEW: u64 = 64 << 20;
        let (domain, ..) = domain(1);
        with_call(&domain, 0, |call| {
            assert_eq!(call.read::<u64>(NEW), Err(Errno::EFAULT));
            let page = MmapRegion::new(4096).unwrap();
            let page = GuestRegionMmap::new(page, GuestAddress(NEW)).unwrap();
            let larger = domain.memory().insert_region(Arc::new(page)).unwrap();
            domain.memory.lock().unwrap().replace(larger);
            assert_eq!(call.write(NEW, &7u64), Ok(()));
            assert_eq!(call.read::<u64>(NEW), Ok(7));
        });
        assert_eq!(domain.memory().read_obj::<u64>(GuestAddress(NEW)).unwrap(), 7);
    }
}
