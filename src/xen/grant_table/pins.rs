//! The entries in use, by whom and how often.

use std::collections::BTreeMap;

use xen_abi::grant_table::{GTF_READING, GTF_WRITING};

use super::protocol::{SharedEntry, Use, Wish, note_use};
use super::table::{Header, Part, Table};
use super::{GrantAccess, GrantError};
use crate::pages::GuestRam;

/// The entries in use.
#[derive(Debug, Default)]
pub(super) struct Pins {
    active: BTreeMap<u32, Active>,
    /// Users of each guest frame.
    frames: BTreeMap<u64, u32>,
}

#[derive(Clone, Copy, Debug)]
struct Active {
    domid: u16,
    part: Part,
    readers: u32,
    writers: u32,
}

/// An entry where it really is.
struct Entry<'a> {
    table: &'a mut Table,
    memory: &'a GuestRam,
    reference: u32,
}

impl SharedEntry for Entry<'_> {
    fn header(&mut self) -> Header {
        self.table.header(self.memory, self.reference)
    }

    fn exchange(&mut self, old: Header, new: Header) -> Result<(), Header> {
        self.table.exchange_header(self.memory, self.reference, old, new)
    }

    fn set_status(&mut self, bits: u16) {
        self.table.set_status(self.memory, self.reference, bits);
    }

    fn clear_status(&mut self, bits: u16) {
        self.table.clear_use(self.memory, self.reference, bits);
    }
}

impl Pins {
    pub(super) fn is_pinned(&self, reference: u32) -> bool {
        self.active.contains_key(&reference)
    }

    /// Whether an entry from `reference` on is in use.
    pub(super) fn any_from(&self, reference: u32) -> bool {
        self.active.range(reference..).next().is_some()
    }

    pub(super) fn holds_frame(&self, gfn: u64) -> bool {
        self.frames.contains_key(&gfn)
    }
}

impl Table {
    /// Takes grant `reference`, which must be made out to domain `user`.
    ///
    /// # Errors
    /// As the entry is; nothing is in use then that was not before.
    pub(super) fn acquire(
        &mut self,
        memory: &GuestRam,
        reference: u32,
        user: u16,
        access: GrantAccess,
        wanted: Use,
        is_present: impl FnOnce(u64) -> bool,
    ) -> Result<Part, GrantError> {
        let refused = GrantError::Refused { reference };
        if reference >= self.entries() {
            return Err(GrantError::Reference { reference });
        }
        let before = self.pins.active.get(&reference).copied();
        if let Some(active) = before
            && (active.domid != user || wanted == Use::Map && active.part.sub_page)
        {
            return Err(refused);
        }
        let writes = access == GrantAccess::ReadWrite;
        let header = match before {
            Some(active) if !writes || active.writers > 0 => None,
            _ => {
                let wish = Wish { user, writes, pinned: before.is_some(), wanted };
                let version = self.version;
                let mut entry = Entry { table: self, memory, reference };
                Some(note_use(&mut entry, version, &wish).ok_or(refused)?)
            }
        };
        let part = match (before, header) {
            (Some(active), _) => active.part,
            (None, header) => {
                let part = header.and_then(|header| self.part(memory, reference, header));
                // Another domain's grant, passed on: nobody made out one to us.
                let found = part.ok_or(refused).and_then(|part| match is_present(part.gfn) {
                    true => Ok(part),
                    false => Err(GrantError::Page { reference, gfn: part.gfn }),
                });
                match found {
                    Ok(part) => part,
                    Err(error) => {
                        self.clear_use(memory, reference, GTF_READING | GTF_WRITING);
                        return Err(error);
                    }
                }
            }
        };
        let fresh = Active { domid: user, part, readers: 0, writers: 0 };
        let active = self.pins.active.entry(reference).or_insert(fresh);
        let count = if writes { &mut active.writers } else { &mut active.readers };
        *count = count.saturating_add(1);
        *self.pins.frames.entry(part.gfn).or_default() += 1;
        Ok(part)
    }

    /// Gives back what [`Table::acquire`] took.
    pub(super) fn release(&mut self, memory: &GuestRam, reference: u32, access: GrantAccess) {
        let Some(active) = self.pins.active.get_mut(&reference) else { return };
        let mut over = 0;
        match access {
            GrantAccess::Read => active.readers = active.readers.saturating_sub(1),
            GrantAccess::ReadWrite => {
                active.writers = active.writers.saturating_sub(1);
                if active.writers == 0 {
                    over |= GTF_WRITING;
                }
            }
        }
        let Active { part, readers, writers, .. } = *active;
        if readers == 0 && writers == 0 {
            over |= GTF_READING;
            self.pins.active.remove(&reference);
        }
        if let Some(users) = self.pins.frames.get_mut(&part.gfn) {
            *users -= 1;
            if *users == 0 {
                self.pins.frames.remove(&part.gfn);
            }
        }
        if over != 0 {
            self.clear_use(memory, reference, over);
        }
    }
}
