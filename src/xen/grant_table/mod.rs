//! The domain's grant table, version 1 or 2: frames of entries in which the
//! guest says who may reach which of its pages (`grant_table.h`).
//!
//! A frame is a page that the guest places in its memory with
//! `XENMEM_add_to_physmap`; until then, and after it was covered or removed, its
//! contents wait here.

mod backend;
mod frames;
mod op;
mod pins;
mod protocol;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;
mod version;

use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddress;
use xen_abi::errno::Errno;
use xen_abi::grant_table::{GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GTF_PERMIT_ACCESS};

use super::DomainConfig;
use super::physmap::Special;
use crate::pages::GuestRam;
use frames::Frame;
use pins::Pins;
use protocol::Use;
use table::{Part, Table, shared_frames};

pub use backend::{GrantAccess, GrantError, MappedGrant};
pub(super) use op::op;
pub use snapshot::GrantsState;

/// Frames that a domain may have: Xen's default, 32768 grants of version 1.
pub const MAX_FRAMES: u32 = 64;

/// A domain's grant table. One lock, taken for single entries and frames, and
/// no other inside it but the guest's accounts of memory.
#[derive(Debug)]
pub struct GrantTable {
    table: Mutex<Table>,
}

impl GrantTable {
    /// A table of one frame, version 1. Its first entries already let domain
    /// 0 reach the pages of console and store, as a toolstack leaves them.
    #[must_use]
    pub fn new(config: &DomainConfig) -> Self {
        Self { table: Mutex::new(first_table(config)) }
    }

    /// The table of a new domain, placed nowhere. What back ends still use
    /// stays theirs until they let go.
    pub(super) fn renew(&self, config: &DomainConfig) {
        let mut table = self.lock();
        let pins = std::mem::take(&mut table.pins);
        *table = Table { pins, ..first_table(config) };
    }

    /// 1 or 2.
    pub fn version(&self) -> u32 {
        self.lock().version.number()
    }

    /// Whether a frame of this index can be.
    ///
    /// # Errors
    /// `EINVAL` from [`MAX_FRAMES`] on, and for status frames that the largest
    /// table does not need.
    pub(super) fn check_frame(&self, special: Special) -> Result<(), Errno> {
        let exists = match special {
            Special::SharedInfo => false,
            Special::GrantFrame(index) => index < MAX_FRAMES,
            Special::StatusFrame(index) => {
                (index as usize) < self.lock().status.len()
                    || index.checked_add(1).and_then(shared_frames).is_some_and(|n| n <= MAX_FRAMES)
            }
        };
        if exists { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Places a frame at `gpa`, with its contents from wherever they were. The
    /// table grows to hold it.
    ///
    /// # Errors
    /// `EINVAL` as [`GrantTable::check_frame`], `EFAULT` where `gpa` is not memory.
    pub(super) fn place(
        &self,
        memory: &GuestRam,
        special: Special,
        gpa: GuestAddress,
    ) -> Result<(), Errno> {
        self.check_frame(special)?;
        let mut table = self.lock();
        match special {
            Special::GrantFrame(index) => table.grow(index + 1),
            Special::StatusFrame(index) if index as usize >= table.status.len() => {
                table.grow(shared_frames(index + 1).ok_or(Errno::EINVAL)?);
            }
            _ => {}
        }
        frame_mut(&mut table, special).ok_or(Errno::EINVAL)?.place(memory, gpa)
    }

    /// Takes a frame out of guest memory. Its contents are kept.
    pub(super) fn displace(&self, memory: &GuestRam, special: Special) {
        if let Some(frame) = frame_mut(&mut self.lock(), special) {
            frame.detach(memory);
        }
    }

    /// Frames of entries that there are now.
    pub fn frames(&self) -> u32 {
        self.lock().frames()
    }

    /// Whether a grant of this guest frame is in use.
    pub(super) fn is_mapped(&self, gfn: u64) -> bool {
        self.lock().pins.holds_frame(gfn)
    }

    /// The entries that there are now.
    fn entries(&self) -> u32 {
        self.lock().entries()
    }

    /// Grows the table to `count` frames and lists their guest frame numbers,
    /// all ones for one that is nowhere.
    fn list(&self, count: u32) -> Vec<u64> {
        let mut table = self.lock();
        table.grow(count);
        table.shared.iter().take(count as usize).map(Frame::gfn).collect()
    }

    /// As `Table::acquire`.
    fn acquire(
        &self,
        memory: &GuestRam,
        reference: u32,
        user: u16,
        access: GrantAccess,
        wanted: Use,
        is_present: impl FnOnce(u64) -> bool,
    ) -> Result<Part, GrantError> {
        self.lock().acquire(memory, reference, user, access, wanted, is_present)
    }

    fn release(&self, memory: &GuestRam, reference: u32, access: GrantAccess) {
        self.lock().release(memory, reference, access);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_table(config: &DomainConfig) -> Table {
    let mut table = Table::new();
    let reserved = [
        (GNTTAB_RESERVED_CONSOLE, config.console_page),
        (GNTTAB_RESERVED_XENSTORE, config.store_page),
    ];
    for (entry, page) in reserved {
        let frame = page.and_then(|page| u32::try_from(page.0 >> 12).ok());
        if let Some(frame) = frame {
            let nowhere = GuestRam::new();
            table.set_word(&nowhere, entry, 0, GTF_PERMIT_ACCESS.into());
            table.set_word(&nowhere, entry, 1, frame);
        }
    }
    table
}

fn frame_mut(table: &mut Table, special: Special) -> Option<&mut Frame> {
    match special {
        Special::SharedInfo => None,
        Special::GrantFrame(index) => table.shared.get_mut(index as usize),
        Special::StatusFrame(index) => table.status.get_mut(index as usize),
    }
}
