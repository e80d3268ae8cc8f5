//! Which pages of a running guest were written.
//!
//! KVM logs what the guest writes. It does not see what this process writes
//! into guest memory: those writes leave a bit in the memory's own bitmap. Both
//! are taken together, before the pages are read: a write after the reading has
//! its bit in the next round.
#![expect(unsafe_code, reason = "a slot's flags are changed by the call that sets its memory")]

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};

use super::{MigrateError, RamSlot};
use crate::pages::GuestRam;

const PAGE: u64 = 4096;

/// KVM's log of a machine's slots, until it is dropped.
pub struct DirtyLog<'a> {
    vm: &'a VmFd,
    memory: Arc<GuestRam>,
    slots: &'a [RamSlot],
}

impl<'a> DirtyLog<'a> {
    /// Begins to log; all earlier writes are forgotten.
    ///
    /// # Errors
    /// KVM's refusal; nothing is logged then.
    pub fn start(
        vm: &'a VmFd,
        memory: Arc<GuestRam>,
        slots: &'a [RamSlot],
    ) -> Result<Self, MigrateError> {
        let log = Self { vm, memory, slots };
        for slot in slots {
            log.set(*slot, KVM_MEM_LOG_DIRTY_PAGES)?;
        }
        // Nothing was read yet: what was written until now is in the first round.
        for region in log.memory.iter() {
            MmapRegion::bitmap(region).reset();
        }
        Ok(log)
    }

    fn set(&self, slot: RamSlot, flags: u32) -> Result<(), MigrateError> {
        let failed = |error| MigrateError::Log { call: "KVM_SET_USER_MEMORY_REGION", error };
        let lost = || failed(vmm_sys_util::errno::Error::new(libc::EFAULT));
        let region = self.memory.find_region(GuestAddress(slot.start)).ok_or_else(lost)?;
        if region.start_addr().raw_value() != slot.start || region.len() != slot.len {
            return Err(lost());
        }
        let host = region.get_host_address(MemoryRegionAddress(0)).map_err(|_| lost())?;
        let region = kvm_userspace_memory_region {
            slot: slot.slot,
            flags,
            guest_phys_addr: slot.start,
            memory_size: slot.len,
            userspace_addr: host as u64,
        };
        // SAFETY: the slot has this very memory already, a live mapping that the
        // machine holds for as long as its VM; only the flags are new.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(failed)
    }

    /// The frames that were written since the last call, in rising order. Those of
    /// pages that the machine did not begin with are in every answer.
    ///
    /// # Errors
    /// KVM's refusal.
    pub fn take(&self) -> Result<Vec<u64>, MigrateError> {
        let mut frames = Vec::new();
        for region in self.memory.iter() {
            let (start, pages) = (region.start_addr().raw_value() / PAGE, region.len() / PAGE);
            let ours = MmapRegion::bitmap(region).get_and_reset();
            let Some(slot) = self.slots.iter().find(|slot| slot.start == start * PAGE) else {
                frames.extend(start..start + pages);
                continue;
            };
            let bytes = usize::try_from(slot.len).unwrap_or(usize::MAX);
            let failed = |error| MigrateError::Log { call: "KVM_GET_DIRTY_LOG", error };
            let guest = self.vm.get_dirty_log(slot.slot, bytes).map_err(failed)?;
            add_frames(&mut frames, start, pages, &guest, &ours);
        }
        Ok(frames)
    }
}

impl Drop for DirtyLog<'_> {
    fn drop(&mut self) {
        for slot in self.slots {
            if let Err(error) = self.set(*slot, 0) {
                tracing::warn!(slot = slot.slot, %error, "the guest's writes are still logged");
            }
        }
    }
}

/// The frames whose bit is set in one of two bitmaps, of which one may be short.
fn add_frames(frames: &mut Vec<u64>, start: u64, pages: u64, one: &[u64], other: &[u64]) {
    let word = |bits: &[u64], at: usize| bits.get(at).copied().unwrap_or(0);
    for (at, first) in (0..one.len().max(other.len())).zip((0u64..).step_by(64)) {
        let mut bits = word(one, at) | word(other, at);
        while bits != 0 {
            let page = first + u64::from(bits.trailing_zeros());
            bits &= bits - 1;
            if page < pages {
                frames.push(start + page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bitmaps_count_and_none_reaches_beyond() {
        let mut frames = vec![7];
        add_frames(&mut frames, 1000, 66, &[1 | 1 << 63, 0b111], &[0b10]);
        assert_eq!(frames, [7, 1000, 1001, 1063, 1064, 1065]);
        frames.clear();
        add_frames(&mut frames, 0, 200, &[], &[0, 0, 1]);
        assert_eq!(frames, [128]);
    }
}
