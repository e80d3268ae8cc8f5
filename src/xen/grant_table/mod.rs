//! The domain's grant table, version 1: frames of entries in which the guest
//! says who may reach which of its pages (`grant_table.h`).
//!
//! A frame is a page that the guest places in its memory with
//! `XENMEM_add_to_physmap`; until then, and after it was covered or removed, its
//! contents wait here.

mod op;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};
use xen_abi::errno::Errno;
use xen_abi::grant_table::{GNTTAB_RESERVED_CONSOLE, GTF_PERMIT_ACCESS, GrantEntryV1};
use zerocopy::{FromBytes, IntoBytes};

use super::DomainConfig;
use crate::pages::GuestRam;

pub(super) use op::op;

/// Frames that a domain may have: Xen's default, 32768 grants.
pub const MAX_FRAMES: u32 = 64;
const PAGE_SIZE: usize = 4096;
const ENTRY_SIZE: usize = size_of::<GrantEntryV1>();
/// Entries in a frame.
const ENTRIES: u32 = 512;
const _: () = assert!(ENTRIES as usize * ENTRY_SIZE == PAGE_SIZE);

/// A domain's grant table. One lock, taken for single entries and frames.
#[derive(Debug)]
pub struct GrantTable {
    frames: Mutex<Vec<Frame>>,
}

#[derive(Debug)]
enum Frame {
    /// In guest memory at this address.
    Placed(GuestAddress),
    /// Nowhere: its contents, `None` while it is all zero.
    Detached(Option<Box<[u8; PAGE_SIZE]>>),
}

impl GrantTable {
    /// A table of one frame. Its console entry already lets domain 0 reach the
    /// console's page, as a toolstack leaves it.
    #[must_use]
    pub fn new(config: &DomainConfig) -> Self {
        let table = Self { frames: Mutex::new(vec![Frame::Detached(None)]) };
        let frame = config.console_page.and_then(|page| u32::try_from(page.0 >> 12).ok());
        if let Some(frame) = frame {
            let entry = GrantEntryV1 { flags: GTF_PERMIT_ACCESS, domid: 0, frame };
            let mut page = Box::new([0; PAGE_SIZE]);
            let at = GNTTAB_RESERVED_CONSOLE as usize * ENTRY_SIZE;
            page[at..at + ENTRY_SIZE].copy_from_slice(entry.as_bytes());
            table.lock()[0] = Frame::Detached(Some(page));
        }
        table
    }

    /// Whether a frame of this index can be.
    ///
    /// # Errors
    /// `EINVAL` from [`MAX_FRAMES`] on.
    pub(super) fn check_frame(&self, index: u32) -> Result<(), Errno> {
        if index < MAX_FRAMES { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Places a frame at `gpa`, with its contents from wherever they were. The
    /// table grows to hold it.
    ///
    /// # Errors
    /// `EINVAL` as [`GrantTable::check_frame`], `EFAULT` where `gpa` is not memory.
    pub(super) fn place(
        &self,
        memory: &GuestRam,
        index: u32,
        gpa: GuestAddress,
    ) -> Result<(), Errno> {
        self.check_frame(index)?;
        let mut frames = self.lock();
        grow(&mut frames, index + 1);
        let frame = &mut frames[index as usize];
        let contents = frame.contents(memory);
        let zero = [0; PAGE_SIZE];
        let bytes = contents.as_deref().unwrap_or(&zero);
        memory.write_slice(bytes, gpa).map_err(|_| Errno::EFAULT)?;
        *frame = Frame::Placed(gpa);
        Ok(())
    }

    /// Takes a frame out of guest memory. Its contents are kept.
    pub(super) fn displace(&self, memory: &GuestRam, index: u32) {
        if let Some(frame) = self.lock().get_mut(index as usize) {
            *frame = Frame::Detached(frame.contents(memory));
        }
    }

    /// Frames that there are now.
    pub fn frames(&self) -> u32 {
        u32::try_from(self.lock().len()).unwrap_or(MAX_FRAMES)
    }

    /// The entries that there are now.
    fn entries(&self) -> u32 {
        self.frames() * ENTRIES
    }

    /// Grows the table to `count` frames and lists their guest frame numbers,
    /// all ones for one that is nowhere.
    fn list(&self, count: u32) -> Vec<u64> {
        let mut frames = self.lock();
        grow(&mut frames, count);
        let gfn = |frame: &Frame| match frame {
            Frame::Placed(gpa) => gpa.0 >> 12,
            Frame::Detached(_) => u64::MAX,
        };
        frames.iter().take(count as usize).map(gfn).collect()
    }

    /// Exchanges two entries; `false` where one does not exist.
    fn swap(&self, memory: &GuestRam, a: u32, b: u32) -> bool {
        let mut frames = self.lock();
        let (Some(old_a), Some(old_b)) = (entry(&frames, memory, a), entry(&frames, memory, b))
        else {
            return false;
        };
        set_entry(&mut frames, memory, a, old_b);
        set_entry(&mut frames, memory, b, old_a);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frame {
    /// A copy of the contents, `None` where they are all zero or cannot be read.
    fn contents(&mut self, memory: &GuestRam) -> Option<Box<[u8; PAGE_SIZE]>> {
        match self {
            Self::Detached(contents) => contents.take(),
            Self::Placed(gpa) => {
                let mut page = Box::new([0; PAGE_SIZE]);
                memory.read_slice(page.as_mut_slice(), *gpa).ok()?;
                Some(page)
            }
        }
    }
}

fn grow(frames: &mut Vec<Frame>, count: u32) {
    while frames.len() < count.min(MAX_FRAMES) as usize {
        frames.push(Frame::Detached(None));
    }
}

fn entry(frames: &[Frame], memory: &GuestRam, reference: u32) -> Option<GrantEntryV1> {
    let at = (reference % ENTRIES) as usize * ENTRY_SIZE;
    match frames.get((reference / ENTRIES) as usize)? {
        Frame::Detached(None) => Some(GrantEntryV1::default()),
        Frame::Detached(Some(page)) => {
            GrantEntryV1::read_from_prefix(&page[at..]).ok().map(|e| e.0)
        }
        Frame::Placed(gpa) => {
            let mut entry = GrantEntryV1::default();
            memory.read_slice(entry.as_mut_bytes(), GuestAddress(gpa.0 + at as u64)).ok()?;
            Some(entry)
        }
    }
}

fn set_entry(frames: &mut [Frame], memory: &GuestRam, reference: u32, entry: GrantEntryV1) {
    let at = (reference % ENTRIES) as usize * ENTRY_SIZE;
    match frames.get_mut((reference / ENTRIES) as usize) {
        Some(Frame::Detached(contents)) => {
            let page = contents.get_or_insert_with(|| Box::new([0; PAGE_SIZE]));
            page[at..at + ENTRY_SIZE].copy_from_slice(entry.as_bytes());
        }
        // The page was readable a moment ago; memory does not go away.
        Some(Frame::Placed(gpa)) => {
            let _ = memory.write_slice(entry.as_bytes(), GuestAddress(gpa.0 + at as u64));
        }
        None => {}
    }
}
