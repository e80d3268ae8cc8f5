//! The protocol by which a guest sees that a grant is in use, and by which it can
//! not take it back meanwhile.
//!
//! The guest ends a grant of version 1 by an exchange of its flags, which it makes
//! only where they say neither reading nor writing: the flags of use go in with
//! the exchange that finds the entry good. It ends one of version 2 by clearing
//! the entry and then looking at the status: that is set before the entry is
//! looked at once more, so that one of the two sees the other. All operations on
//! shared words are SeqCst, the order which that needs.

use xen_abi::grant_table::{
    GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_SUB_PAGE, GTF_TRANSITIVE, GTF_TYPE_MASK,
    GTF_WRITING,
};

use super::table::{Header, Version};

/// Tries at an entry that the guest keeps changing, as many as Xen makes.
const TRIES: u32 = 5;

/// What a grant is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To be reached for long: whole pages only.
    Map,
    /// For the time of one call.
    Copy,
}

/// Who wants to use an entry, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// The domain that it must be made out to.
    pub user: u16,
    pub writes: bool,
    /// It is in use already, by the same domain: what it says now of type and
    /// domain does not count.
    pub pinned: bool,
    pub wanted: Use,
}

/// The words of an entry that the guest works on, too. Each call is one atomic
/// operation.
pub(super) trait SharedEntry {
    fn header(&mut self) -> Header;
    /// `Err` is what stood there instead of `old`.
    fn exchange(&mut self, old: Header, new: Header) -> Result<(), Header>;
    /// Version 2 only.
    fn set_status(&mut self, bits: u16);
    /// Version 2 only.
    fn clear_status(&mut self, bits: u16);
}

/// Checks an entry and sets its flags of use. Answers with the header that was
/// good; `None` leaves the flags as they were.
pub(super) fn note_use(
    entry: &mut impl SharedEntry,
    version: Version,
    wish: &Wish,
) -> Option<Header> {
    let using = if wish.writes { GTF_READING | GTF_WRITING } else { GTF_READING };
    let mut header = entry.header();
    if version == Version::V2 {
        if !wish.is_granted_by(header, version) {
            return None;
        }
        entry.set_status(using);
        header = entry.header();
        if wish.is_granted_by(header, version) {
            return Some(header);
        }
        entry.clear_status(if wish.pinned { GTF_WRITING } else { using });
        return None;
    }
    for _ in 0..TRIES {
        if !wish.is_granted_by(header, version) {
            return None;
        }
        match entry.exchange(header, Header(header.0 | u32::from(using))) {
            Ok(()) => return Some(header),
            Err(changed) => header = changed,
        }
    }
    None
}

impl Wish {
    fn is_granted_by(&self, header: Header, version: Version) -> bool {
        let whole = if self.wanted == Use::Map { GTF_SUB_PAGE } else { 0 };
        let kind = header.flags() & (GTF_TYPE_MASK | whole);
        // To copy a transitive grant is refused later than to map it.
        let transitive = version == Version::V2 && self.wanted == Use::Copy;
        let kind = kind == GTF_PERMIT_ACCESS || transitive && kind == GTF_TRANSITIVE;
        let writable = !self.writes || header.flags() & GTF_READONLY == 0;
        writable && (self.pinned || kind && header.domid() == self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u16 = 3;
    const GOOD: u32 = GTF_PERMIT_ACCESS as u32 | (USER as u32) << 16;

    /// What the guest does, one atomic operation each.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        /// Version 1: the exchange that ends the grant.
        End,
        /// Version 2: clears the entry.
        Clear,
        /// Version 2, afterwards: it is over if the status says unused.
        Look,
        /// Anything that changes the word and leaves it good.
        Touch,
    }

    /// An entry whose guest acts just before our operations of these numbers.
    struct Scripted {
        word: u32,
        status: u16,
        script: Vec<(usize, Act)>,
        operations: usize,
        ended: bool,
    }

    impl Scripted {
        fn new(script: Vec<(usize, Act)>) -> Self {
            Self { word: GOOD, status: 0, script, operations: 0, ended: false }
        }

        fn guest(&mut self) {
            let now = self.operations;
            self.operations += 1;
            for act in self.script.clone() {
                if act.0 == now {
                    self.act(act.1);
                }
            }
        }

        fn act(&mut self, act: Act) {
            match act {
                Act::End if self.word & u32::from(GTF_READING | GTF_WRITING) == 0 => {
                    self.word = 0;
                    self.ended = true;
                }
                Act::End => {}
                Act::Clear => self.word = 0,
                Act::Look => self.ended = self.status == 0,
                Act::Touch => self.word ^= 1 << 7,
            }
        }

        /// What the guest had still to do when we were done.
        fn rest(&mut self) {
            for act in self.script.clone() {
                if act.0 >= self.operations {
                    self.act(act.1);
                }
            }
        }
    }

    impl SharedEntry for Scripted {
        fn header(&mut self) -> Header {
            self.guest();
            Header(self.word)
        }

        fn exchange(&mut self, old: Header, new: Header) -> Result<(), Header> {
            self.guest();
            if self.word != old.0 {
                return Err(Header(self.word));
            }
            self.word = new.0;
            Ok(())
        }

        fn set_status(&mut self, bits: u16) {
            self.guest();
            self.status |= bits;
        }

        fn clear_status(&mut self, bits: u16) {
            self.guest();
            self.status &= !bits;
        }
    }

    const WISH: Wish = Wish { user: USER, writes: true, pinned: false, wanted: Use::Map };

    #[test]
    fn no_interleaving_both_ends_and_uses_a_grant() {
        let mut seen = [0; 3];
        let mut check = |version, script: Vec<(usize, Act)>| {
            let text = format!("{version:?} {script:?}");
            let mut entry = Scripted::new(script);
            let used = note_use(&mut entry, version, &WISH).is_some();
            entry.rest();
            assert!(!(used && entry.ended), "{text}");
            if !used {
                let flags = entry.word & u32::from(GTF_READING | GTF_WRITING);
                assert_eq!((flags, entry.status), (0, 0), "left behind: {text}");
            }
            seen[if used {
                0
            } else if entry.ended {
                1
            } else {
                2
            }] += 1;
        };
        for at in 0..8 {
            check(Version::V1, vec![(at, Act::End)]);
            for then in at..8 {
                check(Version::V2, vec![(at, Act::Clear), (then, Act::Look)]);
                check(Version::V1, vec![(at, Act::Touch), (then, Act::End)]);
            }
        }
        assert!(seen.iter().all(|count| *count > 0), "used, ended, neither: {seen:?}");
    }

    #[test]
    fn a_restless_entry_is_given_up() {
        for (touches, used) in [(0, true), (1, true), (4, true), (5, false), (100, false)] {
            // The first look is operation 0; each exchange finds another word.
            let script = (1..=touches).map(|at| (at, Act::Touch)).collect();
            let mut entry = Scripted::new(script);
            assert_eq!(note_use(&mut entry, Version::V1, &WISH).is_some(), used, "{touches}");
            assert!(entry.operations <= 6, "{touches}: {} operations", entry.operations);
        }
    }
}
