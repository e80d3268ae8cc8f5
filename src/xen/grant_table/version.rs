//! `GNTTABOP_set_version`: changing the layout of the entries. The reserved ones
//! are carried over, all others begin anew.

use xen_abi::errno::Errno;
use xen_abi::grant_table::{
    GNTTAB_NR_RESERVED_ENTRIES, GTF_INVALID, GTF_PERMIT_ACCESS, GTF_READING, GTF_TRANSITIVE,
    GTF_WRITING,
};

use super::GrantTable;
use super::frames::Frame;
use super::table::{Header, Table, Version};
use crate::pages::GuestRam;

const RESERVED: usize = GNTTAB_NR_RESERVED_ENTRIES as usize;
const USE: u16 = GTF_READING | GTF_WRITING;

/// What of an entry is carried over.
#[derive(Clone, Copy, Default)]
struct Reserved {
    header: u32,
    status: u16,
    frame: u32,
}

impl GrantTable {
    /// Changes the version. Answers with the guest frames in which status words
    /// were, which are not ours any more.
    ///
    /// # Errors
    /// `EINVAL` for a version that there is not, `EBUSY` while grants but the
    /// reserved ones are in use, `ERANGE` where a reserved one does not fit into
    /// version 1.
    pub(super) fn set_version(&self, memory: &GuestRam, wanted: u32) -> Result<Vec<u64>, Errno> {
        let wanted = match wanted {
            1 => Version::V1,
            2 => Version::V2,
            _ => return Err(Errno::EINVAL),
        };
        let mut table = self.lock();
        if table.version == wanted {
            return Ok(Vec::new());
        }
        if table.pins.any_from(GNTTAB_NR_RESERVED_ENTRIES) {
            return Err(Errno::EBUSY);
        }
        let reserved = table.reserved(memory)?;
        let left: Vec<u64> = table
            .status
            .drain(..)
            .map(|frame| frame.gfn())
            .filter(|gfn| *gfn != u64::MAX)
            .collect();
        table.shared.iter_mut().for_each(|frame| Frame::zero(frame, memory));
        table.version = wanted;
        let frames = table.frames();
        table.grow(frames);
        for (reference, entry) in (0u32..).zip(reserved) {
            table.restore(memory, reference, entry);
        }
        Ok(left)
    }
}

impl Table {
    fn reserved(&mut self, memory: &GuestRam) -> Result<[Reserved; RESERVED], Errno> {
        let mut reserved = [Reserved::default(); RESERVED];
        for (reference, entry) in (0u32..).zip(&mut reserved) {
            let header = self.header(memory, reference);
            if self.version == Version::V1 {
                *entry = Reserved {
                    header: header.0 & !u32::from(USE),
                    status: header.flags() & USE,
                    frame: self.word(memory, reference, 1),
                };
                continue;
            }
            match header.kind() {
                GTF_INVALID => {}
                GTF_PERMIT_ACCESS if self.word(memory, reference, 3) == 0 => {
                    *entry = Reserved {
                        header: header.0,
                        status: self.status(memory, reference),
                        frame: self.word(memory, reference, 2),
                    };
                }
                GTF_PERMIT_ACCESS | GTF_TRANSITIVE => return Err(Errno::ERANGE),
                // Transfers are not carried over.
                _ => {}
            }
        }
        Ok(reserved)
    }

    fn restore(&mut self, memory: &GuestRam, reference: u32, entry: Reserved) {
        match self.version {
            Version::V1 => {
                self.set_word(memory, reference, 1, entry.frame);
                let header = Header(entry.header | u32::from(entry.status));
                self.set_word(memory, reference, 0, header.0);
            }
            Version::V2 => {
                self.replace_status(memory, reference, entry.status);
                self.set_word(memory, reference, 2, entry.frame);
                self.set_word(memory, reference, 0, entry.header);
            }
        }
    }
}
