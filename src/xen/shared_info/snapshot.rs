//! Where the shared structures are, outside of the guest.

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, GuestAddress};

use super::super::Bytes;
use super::super::domain::{read, write};
use super::super::snapshot::RestoreError;
use super::{Domain, PAGE_SIZE};
use crate::pages::Width;

/// Where the shared structures are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutState {
    /// They are in the 32-bit layout.
    pub narrow: bool,
    /// Guest-physical address of `shared_info`, if it is mapped.
    pub shared_info: Option<u64>,
    /// What it holds while it is not.
    pub private_page: Bytes,
    /// Guest-physical address of each `vcpu_info` that was registered.
    pub registered: Vec<Option<u64>>,
}

impl Domain {
    pub(in crate::xen) fn snapshot_layout(&self) -> LayoutState {
        let layout = read(&self.layout);
        let mut page = [0u8; PAGE_SIZE];
        if layout.shared_info.is_none()
            && self.private.0.read_slice(&mut page, GuestAddress(0)).is_err()
        {
            tracing::debug!("shared_info has no page");
        }
        LayoutState {
            narrow: layout.width == Width::Bits32,
            shared_info: layout.shared_info,
            private_page: Bytes::of(&page),
            registered: layout.registered.clone(),
        }
    }

    /// The domain has not run yet, its memory is what it was.
    pub(in crate::xen) fn restore_layout(&self, from: &LayoutState) -> Result<(), RestoreError> {
        let mut layout = write(&self.layout);
        let count = from.registered.len();
        if count != layout.registered.len() {
            return Err(RestoreError::Value { what: "number of vCPUs", value: count as u64 });
        }
        let mut page = [0u8; PAGE_SIZE];
        let filled = from.private_page.fill(&mut page)
            && self.private.0.write_slice(&page, GuestAddress(0)).is_ok();
        if !filled {
            return Err(RestoreError::Value { what: "page of shared_info", value: 0 });
        }
        layout.width = if from.narrow { Width::Bits32 } else { Width::Bits64 };
        layout.registered.clone_from(&from.registered);
        layout.shared_info = from.shared_info;
        if let Some(gpa) = from.shared_info {
            let placed = self.platform.shared_info_placed(Some(GuestAddress(gpa)), !from.narrow);
            placed.map_err(RestoreError::Platform)?;
        }
        Ok(())
    }
}
