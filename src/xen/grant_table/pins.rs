//! Use of grants: the protocol by which a guest sees that one of its pages is
//! in use, and by which it can not take a grant back meanwhile.
//!
//! The guest ends a grant by clearing its flags where they say neither reading
//! nor writing. So the flags of use go in with the very exchange that finds the
//! entry still good (version 1), or before the entry is looked at once more
//! (version 2, whose guest clears the entry first and then reads the status).

use std::collections::BTreeMap;

use xen_abi::grant_table::{
    GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_SUB_PAGE, GTF_TRANSITIVE, GTF_TYPE_MASK,
    GTF_WRITING,
};

use super::table::{Header, Part, Table, Version};
use super::{GrantAccess, GrantError};
use crate::pages::GuestRam;

/// Tries at an entry that the guest keeps changing, as many as Xen makes.
const TRIES: u32 = 5;

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

/// What a grant is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To be reached for long: whole pages only.
    Map,
    /// For the time of one call.
    Copy,
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
            _ => Some(self.note_use(memory, reference, user, writes, before.is_some(), wanted)?),
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

    /// Checks the entry and sets its flags of use; the header that was good.
    fn note_use(
        &mut self,
        memory: &GuestRam,
        reference: u32,
        user: u16,
        writes: bool,
        pinned: bool,
        wanted: Use,
    ) -> Result<Header, GrantError> {
        let refused = GrantError::Refused { reference };
        let good = |header: Header, transitive: bool| {
            let mask =
                if wanted == Use::Map { GTF_TYPE_MASK | GTF_SUB_PAGE } else { GTF_TYPE_MASK };
            let kind = header.flags() & mask;
            let kind = kind == GTF_PERMIT_ACCESS || transitive && kind == GTF_TRANSITIVE;
            let writable = !writes || header.flags() & GTF_READONLY == 0;
            writable && (pinned || kind && header.domid() == user)
        };
        let using = if writes { GTF_READING | GTF_WRITING } else { GTF_READING };
        let mut header = self.header(memory, reference);
        if self.version == Version::V2 {
            // To copy a transitive grant is refused later than to map it.
            let transitive = wanted == Use::Copy;
            if !good(header, transitive) {
                return Err(refused);
            }
            self.set_status(memory, reference, using);
            // The guest clears the entry, then reads the status: one of the two
            // of us sees the other (the word operations are SeqCst).
            header = self.header(memory, reference);
            if good(header, transitive) {
                return Ok(header);
            }
            let over = if pinned { GTF_WRITING } else { GTF_READING | GTF_WRITING };
            self.clear_use(memory, reference, over);
            return Err(refused);
        }
        for _ in 0..TRIES {
            if !good(header, false) {
                return Err(refused);
            }
            let new = Header(header.0 | u32::from(using));
            match self.exchange_header(memory, reference, header, new) {
                Ok(()) => return Ok(header),
                Err(changed) => header = changed,
            }
        }
        Err(refused)
    }
}
