//! The entries of a table, of either version, word by word.

use xen_abi::grant_table::{GTF_SUB_PAGE, GTF_TRANSITIVE, GTF_TYPE_MASK};

use super::frames::{Frame, PAGE_SIZE};
use super::{MAX_FRAMES, pins::Pins};
use crate::pages::GuestRam;

/// The layout of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 8 bytes: flags, domain, a frame of 32 bits. Use is noted in the flags.
    V1,
    /// 16 bytes, a frame of 64 bits or a part of one. Use is noted in status
    /// words of 16 bits, in pages of their own.
    V2,
}

impl Version {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    /// Words of 32 bits in an entry.
    pub(super) fn words(self) -> usize {
        match self {
            Self::V1 => 2,
            Self::V2 => 4,
        }
    }

    /// Entries in a frame.
    pub(super) fn entries(self) -> u32 {
        match self {
            Self::V1 => 512,
            Self::V2 => 256,
        }
    }
}

/// Status words in a frame of them.
const STATUSES: u32 = 2048;

/// Frames of status words that `shared` frames of entries need.
pub(super) fn status_frames(shared: u32) -> u32 {
    (shared * Version::V2.entries()).div_ceil(STATUSES)
}

/// Frames of entries that `status` frames of status words serve.
pub(super) fn shared_frames(status: u32) -> Option<u32> {
    status.checked_mul(STATUSES / Version::V2.entries())
}

/// What a table consists of, under its lock.
#[derive(Debug)]
pub(super) struct Table {
    pub version: Version,
    pub shared: Vec<Frame>,
    /// None with version 1.
    pub status: Vec<Frame>,
    pub pins: Pins,
}

/// Flags and domain, the first word of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header(pub u32);

impl Header {
    pub(super) fn flags(self) -> u16 {
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    pub(super) fn domid(self) -> u16 {
        let [.., low, high] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    pub(super) fn kind(self) -> u16 {
        self.flags() & GTF_TYPE_MASK
    }
}

/// The memory that an entry grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Guest frame number.
    pub gfn: u64,
    /// First byte in the page.
    pub start: u16,
    /// Bytes.
    pub len: u16,
    /// It may be copied, not mapped.
    pub sub_page: bool,
}

/// Bytes of a whole page.
pub(super) const WHOLE: u16 = 4096;

impl Table {
    pub(super) fn new() -> Self {
        Self {
            version: Version::V1,
            shared: vec![Frame::EMPTY],
            status: Vec::new(),
            pins: Pins::default(),
        }
    }

    /// Grows to `count` frames of entries, at most [`MAX_FRAMES`].
    pub(super) fn grow(&mut self, count: u32) {
        let count = count.min(MAX_FRAMES);
        while self.frames() < count {
            self.shared.push(Frame::EMPTY);
        }
        let statuses = match self.version {
            Version::V1 => 0,
            Version::V2 => status_frames(self.frames()) as usize,
        };
        while self.status.len() < statuses {
            self.status.push(Frame::EMPTY);
        }
    }

    pub(super) fn frames(&self) -> u32 {
        u32::try_from(self.shared.len()).unwrap_or(MAX_FRAMES)
    }

    pub(super) fn entries(&self) -> u32 {
        self.frames() * self.version.entries()
    }

    /// The frame of entry `reference` and the byte at which it starts.
    fn entry(&mut self, reference: u32) -> Option<(&mut Frame, usize)> {
        let per_frame = self.version.entries();
        let at = (reference % per_frame) as usize * self.version.words() * 4;
        Some((self.shared.get_mut((reference / per_frame) as usize)?, at))
    }

    /// Word `index` of an entry, 0 for one that does not exist.
    pub(super) fn word(&mut self, memory: &GuestRam, reference: u32, index: usize) -> u32 {
        self.entry(reference).map_or(0, |(frame, at)| frame.load(memory, at + index * 4))
    }

    pub(super) fn set_word(&mut self, memory: &GuestRam, reference: u32, index: usize, value: u32) {
        if let Some((frame, at)) = self.entry(reference) {
            frame.store(memory, at + index * 4, value);
        }
    }

