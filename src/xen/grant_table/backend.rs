//! Grants as a back end in this process uses them: it maps a page that the guest
//! granted to its domain number, or copies to and from it.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use xen_abi::grant_table::{GNTST_BAD_GNTREF, GNTST_BAD_PAGE, GNTST_GENERAL_ERROR};

use super::protocol::Use;
use super::table::Part;
use crate::xen::Domain;

/// What a back end does with a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantAccess {
    /// Reads only; the entry may be read-only.
    Read,
    /// Reads and writes.
    ReadWrite,
}

/// Why a grant could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The table has no such entry.
    #[error("grant reference {reference} is beyond the guest's table")]
    Reference {
        /// The reference.
        reference: u32,
    },
    /// Not granted, to another domain, read-only, transitive, part of a page, or
    /// changed by the guest again and again.
    #[error("grant {reference} does not allow that use to this back end")]
    Refused {
        /// The reference.
        reference: u32,
    },
    /// The page granted is not there.
    #[error("grant {reference} names guest frame {gfn:#x}, which holds no memory")]
    Page {
        /// The reference.
        reference: u32,
        /// The guest frame number.
        gfn: u64,
    },
    /// The bytes wanted are not all within the part of the page that is granted.
    #[error("grant {reference} covers bytes {start} to {end} of a page, not {offset} and {len} on")]
    Range {
        /// The reference.
        reference: u32,
        /// First byte granted.
        start: usize,
        /// The byte after the last one granted.
        end: usize,
        /// First byte wanted.
        offset: usize,
        /// Bytes wanted.
        len: usize,
    },
}

impl GrantError {
    /// `GNTST_*`, as a ring's answer or a hypercall's status field states it.
    #[must_use]
    pub fn status(self) -> i16 {
        match self {
            Self::Reference { .. } => GNTST_BAD_GNTREF,
            Self::Refused { .. } | Self::Range { .. } => GNTST_GENERAL_ERROR,
            Self::Page { .. } => GNTST_BAD_PAGE,
        }
    }
}

/// A page of the guest's that a back end has mapped. Until it is dropped the
/// guest can not end the grant, and sees in it that the page is in use.
pub struct MappedGrant {
    domain: Arc<Domain>,
    reference: u32,
    access: GrantAccess,
    gfn: u64,
}

impl MappedGrant {
    /// Where the page is in guest memory: 4096 bytes, which the guest may write
    /// to at any time.
    #[must_use]
    pub fn address(&self) -> GuestAddress {
        GuestAddress(self.gfn << 12)
    }

    /// What it was mapped for.
    #[must_use]
    pub fn access(&self) -> GrantAccess {
        self.access
    }

    /// Copies out of the page.
    ///
    /// # Errors
    /// [`GrantError::Range`] beyond its end, [`GrantError::Page`] without memory.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), GrantError> {
        let at = self.range(offset, bytes.len())?;
        self.domain.memory().read_slice(bytes, at).map_err(|_| self.no_page())
    }

    /// Copies into the page.
    ///
    /// # Errors
    /// As [`MappedGrant::read`], and [`GrantError::Refused`] if it was mapped
    /// for reading.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), GrantError> {
        if self.access == GrantAccess::Read {
            return Err(GrantError::Refused { reference: self.reference });
        }
        let at = self.range(offset, bytes.len())?;
        self.domain.memory().write_slice(bytes, at).map_err(|_| self.no_page())
    }

    fn range(&self, offset: usize, len: usize) -> Result<GuestAddress, GrantError> {
        within(self.reference, &whole(self.gfn), offset, len)
    }

    fn no_page(&self) -> GrantError {
        GrantError::Page { reference: self.reference, gfn: self.gfn }
    }
}

impl Drop for MappedGrant {
    fn drop(&mut self) {
        self.domain.grants.release(&self.domain.memory(), self.reference, self.access);
    }
}

fn whole(gfn: u64) -> Part {
    Part { gfn, start: 0, len: super::table::WHOLE, sub_page: false }
}

/// The address of `len` bytes from `offset` of the page on.
fn within(
    reference: u32,
    part: &Part,
    offset: usize,
    len: usize,
) -> Result<GuestAddress, GrantError> {
    let start = usize::from(part.start);
    // A hostile guest's part may run past its page, which ends it here.
    let end = (start + usize::from(part.len)).min(super::frames::PAGE_SIZE);
    if offset < start || offset.checked_add(len).is_none_or(|last| last > end) {
        return Err(GrantError::Range { reference, start, end, offset, len });
    }
    Ok(GuestAddress((part.gfn << 12) + offset as u64))
}

impl Domain {
    /// Maps a whole page that the guest granted to domain `backend`.
    ///
    /// # Errors
    /// [`GrantError`]: the entry does not allow it.
    pub fn map_grant(
        self: &Arc<Self>,
        backend: u16,
        reference: u32,
        access: GrantAccess,
    ) -> Result<MappedGrant, GrantError> {
        let part = self.acquire_grant(backend, reference, access, Use::Map)?;
        Ok(MappedGrant { domain: Arc::clone(self), reference, access, gfn: part.gfn })
    }

    /// Copies from a page that the guest granted to domain `backend`, in whole
    /// or in part, without mapping it.
    ///
    /// # Errors
    /// [`GrantError`]: the entry does not allow it, or not these bytes.
    pub fn copy_from_grant(
        &self,
        backend: u16,
        reference: u32,
        offset: usize,
        bytes: &mut [u8],
    ) -> Result<(), GrantError> {
        let access = GrantAccess::Read;
        let part = self.acquire_grant(backend, reference, access, Use::Copy)?;
        let copied = within(reference, &part, offset, bytes.len()).and_then(|at| {
            let missing = GrantError::Page { reference, gfn: part.gfn };
            self.memory().read_slice(bytes, at).map_err(|_| missing)
        });
        self.grants.release(&self.memory(), reference, access);
        copied
    }

    /// Copies to such a page.
    ///
    /// # Errors
    /// As [`Domain::copy_from_grant`].
    pub fn copy_to_grant(
        &self,
        backend: u16,
        reference: u32,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), GrantError> {
        let access = GrantAccess::ReadWrite;
        let part = self.acquire_grant(backend, reference, access, Use::Copy)?;
        let copied = within(reference, &part, offset, bytes.len()).and_then(|at| {
            let missing = GrantError::Page { reference, gfn: part.gfn };
            self.memory().write_slice(bytes, at).map_err(|_| missing)
        });
        self.grants.release(&self.memory(), reference, access);
        copied
    }

    pub(super) fn acquire_grant(
        &self,
        user: u16,
        reference: u32,
        access: GrantAccess,
        wanted: Use,
    ) -> Result<Part, GrantError> {
        let memory = self.memory();
        self.grants
            .acquire(&memory, reference, user, access, wanted, |gfn| self.physmap.is_present(gfn))
    }
}
