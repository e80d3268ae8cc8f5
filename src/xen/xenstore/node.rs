//! A node and who may do what with it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use xen_abi::errno::Errno;

/// Permissions that one node may list.
pub(super) const MAX_PERMS: usize = 5;

/// A right to read.
pub(super) const READ: u8 = 1;
/// A right to write.
pub(super) const WRITE: u8 = 2;
/// The right to change permissions, which the owner has.
pub(super) const OWNER: u8 = 4;

/// A domain and its rights on a node. The first one of a node names its owner,
/// who has all, and the rights of whoever is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorePerm {
    /// The domain.
    pub domid: u16,
    /// It may read.
    pub read: bool,
    /// It may write.
    pub write: bool,
}

impl StorePerm {
    /// No rights.
    pub const fn none(domid: u16) -> Self {
        Self { domid, read: false, write: false }
    }

    /// A right to read.
    pub const fn read(domid: u16) -> Self {
        Self { domid, read: true, write: false }
    }

    fn bits(self) -> u8 {
        (u8::from(self.read) * READ) | (u8::from(self.write) * WRITE)
    }

    /// `n0`, `r7`, `w7`, `b7`.
    pub(super) fn text(self) -> String {
        let letter = match (self.read, self.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        };
        format!("{letter}{}", self.domid)
    }

    /// # Errors
    /// `EINVAL` for anything but a letter and a domain.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Errno> {
        let (&letter, domid) = text.split_first().ok_or(Errno::EINVAL)?;
        let (read, write) = match letter {
            b'n' => (false, false),
            b'r' => (true, false),
            b'w' => (false, true),
            b'b' => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let domid = std::str::from_utf8(domid).ok().and_then(|text| text.parse().ok());
        Ok(Self { domid: domid.ok_or(Errno::EINVAL)?, read, write })
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub domid: u16,
    /// Domain 0: may all, and has no quota.
    pub privileged: bool,
    /// Where its relative paths begin.
    pub home: String,
}

impl Caller {
    pub(super) fn guest(domid: u16) -> Self {
        Self { domid, privileged: false, home: super::path::home(domid) }
    }

    /// Domain 0, which calls nodes of the guest by their short names.
    pub(super) fn back_end(guest: u16) -> Self {
        Self { domid: 0, privileged: true, home: super::path::home(guest) }
    }

    /// What it may do where these are the permissions.
    pub(super) fn rights(&self, perms: &[StorePerm]) -> u8 {
        let Some(owner) = perms.first() else { return 0 };
        if self.privileged || owner.domid == self.domid {
            return READ | WRITE | OWNER;
        }
        let listed = perms[1..].iter().find(|perm| perm.domid == self.domid);
        listed.unwrap_or(owner).bits()
    }

    pub(super) fn may(&self, rights: u8, perms: &[StorePerm]) -> bool {
        self.rights(perms) & rights == rights
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub value: Vec<u8>,
    /// At least the owner.
    pub perms: Vec<StorePerm>,
    pub children: BTreeSet<String>,
    /// Changes with the node, and with no other to the same.
    pub generation: u64,
}

impl Node {
    pub(super) fn new(perms: Vec<StorePerm>) -> Self {
        Self { value: Vec::new(), perms, children: BTreeSet::new(), generation: 0 }
    }

    pub(super) fn owner(&self) -> u16 {
        self.perms.first().map_or(0, |owner| owner.domid)
    }

    /// Bytes of the node as xenstored keeps it, which is what its quota counts.
    pub(super) fn size(&self) -> usize {
        const HEADER: usize = 24;
        const PERM: usize = 8;
        let names: usize = self.children.iter().map(|name| name.len() + 1).sum();
        HEADER + PERM * self.perms.len() + self.value.len() + names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_read_as_written() {
        for text in ["n0", "r7", "w65535", "b1"] {
            assert_eq!(StorePerm::parse(text.as_bytes()).unwrap().text(), text);
        }
        for wrong in ["", "n", "x1", "r-1", "r65536", "r1 ", "1"] {
            assert_eq!(StorePerm::parse(wrong.as_bytes()), Err(Errno::EINVAL), "{wrong:?}");
        }
    }

    #[test]
    fn rights() {
        let guest = Caller::guest(7);
        let all = READ | WRITE | OWNER;
        let table: [(&[StorePerm], u8); 6] = [
            (&[StorePerm::none(7)], all),
            (&[StorePerm::none(0)], 0),
            (&[StorePerm::read(0)], READ),
            (&[StorePerm::none(0), StorePerm::read(7)], READ),
            (&[StorePerm::read(0), StorePerm::none(7)], 0),
            (&[StorePerm::read(0), StorePerm::none(8)], READ),
        ];
        for (perms, wanted) in table {
            assert_eq!(guest.rights(perms), wanted, "{perms:?}");
            assert_eq!(Caller::back_end(7).rights(perms), all);
        }
    }
}
