//! Why a state could not be written or read, in one line.

use std::io;
use std::path::PathBuf;

use super::Tag;

/// Why a state could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{what} failed: {error}")]
    Io {
        /// What was done.
        what: &'static str,
        /// What the host said.
        error: io::Error,
    },
    /// A file could not be made or put in its place.
    #[error("{what} {path}: {error}; the file that was there before is as it was", path = .path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// There is no such file, or it may not be read.
    #[error("cannot open {path}: {error}", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// It does not begin as a state does.
    #[error("this is no saved state of kvm-xen: it does not begin with its mark")]
    NotState,
    /// The header's checksum is wrong.
    #[error("the state's header is damaged: its checksum is wrong; take another copy")]
    Header,
    /// A version from before the first that is read.
    #[error(
        "the state has format version {found}, older than any that this kvm-xen reads ({oldest} \
         to {newest}); restore it with the version that saved it"
    )]
    Older {
        /// The state's.
        found: u16,
        /// The first that is read.
        oldest: u16,
        /// The last that is read.
        newest: u16,
    },
    /// A version that is not known yet.
    #[error(
        "the state has format version {found}, newer than this kvm-xen reads ({oldest} to \
         {newest}); restore it with the version that saved it, or a later one"
    )]
    Newer {
        /// The state's.
        found: u16,
        /// The first that is read.
        oldest: u16,
        /// The last that is read.
        newest: u16,
    },
    /// It ends too early.
    #[error("the state is cut off at byte {at}, in {part}; take another copy")]
    Truncated {
        /// Bytes that were there.
        at: u64,
        /// What was being read.
        part: String,
    },
    /// A section's checksum is wrong.
    #[error(
        "the state is damaged at byte {at}: the checksum of {part} is wrong; take another copy"
    )]
    Checksum {
        /// Where the section begins.
        at: u64,
        /// Which part.
        part: String,
    },
    /// A section that has to be understood, and is not.
    #[error("the state has a section {tag} that this kvm-xen does not know; use a later version")]
    Unknown {
        /// Its name.
        tag: Tag,
    },
    /// A section that has to be there is not.
    #[error("the state has no section {tag}: it is incomplete")]
    Missing {
        /// Its name.
        tag: Tag,
    },
    /// A section is there twice, or where it does not belong.
    #[error("the state has section {tag} (number {index}) twice or out of its place")]
    Misplaced {
        /// Its name.
        tag: Tag,
        /// Its number.
        index: u32,
    },
    /// A section says that it is longer than any is.
    #[error("section {tag} is {len} bytes long, more than the {most} that a section may have")]
    TooLong {
        /// Its name.
        tag: Tag,
        /// What it says.
        len: u64,
        /// The most.
        most: u64,
    },
    /// What a section says makes no sense.
    #[error("section {tag} cannot be understood: {why}")]
    Contents {
        /// Its name.
        tag: Tag,
        /// What is wrong.
        why: String,
    },
    /// Something comes after the end.
    #[error("the state goes on after its end at byte {at}: it is not what was saved")]
    Trailing {
        /// Where it ends.
        at: u64,
    },
    /// Guest memory.
    #[error("guest memory at {gpa:#x}: {why}")]
    Memory {
        /// Guest-physical address.
        gpa: u64,
        /// What is wrong.
        why: String,
    },
}