    pub(super) fn header(&mut self, memory: &GuestRam, reference: u32) -> Header {
        Header(self.word(memory, reference, 0))
    }

    /// Puts `new` for `old`; `Err` is what stands there.
    pub(super) fn exchange_header(
        &mut self,
        memory: &GuestRam,
        reference: u32,
        old: Header,
        new: Header,
    ) -> Result<(), Header> {
        let Some((frame, at)) = self.entry(reference) else { return Err(Header(0)) };
        frame.exchange(memory, at, old.0, new.0).map(|_| ()).map_err(Header)
    }

    /// The frame, word and shift of a status word.
    fn status_word(&mut self, reference: u32) -> Option<(&mut Frame, usize, u32)> {
        let pair = (reference % STATUSES / 2) as usize;
        let frame = self.status.get_mut((reference / STATUSES) as usize)?;
        Some((frame, pair * 4, reference % 2 * 16))
    }

    pub(super) fn status(&mut self, memory: &GuestRam, reference: u32) -> u16 {
        let Some((frame, at, shift)) = self.status_word(reference) else { return 0 };
        Header(frame.load(memory, at) >> shift).flags()
    }

    pub(super) fn set_status(&mut self, memory: &GuestRam, reference: u32, bits: u16) {
        if let Some((frame, at, shift)) = self.status_word(reference) {
            frame.set(memory, at, u32::from(bits) << shift);
        }
    }

    /// Clears flags of use, wherever this version keeps them.
    pub(super) fn clear_use(&mut self, memory: &GuestRam, reference: u32, bits: u16) {
        match self.version {
            Version::V1 => {
                if let Some((frame, at)) = self.entry(reference) {
                    frame.clear(memory, at, bits.into());
                }
            }
            Version::V2 => {
                if let Some((frame, at, shift)) = self.status_word(reference) {
                    frame.clear(memory, at, u32::from(bits) << shift);
                }
            }
        }
    }

    /// What an entry with `header` grants; `None` if that is another's grant.
    pub(super) fn part(
        &mut self,
        memory: &GuestRam,
        reference: u32,
        header: Header,
    ) -> Option<Part> {
        if self.version == Version::V1 {
            let gfn = self.word(memory, reference, 1).into();
            return Some(Part { gfn, start: 0, len: WHOLE, sub_page: false });
        }
        if header.kind() == GTF_TRANSITIVE {
            return None;
        }
        let mut word = |index| self.word(memory, reference, index);
        let gfn = u64::from(word(2)) | u64::from(word(3)) << 32;
        if header.flags() & GTF_SUB_PAGE == 0 {
            return Some(Part { gfn, start: 0, len: WHOLE, sub_page: false });
        }
        let part = Header(word(1));
        Some(Part { gfn, start: part.flags(), len: part.domid(), sub_page: true })
    }

    /// Swaps two entries with their status.
    pub(super) fn swap(&mut self, memory: &GuestRam, a: u32, b: u32) {
        for index in 0..self.version.words() {
            let [old_a, old_b] = [a, b].map(|reference| self.word(memory, reference, index));
            self.set_word(memory, a, index, old_b);
            self.set_word(memory, b, index, old_a);
        }
        let [old_a, old_b] = [a, b].map(|reference| self.status(memory, reference));
        for (reference, status) in [(a, old_b), (b, old_a)] {
            self.replace_status(memory, reference, status);
        }
    }

    pub(super) fn replace_status(&mut self, memory: &GuestRam, reference: u32, status: u16) {
        if let Some((frame, at, shift)) = self.status_word(reference) {
            frame.clear(memory, at, u32::from(!status) << shift);
            frame.set(memory, at, u32::from(status) << shift);
        }
    }
}

const _: () = {
    assert!(Version::V1.entries_size() == PAGE_SIZE);
    assert!(Version::V2.entries_size() == PAGE_SIZE);
};

impl Version {
    const fn entries_size(self) -> usize {
        match self {
            Self::V1 => 512 * size_of::<xen_abi::grant_table::GrantEntryV1>(),
            Self::V2 => 256 * size_of::<xen_abi::grant_table::GrantEntryV2FullPage>(),
        }
    }
}
